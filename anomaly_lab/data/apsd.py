"""The Aluminum Profile Surface Defect dataset of the DPAE paper."""

from __future__ import annotations

import os

from anomaly_lab.data.folder import ImageFolder
from anomaly_lab.data.layouts import log, name_list, warn_other_count
from anomaly_lab.data.records import GOOD, Record

# the paper counts ten and lists these eleven (section 4.1)
DEFECTS = (
    "blister",
    "bump",
    "coarseness",
    "coating_crack",
    "convexity",
    "damage",
    "dirty_spot",
    "indentation",
    "jet_flow",
    "orange_peel",
    "rub_mark",
)


class APSD(ImageFolder):
    """Aluminium profiles, 224x224: 650 normal images (500 train, 150 test) and 450 defective ones (Table 2).

    Layout (ours, the paper prints none): `<root>/normal/*.png` and `<root>/defect/<type>/*.png`, with the types
    of `DEFECTS`.
    """

    name = "apsd"
    folder = "apsd"
    how_to_get = (
        "By the DPAE paper, APSD comes with its code (section 4.2 gives the address). Put the 650 normal images into "
        "normal/ and its 450 defective ones into defect/<type>/, such as defect/blister/."
    )
    licence = "not stated by its authors"
    marker = "normal"

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(root, normal="normal", defects="defect")

    def scan(self) -> list[Record]:
        """All images; a warning if types or counts are not the paper's."""
        records = super().scan()
        unknown = {record.defect for record in records} - {GOOD, *DEFECTS}
        if unknown:
            log.warning("apsd: defect types that the paper does not list: %s.", name_list(unknown))
        warn_other_count(self.name, records, normal=650, defective=450)
        return records
