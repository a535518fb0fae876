"""A stand-in for the Road Surface Defect dataset, made of CrackForest's photographs as the DPAE paper made its own.

P1's section 4.1: normal images are cropped from defect-free road and resized to 224x224, defective images resized to
224x224. So the two differ in scale, in the paper as here: a normal image shows a small part of a road enlarged, a
defective one a whole photograph shrunk. What tells magnification tells normal from defective; the floors in each run's
table show how much. And patches of one photograph, and the photograph itself, lie on both sides of the split: each has
a crack, so that no photograph could be kept out of the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomaly_lab.data.archives import folder_beside, move_into, require_free
from anomaly_lab.data.crackforest import CrackForest
from anomaly_lab.data.images import read_image, read_mask
from anomaly_lab.errors import DataError
from anomaly_lab.types import NORMAL

SIZE = 224  # pixels of an image's side
NORMAL_COUNT = 650  # P1 Table 2
PATCH = 112  # the largest side, in whole fractions of SIZE, of which CrackForest has that many patches


def make_rsd(roads: CrackForest, target: Path) -> tuple[int, int]:
    """Fill `target` with `normal` and `defect` as `dataset=rsd` reads them; returns how many images of each.

    Always the same images: patches do not overlap, and 650 are drawn of all with a fixed seed. A patch is called
    `<photograph>_<top>_<left>.png`, a defective image as its photograph.

    Raises:
        DataError: if CrackForest is not there, or has too few free patches, or `target` has images already; nothing
            is left then.
    """
    require_free(target, ("normal", "defect"))
    records = roads.scan()
    with folder_beside(target) as made:
        for kind in ("normal", "defect"):
            (made / kind).mkdir()
        patches = []  # views: the photographs take 54 MB
        for record in records:
            path = roads.root / record.path
            image = read_image(path)
            _save(image, made / "defect" / f"{path.stem}.png")
            marked = read_mask(roads.root / str(record.mask), size=image.shape[:2]) != NORMAL
            for top, left in free_squares(marked, PATCH):
                patches.append((f"{path.stem}_{top}_{left}.png", image[top : top + PATCH, left : left + PATCH]))
        if len(patches) < NORMAL_COUNT:
            raise DataError(
                f"{roads.root}: {len(patches)} patches of {PATCH}x{PATCH} pixels are free of cracks, and "
                f"{NORMAL_COUNT} are needed: is it complete?"
            )
        for i in np.random.default_rng(0).choice(len(patches), NORMAL_COUNT, replace=False):
            file, patch = patches[i]
            _save(patch, made / "normal" / file)
        move_into(made, target)
    return NORMAL_COUNT, len(records)


def free_squares(marked: npt.NDArray[np.bool_], side: int) -> Iterator[tuple[int, int]]:
    """Top and left of squares that hold no marked pixel and do not overlap, from the top left on.

    Args:
        marked: (H, W).
    """
    area = np.pad(marked.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # marked pixels above and left of each corner
    is_free = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side] == 0
    while is_free.any():
        top, left = (int(i) for i in np.unravel_index(is_free.argmax(), is_free.shape))
        yield top, left
        is_free[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = False


def _save(image: npt.NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(path)
