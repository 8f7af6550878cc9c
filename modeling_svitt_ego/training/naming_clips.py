"""Batches that carry the names of their clips for error messages."""

from collections.abc import Callable, Sequence

import torch

from ..model.row_exchange import world_size
from .reading import ReadingFailed

CLIPS = "clips"  # key of a batch: a list of dicts with row, video_uid, start, end, text
NOT_FOR_THE_MODEL = (CLIPS, "return_loss")
_NUM_PRINTED = 8


class NonFiniteLoss(ValueError):
    """The loss is NaN or infinite; the optimizer has not stepped."""


class NamingCollator:
    """Wraps a collator of `EgoClipDataset` examples: the batch also holds `clips`, one entry per row.

    An example that could not be read takes the place of the whole batch.
    """

    def __init__(self, collator: Callable) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[dict | ReadingFailed]) -> dict | ReadingFailed:
        failed = next((example for example in examples if isinstance(example, ReadingFailed)), None)
        if failed is not None:
            return failed
        batch = self.collator(examples)
        clips = [
            {"row": e["index"], "video_uid": e["video_uid"], "start": e["start"], "end": e["end"], "text": e["text"]}
            for e in examples
        ]
        views = len(batch["input_ids"]) // len(clips)
        return {**batch, CLIPS: clips * views}


def refuse_non_finite(loss: torch.Tensor, step: int, clips: list[dict] | None, *embeds: torch.Tensor) -> None:
    """
    Raises [`NonFiniteLoss`] that names the clips whose embeddings are not finite, or else all of the batch.

    Args:
        step (`int`): the optimizer step under way, counted from 1.
        embeds (`torch.Tensor` of shape `(rows, projection_dim)`): of the clips and of their narrations.
    """
    if torch.isfinite(loss):
        return
    bad = sorted({int(row) for x in embeds for row in (~torch.isfinite(x.detach())).any(-1).nonzero()})
    if bad:
        which = f"{len(bad)} of its {len(embeds[0])} rows have an embedding that is not finite"
    elif embeds and world_size() > 1:
        which = "every embedding of this process's rows is finite: another process's message names them"
    else:
        which = (
            "every embedding of the dual encoder is finite"
            if embeds
            else "it is that of matching or language modelling"
        )
    message = f"The loss of step {step} is {float(loss)}; {which}. The weights are those before this step."
    if clips:
        named = [clips[row] for row in bad] if bad else clips
        lines = [
            f'row {c["row"]}: {c["video_uid"]} {c["start"]:.3f}-{c["end"]:.3f} s "{c["text"]}"'
            for c in named[:_NUM_PRINTED]
        ]
        more = len(named) - len(lines)
        message += "\n  " + "\n  ".join(lines) + (f"\n  and {more} more" if more else "")
    raise NonFiniteLoss(message)
