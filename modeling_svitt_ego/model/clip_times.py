"""Which moments of a clip become frames: times within a window, or indices into decoded frames."""

import math

import numpy as np
import torch

from .video_source import ClipReadError


def clamp_window(start: float | None, end: float | None, duration: float, path: str) -> tuple[float, float]:
    """Clips [start, end) to [0, duration): `None` means the video's own bound; an empty rest is an error."""
    start, end = 0.0 if start is None else float(start), duration if end is None else float(end)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ClipReadError(f"{path}: window [{start}, {end}) s is not a pair of numbers.")
    if end <= start:
        raise ClipReadError(f"{path}: window [{start}, {end}) s is {'empty' if end == start else 'reversed'}.")
    if start >= duration or end <= 0:
        raise ClipReadError(f"{path}: window [{start}, {end}) s is outside the video of {duration:.3f} s.")
    return max(start, 0.0), min(end, duration)


def _offsets(num: int, sampling: str, generator: torch.Generator | None) -> list[float]:
    """The place of each frame within its segment, in [0, 1)."""
    if sampling == "middle":
        return [0.5] * num
    if sampling == "random":
        return torch.rand(num, generator=generator, dtype=torch.float64).tolist()
    raise ValueError(f"sampling must be 'middle' or 'random', got {sampling!r}.")


def clip_times(
    start: float, end: float, num_frames: int, sampling: str = "middle", generator: torch.Generator | None = None
) -> list[float]:
    """One time in each of `num_frames` equal segments of [start, end) seconds: its middle, or uniformly random."""
    segment = (end - start) / num_frames
    return [start + (i + u) * segment for i, u in enumerate(_offsets(num_frames, sampling, generator))]


def frame_indices(
    total_frames: int, num_frames: int, sampling: str = "middle", generator: torch.Generator | None = None
) -> list[int]:
    """
    SViTT's integer rule for frames already decoded: one frame of each of `num_frames` nearly equal intervals.

    A clip with fewer frames than `num_frames` gives all of them and repeats the last.
    """
    if total_frames < 1:
        raise ValueError(f"Cannot take {num_frames} frames from a clip of {total_frames} frames.")
    count = min(num_frames, total_frames)
    edges = np.linspace(0, total_frames, count + 1).astype(int).tolist()
    offsets = _offsets(count, sampling, generator)
    if sampling == "middle":
        indices = [(first + after - 1) // 2 for first, after in zip(edges, edges[1:])]
    else:
        # The SViTT release draws from [first, last), so an interval's last frame never appears; here it can.
        indices = [first + int(u * (after - first)) for u, first, after in zip(offsets, edges, edges[1:])]
    return indices + [indices[-1]] * (num_frames - count)
