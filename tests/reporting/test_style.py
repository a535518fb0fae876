import numpy as np
import pytest
from figure_tools import drawn

from anomaly_lab.reporting.style import panels, paste, sheet


def test_a_sheet_counts_inches_from_the_top_left():
    figure, page = sheet(4, 2)
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = (255, 0, 0)  # top right
    paste(page, picture, (1, 0.5, 0.5, 1))
    pixels = np.asarray(drawn(figure).canvas.buffer_rgba())[..., :3]  # 100 in an inch
    inked = np.argwhere((pixels != 255).any(-1))
    assert [*inked.min(0), *inked.max(0)] == pytest.approx([50, 100, 149, 149], abs=1)
    assert (pixels[55:95, 130:145] == (255, 0, 0)).all()
    assert (pixels[55:95, 105:120] == 0).all()
    assert (pixels[105:145, 130:145] == 0).all()


def test_panels_have_their_size_margins_and_gaps_in_inches():
    figure, axes = panels(2, 3, (2.0, 1.0), (0.5, 0.25, 0.75, 0.3), (0.4, 0.6))
    width, height = figure.get_size_inches()
    assert (width, height) == pytest.approx((0.5 + 3 * 2 + 2 * 0.4 + 0.25, 0.75 + 2 * 1 + 0.6 + 0.3))
    left, bottom, wide, high = axes[0, 1].get_position().bounds * np.array([width, height, width, height])
    assert (left, bottom, wide, high) == pytest.approx((0.5 + 2 + 0.4, 0.3 + 1 + 0.6, 2, 1))


@pytest.mark.parametrize(("side", "smoothing"), [(10, "nearest"), (110, "auto")])
def test_pixels_stay_visible_where_a_picture_is_much_enlarged(side, smoothing):
    _, page = sheet(2, 2)
    paste(page, np.zeros((side, side, 3), np.uint8), (0, 0, 1, 1))
    assert page.images[0].get_interpolation() == smoothing


@pytest.mark.parametrize("shape", [(500, 700), (1250, 55), (55, 1250)])
def test_a_single_high_pixel_of_a_large_map_is_drawn(shape):
    """A defect of one pixel, pasted on 100 x 100: a mean there would hide it, and a sample miss it."""
    values = np.zeros(shape, np.float32)
    values[shape[0] * 16 // 25, shape[1] * 13 // 20] = 1
    figure, page = sheet(2, 2)
    paste(page, values, (0.5, 0.5, 1, 1), cmap="gray", vmin=0, vmax=1)
    pixels = np.asarray(drawn(figure).canvas.buffer_rgba())[50:150, 50:150, 0]
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert pixels.max() > 127
    assert (row, column) == pytest.approx((64, 65), abs=2)
