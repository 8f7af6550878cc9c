"""EPIC-KITCHENS-100 multi-instance retrieval (arXiv:2006.13256) as functions of matrices: no model, no files.

Rows are clips, columns are sentences. Relevance in [0, 1] is the mean of verb and noun relevance, so a sentence may
partly match a clip. The official mAP counts relevance 1 as a hit, but its precision sums the soft relevance of all
items that rank above, and random scores get about 5.7 %. The strict form is the usual average precision of the hits
(about 0.4 % for random scores). Both are reported, the official one under the plain name, the other with `_strict`.
"""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, weighted_mean

ROWS_AT_ONCE = 512  # of 9,668 x 3,842 scores: keeps the temporaries at some tens of MB
DIRECTIONS = ("video_to_text", "text_to_video")


def ek100_relevance(
    verbs: Sequence[int],
    nouns: Sequence[Sequence[int]],
    text_verbs: Sequence[int],
    text_nouns: Sequence[Sequence[int]],
) -> np.ndarray:
    """
    Relevance(i, j) = ([verb classes equal] + IoU of the noun class sets) / 2.

    Args:
        verbs (`num_clips` class numbers), nouns (`num_clips` lists of class numbers): of the clips.
        text_verbs, text_nouns: of the sentences, likewise.

    Returns:
        `np.ndarray` of shape `(num_clips, num_texts)`, float64: the official matrix's precision, whose 1 is exact.
    """
    if len(verbs) != len(nouns) or len(text_verbs) != len(text_nouns):
        raise ValueError(
            f"{len(verbs)} verbs and {len(nouns)} noun sets of clips, "
            f"{len(text_verbs)} and {len(text_nouns)} of texts."
        )
    num_nouns = 1 + max((noun for row in [*nouns, *text_nouns] for noun in row), default=0)
    rows, columns = _multi_hot(nouns, num_nouns), _multi_hot(text_nouns, num_nouns)
    shared = (rows @ columns.T).astype(np.float64)
    union = rows.sum(axis=1)[:, None] + columns.sum(axis=1)[None, :] - shared
    # Two empty sets have an empty union; their relevance is 0.
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    same_verb = np.asarray(verbs)[:, None] == np.asarray(text_verbs)[None, :]
    return (same_verb + overlap) / 2


