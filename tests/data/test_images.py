import io
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from anomaly_lab.data.images import LowRangeWarning, read_image, read_mask
from anomaly_lab.errors import ConfigError, DataError

NUMBERS = np.array([[1, 2, 3], [4, 5, 6]])
# what a viewer shows of NUMBERS under each EXIF orientation, after the EXIF standard's table
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def picture(height=12, width=10):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def write_png16(path, values, orientation=None):
    """A 16-bit PNG of (H, W, C) values, made by hand: Pillow writes none in colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    if orientation:
        data += chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_tiff(path, values, orientation=1, sample_format=1):
    """An uncompressed little-endian RGB TIFF of 16- or 32-bit values (H, W, 3)."""
    height, width, _ = values.shape
    bits, pixels = values.dtype.itemsize * 8, values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 20)]
    tags += [(274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels))]
    tags += [(339, 3, 3, 14)]
    head = struct.pack("<2sHI", b"II", 42, 20 + len(pixels)) + struct.pack("<6H", *[bits] * 3, *[sample_format] * 3)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(head + pixels + directory + struct.pack("<I", 0))


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.dstack([grey] * 3))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "PNG", "TIF"])
def test_rgb_is_read_as_it_is(tmp_path, suffix):
    path = tmp_path / f"ein Bild mit Lücke 表面.{suffix}"
    Image.fromarray(picture()).save(path, lossless=True)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.array_equal(image, picture())


def test_jpeg(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 90)).save(tmp_path / "a.JPG", quality=95)
    assert np.abs(read_image(tmp_path / "a.JPG").astype(int) - (200, 30, 90)).max() <= 3


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 3


def test_alpha_is_dropped_and_not_composited(tmp_path):
    rgba = np.dstack([picture(), np.arange(120, dtype=np.uint8).reshape(12, 10)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(read_image(tmp_path / "rgba.png"), picture())
    Image.fromarray(rgba[..., [0, 3]], "LA").save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png"), np.dstack([rgba[..., 0]] * 3))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_is_rendered(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


def test_one_bit_spans_the_full_range(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path, suffix):
    levels = np.array([[0, 1, 128, 255]], np.uint16)
    Image.fromarray(levels * 257).save(tmp_path / f"a.{suffix}")  # 65535 = 255 * 257
    assert read_image(tmp_path / f"a.{suffix}")[..., 0].tolist() == levels.tolist()


def test_thirty_two_bit_integers_are_read_by_max_value(tmp_path):
    Image.fromarray(np.array([[0, 500, 100_000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*dataset\.max_value"):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", max_value=100_000)[..., 1].tolist() == [[0, 1, 255]]
    Image.fromarray(np.array([[-1, 500]], np.int32)).save(tmp_path / "negative.tif")
    with pytest.raises(DataError, match="-1 to 500"):
        read_image(tmp_path / "negative.tif")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_keeps_its_low_bytes(tmp_path, channels):
    deep = np.random.default_rng(1).integers(0, 4096, (5, 7, channels)).astype(np.uint16)
    deep[0, 0] = 4095
    write_png16(tmp_path / "a.png", deep)
    expected = np.rint(deep[..., :3] / 4095 * 255) if channels > 2 else np.rint(deep[..., [0, 0, 0]] / 4095 * 255)
    assert np.array_equal(read_image(tmp_path / "a.png", max_value=4095), expected)
    if channels == 3:
        write_tiff(tmp_path / "a.tif", deep)
        assert np.array_equal(read_image(tmp_path / "a.tif", max_value=4095), expected)


def test_twelve_bits_in_sixteen(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save(path)
    with pytest.warns(LowRangeWarning, match=r"dataset\.max_value"):
        assert read_image(path)[..., 0].max() == 16  # 4095 / 65535 * 255 = 15.9
    assert read_image(path, max_value=4095)[..., 0].tolist() == [[0, 128, 255]]
    with pytest.raises(DataError, match=r"a\.png.*4095.*dataset\.max_value"):
        read_image(path, max_value=1023)
    with pytest.raises(ConfigError, match=r"dataset\.max_value=0"):
        read_image(path, max_value=0)


def test_max_value_leaves_8_bit_images_alone(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", max_value=100), picture())


def test_a_folder_of_dark_images_is_one_warning(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in "abc":
            Image.fromarray(np.array([[0, ord(name)]], np.uint16)).save(tmp_path / f"{name}.png")
            read_image(tmp_path / f"{name}.png")
    assert len(caught) == 1


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    expected = np.array(UPRIGHT[orientation])
    Image.fromarray(NUMBERS.astype(np.uint8)).save(tmp_path / "8.png", exif=exif(orientation))
    assert np.array_equal(read_image(tmp_path / "8.png")[..., 0], expected)
    Image.fromarray(NUMBERS.astype(np.uint8)).save(tmp_path / "8.tif", exif=exif(orientation))
    assert np.array_equal(read_image(tmp_path / "8.tif")[..., 0], expected)
    Image.fromarray(NUMBERS.astype(np.uint16)).save(tmp_path / "16.png", exif=exif(orientation))
    assert np.array_equal(read_image(tmp_path / "16.png", max_value=6)[..., 0], np.rint(expected * 42.5))
    colour = np.dstack([NUMBERS * 1000, NUMBERS * 2000, NUMBERS * 10000]).astype(np.uint16)
    turned = np.rint(np.dstack([expected * 1000, expected * 2000, expected * 10000]) * 255 / 65535)
    write_png16(tmp_path / "deep.png", colour, orientation)
    assert np.array_equal(read_image(tmp_path / "deep.png"), turned)
    write_tiff(tmp_path / "deep.tif", colour, orientation)
    assert np.array_equal(read_image(tmp_path / "deep.tif"), turned)


def test_exif_turns_image_and_mask_together(tmp_path):
    image = np.zeros((4, 6), np.uint8)
    image[0, 5] = 255
    for name in ("image.png", "mask.png"):
        Image.fromarray(image).save(tmp_path / name, exif=exif(6))
    shown = read_image(tmp_path / "image.png")
    mask = read_mask(tmp_path / "mask.png", size=shown.shape[:2])
    assert mask.shape == (6, 4)
    assert np.argwhere(mask).tolist() == np.argwhere(shown[..., 0]).tolist() == [[5, 3]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(picture(64, 64)).save(path)
    data = path.read_bytes()
    for kept in (len(data) // 2, len(data) // 10):
        path.write_bytes(data[:kept])
        with pytest.raises(DataError, match=rf"cut\.{suffix}.*(Copy|Remove|export)"):
            read_image(path)


def test_a_truncated_deep_image_is_named(tmp_path):
    write_png16(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 65536, (64, 64, 3)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:15000])
    with pytest.raises(DataError, match=r"cut\.png.*truncated"):
        read_image(tmp_path / "cut.png")


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png: not an image of a known kind .*PNG"):
        read_image(tmp_path / "notes.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be opened \(No such file"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: cannot be opened"):
        read_image(tmp_path / "folder.png")
    Image.fromarray(picture()).save(tmp_path / "film.gif")
    with pytest.raises(DataError, match=r"film\.gif: not an image of a known kind"):
        read_image(tmp_path / "film.gif")


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "grey.tif")
    with pytest.raises(DataError, match=r"grey\.tif.*floating-point.*8 or 16 bits"):
        read_image(tmp_path / "grey.tif")
    write_tiff(tmp_path / "colour.tif", np.ones((4, 4, 3), np.float32), sample_format=3)
    with pytest.raises(DataError, match=r"colour\.tif.*8 or 16 bits"):
        read_image(tmp_path / "colour.tif")


@pytest.mark.parametrize("side", [10_000, 30_000])  # Pillow warns of the first and refuses the second
def test_a_decompression_bomb_is_named(tmp_path, side):
    write_png16(tmp_path / "bomb.png", np.zeros((1, 1, 3), np.uint16))
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(DataError, match=r"bomb\.png: too large.*Cut it"):
        read_image(tmp_path / "bomb.png")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_whatever_is_damaged_the_error_is_ours(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(picture(24, 24)).save(buffer, kind, exif=exif(6))
    rng, read = np.random.default_rng(0), 0
    for _ in range(150):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        where = rng.integers(0, min(len(data), 400), 4)
        data[where] = rng.integers(0, 256, 4)
        path = tmp_path / "damaged"
        path.write_bytes(data.tobytes())
        try:
            image = read_image(path)
        except DataError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert image.ndim == 3
            assert image.shape[2] == 3
            read += 1
    assert read < 150


def write_mask(path, values, mode=None):
    Image.fromarray(np.asarray(values), mode).save(path)
    return path


def test_an_antialiased_mask_is_cut_at_half(tmp_path):
    path = write_mask(tmp_path / "m.png", np.array([[0, 1, 127, 128, 200, 255]], np.uint8))
    mask = read_mask(path, size=(1, 6))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_mask_of_0_and_1_is_read_as_such_and_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="anomaly_lab"):
        path = write_mask(tmp_path / "m.png", np.array([[0, 1, 1]], np.uint8))
        assert read_mask(path, size=(1, 3)).tolist() == [[0, 1, 1]]
        assert [record.name for record in caplog.records] == ["anomaly_lab"]
        assert "m.png: a mask of only 0 and 1" in caplog.text
        read_mask(write_mask(tmp_path / "again.png", np.array([[0, 1, 1]], np.uint8)), size=(1, 3))
        assert "again.png" not in caplog.text
        caplog.clear()
        path = write_mask(tmp_path / "empty.png", np.array([[0, 0, 0]], np.uint8))
        assert not read_mask(path, size=(1, 3)).any()
        assert not caplog.records
        for name in ("two.png", "three.png"):
            path = write_mask(tmp_path / name, np.array([[0, 1, 38]], np.uint8))
            assert not read_mask(path, size=(1, 3)).any()
        (record,) = caplog.records
        assert "two.png: no value is above 38, and 128 and more is defective" in record.getMessage()


def test_colour_masks_count_any_channel_but_alpha(tmp_path):
    colours = np.array([[[0, 0, 0, 255], [128, 0, 0, 255], [0, 0, 200, 255], [90, 90, 90, 255]]], np.uint8)
    expected = [[0, 1, 1, 0]]
    assert read_mask(write_mask(tmp_path / "rgba.png", colours), size=(1, 4)).tolist() == expected
    assert read_mask(write_mask(tmp_path / "rgb.png", colours[..., :3].copy()), size=(1, 4)).tolist() == expected
    palette = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    palette.putpalette(colours[0, :, :3].ravel().tolist())
    palette.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png", size=(1, 4)).tolist() == expected


def test_one_bit_and_16_bit_masks(tmp_path):
    assert read_mask(write_mask(tmp_path / "1.png", [[True, False]]), size=(1, 2)).tolist() == [[1, 0]]
    for name, values, expected in [
        ("full", [0, 32767, 32768, 65535], [0, 0, 1, 1]),
        ("byte", [0, 127, 128, 255], [0, 0, 1, 1]),
        ("bit", [0, 1, 1, 0], [0, 1, 1, 0]),
    ]:
        path = write_mask(tmp_path / f"{name}.png", np.array([values], np.uint16))
        assert read_mask(path, size=(1, 4)).tolist() == [expected]


def test_a_mask_of_another_size_names_both(tmp_path):
    path = write_mask(tmp_path / "m.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r"m\.png: the mask is 30x20 .* its image 40x20"):
        read_mask(path, size=(20, 40))


def test_real_tiles_decode_as_opencv_decodes_them():
    if "ANOMALY_LAB_DATA" not in os.environ:
        pytest.skip("ANOMALY_LAB_DATA is not set")
    paths = sorted(Path(os.environ["ANOMALY_LAB_DATA"]).glob("magnetic_tile/MT_*/Imgs/*.jpg"))[::40]
    assert len(paths) == 34
    for path in paths:
        image = read_image(path)
        assert np.abs(image[..., 0].astype(int) - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).max() <= 2
        stored = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(read_mask(path.with_suffix(".png"), size=image.shape[:2]), stored >= 128)
