"""An anomaly map over its picture, as a picture of the same size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

_STRENGTH = 0.6  # of the hottest colour over the picture
_FRAME = (213, 94, 0)  # around a picture called defective
_LINE = (240, 228, 66)  # around pixels called defective


def overlay(
    image: Pixels, anomaly_map: npt.NDArray[np.floating[Any]], *, pixel_threshold: float | None, is_defective: bool
) -> Pixels:
    """A picture (H, W, 3) with its map (H, W) over it: the hotter, the more anomalous; NaN stays bare.

    With a pixel threshold that means something (a segmenter's), colours run from 0 to twice that, and a yellow line
    goes round what is above it. Without one they run from the median to the maximum of the picture's own map, which
    says where to look, not how bad it is. A picture called defective gets a red frame.
    """
    import cv2

    values = anomaly_map.astype(np.float32)
    low, high = 0.0, 2 * (pixel_threshold or 0)
    if not pixel_threshold and np.isfinite(values).any():
        low, high = float(np.nanmedian(values)), float(np.nanmax(values))
    heat = np.nan_to_num(np.clip((values - low) / max(high - low, 1e-12), 0, 1), nan=0.0)
    colours = cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = (_STRENGTH * heat)[..., None]
    drawn = np.ascontiguousarray((image * (1 - weight) + colours * weight).round().astype(np.uint8))
    width = max(1, round(max(image.shape[:2]) / 300))
    if pixel_threshold:
        region = (np.nan_to_num(anomaly_map, nan=-np.inf) >= pixel_threshold).astype(np.uint8)
        lines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, lines, -1, _LINE, width)
    if is_defective:
        cv2.rectangle(drawn, (0, 0), (image.shape[1] - 1, image.shape[0] - 1), _FRAME, 2 * width)
    return drawn
