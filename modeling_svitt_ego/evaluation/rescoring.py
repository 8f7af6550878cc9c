"""Changes of a matrix of scores before the ranking. Each of them changes the protocol, so each has a name.

`dual` ranks by the unchanged scores. `dual-softmax` lets the queries of a test set compete for its items. `rerank`
orders the first items of every ranking by a slower and better model, such as the fusion tower.
"""

import numpy as np


def dual_softmax(scores: np.ndarray, temperature: float = 0.05) -> np.ndarray:
    """
    Scores that are high only if row and column select each other (CAMoE, arXiv:2109.04290).

    Returns the log of softmax over the columns times softmax over the rows. It uses all queries of the test set at
    once, which a user with one query cannot do; published tables mix numbers with and without it.

    Args:
        scores (`np.ndarray` of shape `(num_rows, num_columns)`): cosines; -inf throughout a row is a clip that could
            not be read, and stays so.
        temperature (`float`): of both softmaxes.
    """
    if temperature <= 0:
        raise ValueError(f"temperature ({temperature}) must be above 0.")
    scores = np.asarray(scores, dtype=np.float64)
    unread = np.isneginf(scores).all(axis=1)
    if unread.all():
        return scores
    logits = scores[~unread] / temperature
    result = np.full(scores.shape, -np.inf)
    result[~unread] = _log_softmax(logits, axis=1) + _log_softmax(logits, axis=0)
    return result


def _log_softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    shifted = logits - logits.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def top_pairs(scores: np.ndarray, top_k: int) -> np.ndarray:
    """
    The pairs that re-ranking needs: every row with its `top_k` best columns and every column with its best rows.

    Rows of -inf, clips that could not be read, are in no pair.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2)`, int64: row and column, sorted, each pair once.
    """
    if top_k < 1:
        raise ValueError(f"top_k ({top_k}) must be at least 1.")
    scores = np.asarray(scores)
    wanted = _best(scores, top_k) | _best(scores.T, top_k).T
    return np.argwhere(wanted & np.isfinite(scores))


def rerank(scores: np.ndarray, second: np.ndarray, top_k: int) -> np.ndarray:
    """
    Each row's `top_k` best columns by `scores`, ordered by `second`; the others follow in the order of `scores`.

    Args:
        scores (`np.ndarray` of shape `(num_rows, num_columns)`): of the first model.
        second (`np.ndarray` of the same shape): of the second, needed only where [`top_pairs`] says.

    Returns:
        `np.ndarray` of the same shape: ranks from 0 down to `1 - num_columns`, as scores; -inf rows stay.
    """
    scores, second = np.asarray(scores, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if scores.shape != second.shape:
        raise ValueError(f"The scores {scores.shape} and the second scores {second.shape} do not belong together.")
    best = _best(scores, top_k)
    read = ~np.isneginf(scores)
    if not np.isfinite(second[best & read]).all():
        raise ValueError(f"Some of the {top_k} best of a ranking have no finite second score.")
    # lexsort: the last key counts most. Equal scores keep the order of the columns.
    order = np.lexsort((-scores, np.where(best & read, -second, 0.0), ~best), axis=1)
    result = np.empty(scores.shape)
    np.put_along_axis(result, order, -np.arange(scores.shape[1], dtype=np.float64)[None], axis=1)
    return np.where(read, result, -np.inf)


def _best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Mask of each row's `top_k` highest scores; of equal ones the first columns."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


__all__ = ["dual_softmax", "rerank", "top_pairs"]
