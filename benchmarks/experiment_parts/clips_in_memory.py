"""Clips decoded once for all runs: a file of uint8 frames that the processes map into memory together."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.workers import one_thread


def decode_once(clips: EgoClipDataset, frames_per_clip: int, folder: Path, limit_gb: float, workers: int = 0):
    """
    The file of all clips' frames, made if it is not there, or None if it would be larger than `limit_gb`.

    Args:
        clips ([`EgoClipDataset`]): with `on_error="raise"`: a clip that cannot be read ends it.
        frames_per_clip (`int`): candidates kept of each clip.
        folder: where the file goes, named by the clips' windows and their number of frames.
    """
    least = len(clips) * frames_per_clip * 3 * 64**2 / 2**30  # no video is smaller; the first may be unreadable
    if least > limit_gb:
        print(
            f"{len(clips):,} clips would take more than {least:.1f} GiB, the limit is {limit_gb}: decoded at each use."
        )
        return None
    height, width = clips[0]["video"].shape[1:3]
    shape = (len(clips), frames_per_clip, height, width, 3)
    size = float(np.prod(shape, dtype=np.float64)) / 2**30
    if size > limit_gb:
        print(f"{len(clips):,} clips would take {size:.1f} GiB, the limit is {limit_gb}: decoded at each use.")
        return None
    windows = [list(clips.table[name]) for name in ("video_uid", "clip_start", "clip_end")]
    content = json.dumps([str(clips.store.video_root.resolve()), shape, *windows]).encode()
    file = folder / f"frames-{hashlib.sha256(content).hexdigest()[:12]}.npy"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{os.getpid()}.{file.name}")
    bounds = np.zeros((len(clips), 2))
    candidates = EgoClipDataset(clips.table, clips.store, num_frames=frames_per_clip, sampling="middle")
    frames = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
    loader = DataLoader(
        candidates,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=one_thread if workers else None,
        collate_fn=_as_it_is,
    )
    for row, example in enumerate(tqdm(loader, desc="decoding", unit="clip")):
        if example["video"].shape != shape[1:]:
            raise ValueError(
                f"Clip {row} of {example['video_uid']} has frames of {example['video'].shape[1:3]}, the first has "
                f"({height}, {width}): videos of different sizes cannot be kept in one file; use --cache-gb 0."
            )
        frames[row] = example["video"]
        bounds[row] = example["start"], example["end"]
    frames.flush()
    np.save(file.with_suffix(".windows.npy"), bounds)
    os.replace(aside, file)
    return file


def _as_it_is(example: dict) -> dict:
    return example
