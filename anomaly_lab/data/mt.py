"""The Magnetic Tile defect dataset, with the images of one tile put together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from anomaly_lab.data.layouts import contents, make_records, place, subfolders, warn_other_count
from anomaly_lab.data.records import GOOD, DefectDataset, Record, image_files
from anomaly_lab.errors import DataError

MAX_GAP = 60  # between the numbers of two exposures of one tile


class MagneticTile(DefectDataset):
    """Greyscale images of magnetic tiles: normal (`MT_Free`) and five defect types.

    Layout: `<root>/MT_<Class>/Imgs/<stem>.jpg`, the mask beside it as `<stem>.png`. The same tile was taken
    under up to six exposures: see `tile_groups`.
    """

    name = "mt"
    folder = "magnetic_tile"
    how_to_get = (
        "The Magnetic Tile defect dataset of Huang, Qiu and Yuan (Surface defect saliency of magnetic tile, The Visual "
        "Computer, 2020) is public: anomaly-lab data get mt brings it. The folder has to hold MT_Free, MT_Blowhole and "
        "the other classes."
    )
    licence = "research use, cite the paper"
    marker = "MT_Free/Imgs"
    address = "https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip"
    files = {  # noqa: RUF012  # of the class
        "MT_Blowhole": (230, "a711a0a2de61cdc8641d94bdcfef3b1d206294d11e302e4366df5b068cd959d0"),
        "MT_Break": (170, "78c1e940633f3dd2a919ba07d44bb9f582885cd4cdfd4afe374e4d9b8cc98350"),
        "MT_Crack": (114, "d784a150e3ae950e858585f2d866c8c531fa695598b4f9a2a2f3496525786b61"),
        "MT_Fray": (64, "5de7c3ff65f14e2ab7a134a8783d2a7b7240dfb910faa3e744b7b7e85f2b8d47"),
        "MT_Free": (1904, "6b835710c921904ded505823ae6ce29570f23bbc12ed43c836a810369a9e8b4f"),
        "MT_Uneven": (206, "ef82c7212bd11bde8ce17aa663e72c0b39ae3a9c81a4aa936b4e301f5bbe924e"),
    }

    def scan(self) -> list[Record]:
        """All images; the folder gives the label, since four defective images have an empty mask."""
        root = self.root
        images, masks = {}, {}
        for folder in subfolders(root):
            if folder.name.startswith("MT_") and (folder / "Imgs").is_dir():
                defect = folder.name.removeprefix("MT_").lower()
                for path in image_files(folder / "Imgs"):
                    if path.suffix.lower() == ".png":
                        masks[place(path, root)] = path
                    else:
                        images[path] = GOOD if defect == "free" else defect
        if GOOD not in images.values():
            raise DataError(f"mt: no image in {root / 'MT_Free' / 'Imgs'}; {contents(root)}. {self.how_to_get}")
        groups = tile_groups(path.stem for path in images)
        records = [
            replace(record, group=groups.get(PurePosixPath(record.path).stem, ""))
            for record in make_records(self.name, root, images, base=root, masks=masks)
        ]
        warn_other_count(self.name, records, normal=952, defective=392)
        return records


def tile_groups(stems: Iterable[str]) -> dict[str, str]:
    """The group of each file name `exp<K>_num_<N>`: the first name of a run of exposures of one tile.

    Sorted by N, a new group starts unless K rises and N by no more than `MAX_GAP`; normal and defective
    images are taken together. Other names are left out. The public 1344 images form 303 groups, in which the
    median correlation of thumbnails is 0.97 (overall 0.36).
    """
    found = (re.fullmatch(r"exp(\d+)_num_(\d+)", stem) for stem in stems)
    shots = sorted((int(match[2]), int(match[1]), match[0]) for match in found if match)
    groups: dict[str, str] = {}
    last_number, last_exposure, group = 0, 0, ""
    for number, exposure, stem in shots:
        if not group or exposure <= last_exposure or number - last_number > MAX_GAP:
            group = stem
        groups[stem] = group
        last_number, last_exposure = number, exposure
    return groups
