"""Clips that could not be read, in the training log: their number at each step, and the files at the end."""

import logging

from transformers import TrainerCallback

from ..data.failures import FailureLog

logger = logging.getLogger(__name__)


def unreadable_clips(dataset) -> dict[str, int]:
    """`{"unreadable_clips": count}` of the data set of this process; empty while all clips could be read."""
    failures = getattr(dataset, "failures", None)
    if isinstance(failures, FailureLog) and failures.num_failures:
        return {"unreadable_clips": failures.num_failures}
    return {}


class ReportUnreadableClips(TrainerCallback):
    """Logs the files that could not be read, with path and reason, when training ends.

    If a run ends because too many clips failed, its `TooManyClipFailures` lists them. Every process counts the clips
    that it has read itself.
    """

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def on_train_end(self, args, state, control, **kwargs):
        if unreadable_clips(self.dataset):
            logger.warning("At the end of training: %s", self.dataset.failures.report())
