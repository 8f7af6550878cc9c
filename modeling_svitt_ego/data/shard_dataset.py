"""Clips from tar shards, on a disk or on the Hub."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from ..model.clip_reading import ClipReadError, frame_indices
from .clips import EgoClipDataset
from .shard_files import ShardFolder
from .shard_index import INDEX_PATTERN, SETTINGS_NAME, read_index

# A frame of a stranger's shard must not fill the memory: 8K UHD has 33.2 million pixels.
MAX_FRAME_PIXELS = 2**25
MAX_FRAME_BYTES = 2**26


class ClipShardDataset(EgoClipDataset):
    """Clips from tar shards: an [`EgoClipDataset`] that needs no video and no decoder but JPEG's.

    The batch samplers, the split over processes and workers, the seeds and the exact resume of [`EgoClipDataset`]
    apply unchanged, from a local folder and from the Hub.

    ```python
    ClipShardDataset("shards/")
    ClipShardDataset("hf://datasets/user/clips")            # the newest commit, fixed when it is opened
    ClipShardDataset("hf://datasets/user/clips@v1/train")   # a revision, and a folder in the repository
    ```

    From the Hub the indices are downloaded into the cache of `huggingface_hub` when the data set is opened; the frames
    of a clip are then one range request. A tar that is in the cache already (`hf download --repo-type dataset`) is
    read from there.

    Args:
        folder (`str`): What `svitt-ego prepare --clip-shards` wrote, or `hf://datasets/USER/REPO[@REVISION][/FOLDER]`.
        num_frames (`int`): Frames per clip; must divide the frames that the shards store of each. `"random"` draws one
            frame of each group of neighbours, `"middle"` takes the middle one of the group.
        kwargs: Others as for [`EgoClipDataset`].

    Raises:
        FileNotFoundError: The folder contains no shards, or lacks a tar.
        ClipReadError: An index is damaged, a tar has another size than its index says, or an index names a file
            outside of the folder.
    """

    COLUMNS = (*EgoClipDataset.COLUMNS, "start", "end", "shard", "offsets", "sizes")

    def __init__(self, folder: str | os.PathLike, num_frames: int = 4, **kwargs) -> None:
        self.folder = ShardFolder(folder)
        indices = sorted(self.folder.local.glob(INDEX_PATTERN))
        if not indices:
            raise FileNotFoundError(f"No clip shards in {str(folder)!r}: expected clips-000000.index and its tar.")
        self.frames_per_clip = _frames_per_clip(self.folder.local / SETTINGS_NAME)
        if num_frames < 1 or self.frames_per_clip % num_frames:
            raise ValueError(
                f"num_frames ({num_frames}) must divide the {self.frames_per_clip} frames per clip of {folder}."
            )
        tables, self._tar_bytes = [], {}
        for path in indices:
            table, account = read_index(path)
            self._tar_bytes[f"{path.stem}.tar"] = account.tar_bytes
            tables.append(table)
        self.folder.check_sizes(self._tar_bytes)
        super().__init__(datasets.concatenate_datasets(tables), store=None, num_frames=num_frames, **kwargs)

    def __repr__(self) -> str:
        return f"ClipShardDataset({str(self.folder)!r}, {len(self):,} clips, num_frames={self.num_frames})"

    def _path(self, annotation: dict[str, Any]) -> str:
        return self.folder.path(annotation["shard"])

    def _read(self, annotation: dict[str, Any], seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        places = []
        for _ in range(self.num_views):
            places += frame_indices(self.frames_per_clip, self.num_frames, self.sampling, generator)
        wanted = sorted(set(places))
        path = self._path(annotation)
        spans = self._spans(annotation, path)
        contents = self.folder.read(annotation["shard"], [spans[place] for place in wanted])
        frames = {
            place: decode_frame(content, f"{path}: frame {place} at byte {spans[place][0]}")
            for place, content in zip(wanted, contents)
        }
        if len({frame.shape for frame in frames.values()}) > 1:
            raise ClipReadError(f"{path}: the frames of a clip differ in size.")
        return self._example(
            annotation, np.stack([frames[place] for place in places]), annotation["start"], annotation["end"]
        )

    def _spans(self, annotation: dict[str, Any], path: str) -> Sequence[tuple[int, int]]:
        """(offset, size) of each frame in its tar, checked."""
        spans = list(zip(annotation["offsets"], annotation["sizes"]))
        if len(annotation["offsets"]) != self.frames_per_clip or len(annotation["sizes"]) != self.frames_per_clip:
            raise ClipReadError(
                f"{path}: {len(annotation['offsets'])} offsets and {len(annotation['sizes'])} sizes for the "
                f"{self.frames_per_clip} frames of a clip."
            )
        num_bytes = self._tar_bytes[annotation["shard"]]
        for place, (offset, size) in enumerate(spans):
            if not (0 <= offset and 0 < size <= MAX_FRAME_BYTES and offset + size <= num_bytes):
                raise ClipReadError(
                    f"{path}: frame {place} at byte {offset} with {size} bytes is not within the {num_bytes} bytes of "
                    f"the shard, or has more than {MAX_FRAME_BYTES} bytes."
                )
        return spans


def decode_frame(content: bytes, where: str) -> np.ndarray:
    """A JPEG as `(height, width, 3)` uint8 RGB.

    Raises:
        ClipReadError: It is not a whole JPEG, or has more than `MAX_FRAME_PIXELS` pixels; it begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            width, height = picture.size
            if width * height > MAX_FRAME_PIXELS:
                raise ClipReadError(f"{where}: {width} x {height} pixels are more than {MAX_FRAME_PIXELS}.")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # not a picture, cut off, or huge
        raise ClipReadError(f"{where}: {error}") from error


def _frames_per_clip(settings: Path) -> int:
    try:
        frames = json.loads(settings.read_text(encoding="utf-8"))["frames_per_clip"]
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ClipReadError(f"{settings}: the settings of the shards are missing or damaged ({error!r}).") from error
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= 1000:
        raise ClipReadError(f"{settings}: frames_per_clip ({frames!r}) must be from 1 to 1000.")
    return frames
