"""The protocol of the AE+UNet paper: learn from a few labelled images of each defect type, and from unlabelled ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly_lab.data.groups import Groups, by_part, by_type, defect_type, defectives, draw, shuffled
from anomaly_lab.data.normal_only import evaluation_lists, make_draft, notes_on, require_test_normals
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.records import GOOD, Record
from anomaly_lab.errors import ConfigError

PAPER_UNLABELLED = 2  # images of each test folder that join the unlabelled ones (P2 Table 1, inferred from its counts)
FEW_TESTED = 20  # defective images, under which some that are kept for labels had better be tested


class NothingToLabelError(ConfigError):
    """No defective image has a mask, or none can be spared from the test."""


@dataclass
class _Drawn:
    """What comes from parts that are not tested, and the paths of all their images."""

    labelled: list[Record]
    unlabelled: list[Record]
    paths: set[str]


def split_few_labelled(records: list[Record], options: SplitOptions) -> tuple[dict[str, list[Record]], list[str]]:
    """The lists `labelled`, `unlabelled`, `val`, `tune`, `test`, and notes on them.

    From each defect type's parts, in random order, come `labelled_per_type` labelled images (n) and
    `unlabelled_per_type` unlabelled ones, one image from a part; the part's other images are in no list. Where the
    publisher divides the dataset, his normal test images count as a type, as in P2 Table 1. Otherwise n of the
    training images are labelled. All training images are unlabelled; they, `val`, and what no label is taken from of
    `tune` and `test`, are drawn as `normal_only` draws them. Labels for 1 image are among those for 5, and up to
    `label_reserve` of them the other lists are the same.
    """
    count = options.labelled_per_type
    reserve = options.label_reserve or count
    if count > reserve:
        raise ConfigError(
            f"dataset.labelled_per_type={count} is more than dataset.label_reserve={reserve}, the parts of each type "
            "that are kept out of the test for labels. Raise label_reserve too, or set it to null: as many as are "
            "labelled. Either tests other images, so first stages are trained anew."
        )
    _require_labels(records)
    published = records[0].part is not None
    unlabelled = options.unlabelled_per_type
    if unlabelled is None:
        unlabelled = PAPER_UNLABELLED if published else 0
    rng = np.random.default_rng(options.split_seed)
    (own,) = rng.spawn(1)  # a stream of its own, so that normal_only's draws stay what they are
    notes: list[str] = []
    draft = make_draft(records, options, rng, notes)
    require_test_normals(draft, options, records)

    pool = by_part([record for record in records if record.part in (None, "test")], options.keeps_parts)
    if not published:
        pool = [group for group in pool if defect_type(group) is not None]
    tested = {record.path for group in draft.test for record in group}
    drawn = _draw(pool, tested, (count, unlabelled, reserve), own, notes)
    if not any(record.label for record in drawn.labelled):
        raise NothingToLabelError(
            "dataset.protocol=few_labelled: no defective image can be labelled while another one of its type is "
            "tested. Add defective images with masks, of at least two parts; or use dataset.protocol=normal_only."
        )
    if draft.train and not published:
        normal = _arranged(by_part(draft.train, options.keeps_parts), own)[:count]
        drawn.labelled += [group[0] for group in normal]
        if len(normal) < count:
            notes.append(f"{GOOD}: {len(normal)} images are labelled instead of {count}: there are no more parts.")
    lists = {
        "labelled": drawn.labelled,
        "unlabelled": draft.train + drawn.unlabelled,
        **evaluation_lists(draft, options, rng, drawn.paths),
    }
    notes += notes_on(records, lists, draft, options, drawn.paths)
    return lists, notes + _own_notes(records, lists, options, drawn.paths)


def _require_labels(records: list[Record]) -> None:
    """Check that there are defective images, and masks to learn them from."""
    if any(record.mask for record in records if record.label):
        return
    found = sum(record.label for record in records)
    what = f"none of the {found} defective images has one" if found else "there is no defective image"
    raise NothingToLabelError(
        f"dataset.protocol=few_labelled needs defective images with masks, and {what}. Below dataset.root, put "
        "defective images into folders named after their type, and masks of the same names where the layout has them "
        "(dataset=folder: masks/<type>/<name>.png, or ground_truth/<type>/<name>_mask.png beside train and test); or "
        "use dataset.protocol=normal_only."
    )


def _draw(
    pool: Groups, tested: set[str], counts: tuple[int, int, int], rng: np.random.Generator, notes: list[str]
) -> _Drawn:
    """What each defect type's groups give; `counts` are the labelled and unlabelled images, and the reserve."""
    count, unlabelled, reserve = counts
    drawn = _Drawn([], [], set())
    for name, groups in by_type(pool).items():
        defect = name or GOOD
        free, kept = _share(_arranged(groups, rng), defect, tested, unlabelled, reserve)
        drawn.labelled += [_labellable(group, defect)[0] for group in kept[:count]]
        drawn.unlabelled += [_of_type(group, defect)[0] for group in free]
        drawn.paths |= {record.path for group in free + kept for record in group}
        if len(free) < unlabelled or len(kept) < reserve:
            able = sum(bool(_labellable(group, defect)) for group in groups)
            few = [f"{len(kept)} are kept for labels instead of {reserve}"] if len(kept) < reserve else []
            if len(free) < unlabelled:
                few.append(f"{len(free)} give an unlabelled image instead of {unlabelled}")
            masks = "" if able == len(groups) else f", {able} of them with a mask" if able else ", none with a mask"
            left = len(groups) - len(free) - len(kept)
            few.append(f"{left} {'is' if left == 1 else 'are'} left to test")
            notes.append(f"{defect}: of {len(groups)} parts{masks}, {', '.join(few)}.")
    return drawn


