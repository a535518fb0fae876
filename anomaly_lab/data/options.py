"""The options of a dataset's config that are no scanner's own: how to split it, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from anomaly_lab.data.framing import RESIZE_POLICIES
from anomaly_lab.data.transforms import FLIPS
from anomaly_lab.errors import ConfigError, require

SPLITS = ("by_group", "by_tile", "random")
NATIVE: Final = "native"
STREAMS = ("unlabelled", "labelled", "all")
LABELS = ("real", "synthetic", "both")
SYNTHETIC_KINDS = ("texture", "patch", "blend", "crack", "spots", "light")  # of synthesis.py


@dataclass(frozen=True)
class SplitOptions:
    """How records are drawn into lists.

    Attributes:
        protocol: which lists there are, and from what: `normal_only` (the DPAE paper) or `few_labelled` (the AE+UNet
            paper).
        split: `by_group` keeps a physical part on one side (`by_tile` means the same); `random` draws image by
            image, as the papers do.
        split_seed: of the draw, apart from the training seed.
        train_count: normal training images; None means all that no other list takes.
        val_count: held-out normal images, besides the training images.
        test_normal_count: normal test images; None means the publisher's, or `test_fraction`.
        val_fraction: where val_count is None, the share of the normal training images cut from them as held-out.
        test_fraction: the share of the normal images to test, where neither publisher nor count says.
        tuning: the share of the test groups, of each defect type, that goes to `tune`.
        labelled_per_type: under `few_labelled`, the labelled images of each defect type, and the normal ones.
        unlabelled_per_type: under `few_labelled`, the images of each type that join the unlabelled ones; None means
            two where the publisher divides the dataset (P2 Table 1), and none elsewhere.
        label_reserve: under `few_labelled`, the parts of each type that are kept out of the test for labels, so that
            it is the same for fewer labels; None means as many as are labelled (P2 Table 1).
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
    labelled_per_type: int = 1
    unlabelled_per_type: int | None = None
    label_reserve: int | None = None

    def __post_init__(self) -> None:
        require("dataset.split", self.split, SPLITS)
        _require_whole("split_seed", self.split_seed, 0)
        _require_whole("labelled_per_type", self.labelled_per_type, 1)
        counts = {"train_count": 1, "val_count": 0, "test_normal_count": 0}
        for name, least in {**counts, "unlabelled_per_type": 0, "label_reserve": 1}.items():
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
        learns_from: the streams of training batches, each a list of the split: `unlabelled` (under `normal_only`
            the normal training images), `labelled`, or `all` of both in one stream.
        labels: what the stream `labelled` holds: `real` labelled images, normal ones with `synthetic` defects
            (synthesis.py), or `both`; None means real ones where the split has any, and else synthetic ones.
        synthetic_kinds: of synthetic defects; None means all.
        synthetic_share: of the normal images of the stream that get a defect each time they come; None means 0.9.
        real_share: of the images of the stream, about, that have a real defect with `both`, each at least once; None
            means an eighth.
        image_size: side of the squares that the network sees, in pixels.
        full_size: side of the square every image is brought to first, or `native` for the image as it is. What is
            larger than `image_size` is cropped at random in training, and tested in tiles; None: `DataPlan.full_size`.
        defect_crops: share of the crops of labelled images that are cut around a defective pixel; None means half of
            them where images keep their own size, since a small defect is rare in a large picture, and none elsewhere.
        tile_overlap: pixels that neighbouring tiles share at least, in testing.
        resize: `squash` (as the papers), `pad` or `crop`.
        max_value: white of 16-bit images, such as 4095 for 12 bits in 16.
        roi: the region of interest in pixels, [top, left, height, width]: what lies outside is cut off first.
        mask_threshold: from which grey value on a mask's pixel is defective; None means 128.
        ignore_value: the grey value of a mask's pixels that are not to be scored, such as 127; None: there is none.
        augment: whether training images are changed at random at all (P2 Table 4).
        flip: random flips in training: `none`, `horizontal` (left and right change places), `vertical` or `both`;
            None means what the dataset's parts allow.
        rotate: random rotation in training, up to so many degrees to either side.
        translate: random shift in training, up to this share of the side in either direction.
        steps_per_epoch: batches in an epoch, drawn in as many rounds as it takes; None: each image once.
        num_workers: loader processes; None means none on a CPU (reading the cache takes no time beside
            training there) and up to 8 beside a GPU.
    """

    learns_from: tuple[str, ...] = ("unlabelled",)
    labels: str | None = None
    synthetic_kinds: tuple[str, ...] | None = None
    synthetic_share: float | None = None
    real_share: float | None = None
    image_size: int = 224
    full_size: int | Literal["native"] | None = None
    defect_crops: float | None = None
    tile_overlap: int = 0
    resize: str = "squash"
    max_value: int | None = None
    roi: tuple[int, int, int, int] | None = None
    mask_threshold: int | None = None
    ignore_value: int | None = None
    augment: bool = True
    flip: str | None = None
    rotate: float = 0.0
    translate: float = 0.0
    batch_size: int = 8
    steps_per_epoch: int | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        streams = [self.learns_from] if isinstance(self.learns_from, str) else self.learns_from
        object.__setattr__(self, "learns_from", tuple(streams))  # a list, as YAML has it
        for stream in self.learns_from:
            require("dataset.learns_from", stream, STREAMS)
        if self.labels is not None:
            require("dataset.labels", self.labels, LABELS)
        if self.synthetic_kinds is not None:
            given = self.synthetic_kinds
            if not isinstance(given, list | tuple) or not given:
                raise ConfigError(f"dataset.synthetic_kinds={given!r} has to be a list: [{','.join(SYNTHETIC_KINDS)}].")
            for kind in given:
                require("dataset.synthetic_kinds", str(kind), SYNTHETIC_KINDS)
            object.__setattr__(self, "synthetic_kinds", tuple(given))
        if self.synthetic_share == 0:
            raise ConfigError("dataset.synthetic_share=0 would leave no defect to learn from: dataset.labels=real.")
        if self.real_share == 0:
            raise ConfigError("dataset.real_share=0 would leave no real defect: dataset.labels=synthetic.")
        require("dataset.resize", self.resize, RESIZE_POLICIES)
        require("dataset.flip", self.flip or "none", FLIPS)
        if self.roi is not None:
            roi = tuple(self.roi) if isinstance(self.roi, list | tuple) else ()
            whole = len(roi) == 4 and all(isinstance(pixels, int) for pixels in roi)
            if not whole or min(roi[:2]) < 0 or min(roi[2:]) < 1:
                raise ConfigError(f"dataset.roi={self.roi!r} has to be [top,left,height,width] in pixels.")
            object.__setattr__(self, "roi", roi)
        limits = {
            "mask_threshold": 1,
            "ignore_value": 0,
            "max_value": 1,
            "num_workers": 0,
            "steps_per_epoch": 1,
            "full_size": self.image_size,
        }
        for name, least in limits.items():
            if getattr(self, name) not in (None, NATIVE):
                _require_whole(name, getattr(self, name), least)
        _require_whole("tile_overlap", self.tile_overlap, 0)
        if self.tile_overlap >= self.image_size:
            raise ConfigError(f"dataset.tile_overlap={self.tile_overlap} has to be less than dataset.image_size.")
        highest = {"rotate": 180, "translate": 0.5, "defect_crops": 1, "synthetic_share": 1, "real_share": 0.9}
        for name, most in highest.items():
            value = getattr(self, name) or 0
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise ConfigError(f"dataset.{name}={value!r} has to be a number from 0 to {most}.")


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"dataset.{name}={value!r} has to be a whole number of at least {least}.")
