"""Mean average precision of items with several classes each, as functions of numpy arrays: no model, no files."""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """
    Multi-label mean average precision in per cent, as in the evaluation of Charades.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_classes)`): -inf throughout for a clip that could not be read.
        labels (`np.ndarray` of shape `(num_items, num_classes)`): bool.

    Returns:
        `map`: the mean over the classes that occur; `map_weighted`: weighted by how often they do; `num_items`,
        `num_classes`, `num_classes_seen`, and `num_without_label`: items without any class, which rank as they score.
    """
    precision, counts = average_precision_of_classes(scores, labels)
    seen = counts > 0
    if not seen.any():
        raise ValueError("No class occurs in the labels; mean average precision is not defined.")
    return {
        "map": 100.0 * float(precision[seen].mean()),
        "map_weighted": 100.0 * float(np.average(precision[seen], weights=counts[seen])),
        "num_items": len(labels),
        "num_classes": int(np.shape(labels)[1]),
        "num_classes_seen": int(seen.sum()),
        "num_without_label": int((~np.asarray(labels).any(axis=1)).sum()),
    }


def average_precision_of_classes(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Average precision `(num_classes,)` in [0, 1] of each class's ranking of the items, and how often each occurs.

    Equal scores rank an item without the class first, so that a tie counts against the model. A clip that could not be
    read (-inf) is never found, but counts.

    Args:
        weights (`np.ndarray` of shape `(num_items,)`, *optional*): how often each item counts, for the bootstrap.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.ndim != 2 or scores.shape != labels.shape or not len(scores):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} do not belong together.")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueError("Some scores are not finite.")
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.lexsort((labels, -scores), axis=0)
    positive = np.take_along_axis(labels, order, axis=0) * weights[order]
    found = positive * np.isfinite(np.take_along_axis(scores, order, axis=0))
    precision = np.cumsum(positive, axis=0) / np.maximum(np.cumsum(weights[order], axis=0), 1e-12)
    counts = positive.sum(axis=0)
    return (found * precision).sum(axis=0) / np.maximum(counts, 1e-12), counts


def mean_average_precision_intervals(
    scores: np.ndarray, labels: np.ndarray, videos: Sequence[str], num_draws: int = 200
) -> dict[str, list[float] | None]:
    """95 % interval of `map` over `videos`; fewer draws than elsewhere, because each sorts all scores."""

    def statistic(weights: np.ndarray) -> float:
        precision, counts = average_precision_of_classes(scores, labels, weights)
        seen = counts > 0
        return 100.0 * float(precision[seen].mean()) if seen.any() else float("nan")

    return bootstrap_intervals({"map": statistic}, videos, num_draws)