def _arranged(groups: Groups, rng: np.random.Generator) -> Groups:
    """The groups in random order, the images of each too; what is taken of them later changes no further draw."""
    return [draw(group, len(group), rng) for group in shuffled(groups, rng)]


def _share(groups: Groups, defect: str, tested: set[str], unlabelled: int, reserve: int) -> tuple[Groups, Groups]:
    """Groups of one type, in random order, for unlabelled images and for labels; one that is tested is left.

    The unlabelled ones do not depend on the reserve. Of few groups, one is for labels before any is unlabelled.
    Groups without a mask, which cannot be labelled, are the first to be unlabelled.
    """
    order = sorted(groups, key=lambda group: not _labellable(group, defect))
    spare = next((group for group in reversed(order) if group[0].path in tested), order[-1])
    others = [group for group in order if group is not spare]
    end = len(others) - min(unlabelled, max(len(others) - 1, 0))
    return others[end:], [group for group in others[:end] if _labellable(group, defect)][:reserve]


def _of_type(group: list[Record], defect: str) -> list[Record]:
    return [record for record in group if record.defect == defect]


def _labellable(group: list[Record], defect: str) -> list[Record]:
    """The images of the type that a segmenter can learn from: a defective one needs its mask."""
    return [record for record in _of_type(group, defect) if record.mask or not record.label]


def _own_notes(
    records: list[Record], lists: dict[str, list[Record]], options: SplitOptions, aside: set[str]
) -> list[str]:
    notes = []
    unmasked = sum(record.mask is None for record in defectives([records]))
    if unmasked:
        notes.append(f"{unmasked} defective images have no mask, so they are not labelled.")
    used = {record.path for drawn in lists.values() for record in drawn}
    unused = len(aside - used)
    tested = sum(record.label for record in lists["test"])
    if tested < FEW_TESTED and (options.label_reserve or 0) > options.labelled_per_type:
        notes.append(
            f"Only {tested} defective images are left to test: dataset.label_reserve=null keeps none for more labels."
        )
    if unused:
        notes.append(
            f"{unused} images are neither learnt from nor tested: kept for more labels (dataset.label_reserve), or of "
            "a part that gave another image."
        )
    return notes
