"""Clips that are decoded once and then read from a folder, for small data sets that are trained on for many epochs."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files.arrays import DamagedArrays, read_arrays, write_arrays
from ..files.writing import make_cache_folder
from ..model.clip_reading import clip_times
from ..model.clip_times import frame_indices
from .clips import EgoClipDataset
from .layouts import VideoStore

logger = logging.getLogger(__name__)


class DecodedClips(EgoClipDataset):
    """
    An [`EgoClipDataset`] that keeps `frames_per_clip` decoded frames of each clip, from the middles of as many equal
    segments, in a file of `folder`. The first epoch writes the files, and later ones and other runs read them.

    `"random"` draws among the frames kept: with twice `num_frames`, one of two for each frame of the clip. A clip
    takes `frames_per_clip * height * width * 3` bytes, 2.8 MB for 8 frames of 456 x 256 pixels; for a large corpus
    `svitt-ego prepare … --clip-shards` writes JPEG instead. A video of another size or date is decoded again.

    Args:
        folder: of the files; made if it does not exist.
        frames_per_clip (`int`): a multiple of `num_frames`; twice as many by default.
        Others as in [`EgoClipDataset`].
    """

    def __init__(
        self, table, store: VideoStore, folder: str | os.PathLike, frames_per_clip: int | None = None, **kwargs
    ) -> None:
        super().__init__(table, store, **kwargs)
        self.folder = Path(folder)
        self.frames_per_clip = frames_per_clip or 2 * self.num_frames
        if self.frames_per_clip % self.num_frames:
            raise ValueError(
                f"frames_per_clip ({self.frames_per_clip}) must be a multiple of num_frames ({self.num_frames})."
            )
        make_cache_folder(self.folder, "Name another folder for the decoded clips.")

    def _read(self, annotation: dict[str, Any], seed: int) -> dict[str, Any]:
        file = self._file(annotation)
        if not file.exists():
            self._decode(annotation, file)
        try:
            frames, window = read_arrays(file, "frames", "window")
        except DamagedArrays as error:
            logger.warning("The kept frames %s are damaged (%s): the clip is decoded again.", file, error)
            self._decode(annotation, file)
            frames, window = read_arrays(file, "frames", "window")
        generator = torch.Generator().manual_seed(seed)
        places = []
        for _ in range(self.num_views):
            places += frame_indices(self.frames_per_clip, self.num_frames, self.sampling, generator)
        return self._example(annotation, frames[places], *window.tolist())

    def _file(self, annotation: dict[str, Any]) -> Path:
        """The file of a clip: its name is a hash of all that its content depends on."""
        path = self._path(annotation)
        stat = os.stat(path)
        content = [annotation[name] for name in ("video_uid", "clip_start", "clip_end")]
        content += [self.frames_per_clip, os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
        return self.folder / f"{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}.npz"

    def _decode(self, annotation: dict[str, Any], file: Path) -> None:
        window = annotation["clip_start"], annotation["clip_end"]
        frames, start, end = self.store.read_window(
            annotation["video_uid"], *window, lambda start, end: clip_times(start, end, self.frames_per_clip)
        )
        write_arrays(file, frames=frames, window=np.array([start, end]))


__all__ = ["DecodedClips"]
