"""What several seeds say together: a mean's interval, two methods on the same seeds, and a printed value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Verdict = Literal["reproduced", "different", "undecided", "not run"]

LEVEL = 0.95  # of the intervals
CLOSE = 0.03  # to each side of the mean: an interval up to here is narrow enough to say reproduced
PAIRS = 6  # under which no p-value is given: the least possible one of five pairs is 2 / 2**5 > 0.05
_EXACT = 14  # pairs up to which all sign flips are tried
_RESAMPLES = 20_000
_DUST = 1e-9  # what floating point leaves of the mean of equal values


@dataclass(frozen=True)
class Spread:
    """Values over seeds.

    Attributes:
        count: how many seeds.
        mean: of the values.
        deviation: the sample standard deviation; None for one seed.
        interval: Student's t interval of the mean, [low, high]; None for one seed.
    """

    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """One method less another, seed by seed.

    Attributes:
        spread: of the differences.
        p_value: two-sided, of a sign-flip test of their mean; None under six pairs.
    """

    spread: Spread
    p_value: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and t interval of one value per seed.

    Raises:
        ValueError: without any value, or with one that is no number.
    """
    array = np.asarray(values, float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"one number per seed is needed, these are {list(values)}")
    mean = float(array.mean())
    if len(array) == 1:
        return Spread(1, mean, None, None)
    deviation = float(array.std(ddof=1))
    from scipy.stats import t

    reach = float(t.ppf((1 + LEVEL) / 2, len(array) - 1)) * deviation / len(array) ** 0.5
    return Spread(len(array), mean, deviation, (mean - reach, mean + reach))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The differences of two methods that were run on the same seeds, given in the same order.

    The test asks how often the mean difference is at least as far from 0 when each pair's sign is drawn by a coin: all
    of them up to 14 pairs, 20,000 draws with a fixed seed beyond.

    Raises:
        ValueError: if the two are not equally many.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"pairs are needed, these are {len(ours)} and {len(theirs)} values")
    differences = np.subtract(ours, theirs, dtype=float)
    p_value = _sign_flip(differences) if len(differences) >= PAIRS else None
    return Difference(spread(differences.tolist()), p_value)


def _sign_flip(differences: npt.NDArray[np.float64]) -> float:
    count = len(differences)
    if count <= _EXACT:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        drawn = 0
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (_RESAMPLES, count))
        drawn = 1  # the observed signs are one of the draws (Phipson and Smyth 2010)
    means = np.abs(signs @ differences) / count
    as_far = means >= abs(differences.mean()) * (1 - 1e-12) - 1e-15
    return float((as_far.sum() + drawn) / (len(signs) + drawn))


def verdict(found: Spread | None, printed: float | None, *, close: float = CLOSE) -> Verdict | None:
    """What the seeds say of a printed value; None where nothing is printed.

    `reproduced` if the interval holds it and reaches at most `close` to each side, `different` if it does not hold it,
    `undecided` if it is wider, or one seed has none.
    """
    if printed is None:
        return None
    if found is None:
        return "not run"
    if found.interval is None:
        return "undecided"
    low, high = found.interval
    if not low - _DUST <= printed <= high + _DUST:
        return "different"
    return "reproduced" if (high - low) / 2 <= close + _DUST else "undecided"
