"""MVTec AD, and its carpet category under the protocol of the DPAE paper (CSD)."""

from __future__ import annotations

import os

from anomaly_lab.data.layouts import contents, scan_parts, warn_other_count
from anomaly_lab.data.records import DefectDataset, Record
from anomaly_lab.errors import ConfigError, DataError, nearest

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)
CATEGORIES = tuple(sorted(TEXTURES + OBJECTS))

# P2 section 3.3 flips "wherever possible" and names no category. Not where a print, a thread or the order of wires
# would be mirrored; a metal nut's other side is one of its defects. All others allow both.
FLIPS = {
    **dict.fromkeys(("cable", "capsule", "metal_nut", "pill", "screw"), "none"),
    **dict.fromkeys(("toothbrush", "transistor"), "horizontal"),
}


class MVTecAD(DefectDataset):
    """One category of MVTec AD, as its publisher divides it into train and test.

    Layout: `<root>/<category>/train/good`, `.../test/<defect>`, `.../ground_truth/<defect>/<stem>_mask.png`.

    Args:
        root: the folder that holds the categories.
        category: one of `CATEGORIES`.
    """

    name = "mvtec"
    folder = "mvtec_ad"
    how_to_get = (
        "MVTec AD (Bergmann, Fauser, Sattlegger and Steger, CVPR 2019) is on the research pages of MVTec Software; "
        "anomaly-lab data prepare mvtec ARCHIVE unpacks it. The folder has to hold carpet, grid and the other "
        "categories."
    )
    licence = "CC BY-NC-SA 4.0"
    marker = "*/train/good"

    def __init__(self, root: str | os.PathLike[str] | None = None, category: str = "") -> None:
        super().__init__(root)
        if category not in CATEGORIES:
            raise ConfigError(
                f"dataset.category={category!r} is no category of MVTec AD. {nearest(category, CATEGORIES)}"
            )
        self.category = category

    @property
    def flips(self) -> str:
        """What the category allows, by `FLIPS`."""
        return FLIPS.get(self.category, "both")

    @property
    def is_texture(self) -> bool:
        """Whether the category is one of `TEXTURES`."""
        return self.category in TEXTURES

    def scan(self) -> list[Record]:
        """The category's images; `part` is the publisher's, masks go with the defective images they are named after."""
        root, base = self.root, self.root / self.category
        if not (base / "train" / "good").is_dir():
            if (root / "train" / "good").is_dir():
                hint = f"It looks like one category; give the folder above it, dataset.root={root.parent}."
            else:
                hint = self.how_to_get
            what = contents(base if base.is_dir() else root)
            raise DataError(f"{self.name}: there is no {self.category}/train/good in {root}; {what}. {hint}")
        return scan_parts(self.name, root, base)


class CSD(MVTecAD):
    """The DPAE paper's carpet surface defects: MVTec AD's carpet, 280 normal for training, 28 and 89 for test."""

    name = "csd"
    inside = "carpet"

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(root, category="carpet")

    def scan(self) -> list[Record]:
        """Carpet's images; a warning if they are not the 308 normal and 89 defective ones of Table 2."""
        records = super().scan()
        warn_other_count(self.name, records, normal=308, defective=89)
        return records
