"""EgoMCQ accuracy (EgoVLP, arXiv:2206.01670) as functions of numpy arrays: no model, no files.

Several published evaluators swap inter and intra in their output (EgoVLP#19, EgoVLPv2#11), and argmax resolves a tie
in favour of the first choice. Here, the kind follows from the video ids, and the name of a metric says how ties count.
"""

from collections.abc import Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, weighted_mean

KINDS = ("inter", "intra")
TIE_RULE = (
    "a question whose highest score is shared counts as wrong; in *_ties_by_expectation it counts 1/k where the "
    "answer is one of the k best"
)


def is_intra_video(video_ids: Sequence[Sequence[str]], types: Sequence[int] | None = None) -> np.ndarray:
    """
    Whether each question is intra-video, which means that all its choices come from one video.

    Args:
        video_ids: The video of every choice of every question.
        types (*optional*): The types in the file (1 = inter, 2 = intra), which must agree.

    Returns:
        `np.ndarray` of shape `(num_questions,)`, bool.
    """
    intra = np.array([len(set(ids)) == 1 for ids in video_ids], dtype=bool)
    if types is None:
        return intra
    types = np.asarray(types)
    if types.shape != intra.shape:
        raise ValueError(f"{len(types)} types were given for {len(intra)} questions.")
    if not np.isin(types, (1, 2)).all():
        raise ValueError(f"types holds {sorted(set(types.tolist()) - {1, 2})}; expected 1 (inter) and 2 (intra).")
    odd = np.flatnonzero((types == 2) != intra)
    if len(odd):
        i = int(odd[0])
        raise ValueError(
            f"{len(odd)} of {len(intra)} questions have a type that their videos contradict; the first is question "
            f"{i}: type {types[i]}, {len(set(video_ids[i]))} video(s). 1 is inter, 2 is intra (one video)."
        )
    return intra


def egomcq_credit(scores: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The credit of each question: `(strict, expected)`, both of shape `(num_questions,)` in [0, 1].

    Strict: 1 if the answer scores higher than every other choice. Expected: 1/k if it is one of the k best, which is
    the expectation of guessing among them. A question whose scores are all -inf (its clips could not be read) gets 0
    in both.

    Args:
        scores (`np.ndarray` of shape `(num_questions, num_choices)`): the higher, the better the clip fits.
        answers (`np.ndarray` of shape `(num_questions,)`): the right choice.
    """
    scores, answers = np.asarray(scores, dtype=np.float64), np.asarray(answers)
    if scores.ndim != 2 or answers.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and answers {answers.shape} do not belong together.")
    if len(answers) and not (0 <= answers.min() and answers.max() < scores.shape[1]):
        raise ValueError(
            f"answers are in [{answers.min()}, {answers.max()}], but there are {scores.shape[1]} choices."
        )
    unread = np.isneginf(scores).all(axis=1)
    bad = ~np.isfinite(scores) & ~unread[:, None]
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {scores.size} scores are not finite.")
    best = (scores == scores.max(axis=1, keepdims=True, initial=-np.inf)) & ~unread[:, None]
    num_best = best.sum(axis=1)
    hit = best[np.arange(len(scores)), answers]
    return (hit & (num_best == 1)).astype(np.float64), hit / np.maximum(num_best, 1)


def egomcq_accuracy(scores: np.ndarray, answers: np.ndarray, is_intra: np.ndarray) -> dict[str, float | int | None]:
    """
    Accuracy in per cent, separately for inter- and intra-video questions.

    Args:
        scores, answers: as in [`egomcq_credit`].
        is_intra (`np.ndarray` of shape `(num_questions,)`, bool): see [`is_intra_video`].

    Returns:
        `inter` and `intra` (a tie is wrong), `inter_ties_by_expectation` and `intra_ties_by_expectation` (`None` where
        there is no such question), `num_questions`, `num_inter`, `num_intra`, `num_ties` (best score shared).
    """
    is_intra = np.asarray(is_intra, dtype=bool)
    if is_intra.shape != np.asarray(answers).shape:
        raise ValueError(f"answers {np.shape(answers)} and is_intra {is_intra.shape} do not belong together.")
    strict, expected = egomcq_credit(scores, answers)
    result: dict[str, float | int | None] = {}
    for name, chosen in zip(KINDS, (~is_intra, is_intra)):
        result[name] = 100.0 * float(strict[chosen].mean()) if chosen.any() else None
        result[f"{name}_ties_by_expectation"] = 100.0 * float(expected[chosen].mean()) if chosen.any() else None
    top = np.asarray(scores, dtype=np.float64)
    shared = (top == top.max(axis=1, keepdims=True, initial=-np.inf)).sum(axis=1) > 1
    return result | {
        "num_questions": len(is_intra),
        "num_inter": int((~is_intra).sum()),
        "num_intra": int(is_intra.sum()),
        "num_ties": int((shared & np.isfinite(top).any(axis=1)).sum()),
    }


def egomcq_intervals(
    scores: np.ndarray, answers: np.ndarray, is_intra: np.ndarray, videos: Sequence[str], **settings
) -> dict[str, list[float] | None]:
    """95 % intervals of `inter` and `intra` over `videos` (of each question's right clip), in per cent."""
    strict, _ = egomcq_credit(scores, answers)
    is_intra = np.asarray(is_intra, dtype=bool)
    statistics = {}
    for name, chosen in zip(KINDS, (~is_intra, is_intra)):
        mean = weighted_mean(100.0 * strict[chosen])
        statistics[name] = lambda weights, mean=mean, chosen=chosen: mean(weights[chosen])
    return bootstrap_intervals(statistics, videos, **settings)
