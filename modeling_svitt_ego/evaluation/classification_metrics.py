"""Classification accuracy as functions of numpy arrays: no model, no files."""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, weighted_mean


def rank_of_label(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Rank of the right class, 0 the best, `(num_items,)`: how many other classes score at least as high, so a tie is
    never to the model's advantage. A row of nothing but -inf (a clip that could not be read) ranks last.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_classes)`).
        labels (`np.ndarray` of shape `(num_items,)`).
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} do not belong together.")
    if len(labels) == 0:
        raise ValueError("There are no items to classify.")
    if not (0 <= labels.min() and labels.max() < scores.shape[1]):
        raise ValueError(f"labels lie in [{labels.min()}, {labels.max()}], but there are {scores.shape[1]} classes.")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueError(
            f"{int((np.isnan(scores) | np.isposinf(scores)).sum())} of {scores.size} scores are not finite."
        )
    own = scores[np.arange(len(scores)), labels]
    return (scores >= own[:, None]).sum(axis=1) - 1


def classification_accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """
    Accuracy in per cent.

    Returns:
        `top1`, `top5` (with fewer than six classes it is 100 for all that could be read), `mean_class` (mean over the
        classes that occur of their top-1), `num_items`, `num_classes` and `num_classes_seen`.
    """
    labels = np.asarray(labels)
    rank = rank_of_label(scores, labels)
    top1, top5 = _hits(scores, rank)
    ones = np.ones(len(labels))
    return {
        "top1": 100.0 * float(top1.mean()),
        "top5": 100.0 * float(top5.mean()),
        "mean_class": _mean_class(top1, labels)(ones),
        "num_items": len(labels),
        "num_classes": int(np.shape(scores)[1]),
        "num_classes_seen": len(np.unique(labels)),
    }


def classification_intervals(
    scores: np.ndarray, labels: np.ndarray, videos: Sequence[str], **settings
) -> dict[str, list[float] | None]:
    """95 % intervals of `top1`, `top5` and `mean_class` over `videos` (of each item), in per cent."""
    labels = np.asarray(labels)
    top1, top5 = _hits(scores, rank_of_label(scores, labels))
    statistics = {
        "top1": weighted_mean(100.0 * top1),
        "top5": weighted_mean(100.0 * top5),
        "mean_class": _mean_class(top1, labels),
    }
    return bootstrap_intervals(statistics, videos, **settings)


def _hits(scores: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    read = ~np.isneginf(np.asarray(scores, dtype=np.float64)).all(axis=1)
    return (rank < 1) & read, (rank < 5) & read


def _mean_class(top1: np.ndarray, labels: np.ndarray):
    """Mean class accuracy in per cent as a function of the items' weights."""
    _, number = np.unique(labels, return_inverse=True)

    def mean(weights: np.ndarray) -> float:
        total = np.bincount(number, weights)
        right = np.bincount(number, weights * top1)
        seen = total > 0
        return 100.0 * float((right[seen] / total[seen]).mean()) if seen.any() else float("nan")

    return mean
