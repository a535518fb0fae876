"""The Road Surface Defect dataset of the DPAE paper."""

from __future__ import annotations

import os

from anomaly_lab.data.folder import ImageFolder
from anomaly_lab.data.layouts import warn_other_count
from anomaly_lab.data.records import Record


class RSD(ImageFolder):
    """Road surfaces, 224x224: 650 normal images (500 train, 150 test) and 450 defective ones of one type (Table 2).

    Layout (ours, the paper prints none): `<root>/normal/*.png` and `<root>/defect/*.png`.
    """

    name = "rsd"
    folder = "rsd"
    how_to_get = (
        "By the DPAE paper, RSD comes with its code (section 4.2 gives the address). Put the 650 normal images into "
        "normal/ and its 450 defective ones into defect/, or make a stand-in of CrackForest: anomaly-lab data make rsd."
    )
    licence = "not stated by its authors"
    marker = "normal"

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(root, normal="normal", defects="defect")

    def scan(self) -> list[Record]:
        """All images; a warning if the counts are not the paper's."""
        records = super().scan()
        warn_other_count(self.name, records, normal=650, defective=450)
        return records
