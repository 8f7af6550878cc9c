"""Classification accuracy as functions of numpy arrays: no model, no files."""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, weighted_mean

ROWS_AT_ONCE = 128  # of 97 x 300 pairs: some tens of MB


def rank_of_label(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Rank of the right class, from 0, of shape `(num_items,)`: the number of other classes that score at least as high,
    so that a tie counts against the model. A row of -inf (a clip that could not be read) ranks last.

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
        raise ValueError(f"labels are in [{labels.min()}, {labels.max()}], but there are {scores.shape[1]} classes.")
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
    return accuracy_of_hits(*hits(scores, labels), labels, int(np.shape(scores)[1]))


def classification_intervals(
    scores: np.ndarray, labels: np.ndarray, videos: Sequence[str], **settings
) -> dict[str, list[float] | None]:
    """95 % intervals of `top1`, `top5` and `mean_class` over `videos` (of each item), in per cent."""
    return intervals_of_hits(*hits(scores, labels), labels, videos, **settings)


def accuracy_of_hits(top1: np.ndarray, top5: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """[`classification_accuracy`] of items that are right or wrong, as bool arrays of shape `(num_items,)`."""
    labels = np.asarray(labels)
    return {
        "top1": 100.0 * float(top1.mean()),
        "top5": 100.0 * float(top5.mean()),
        "mean_class": _mean_class(top1, labels)(np.ones(len(labels))),
        "num_items": len(labels),
        "num_classes": num_classes,
        "num_classes_seen": len(np.unique(labels)),
    }


def intervals_of_hits(
    top1: np.ndarray, top5: np.ndarray, labels: np.ndarray, videos: Sequence[str], **settings
) -> dict[str, list[float] | None]:
    """[`classification_intervals`] of items that are right or wrong."""
    statistics = {
        "top1": weighted_mean(100.0 * top1),
        "top5": weighted_mean(100.0 * top5),
        "mean_class": _mean_class(top1, np.asarray(labels)),
    }
    return bootstrap_intervals(statistics, videos, **settings)


def hits(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the right class is the first, and among the first five, as bool arrays of shape `(num_items,)`."""
    rank = rank_of_label(scores, labels)
    read = ~np.isneginf(np.asarray(scores, dtype=np.float64)).all(axis=1)
    return (rank < 1) & read, (rank < 5) & read


def pair_hits(
    verb_scores: np.ndarray, noun_scores: np.ndarray, verbs: np.ndarray, nouns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    [`hits`] of the action among all pairs of verb and noun classes. The probability of a pair is the product of both
    probabilities, as in the evaluation of EPIC-KITCHENS-100, so the first pair is right if verb and noun are.

    Args:
        verb_scores, noun_scores (`np.ndarray` of shapes `(num_items, num_verbs)`, `(num_items, num_nouns)`): logits.
        verbs, nouns (`np.ndarray` of shape `(num_items,)`): the right classes.
    """
    rank_of_label(verb_scores, verbs)  # checks shapes and numbers
    rank_of_label(noun_scores, nouns)
    verbs, nouns = np.asarray(verbs), np.asarray(nouns)
    first, among_five = np.zeros(len(verbs), dtype=bool), np.zeros(len(verbs), dtype=bool)
    for start in range(0, len(verbs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        logs = _log_softmax(verb_scores[rows]), _log_softmax(noun_scores[rows])
        pairs = logs[0][:, :, None] + logs[1][:, None, :]
        flat = pairs.reshape(len(pairs), -1)
        flat = np.where(np.isnan(flat), -np.inf, flat)  # a clip that could not be read
        first[rows], among_five[rows] = hits(flat, verbs[rows] * pairs.shape[2] + nouns[rows])
    return first, among_five


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _mean_class(top1: np.ndarray, labels: np.ndarray):
    """Mean class accuracy in per cent as a function of the items' weights."""
    _, number = np.unique(labels, return_inverse=True)

    def mean(weights: np.ndarray) -> float:
        total = np.bincount(number, weights)
        right = np.bincount(number, weights * top1)
        seen = total > 0
        return 100.0 * float((right[seen] / total[seen]).mean()) if seen.any() else float("nan")

    return mean
