"""A threshold for use: by the false alarms one can bear, or by what a miss and a false alarm cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.image import quantile_interval
from anomaly_lab.metrics.statistics import LEVEL

Scores = npt.NDArray[np.float64]  # (N,) higher = more anomalous
Interval = tuple[float | None, float | None]  # None: open on this side

_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Threshold:
    """A threshold and what to expect of it; a picture is called defective where its score is above.

    Attributes:
        value: of the threshold.
        interval: 95%, of what the same choice gives on other held-out images.
        false_alarms: expected share of the normal pictures that are called defective.
        false_alarms_interval: 95%.
        misses: share of the defective pictures that are not; None where no defects were looked at.
        cost: expected, of a picture; None where the choice was not by cost.
        cost_interval: 95%.
    """

    value: float
    interval: Interval
    false_alarms: float
    false_alarms_interval: Interval
    misses: float | None = None
    cost: float | None = None
    cost_interval: Interval | None = None


def by_false_alarms(normals: Scores, parts: Sequence[str], rate: float) -> Threshold:
    """The lowest threshold that at most a share `rate` of new normal pictures is expected to pass.

    Of N held-out scores it is the one of rank ceil((1 - rate)(N + 1)): a new picture's rank among them is as likely
    to be any (split conformal prediction). With fewer than 1/rate - 1 of them it is the highest, and promises less.
    The share of a threshold at rank r follows Beta(N + 1 - r, r); pictures of one part count as one for that.

    Args:
        normals: scores of held-out normal images (N,).
        parts: which physical part each shows.
    """
    from scipy.stats import beta

    ordered, count = np.sort(normals), len(normals)
    rank = min(ceil((1 - rate) * (count + 1) - 1e-9), count)
    expected = (count + 1 - rank) / (count + 1)
    independent = len(set(parts)) + 1
    low, high = beta.ppf(_TAILS, expected * independent, (1 - expected) * independent)
    interval = quantile_interval(normals, rank / (count + 1))
    return Threshold(float(ordered[rank - 1]) + _hair(normals), interval, expected, (float(low), float(high)))


def _hair(scores: Scores) -> float:
    """How far above a score a threshold lies: the picture it is of stays below it, in whatever batch it is scored."""
    return 1e-6 * float(np.abs(scores).max() or 1)  # float32 has seven digits


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

    Intervals are by a bootstrap over whole parts, the choice made anew in each resample.

    Args:
        normals: scores of held-out normal images (N,).
        defects: of defective images that nothing was trained on and that are no test (M,).
        parts: which physical part each shows, of the normals and of the defects.
        miss: what one costs.
        false_alarm: what one costs.
        defect_rate: share of defective pictures where the threshold is used, in (0, 1).
    """
    rng = np.random.default_rng(seed)
    scores = np.concatenate([normals, defects])
    is_defect = np.arange(len(scores)) >= len(normals)
    weights = np.ones((resamples + 1, len(scores)))  # the first: as they are
    for members, names in zip((~is_defect, is_defect), parts, strict=True):
        codes = np.unique(names, return_inverse=True)[1]
        count = codes.max() + 1
        drawn = rng.integers(count, size=(resamples, count))
        counts = np.zeros((resamples, count))
        np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
        weights[1:, members] = counts[:, codes]

    order = np.argsort(scores, kind="stable")
    ranked, defective, ordered = scores[order], is_defect[order], weights[:, order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    # at a threshold on a score, it and all below are not called
    missed = np.cumsum(ordered * defective, axis=1) / (ordered * defective).sum(1, keepdims=True)
    called = 1 - np.cumsum(ordered * ~defective, axis=1) / (ordered * ~defective).sum(1, keepdims=True)
    costs = defect_rate * miss * missed + (1 - defect_rate) * false_alarm * called
    below_all = np.full((len(costs), 1), (1 - defect_rate) * false_alarm)  # everything is called
    costs = np.hstack([below_all, np.where(last_of_tie, costs, np.inf)])
    missed, called = (
        np.hstack([np.full((len(costs), 1), first), rates]) for first, rates in ((0, missed), (1, called))
    )
    thresholds = np.append(ranked[0] - _hair(scores), ranked + _hair(scores))
    best = costs.shape[1] - 1 - np.argmin(costs[:, ::-1], axis=1)
    rows = np.arange(len(costs))

    def interval(values: Scores) -> Interval:
        low, high = np.quantile(values[1:], _TAILS)
        return float(low), float(high)

    # the rates of the threshold that was chosen, under each resample's weights
    return Threshold(
        float(thresholds[best[0]]),
        interval(thresholds[best]),
        float(called[0, best[0]]),
        interval(called[:, best[0]]),
        float(missed[0, best[0]]),
        float(costs[0, best[0]]),
        interval(costs[rows, np.full(len(rows), best[0])]),
    )
