"""The options of a dataset's config that are no scanner's own: how to split it, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly_lab.data.transforms import RESIZE_POLICIES
from anomaly_lab.errors import ConfigError, require

SPLITS = ("by_group", "by_tile", "random")


@dataclass(frozen=True)
class SplitOptions:
    """How records are drawn into lists.

    Attributes:
        protocol: which lists there are, and from what: `normal_only` (the DPAE paper).
        split: `by_group` keeps a physical part on one side (`by_tile` means the same); `random` draws image by
            image, as the papers do.
        split_seed: of the draw, apart from the training seed.
        train_count: normal training images; None means all that no other list takes.
        val_count: held-out normal images, besides the training images.
        test_normal_count: normal test images; None means the publisher's, or `test_fraction`.
        val_fraction: where val_count is None, the share of the normal training images cut from them as held-out.
        test_fraction: the share of the normal images to test, where neither publisher nor count says.
        tuning: the share of the test groups, of each defect type, that goes to `tune`.
    """

    protocol: str = "normal_only"
    split: str = "by_group"
    split_seed: int = 0
    train_count: int | None = None
    val_count: int | None = None
    test_normal_count: int | None = None
    val_fraction: float = 0.0
    test_fraction: float = 0.2
    tuning: float = 0.0

    def __post_init__(self) -> None:
        require("dataset.split", self.split, SPLITS)
        _require_whole("split_seed", self.split_seed, 0)
        for name, least in (("train_count", 1), ("val_count", 0), ("test_normal_count", 0)):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), least)
        for name in ("val_fraction", "test_fraction", "tuning"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise ConfigError(f"dataset.{name}={value!r} has to be a number from 0 to below 1.")

    @property
    def keeps_parts(self) -> bool:
        """Whether a physical part stays on one side."""
        return self.split != "random"


@dataclass(frozen=True)
class LoadOptions:
    """How the images of a split become batches.

    Attributes:
        image_size: side of the square every image is brought to, in pixels.
        resize: `squash` (as the papers), `pad` or `crop`.
        max_value: white of 16-bit images, such as 4095 for 12 bits in 16.
        flip: random horizontal and vertical flips in training.
        num_workers: loader processes; None means none on a CPU (reading the cache takes no time beside
            training there) and up to 8 beside a GPU.
    """

    image_size: int = 224
    resize: str = "squash"
    max_value: int | None = None
    flip: bool = True
    batch_size: int = 8
    num_workers: int | None = None

    def __post_init__(self) -> None:
        require("dataset.resize", self.resize, RESIZE_POLICIES)
        for name, least in (("max_value", 1), ("num_workers", 0)):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), least)


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"dataset.{name}={value!r} has to be a whole number of at least {least}.")
