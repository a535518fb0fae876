"""The protocol of the DPAE paper: train on normal images, test on others and on all defective ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from anomaly_lab.data.groups import (
    Groups,
    by_part,
    defect_type,
    defectives,
    divide,
    draw,
    normals,
    round_half_up,
    shuffled,
    take,
)
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.painting import KINDS
from anomaly_lab.data.records import Record
from anomaly_lab.errors import ConfigError, DataError


@dataclass
class Draft:
    """The sides of a split before the test normals are drawn: whole groups for tune and test."""

    train: list[Record]
    held_out: list[Record]
    tune: Groups
    test: Groups
    test_normals: int | None  # None: all of that side
    tune_normals: int | None


def split_normal_only(records: list[Record], options: SplitOptions) -> tuple[dict[str, list[Record]], list[str]]:
    """The lists `train_normal`, `val`, `tune`, `test`, and notes on them.

    Where the publisher divides the dataset, his parts are kept. Otherwise only groups without any defective
    image train: shuffled, whole groups fill train, further ones val, the last of each cut short, its surplus
    dropped. Test normals come from the other groups.
    """
    if not any(not record.label for record in records):
        raise DataError(
            "There is no normal image to train on. Add some, or learn from a few labelled defects: "
            "dataset.protocol=few_labelled, with a method that learns from labels."
        )
    rng = np.random.default_rng(options.split_seed)
    notes: list[str] = []
    draft = make_draft(records, options, rng, notes)
    if not draft.train:
        raise ConfigError(
            "No normal image is left for training: lower dataset.test_fraction, test_normal_count, val_fraction or "
            "val_count, or add normal images."
        )
    require_test_normals(draft, options, records)
    lists = {"train_normal": draft.train, **evaluation_lists(draft, options, rng)}
    return lists, notes + notes_on(records, lists, draft, options)


def make_draft(records: list[Record], options: SplitOptions, rng: np.random.Generator, notes: list[str]) -> Draft:
    """The sides of the split: the publisher's, or drawn; what is left out by it goes to `notes`."""
    if records[0].part is not None:
        return _as_published(records, options, rng, notes)
    if options.train_count is not None:
        return _train_first(records, options, rng)
    return _test_first(records, options, rng)


def require_test_normals(draft: Draft, options: SplitOptions, records: list[Record]) -> None:
    """Check that the test side holds the normal images that the options ask for.

    Raises:
        ConfigError: if not.
    """
    wanted, available = draft.test_normals, len(normals(draft.test))
    if wanted is not None and wanted > available:
        beside = f" beside the {round_half_up(options.tuning * 100)}% for tune" if options.tuning else ""
        option = "test_fraction" if options.test_normal_count is None else "test_normal_count"
        raise _too_few(option, wanted, available, f"in groups that do not train{beside}", records)


def evaluation_lists(
    draft: Draft, options: SplitOptions, rng: np.random.Generator, without: Collection[str] = ()
) -> dict[str, list[Record]]:
    """The lists `val`, `tune` and `test`; the paths in `without` leave the draw of all others as it would be."""
    return {
        "val": draft.held_out + painted_copies(draft.held_out),
        "tune": _side(draft.tune, draft.tune_normals, rng, without) if options.tuning else [],
        "test": _side(draft.test, draft.test_normals, rng, without),
    }


def painted_copies(held_out: list[Record]) -> list[Record]:
    """A copy of each record to paint a defect onto, the kinds taking turns."""
    ordered = sorted(held_out, key=lambda record: record.path)
    kinds = (KINDS[i % len(KINDS)] for i in range(len(ordered)))
    return [
        replace(record, painted=kind, defect=f"painted_{kind}") for record, kind in zip(ordered, kinds, strict=True)
    ]


def _as_published(records: list[Record], options: SplitOptions, rng: np.random.Generator, notes: list[str]) -> Draft:
    test = by_part([record for record in records if record.part == "test"], options.keeps_parts)
    if not test:
        raise DataError("The dataset is divided already, and nothing of it is to be tested: no image's split is test.")
    elsewhere = {record.part_of for group in test for record in group} if options.keeps_parts else set()
    sides: dict[str, list[Record]] = {}
    for part, name in (("val", "held-out"), ("train", "training")):
        pool = [record for record in records if record.part == part]
        if defective := sum(record.label for record in pool):
            notes.append(f"{defective} defective images of the {name} part are left out.")
        sides[part] = [record for record in pool if not record.label and record.part_of not in elsewhere]
        if lost := len(normals([pool])) - len(sides[part]):
            notes.append(f"{lost} {name} images show a part that is tested or held out; they are left out.")
        if options.keeps_parts and options.val_count is None:  # else val is cut anew, and his is not used
            elsewhere |= {record.part_of for record in sides[part]}
    groups, held_out = shuffled(by_part(sides["train"], options.keeps_parts), rng), sides["val"]
    if held_out and options.val_count is None:
        train, _, _ = _cut(groups, replace(options, val_fraction=0.0), records)
    else:
        train, held_out, _ = _cut(groups, options, records)
    tune, test = divide(test, options.tuning, rng)
    count = options.test_normal_count
    return Draft(train, held_out, tune, test, count, None if count is None else round_half_up(options.tuning * count))


