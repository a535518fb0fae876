"""Image-level metrics of a table of scores, under the names of metrics.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.scores import ScoreTable

Labels = npt.NDArray[np.integer[Any]]  # (N,) 1 = defective
Scores = npt.NDArray[np.floating[Any]]  # (N,) higher = more anomalous
Flags = npt.NDArray[np.bool_]  # (N,) called defective

RATES = ("precision", "sensitivity", "specificity", "f1")
PERCENTS = (0, 5, 25, 50, 75, 95, 100)
TRUSTED_NORMALS = 20  # held-out normal images under which nobody should rely on the threshold
MANY = 200_000  # images of which the AUROC's interval is of a fifth of the resamples
_CHUNK = 2_000_000  # weights of resamples held at once


def image_metrics(
    test: ScoreTable,
    *,
    val: ScoreTable | None,
    tune: ScoreTable | None = None,
    quantile: float = 0.95,
    threshold: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, str]]:
    """All image-level metrics of a run, as (metrics, reasons): plain values, and why a metric is None.

    The threshold is the `quantile` of the scores of val's normal images, the only labels it sees, unless the method
    has one of its own; an image is called defective where its score is higher. The rates with the suffix
    `_defect_ratio` flag as many images of test as are defective, those with `_oracle` have the best F1 over all
    thresholds. Val (normal images against painted copies) and tune get the ranking metrics with the prefix `val_`
    and `tune_`.
    `image_score` names the score that counts, of which `image_auroc` and the rates are; `image_counts` says on how many
    normal and defective images of test (`val_image_counts`, `tune_image_counts` of those).
    `reasons["threshold_trust"]` is there when the threshold stands on fewer than 20 normal images.
    """
    metrics, reasons = ({"threshold": threshold}, {}) if threshold is not None else _threshold(val, quantile)
    threshold = metrics["threshold"]
    metrics["image_score"] = test.primary
    for table, name in ((test, "test"), (val, "val"), (tune, "tune")):
        if table is not None:
            counts = {"normal": int((table.label == 0).sum()), "defective": int((table.label == 1).sum())}
            metrics["image_counts" if name == "test" else f"{name}_image_counts"] = counts
            _merge(metrics, reasons, _ranking(table, name, threshold))
    if val is None:
        _merge(metrics, reasons, ({"val_image_auroc": None}, {"val_image_auroc": "there is no val"}))
    _merge(metrics, reasons, _interval(test, bootstrap, seed))
    _merge(metrics, reasons, _rates(test, threshold))
    return metrics, reasons


def is_segmenter(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics.json is of a method with a threshold of its own for pixels, such as a probability of 0.5."""
    return metrics.get("pixel_threshold_rule") == "method"


def missing_class(labels: Labels, where: str = "test") -> str | None:
    """Why nothing can be ranked: the class that is not there, in words; None if both are."""
    for label, name in ((0, "normal"), (1, "defective")):
        if not (labels == label).any():
            return f"no {name} images in {where}"
    return None


def defective_floor(labels: Labels) -> float:
    """F1 of calling every image defective; 0 if none is."""
    count = int(np.count_nonzero(labels))
    return 2 * count / (len(labels) + count) if count else 0.0


def confusion_rates(labels: Labels, flagged: Flags) -> dict[str, float]:
    """Precision, sensitivity, specificity and F1 of the images flagged; 0 where nothing is there to divide by."""
    defective = labels == 1
    tp, fp = int((flagged & defective).sum()), int((flagged & ~defective).sum())
    fn, tn = int((~flagged & defective).sum()), int((~flagged & ~defective).sum())
    parts = ((tp, tp + fp), (tp, tp + fn), (tn, tn + fp), (2 * tp, 2 * tp + fp + fn))
    return {name: part / whole if whole else 0.0 for name, (part, whole) in zip(RATES, parts, strict=True)}


def flag_highest(scores: Scores, count: int, names: Sequence[str]) -> Flags:
    """Flags exactly the `count` highest scores; among equal ones by a checksum of the names.

    The order of rows must not decide: files are sorted by folder, and folders go by label.
    """
    tie_break = np.array([crc32(os.fsencode(name)) for name in names])
    flagged = np.zeros(len(scores), np.bool_)
    flagged[np.lexsort((tie_break, -scores))[:count]] = True
    return flagged


