"""Opening image and mask files of any common kind, and saying plainly which file cannot be opened."""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from anomaly_lab.data.matlab import read_field
from anomaly_lab.data.polygons import read_polygons
from anomaly_lab.errors import ConfigError, DataError
from anomaly_lab.types import DEFECTIVE, IGNORE, NORMAL

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # told by the content, whatever the suffix says
MASK_THRESHOLD = 128  # of 255; from here on a mask's pixel is defective
DEEP_MAX = 65535  # the largest value of a 16-bit file
BITS_PER_SAMPLE = 258  # the TIFF tag

# What the values 1 to 4 of a CrackForest segmentation mean. Beside background and crack there are 3, the sound
# surface that cracks enclose, filled in 22 of 118 files and left as background in others, and 4, hairline cracks
# beside a wider one, marked in 5: neither is plainly normal or defective (together 0.7% of the pixels).
SEGMENTS = np.array([IGNORE, NORMAL, DEFECTIVE, IGNORE, IGNORE], np.uint8)

logger = logging.getLogger("anomaly_lab")
_told: set[tuple[Path, int]] = set()  # folders, and at which level something was said about their masks


class LowRangeWarning(UserWarning):
    """A 16-bit image that is nearly black on the scale it is read by."""


def read_image(path: Path, *, max_value: int | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file, upright, as 8-bit RGB (H, W, 3).

    8-bit files keep their values; 16-bit ones are scaled from 0..`max_value` (65535 unless given) to
    0..255. Grey becomes three equal channels, an alpha channel is dropped without compositing, a
    palette is rendered, and of several frames the first is read.

    Raises:
        DataError: if the file is missing, empty, damaged, too large, floating-point, no image, or has
            values above `max_value`.
    """
    return _as_rgb(_decode(path), max_value, str(path))


def to_rgb(image: Image.Image | npt.NDArray[Any], *, max_value: int | None = None) -> npt.NDArray[np.uint8]:
    """A picture in memory as `read_image` would give it: a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        DataError: if it is empty, floating-point, of another shape, or has values above `max_value`.
    """
    if isinstance(image, Image.Image):
        try:
            values = _of_pillow(image)
        except Exception as error:  # a damaged file, opened but not yet decoded
            raise DataError(f"The image cannot be used: {error}.") from error
    else:
        values = np.asarray(image)
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 3, 4) or not values.size:
        raise DataError(f"An image has to be an array (H, W), (H, W, 3) or (H, W, 4), not {values.shape}.")
    # of Pillow, 16 bits come as int32
    if values.dtype not in (np.uint8, np.uint16) and not isinstance(image, Image.Image):
        raise DataError(
            f"An image has to be of uint8 (0 to 255) or uint16 (16 bits), not of {values.dtype}: convert it first."
        )
    values = values[..., 0] if values.ndim == 3 and channels == 1 else values
    return _as_rgb(values[..., :3] if values.ndim == 3 else values, max_value, "The image")


def _as_rgb(values: npt.NDArray[Any], max_value: int | None, where: str) -> npt.NDArray[np.uint8]:
    if values.dtype != np.uint8:
        values = _to_8_bit(values, DEEP_MAX if max_value is None else max_value, where)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


@dataclass(frozen=True)
class MaskRule:
    """What a mask's grey values mean.

    Attributes:
        threshold: from here on a pixel is defective; None: 128, and a file of only 0 and 1 is read as such.
        ignore: the value of pixels that are not scored.
    """

    threshold: int | None = None
    ignore: int | None = None


PLAIN = MaskRule()


def read_mask(
    path: Path, *, size: tuple[int, int], rule: MaskRule = PLAIN, image: Path | None = None
) -> npt.NDArray[np.uint8]:
    """Read a mask file, upright, as (H, W) with the values NORMAL, DEFECTIVE and IGNORE.

    A picture's pixels of 128 and more (`rule`), in any colour channel, are defective; a file of only 0 and 1 is read
    as such. A 16-bit file whose values pass 255 is brought to 8 bits first. A file named .mat is a segmentation as
    CrackForest has them (`SEGMENTS`), one named .json holds polygons (polygons.py); a COCO file holds those of many
    images, and `image` says of which. `size` is the image's (height, width).

    Raises:
        DataError: if the file cannot be read, or has another size than its image.
    """
    if path.suffix.lower() == ".json":
        return read_polygons(path, image=image or path, size=size)
    segmented = path.suffix.lower() == ".mat"
    values = _segmentation(path) if segmented else _decode(path)
    if values.ndim == 3:
        values = values.max(axis=2)
    if values.shape != tuple(size):
        (height, width), (image_height, image_width) = values.shape, size
        raise DataError(
            f"{path}: the mask is {width}x{height} pixels (width x height), its image {image_width}x{image_height}. "
            "Export the mask at the image's size, or remove it to leave the image without a mask."
        )
    if segmented:
        return np.take(SEGMENTS, values)
    marked = _by_threshold(values, path, rule)
    return marked if rule.ignore is None else np.where(values == rule.ignore, np.uint8(IGNORE), marked)


def _by_threshold(values: npt.NDArray[Any], path: Path, rule: MaskRule) -> npt.NDArray[np.uint8]:
    if rule.threshold is not None:
        return np.where(values >= rule.threshold, np.uint8(DEFECTIVE), np.uint8(NORMAL))
    scored = values if rule.ignore is None else values[values != rule.ignore]
    peak = int(scored.max()) if scored.size else 0
    threshold = MASK_THRESHOLD
    if peak == 1:
        _say_once(logging.INFO, path, "a mask of only 0 and 1, read as normal and defective")
        threshold = 1
    elif peak > 255:
        threshold = MASK_THRESHOLD << 8
    elif 1 < peak < MASK_THRESHOLD:
        reason = f"no value is above {peak}, and {MASK_THRESHOLD} and more is defective, so the mask is read as empty"
        _say_once(logging.WARNING, path, reason)
    return np.where(values >= threshold, np.uint8(DEFECTIVE), np.uint8(NORMAL))


def _say_once(level: int, path: Path, what: str) -> None:
    """Log what holds of a mask and probably of all that lie beside it."""
    if (path.parent, level) not in _told:
        _told.add((path.parent, level))
        logger.log(level, "%s: %s; so may be others beside it.", path, what)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}). Check the path and its permissions.") from error
    if not data:
        raise DataError(f"{path}: the file is empty. Copy it again from its source, or remove it.")
    return data


def _segmentation(path: Path) -> npt.NDArray[np.uint8]:
    """The array `groundTruth.Segmentation` (H, W) of a MATLAB file, its values 1 to 4."""
    data = _read(path)
    try:
        values = read_field(data, "groundTruth", "Segmentation")
    except ValueError as error:
        raise DataError(
            f"{path}: no groundTruth.Segmentation can be read ({error}). Copy it again from its source, or remove it "
            "to leave its image out."
        ) from error
    if values.ndim != 2 or not np.isin(values, range(1, len(SEGMENTS))).all():
        raise DataError(
            f"{path}: groundTruth.Segmentation has to be a picture (height, width) of the values 1 to 4, and is "
            f"{values.dtype} {values.shape}. Copy it again from its source, or remove it to leave its image out."
        )
    whole: npt.NDArray[np.uint8] = values.astype(np.uint8)
    return whole


def _decode(path: Path) -> npt.NDArray[Any]:
    """The file's pixels as stored, upright: (H, W) or RGB (H, W, 3), of integers."""
    data = _read(path)
    try:
        return _pixels(data)
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: not an image of a known kind ({', '.join(FORMATS)}, with 8 or 16 bits a channel). "
            "Remove it, or export it again as PNG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: too large ({error}). Cut it into smaller images, or scale it down.") from error
    except Exception as error:  # a damaged file drives decoders into errors of nearly every type
        raise DataError(
            f"{path}: cannot be decoded ({error}). Copy it again from its source, export it as PNG, or remove it."
        ) from error


