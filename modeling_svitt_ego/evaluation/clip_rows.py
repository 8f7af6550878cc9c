"""Reading clips for an evaluation: rows of a data set, and batches of processed clips."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.clips import EgoClipDataset
from ..data.frame_order import ordered_frames
from ..model.clip_reading import ClipReadError
from .views import Views


class ClipRows(Dataset):
    """Some rows of the clips. With `on_error="wrong"`, an unreadable clip gives its failure instead of frames."""

    def __init__(self, clips: EgoClipDataset, rows: Sequence[int], on_error: str):
        self.clips, self.rows, self.on_error = clips, [int(row) for row in rows], on_error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, dict | None]:
        row = self.rows[index]
        try:
            return row, self.clips[row]["video"], None
        except (ClipReadError, OSError) as error:
            if self.on_error == "raise":
                raise
            place = self.clips.table[row]
            uid, start, end = (place[name] for name in ("video_uid", "clip_start", "clip_end"))
            failure = {"row": row, "video_uid": uid, "start": start, "end": end}
            return row, None, failure | {"path": str(self.clips.store.path(uid, start)), "reason": str(error)}


class CollateViews:
    """
    Makes a batch of rows.

    Returns (of a call):
        The rows that were read, their pixels `(views, rows read, num_frames, channels, height, width)` or `None` if
        there are none, and the failures.
    """

    def __init__(self, processor: Callable, frame_order: str, views: Views):
        self.processor = processor
        self.frame_order = frame_order
        self.views = views

    def __call__(self, examples: list[tuple]) -> tuple[list[int], torch.Tensor | None, list[dict]]:
        read = [(row, video) for row, video, failure in examples if failure is None]
        failures = [failure for _, _, failure in examples if failure is not None]
        if not read:
            return [], None, failures
        seen = [
            [view[ordered_frames(len(view), self.frame_order, seed=row)] for view in self.views.of_frames(video)]
            for row, video in read
        ]
        videos = [views[number] for number in range(len(seen[0])) for views in seen]  # view after view
        pixels = self.processor(
            videos=videos,
            return_tensors="pt",
            do_sample_frames=False,
            do_random_resized_crop=False,
            do_random_flip=False,
        )["pixel_values_videos"]
        pixels = self.views.of_pixels(pixels.unflatten(0, (-1, len(read))))
        return [row for row, _ in read], pixels, failures
