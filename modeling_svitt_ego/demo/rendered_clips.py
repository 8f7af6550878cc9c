"""Training clips drawn straight into memory: no encoder and no decoder, whose bytes differ between machines."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.clips import EgoClipDataset
from ..data.layouts import VideoStore
from ..model.clip_reading import frame_indices
from .synthetic_plan import VideoPlan
from .synthetic_video import VideoRenderer, drawn_in_parallel


class ClipsInMemory(EgoClipDataset):
    """
    An [`EgoClipDataset`] that finds its frames in a file instead of decoding them: of each clip the middle frames of
    `frames_per_clip` equal segments, among which `"random"` draws one of each group of neighbours. With
    `frames_per_clip` equal to `num_frames` these are the frames that [`EgoClipDataset`] reads with `"middle"`.

    Args:
        frames (`str`): a .npy file of shape `(num_clips, frames_per_clip, height, width, 3)`, uint8, which processes
            map into memory together. `<name>.windows.npy` in the same folder holds the start and end of each clip in
            seconds, `(num_clips, 2)`.
        store ([`VideoStore`], *optional*): where the videos are, for messages; nothing is read from it.
        Others as in [`EgoClipDataset`].
    """

    COLUMNS = (*EgoClipDataset.COLUMNS, "row")

    def __init__(self, table, frames: str | os.PathLike, store: VideoStore | None = None, **kwargs) -> None:
        super().__init__(table.add_column("row", list(range(len(table)))), store, **kwargs)
        self.file = Path(frames)
        self.windows = np.load(self.file.with_suffix(".windows.npy"))
        self._frames = None
        stored = np.load(self.file, mmap_mode="r").shape
        if stored[0] != len(self) or stored[1] % self.num_frames:
            raise ValueError(
                f"{self.file} holds {stored[1]} frames of {stored[0]} clips: {len(self)} clips are needed, and a "
                f"multiple of {self.num_frames} frames."
            )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_frames": None}

    def _read(self, annotation: dict[str, Any], seed: int) -> dict[str, Any]:
        if self._frames is None:
            self._frames = np.load(self.file, mmap_mode="r")
        generator = torch.Generator().manual_seed(seed)
        places = []
        for _ in range(self.num_views):
            places += frame_indices(self._frames.shape[1], self.num_frames, self.sampling, generator)
        row = annotation["row"]
        return self._example(annotation, self._frames[row][places], *self.windows[row].tolist())


def render_clips(
    plans: Sequence[VideoPlan],
    table,
    frames_per_clip: int,
    height: int,
    fps: int,
    file: Path,
    num_workers: int = 1,
) -> Path:
    """
    Draws the frames of each clip for [`ClipsInMemory`] and writes them to `file`.

    Args:
        table (`datasets.Dataset`): from [`load_egoclip`]; all of its videos are in `plans`.
        frames_per_clip (`int`): one frame from the middle of each of as many equal segments of the clip's window.
        num_workers (`int`): processes; the result does not depend on their number.
    """
    rows_of: dict[str, list[int]] = {}
    for row, uid in enumerate(table["video_uid"]):
        rows_of.setdefault(uid, []).append(row)
    windows = np.stack([table["clip_start"], table["clip_end"]], axis=1).astype(np.float64).clip(min=0.0)
    jobs = [(plan, windows[rows_of[plan.video_uid]], frames_per_clip, height, fps) for plan in plans]
    shape = (len(table), frames_per_clip, height, height, 3)
    frames = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with tqdm(total=len(table), desc="draw training clips", unit="clip") as bar:
        done = ((job, _draw(*job)) for job in jobs)
        for job, drawn in done if num_workers <= 1 else drawn_in_parallel(_draw, jobs, num_workers):
            frames[rows_of[job[0].video_uid]] = drawn
            bar.update(len(drawn))
    frames.flush()
    np.save(file.with_suffix(".windows.npy"), windows)
    return file


def _draw(plan: VideoPlan, windows: np.ndarray, frames_per_clip: int, height: int, fps: int) -> np.ndarray:
    """The frames (num_clips, frames_per_clip, height, height, 3) of a video's clips."""
    renderer = VideoRenderer(plan, height, fps)
    share = (np.arange(frames_per_clip) + 0.5) / frames_per_clip
    starts, ends = windows[:, :1], windows[:, 1:].clip(max=plan.seconds)
    numbers = np.floor((starts + (ends - starts) * share) * fps).astype(int).clip(0, renderer.num_frames - 1)
    drawn = {number: renderer.frame(number) for number in sorted({*numbers.flatten().tolist()})}
    return np.stack([np.stack([drawn[number] for number in row]) for row in numbers.tolist()])