def _pixels(data: bytes) -> npt.NDArray[Any]:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    deep = _has_deep_colour(image, data)
    image.load()  # complains of a truncated file, which cv2 may not
    if deep:
        return _deep_colour(data)
    return _of_pillow(image)


def _of_pillow(image: Image.Image) -> npt.NDArray[Any]:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known; 8 or 16 bits are needed")
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of transparent entries
    return np.array(image.convert("RGB"))


def _has_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether it is 16-bit but not plain grey, of which Pillow would drop the low bytes."""
    if image.mode.startswith(("I", "F")):
        return False
    if image.format == "PNG":
        return data[24] == 16  # the header's bit depth
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    return max(bits) > 8


def _deep_colour(data: bytes) -> npt.NDArray[Any]:
    import cv2

    # imdecode, because imread of cv2 5.0 fails on rotated TIFFs; both turn the image as EXIF says
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if bgr is None or bgr.dtype != np.uint16:
        raise ValueError("an unusual kind of image with more than 8 bits a channel")
    return bgr[..., ::-1]


def _to_8_bit(values: npt.NDArray[Any], max_value: int, where: str) -> npt.NDArray[np.uint8]:
    if max_value <= 0:
        raise ConfigError(f"dataset.max_value={max_value}: the largest value of a pixel, such as 4095, is needed.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > max_value:
        raise DataError(
            f"{where}: pixel values {low} to {high} are outside 0..{max_value}. Set dataset.max_value to the largest "
            "value your camera gives (1023, 4095, 16383 or 65535)."
        )
    if high < 0.1 * max_value:
        # the file is not named: one line for a folder of such images, not one for each
        warnings.warn(
            f"a 16-bit image stays below a tenth of its range 0..{max_value} and will look black. If your camera "
            "gives 10, 12 or 14 bits, set dataset.max_value to 1023, 4095 or 16383.",
            LowRangeWarning,
            stacklevel=2,
        )
    return np.rint(values * np.float32(255 / max_value)).astype(np.uint8)