def _train_first(records: list[Record], options: SplitOptions, rng: np.random.Generator) -> Draft:
    free, mixed = _free_and_mixed(records, options, rng)
    train, held_out, rest = _cut(free, options, records)
    tune, test = divide(mixed + rest, options.tuning, rng)
    return Draft(train, held_out, tune, test, *_counts(records, options))


def _test_first(records: list[Record], options: SplitOptions, rng: np.random.Generator) -> Draft:
    free, mixed = _free_and_mixed(records, options, rng)
    tune, test = divide(mixed, options.tuning, rng)
    test_count, tune_count = _counts(records, options)
    for_test, free = take(free, test_count - len(normals(test)))
    for_tune, free = take(free, tune_count - len(normals(tune)))
    train, held_out, _ = _cut(free, options, records)
    return Draft(train, held_out, tune + for_tune, test + for_test, test_count, tune_count)


def _free_and_mixed(records: list[Record], options: SplitOptions, rng: np.random.Generator) -> tuple[Groups, Groups]:
    """The groups without a defective image, shuffled, and the others."""
    groups = by_part(records, options.keeps_parts)
    free = [group for group in groups if defect_type(group) is None]
    return shuffled(free, rng), [group for group in groups if defect_type(group) is not None]


def _counts(records: list[Record], options: SplitOptions) -> tuple[int, int]:
    """How many normal images to test, and to tune on."""
    if options.test_normal_count is not None:
        return options.test_normal_count, round_half_up(options.tuning * options.test_normal_count)
    both = round_half_up(options.test_fraction * len(normals([records])))
    tune = round_half_up(options.tuning * both)
    return both - tune, tune


def _cut(groups: Groups, options: SplitOptions, records: list[Record]) -> tuple[list[Record], list[Record], Groups]:
    """Training images, held-out images and the untouched rest of shuffled groups."""
    available = len(normals(groups))
    train_count = options.train_count
    if options.val_count is not None:
        val_count = options.val_count
    else:
        val_count = round_half_up(options.val_fraction * (available if train_count is None else train_count))
        train_count = None if train_count is None else train_count - val_count
    if train_count is None:
        for_val, rest = take(groups, val_count)
        for_train: Groups = rest
        rest = []
    else:
        if train_count > available:
            raise _too_few("train_count", train_count, available, "in groups without a defective one", records)
        for_train, rest = take(groups, train_count)
        for_val, rest = take(rest, val_count)
    if val_count > len(normals(for_val)):
        raise _too_few("val_count", val_count, len(normals(for_val)), "beside those for training", records)
    return normals(for_train)[:train_count], normals(for_val)[:val_count], rest


def _side(groups: Groups, normal_count: int | None, rng: np.random.Generator, without: Collection[str]) -> list[Record]:
    held = normals(groups)
    drawn = [record for record in draw(held, len(held), rng) if record.path not in without]
    return drawn[:normal_count] + [record for record in defectives(groups) if record.path not in without]


def _too_few(option: str, asked: int, available: int, where: str, records: list[Record]) -> ConfigError:
    return ConfigError(
        f"dataset.{option} asks for {asked} normal images, and {available} are available {where} (the dataset has "
        f"{len(normals([records]))} normal images in all). Lower it, or check that the dataset is complete."
    )


def notes_on(
    records: list[Record],
    lists: dict[str, list[Record]],
    draft: Draft,
    options: SplitOptions,
    without: Collection[str] = (),
) -> list[str]:
    """What a person should know of the lists; of the paths in `without`, another note tells."""
    notes = []
    used = {record.path for drawn in lists.values() for record in drawn} | set(without)
    unused = sum(record.path not in used for record in normals([records]))
    if unused:
        notes.append(
            f"{unused} of {len(normals([records]))} normal images are in no list: not asked for, or of a cut part."
        )
    for name, wanted in (("tune", draft.tune_normals if options.tuning else None), ("test", draft.test_normals)):
        got = len(normals([lists[name]]))
        if wanted is not None and got < wanted:
            notes.append(f"{name} has {got} normal images instead of {wanted}: there are no more.")
    return notes