def average_precision(scores: np.ndarray, relevance: np.ndarray, strict: bool = False) -> np.ndarray:
    """
    Average precision of each row's ranking, `(num_rows,)` in [0, 1]; hits are the columns of relevance 1.

    Args:
        scores, relevance (`np.ndarray` of shape `(num_rows, num_columns)`).
        strict (`bool`): precision counts hits only; otherwise it sums the soft relevance, as the official code does.
    """
    _check(scores, relevance)
    result = np.empty(len(scores))
    for first in range(0, len(scores), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        order = _ranking(scores[rows])
        ranked = np.take_along_axis(relevance[rows], order, axis=1)
        hit = ranked == 1
        found = hit & np.take_along_axis(np.isfinite(scores[rows]), order, axis=1)
        gained = np.cumsum(hit if strict else ranked, axis=1, dtype=np.float64)
        precision = gained / np.arange(1, ranked.shape[1] + 1)
        result[rows] = (precision * found).sum(axis=1) / hit.sum(axis=1)
    return result


def normalised_dcg(scores: np.ndarray, relevance: np.ndarray, strict: bool = False) -> np.ndarray:
    """
    nDCG of each row's ranking, `(num_rows,)` in [0, 1], cut at the number of columns with relevance above 0.

    Args:
        scores, relevance (`np.ndarray` of shape `(num_rows, num_columns)`).
        strict (`bool`): only relevance 1 gains anything, and the cut is their number.
    """
    _check(scores, relevance)
    result = np.empty(len(scores))
    discount = 1 / np.log2(np.arange(relevance.shape[1]) + 2)
    for first in range(0, len(scores), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        gain = (relevance[rows] == 1).astype(np.float64) if strict else relevance[rows]
        within = np.arange(gain.shape[1]) < (gain > 0).sum(axis=1)[:, None]
        ideal = -np.sort(-gain, axis=1)
        read = np.isfinite(scores[rows])
        ranked = np.take_along_axis(gain * read, _ranking(scores[rows]), axis=1)
        result[rows] = (ranked * discount * within).sum(axis=1) / (ideal * discount * within).sum(axis=1)
    return result


def ek100_per_query(
    scores: np.ndarray, relevance: np.ndarray, scores_per_text: np.ndarray | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    By metric (`map`, `ndcg`, and both `_strict`) the values of every clip and of every sentence, in per cent.

    Args:
        scores, relevance (`np.ndarray` of shape `(num_clips, num_texts)`).
        scores_per_text (`np.ndarray` of shape `(num_texts, num_clips)`, *optional*): ranks the clips for each text,
            where a re-ranking gives the two directions different scores; `scores` transposed by default.
    """
    scores, relevance = np.asarray(scores), np.asarray(relevance, dtype=np.float64)
    per_text = scores.T if scores_per_text is None else np.asarray(scores_per_text)
    result = {}
    for suffix, strict in (("", False), ("_strict", True)):
        for name, function in (("map", average_precision), ("ndcg", normalised_dcg)):
            result[name + suffix] = (
                100 * function(scores, relevance, strict),
                100 * function(per_text, relevance.T, strict),
            )
    return result


def ek100_retrieval(
    scores: np.ndarray, relevance: np.ndarray, per_query: dict | None = None
) -> dict[str, float | int]:
    """
    mAP and nDCG in per cent, for both directions and on average.

    Equal scores rank in the order of the columns.

    Args:
        scores (`np.ndarray` of shape `(num_clips, num_texts)`): the higher, the better they fit.
        relevance (`np.ndarray` of the same shape): from [`ek100_relevance`].
        per_query (*optional*): from [`ek100_per_query`], where it is known already.

    Returns:
        `map`, `ndcg` (averages over the directions), `map_video_to_text`, `map_text_to_video`, … and all of them with
        `_strict` at the end; `num_videos`, `num_texts`.
    """
    result: dict[str, float | int] = {}
    for name, values in (per_query or ek100_per_query(scores, relevance)).items():
        metric, _, strict = name.partition("_")
        suffix = f"_{strict}" if strict else ""
        means = [float(value.mean()) for value in values]
        result[name] = float(np.mean(means))
        for direction, mean in zip(DIRECTIONS, means):
            result[f"{metric}_{direction}{suffix}"] = mean
    return result | {"num_videos": int(np.shape(scores)[0]), "num_texts": int(np.shape(scores)[1])}


def ek100_intervals(
    per_query: dict[str, tuple[np.ndarray, np.ndarray]], videos: Sequence[str], text_videos: Sequence[str], **settings
) -> dict[str, list[float] | None]:
    """
    95 % intervals of the averages over both directions: videos are drawn for the queries, the gallery stays as it is.

    Args:
        per_query: from [`ek100_per_query`].
        videos, text_videos: the video of each clip, and of the clip that each sentence is named by.
    """
    num_clips = len(videos)
    statistics = {}
    for name, (of_clips, of_texts) in per_query.items():
        clips, texts = weighted_mean(of_clips), weighted_mean(of_texts)
        statistics[name] = lambda w, clips=clips, texts=texts: (clips(w[:num_clips]) + texts(w[num_clips:])) / 2
    return bootstrap_intervals(statistics, [*videos, *text_videos], **settings)


def _multi_hot(sets: Sequence[Sequence[int]], size: int) -> np.ndarray:
    result = np.zeros((len(sets), size), dtype=np.float32)
    for row, numbers in enumerate(sets):
        result[row, list(numbers)] = 1
    return result


def _ranking(scores: np.ndarray) -> np.ndarray:
    """Columns of each row from the highest score down; equal scores in the order of the columns."""
    return np.argsort(-scores, axis=1, kind="stable")


def _check(scores: np.ndarray, relevance: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != relevance.shape:
        raise ValueError(f"scores {scores.shape} and relevance {relevance.shape} do not belong together.")
    # -inf marks a clip that could not be read: it ranks last and gains nothing.
    bad = np.isnan(scores) | np.isposinf(scores)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {scores.size} scores are not finite.")
    without = np.flatnonzero((relevance != 1).all(axis=1))
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(relevance)} queries have nothing of relevance 1 to find, such as row "
            f"{without[0]}; their average precision is not defined."
        )
