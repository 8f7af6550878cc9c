"""The file that the EPIC-KITCHENS-100 multi-instance retrieval challenge takes: a pickle of a dict of plain values."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files.resumable_folder import aside

# Supervision levels that a submission must declare: pretraining, training labels, training data.
SLS_NAMES = ("sls_pt", "sls_tl", "sls_td")


def write_submission(
    path: str | os.PathLike,
    scores: np.ndarray,
    clip_ids: Sequence[str],
    sentence_ids: Sequence[str],
    supervision: Sequence[int],
) -> Path:
    """
    Args:
        path: the file to write, `.pkl`.
        scores (`np.ndarray` of shape `(num_clips, num_sentences)`): finite, the higher the better.
        clip_ids, sentence_ids: the `narration_id` of each clip and of each sentence, in the order of the csv files.
        supervision: the three levels of the challenge's supervision scale, each 0 to 5: pretraining, training labels,
            training data.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(clip_ids), len(sentence_ids)):
        raise ValueError(
            f"The scores have the shape {scores.shape} for {len(clip_ids)} clips and {len(sentence_ids)} sentences."
        )
    if not np.isfinite(scores).all():
        unread = int((~np.isfinite(scores)).any(axis=1).sum())
        raise ValueError(f"{unread} clips have scores that are not finite (clips that could not be read).")
    if len(supervision) != 3 or any(not 0 <= level <= 5 for level in supervision):
        raise ValueError(f"The supervision levels must be three numbers from 0 to 5, not {list(supervision)}.")
    content = {
        "version": 0.1,
        "challenge": "multi_instance_retrieval",
        "sim_mat": scores,
        "vis_ids": [str(name) for name in clip_ids],
        "txt_ids": [str(name) for name in sentence_ids],
        **dict(zip(SLS_NAMES, (int(level) for level in supervision))),
    }
    path = Path(path)
    with aside(path) as part, open(part, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return path


__all__ = ["write_submission"]
