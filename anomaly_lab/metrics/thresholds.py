"""A threshold for use: by the false alarms one can bear, or by what a miss and a false alarm cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.image import quantile_interval
from anomaly_lab.metrics.statistics import LEVEL

Scores = npt.NDArray[np.float64]  # (N,) higher = more anomalous
Interval = tuple[float | None, float | None]  # None: open on this side

_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_HAIR = 1e-6  # of a score, how far a threshold lies above it: float32 has seven digits
_FOLDS = 10


@dataclass(frozen=True)
class Threshold:
    """A threshold and what to expect of it; a picture is called defective where its score is above.

    Attributes:
        value: of the threshold.
        interval: 95%, of what the same choice gives on other held-out images.
        false_alarms: expected share of the normal pictures that are called defective.
        false_alarms_interval: 95%.
        misses: expected share of the defective pictures that are not; None where no defects were looked at.
        misses_interval: 95%.
        cost: expected, of a picture; None where the choice was not by cost.
        cost_interval: 95%.
    """

    value: float
    interval: Interval
    false_alarms: float
    false_alarms_interval: Interval
    misses: float | None = None
    misses_interval: Interval | None = None
    cost: float | None = None
    cost_interval: Interval | None = None


def by_false_alarms(normals: Scores, parts: Sequence[str], rate: float) -> Threshold:
    """The lowest threshold that at most a share `rate` of new normal pictures is expected to pass.

    Of N held-out scores of as many parts it is the one of rank ceil((1 - rate)(N + 1)): a new picture's rank among
    them is as likely to be any (split conformal prediction). Where a part has several pictures, which may be as good
    as one, they share a part's weight (hierarchical conformal prediction: Lee, Barber and Willett, 2023). With fewer
    than 1/rate - 1 parts it is the highest score, and promises less. In the intervals parts count too: the share of a
    threshold at rank r follows Beta(N + 1 - r, r).

    Args:
        normals: scores of held-out normal images (N,).
        parts: which physical part each shows.
    """
    from scipy.stats import beta

    _, part, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    independent = len(sizes)
    order = np.argsort(normals, kind="stable")
    passed = np.cumsum(1 / sizes[part[order]]) / (independent + 1)  # share of new pictures up to each score, at least
    place = _at(passed, 1 - rate)
    expected = float(1 - passed[place])
    low, high = beta.ppf(_TAILS, expected * (independent + 1), (1 - expected) * (independent + 1))
    # the order statistics of as many scores as there are parts, as shares of their weight
    levels = quantile_interval(np.arange(1, independent + 1) / independent, 1 - expected)
    share = passed * (independent + 1) / independent
    ends = [None if level is None else float(normals[order[_at(share, level)]]) for level in levels]
    return Threshold(above(normals[order[place]], normals), (ends[0], ends[1]), expected, (float(low), float(high)))


def by_cost(
    normals: Scores,
    defects: Scores,
    parts: tuple[Sequence[str], Sequence[str]],
    *,
    miss: float,
    false_alarm: float,
    defect_rate: float,
    resamples: int = 1000,
    seed: int = 0,
) -> Threshold:
    """The threshold of least expected cost of a picture, of equally good ones the highest:

        defect_rate * miss * P(missed | defective) + (1 - defect_rate) * false_alarm * P(called | normal)

    What to expect is cross-validated: each tenth of the parts is judged by the threshold that the others choose, since
    a threshold looks better than it is on the scores that chose it. The intervals of the rates are Clopper and
    Pearson's with parts for trials, the cost's follows from both rates (Jeffreys), the threshold's from choosing again
    on resampled parts.

    Args:
        normals: scores of held-out normal images (N,).
        defects: of defective images that nothing was trained on and that are no test (M,).
        parts: which physical part each shows, of the normals and of the defects.
        miss: what one costs.
        false_alarm: what one costs.
        defect_rate: share of defective pictures where the threshold is used, in (0, 1).
    """
    rng = np.random.default_rng(seed)
    # a part may have pictures of both kinds: it is held out, or drawn, as a whole
    together = np.unique([*parts[0], *parts[1]], return_inverse=True)[1]
    codes = (together[: len(normals)], together[len(normals) :])
    total = int(together.max()) + 1
    counts = [len(np.unique(code)) for code in codes]
    ones = (np.ones(len(normals)), np.ones(len(defects)))
    weights = (defect_rate * miss, (1 - defect_rate) * false_alarm)
    chosen = _cheapest(normals, defects, *ones, *weights)

    folds = rng.permutation(total) % _FOLDS
    missed, called = np.zeros(len(defects)), np.zeros(len(normals))
    for fold in range(_FOLDS):
        held = [folds[code] == fold for code in codes]
        kept = [~each if (~each).any() else np.ones_like(each) for each in held]
        threshold = _cheapest(normals, defects, kept[0].astype(float), kept[1].astype(float), *weights)
        called[held[0]], missed[held[1]] = normals[held[0]] > threshold, defects[held[1]] <= threshold
    false_alarms, misses = float(called.mean()), float(missed.mean())

    again: list[float] = []
    while len(again) < resamples:
        weight = np.bincount(rng.integers(total, size=total), minlength=total).astype(float)
        drawn = [weight[code] for code in codes]
        if all(each.any() for each in drawn):  # a resample without one of the classes chooses nothing
            again.append(_cheapest(normals, defects, drawn[0], drawn[1], *weights))
    low, high = np.quantile(again, _TAILS)
    draws = [
        rng.beta(rate * count + 0.5, (1 - rate) * count + 0.5, 20_000)
        for rate, count in ((misses, counts[1]), (false_alarms, counts[0]))
    ]
    cost_low, cost_high = np.quantile(weights[0] * draws[0] + weights[1] * draws[1], _TAILS)
    return Threshold(
        chosen,
        (float(low), float(high)),
        false_alarms,
        _clopper_pearson(false_alarms, counts[0]),
        misses,
        _clopper_pearson(misses, counts[1]),
        weights[0] * misses + weights[1] * false_alarms,
        (float(cost_low), float(cost_high)),
    )


def above(score: float, scores: Scores) -> float:
    """A threshold just above a score, below the next: its picture stays below in whatever batch it is scored."""
    higher = scores[scores > score]
    gap = float(higher.min() - score) if len(higher) else np.inf
    return float(score) + min(_HAIR * max(abs(float(score)), 1e-30), gap / 2)


def _cheapest(
    normals: Scores, defects: Scores, of_normals: Scores, of_defects: Scores, miss: float, false_alarm: float
) -> float:
    """The threshold of least cost under weights of the images (N,) and (M,); of equally good ones the highest."""
    miss, false_alarm = miss / (miss + false_alarm), false_alarm / (miss + false_alarm)  # in whatever currency
    # what has no weight is not there, and no threshold may lie at it
    (normals, of_normals), (defects, of_defects) = (
        (scores[weights > 0], weights[weights > 0])
        for scores, weights in ((normals, of_normals), (defects, of_defects))
    )
    scores = np.concatenate([normals, defects])
    alarms = np.concatenate([of_normals / of_normals.sum(), np.zeros(len(defects))])
    misses = np.concatenate([np.zeros(len(normals)), of_defects / of_defects.sum()])
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # below all, everything is called; at a score, it and all below are not
    costs = np.append(false_alarm, miss * np.cumsum(misses[order]) + false_alarm * (1 - np.cumsum(alarms[order])))
    usable = np.append(True, np.append(ranked[1:] != ranked[:-1], True))
    costs = np.where(usable, costs, np.inf)
    best = len(costs) - 1 - int(np.argmin(np.round(costs[::-1], 12)))
    if best == 0:
        return float(ranked[0]) - _HAIR * max(abs(float(ranked[0])), 1e-30)
    return above(float(ranked[best - 1]), scores)


def _at(shares: Scores, level: float) -> int:
    """The first place at which rising shares (N,) reach a level, or the last."""
    return min(int(np.searchsorted(shares, level - 1e-9)), len(shares) - 1)


def _clopper_pearson(rate: float, trials: int) -> Interval:
    from scipy.stats import beta

    successes = rate * trials
    low = float(beta.ppf(_TAILS[0], successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(_TAILS[1], successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
