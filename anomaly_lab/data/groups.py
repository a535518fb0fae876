"""Records by physical part: cutting, dividing and drawing without putting a part on two sides."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from anomaly_lab.data.records import Record

Groups = list[list[Record]]  # the images of one physical part together


def round_half_up(value: float) -> int:
    """The nearest integer; 0.7 * 45 = 31.499999999999996 is meant as 31.5."""
    return math.floor(value + 0.5 + 1e-9)


def by_part(records: Iterable[Record], keep_parts: bool) -> Groups:
    """Records grouped by physical part, or each image for itself; sorted, whatever order they came in."""
    groups = defaultdict(list)
    for record in sorted(records, key=lambda record: record.path):
        groups[record.part_of if keep_parts else record.path].append(record)
    return list(groups.values())


def normals(groups: Groups) -> list[Record]:
    """The normal images of groups."""
    return [record for group in groups for record in group if not record.label]


def defectives(groups: Groups) -> list[Record]:
    """The defective images of groups."""
    return [record for group in groups for record in group if record.label]


def defect_type(group: list[Record]) -> str | None:
    """The type of a group's first defective image; None for a group without one."""
    return next((record.defect for record in group if record.label), None)


def by_type(groups: Groups) -> dict[str, Groups]:
    """Groups by their defect type, in the order of its name; those without a defect are of the type ''."""
    types: dict[str, Groups] = defaultdict(list)
    for group in groups:
        types[defect_type(group) or ""].append(group)
    return dict(sorted(types.items()))


def shuffled(groups: Groups, rng: np.random.Generator) -> Groups:
    """The groups in random order."""
    return [groups[i] for i in rng.permutation(len(groups))]


def take(groups: Groups, count: int) -> tuple[Groups, Groups]:
    """Groups from the front until they hold `count` normal images, and the groups after them."""
    held = 0
    for position, group in enumerate(groups):
        if held >= count:
            return groups[:position], groups[position:]
        held += len(normals([group]))
    return groups, []


def divide(groups: Groups, share: float, rng: np.random.Generator) -> tuple[Groups, Groups]:
    """Groups at random into (a share of each defect type's, the others); those without a defect count as a type."""
    first, second = [], []
    for of_type in by_type(groups).values():
        order = shuffled(of_type, rng)
        count = round_half_up(share * len(order))
        first += order[:count]
        second += order[count:]
    return first, second


def draw(records: list[Record], count: int, rng: np.random.Generator) -> list[Record]:
    """`count` records at random, fewer if there are fewer."""
    return [records[i] for i in rng.permutation(len(records))[:count]]
