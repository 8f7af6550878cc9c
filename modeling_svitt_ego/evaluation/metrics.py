"""Metrics as functions of numpy arrays: no model, no files."""

import numpy as np


def egomcq_accuracy(scores: np.ndarray, answers: np.ndarray, is_intra: np.ndarray) -> dict[str, float | int]:
    """
    EgoMCQ accuracy (EgoVLP, arXiv:2206.01670), in per cent, inter- and intra-video questions apart.

    Where the highest score is shared by k choices, of which one is the answer, the question counts 1/k: a model that
    scores all clips alike gets what guessing gets, whatever the order of the choices.

    Args:
        scores (`np.ndarray` of shape `(num_questions, num_choices)`): the higher, the better the clip fits.
        answers (`np.ndarray` of shape `(num_questions,)`): the right choice.
        is_intra (`np.ndarray` of shape `(num_questions,)`, bool): all choices come from one video.

    Returns:
        `inter` and `intra` (per cent; `None` where there is no such question), `num_questions`, `num_inter`,
        `num_intra`.
    """
    scores, answers, is_intra = np.asarray(scores), np.asarray(answers), np.asarray(is_intra, dtype=bool)
    if scores.ndim != 2 or len(answers) != len(scores) or len(is_intra) != len(scores):
        raise ValueError(
            f"scores {scores.shape}, answers {answers.shape} and is_intra {is_intra.shape} do not belong together."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite.")
    best = scores == scores.max(axis=1, keepdims=True)
    credit = best[np.arange(len(scores)), answers] / best.sum(axis=1)
    result: dict[str, float | int | None] = {}
    for name, chosen in (("inter", ~is_intra), ("intra", is_intra)):
        result[name] = 100.0 * float(credit[chosen].mean()) if chosen.any() else None
    return result | {
        "num_questions": len(scores),
        "num_inter": int((~is_intra).sum()),
        "num_intra": int(is_intra.sum()),
    }