def oracle_flags(labels: Labels, scores: Scores) -> Flags:
    """The flags of best F1 over all thresholds on the scores; of equally good ones the fewest."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    flagged = np.arange(1, len(scores) + 1)
    f1 = 2 * np.cumsum(labels[order]) / (flagged + labels.sum())
    lowest: Flags = scores >= ranked[np.where(last_of_tie, f1, -1.0).argmax()]
    return lowest


def weighted_auroc(labels: Labels, scores: Scores, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """AUROC (R,) under each of R rows of image weights (R, N), ties counted half."""
    order = np.argsort(scores, kind="stable")
    ranked, defective = scores[order], labels[order] == 1
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * defective, starts, axis=1)
    negative = np.add.reduceat(ordered * ~defective, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    aurocs: npt.NDArray[np.float64] = (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return aurocs


def bootstrap_aurocs(
    labels: Labels, scores: Scores, groups: Sequence[str], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """AUROC (resamples,) of test sets drawn from this one, with replacement, by whole groups.

    Groups of normal images only, of defective ones only, and of both are three strata; each resample has as
    many groups of every stratum as there are, so none lacks a class.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    group = np.array([codes[name] for name in groups])
    stratum = sum((np.bincount(group[labels == label], minlength=len(codes)) > 0) * (label + 1) for label in (0, 1))
    strata = [np.flatnonzero(stratum == kind) for kind in (1, 2, 3)]
    order = np.argsort(scores, kind="stable")  # once: what is in order already is quickly sorted again
    labels, scores, group = labels[order], scores[order], group[order]
    rng = np.random.default_rng(seed)
    aurocs = []
    for start in range(0, resamples, chunk := max(1, _CHUNK // len(labels))):
        rows = np.arange(min(chunk, resamples - start))[:, None]
        counts = np.zeros(len(rows) * len(codes))
        for members in filter(len, strata):
            drawn = members[rng.integers(len(members), size=(len(rows), len(members)))]
            counts += np.bincount((drawn + rows * len(codes)).ravel(), minlength=len(counts))
        aurocs.append(weighted_auroc(labels, scores, counts.reshape(len(rows), -1)[:, group]))
    return np.concatenate(aurocs)


def quantile_interval(values: Scores, quantile: float, level: float = 0.95) -> tuple[float | None, float | None]:
    """Interval for the quantile of what the values are drawn from, whatever its distribution.

    The ends are order statistics: of n values, Binomial(n, quantile) lie under the true quantile. Each end errs
    with a probability of at most (1 - level) / 2, and is None where n is too small for that.
    """
    from scipy.stats import binom

    ordered, ranks, tail = np.sort(values), np.arange(1, len(values) + 1), (1 - level) / 2
    low = np.flatnonzero(binom.cdf(ranks - 1, len(values), quantile) <= tail)
    high = np.flatnonzero(binom.sf(ranks - 1, len(values), quantile) <= tail)
    return float(ordered[low[-1]]) if len(low) else None, float(ordered[high[0]]) if len(high) else None


def _threshold(val: ScoreTable | None, quantile: float) -> tuple[dict[str, Any], dict[str, str]]:
    normal = np.empty(0) if val is None else val.primary_scores[val.label == 0]
    count = len(normal)
    metrics: dict[str, Any] = {"threshold": None, "threshold_interval": None, "threshold_normals": count}
    if not count:
        reason = "no held-out normal images in val: dataset.val_count=20, for example, sets some of training's aside"
        return metrics, {"threshold": reason, "threshold_interval": reason}
    metrics["threshold"] = float(np.quantile(normal, quantile))
    metrics["threshold_interval"] = list(quantile_interval(normal, quantile))
    reasons = {}
    if None in metrics["threshold_interval"]:
        reasons["threshold_interval"] = (
            f"{count} held-out normal images leave the quantile {quantile:g} open on one side"
        )
    if count < TRUSTED_NORMALS:
        reasons["threshold_trust"] = (
            f"the threshold stands on {count} held-out normal images: too few to trust, {TRUSTED_NORMALS} are the "
            f"least (dataset.val_count={TRUSTED_NORMALS})"
        )
    return metrics, reasons


def _ranking(table: ScoreTable, where: str, threshold: float | None) -> tuple[dict[str, Any], dict[str, str]]:
    """AUROC of each score, average precision, and the AUROC and sensitivity of each defect type."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    prefix = "" if where == "test" else f"{where}_"
    names = {f"{prefix}image_auroc": table.primary} | {f"{prefix}image_auroc_{name}": name for name in table.scores}
    metrics: dict[str, Any] = dict.fromkeys([*names, f"{prefix}image_ap"])
    reason = missing_class(table.label, where)
    reasons = dict.fromkeys(metrics, reason) if reason else {}
    if not reason:
        metrics |= {name: float(roc_auc_score(table.label, table.scores[score])) for name, score in names.items()}
        metrics[f"{prefix}image_ap"] = float(average_precision_score(table.label, table.primary_scores))

    normal, defect, per_defect = table.label == 0, np.array(table.defect, object), {}
    for kind in sorted({name for name, label in zip(table.defect, table.label, strict=True) if label}):
        members = (defect == kind) & ~normal
        both = members | normal
        found = None if threshold is None else float((table.primary_scores[members] > threshold).mean())
        auroc = None if reason else float(roc_auc_score(table.label[both], table.primary_scores[both]))
        per_defect[kind] = {"image_auroc": auroc, "count": int(members.sum()), "sensitivity": found}
    if per_defect and (reason or threshold is None):
        reasons[f"{prefix}per_defect"] = "; ".join(
            filter(None, [reason, "no threshold" if threshold is None else None])
        )
    return metrics | {f"{prefix}per_defect": per_defect}, reasons


def _interval(test: ScoreTable, bootstrap: int, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """95% percentile interval of the AUROC; of a perfect ranking it has no width, whatever the number of images."""
    groups = [group or path for group, path in zip(test.group, test.path, strict=True)]
    reason = missing_class(test.label) or ("no bootstrap was asked for" if bootstrap < 1 else None)
    for label, name in ((0, "normal"), (1, "defective")):
        # with one group there is no spread to see, and the interval would claim a certainty
        if len({group for group, other in zip(groups, test.label, strict=True) if other == label}) < 2:
            reason = reason or f"the {name} images of test are of one group, so their spread is unknown"
    if reason:
        return {"image_auroc_ci": None}, {"image_auroc_ci": reason}
    resamples = bootstrap if len(test) <= MANY else -(-bootstrap // 5)  # the interval is narrow, and each takes long
    aurocs = bootstrap_aurocs(test.label, test.primary_scores, groups, resamples, seed)
    return {"image_auroc_ci": [float(end) for end in np.quantile(aurocs, [0.025, 0.975])]}, {}


def _rates(test: ScoreTable, threshold: float | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The rates at the threshold, at the defect ratio and at the best F1, and the quantiles of the scores."""
    labels, scores = test.label, test.primary_scores
    values: dict[str, Any] = {f"image_{rate}{end}": None for end in ("", "_defect_ratio", "_oracle") for rate in RATES}
    reason = missing_class(labels)
    reasons = dict.fromkeys(values, reason) if reason else {}
    if threshold is None:
        reasons |= {f"image_{rate}": "no threshold without held-out normal images in val" for rate in RATES}
    else:
        rates = confusion_rates(labels, scores > threshold)
        one_sided = {"sensitivity": (labels == 1).any(), "specificity": (labels == 0).any()}  # need one class only
        for rate in RATES:
            if one_sided.get(rate, not reason):
                values[f"image_{rate}"] = rates[rate]
                reasons.pop(f"image_{rate}", None)
    if not reason:
        ratio = confusion_rates(labels, flag_highest(scores, int(labels.sum()), test.path))
        oracle = confusion_rates(labels, oracle_flags(labels, scores))
        for rate in RATES:
            values |= {f"image_{rate}_defect_ratio": ratio[rate], f"image_{rate}_oracle": oracle[rate]}
    quantiles = {str(percent): float(np.percentile(scores, percent)) for percent in PERCENTS} if len(scores) else None
    if quantiles is None:
        reasons["score_quantiles"] = "no images in test"
    return values | {"score_quantiles": quantiles}, reasons


def _merge(metrics: dict[str, Any], reasons: dict[str, str], found: tuple[dict[str, Any], dict[str, str]]) -> None:
    metrics.update(found[0])
    reasons.update(found[1])
