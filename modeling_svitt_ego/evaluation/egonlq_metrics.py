"""EgoNLQ recall (Ego4D natural language queries) as functions of windows: no model, no files.

The evaluator of the challenge divides by the number of predictions in the file, so that a query without a prediction
is not a miss, and its IoU of two windows of zero length is nan. Both change the score. Therefore the name of every
number says which queries it is computed over:

    <metric>                     all queries; one without a prediction is a miss (ours, the stricter one)
    <metric>_given               the queries with a prediction (the challenge's denominator)
    <metric>_with_length         all queries whose answer has a length above zero
    <metric>_given_with_length   both restrictions
"""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, weighted_mean

THRESHOLDS = (0.3, 0.5)
RANKS = (1, 5)
VARIANTS = ("", "_given", "_with_length", "_given_with_length")
HITS = tuple(f"r{rank}_iou{threshold}" for rank in RANKS for threshold in THRESHOLDS)


def temporal_iou(windows: np.ndarray, truth: Sequence[float]) -> np.ndarray:
    """
    Intersection over union of windows with one window; 0 where the union has no length.

    Args:
        windows (`np.ndarray` of shape `(num_windows, 2)`): start and end in seconds.
        truth: start and end in seconds.
    """
    windows = np.asarray(windows, dtype=np.float64).reshape(-1, 2)
    start, end = (float(x) for x in truth)
    shared = np.clip(np.minimum(windows[:, 1], end) - np.maximum(windows[:, 0], start), 0, None)
    union = (windows[:, 1] - windows[:, 0]) + (end - start) - shared
    return np.divide(shared, union, out=np.zeros(len(windows)), where=union > 0)


def egonlq_hits(
    predictions: Sequence[Sequence[Sequence[float]] | None], answers: Sequence[Sequence[float]]
) -> dict[str, np.ndarray]:
    """
    Whether each query is hit: one of the first K windows has an IoU strictly above the threshold.

    Args:
        predictions: for each query its windows (start, end) in seconds, best first; `None` or empty if it has none.
        answers: for each query the start and end of the answer, in seconds.

    Returns:
        `r1_iou0.3`, `r1_iou0.5`, `r5_iou0.3`, `r5_iou0.5`: bool arrays of shape `(num_queries,)`; `has_prediction` and
        `has_length` likewise.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions were given for {len(answers)} queries.")
    answers = np.asarray(answers, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(answers).all():
        raise ValueError(f"{int((~np.isfinite(answers)).any(axis=1).sum())} answers have no finite start and end.")
    hits = {name: np.zeros(len(answers), dtype=bool) for name in HITS}
    given = np.zeros(len(answers), dtype=bool)
    for i, windows in enumerate(predictions):
        if windows is None or len(windows) == 0:
            continue
        windows = np.asarray(windows, dtype=np.float64)
        if windows.ndim != 2 or windows.shape[1] != 2 or not np.isfinite(windows).all():
            raise ValueError(
                f"The prediction of query {i} is not a list of finite (start, end): {windows.tolist()!r:.200}."
            )
        if (windows[:, 1] < windows[:, 0]).any():
            raise ValueError(
                f"The prediction of query {i} has a window that ends before it starts: {windows.tolist()!r:.200}."
            )
        given[i] = True
        overlap = temporal_iou(windows, answers[i])
        for rank in RANKS:
            for threshold in THRESHOLDS:
                hits[f"r{rank}_iou{threshold}"][i] = (overlap[:rank] > threshold).any()
    return hits | {"has_prediction": given, "has_length": answers[:, 1] > answers[:, 0]}


def egonlq_recall(
    predictions: Sequence[Sequence[Sequence[float]] | None], answers: Sequence[Sequence[float]]
) -> dict[str, float | int | None]:
    """
    Recall in per cent in all four variants (see the module). Each has `mean_r1`, the number that the challenge ranks
    by: the mean of R@1 at the two thresholds. A variant without queries is `None`.

    Returns:
        `r1_iou0.3`, `r1_iou0.5`, `r5_iou0.3`, `r5_iou0.5`, `mean_r1`, each with the four suffixes, and `num_queries`
        likewise.
    """
    hits = egonlq_hits(predictions, answers)
    result: dict[str, float | int | None] = {}
    for variant in VARIANTS:
        chosen = _chosen(hits, variant)
        for name in HITS:
            result[name + variant] = 100.0 * float(hits[name][chosen].mean()) if chosen.any() else None
        first = [result[f"r1_iou{threshold}{variant}"] for threshold in THRESHOLDS]
        result["mean_r1" + variant] = float(np.mean(first)) if chosen.any() else None
        result["num_queries" + variant] = int(chosen.sum())
    return result


def egonlq_intervals(predictions, answers, videos: Sequence[str], **settings) -> dict[str, list[float] | None]:
    """95 % intervals over `videos` (of each query) of every recall of [`egonlq_recall`], in per cent."""
    hits = egonlq_hits(predictions, answers)
    statistics = {}
    for variant in VARIANTS:
        chosen = _chosen(hits, variant)
        values = {name: 100.0 * hits[name] for name in HITS}
        values["mean_r1"] = np.mean([values[f"r1_iou{threshold}"] for threshold in THRESHOLDS], axis=0)
        for name, value in values.items():
            mean = weighted_mean(value[chosen])
            statistics[name + variant] = lambda weights, mean=mean, chosen=chosen: mean(weights[chosen])
    return bootstrap_intervals(statistics, videos, **settings)


def _chosen(hits: dict[str, np.ndarray], variant: str) -> np.ndarray:
    chosen = np.ones(len(hits["has_length"]), dtype=bool)
    if "_given" in variant:
        chosen &= hits["has_prediction"]
    if "_with_length" in variant:
        chosen &= hits["has_length"]
    return chosen
