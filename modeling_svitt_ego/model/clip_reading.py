"""Reading a few frames out of a video file: by time, exactly, or with one clear error.

Times are seconds counted from the first frame of the file; the frame at time t is the last one that has begun by t.
They are never frame numbers, because the frame rate of a file may vary and may differ from the 30 that annotations
assume.

Three decoders give the same pixels. PyAV reads every file unless another decoder is named, because it was exact on all
files tried and the fastest on nearly all (benchmarks/clip_reading.py). decord and torchcodec read what they were shown
to read exactly and refuse the rest with the reason. `backend=` here, in `VideoStore` and (as `video_backend`) in the
video processor names one. "torchcodec-cuda" decodes on a GPU, which is not tested (decode_torchcodec.py). No file is
kept open between calls, so the functions are safe in forked and in spawned workers.

Frames keep their native size. Resizing in the decoder (decord's `width`, `height`) saves little, since decoding is
nearly all of the work; its pixels differ, and a random crop would be cut from the reduced picture
(`decode_time_resize` in the benchmark).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .clip_times import clamp_window, clip_times, frame_indices
from .decode_decord import decord_refusal, read_decord
from .decode_pyav import read_pyav, stream_pyav
from .decode_torchcodec import read_torchcodec, read_torchcodec_cuda, torchcodec_refusal
from .frame_table import frame_table
from .video_source import TIME_TOLERANCE, ClipReadError, Unreadable, VideoInfo, VideoSource, as_source

BACKENDS = ("decord", "pyav", "torchcodec")  # those that were shown to be exact
_READERS = {
    "decord": read_decord,
    "pyav": read_pyav,
    "torchcodec": read_torchcodec,
    "torchcodec-cuda": read_torchcodec_cuda,
}

Times = Sequence[float] | Callable[[VideoInfo], Sequence[float]]


def choose_backend(path: str | os.PathLike) -> tuple[str, str]:
    """
    The decoder that "auto" reads this file with, and the reason.

    The reason also says whether decord and torchcodec, if named, would read the file or why they refuse it.
    """
    source = as_source(path)
    try:
        table = frame_table(source)
    except Unreadable as error:
        return "pyav", f"which cannot read it: {error}"
    refusals = {"decord": decord_refusal(source, table), "torchcodec": torchcodec_refusal(table)}
    named = [f"{name} {'refuses it: ' + why if why else 'may be named'}" for name, why in refusals.items()]
    return "pyav", f"which reads {table.info.codec} in {table.container!r} exactly; {'; '.join(named)}"


def read_clip(path: Any, times: Times, backend: str = "auto", allow_urls: bool = False) -> np.ndarray:
    """
    The frames of a video at `times`, as `uint8` of shape `(len(times), height, width, 3)`, RGB, upright.

    Args:
        path (`str`, `os.PathLike`, `bytes`, binary file object or `VideoSource`): A video file.
        times (sequence of `float`, or a function of [`VideoInfo`] that returns one):
            Seconds from the first frame, in any order. The frame at t is the last one that has begun by t; t at the
            very end of the video gives its last frame.
        backend (`str`): "decord", "pyav", "torchcodec", "torchcodec-cuda": that one, or an error. "auto" is PyAV.
        allow_urls (`bool`): Download http and https addresses into memory instead of refusing them.

    Raises:
        ClipReadError: The file is missing, empty, damaged where it is needed, or not a video, the named decoder is
            not installed or cannot read it exactly, or a time is outside it.
    """
    return read_clip_and_info(path, times, backend, allow_urls)[0]


def read_clip_and_info(
    path: Any, times: Times, backend: str = "auto", allow_urls: bool = False
) -> tuple[np.ndarray, VideoInfo]:
    """Like [`read_clip`], with the [`VideoInfo`] of the file; opens it once."""
    source = as_source(path, allow_urls)

    def moments(info: VideoInfo) -> np.ndarray:
        chosen = list(times(info) if callable(times) else times)
        result = np.asarray(chosen, dtype=np.float64)
        if result.ndim != 1 or result.size == 0 or not np.isfinite(result).all():
            raise ClipReadError(f"{source.name}: times must be a non-empty list of numbers, got {chosen}.")
        # Callers may count the end from a rounded frame rate.
        if result.min() < 0 or result.max() > info.duration + 1 / info.fps + TIME_TOLERANCE:
            raise ClipReadError(
                f"{source.name}: times {chosen} s are not all within the video of {info.duration:.3f} s."
            )
        return result

    return _read(source, moments, backend)


def probe_video(path: Any, backend: str = "auto") -> VideoInfo:
    """Opens a video and decodes its first frame; [`ClipReadError`] if that does not work."""
    return _read(as_source(path), lambda info: np.zeros(1), backend)[1]


def frame_times(path: Any) -> np.ndarray:
    """Seconds from the first frame at which each frame of a video begins, in order; reads the file once."""
    source = as_source(path)
    try:
        return frame_table(source).begins
    except Unreadable as error:
        raise ClipReadError(f"{source.name}: cannot be read: {error}") from error


def stream_frames(path: Any, times: Callable[[VideoInfo], Iterable[float]]) -> Iterator[np.ndarray]:
    """
    The frames at many increasing times, one after the other, from a single pass over the file.

    Gives what [`read_clip`] gives with PyAV, without holding more than one frame and without a seek per clip: for
    features of a whole video, where dense times make up the cost.

    Args:
        path (as [`read_clip`]): A video file.
        times (function of [`VideoInfo`]): Seconds from the first frame, not decreasing.

    Yields:
        `uint8` arrays of shape `(height, width, 3)`, RGB, upright; the same array as long as the same frame is shown.

    Raises:
        ClipReadError: As [`read_clip`], when the pass gets there.
    """
    source = as_source(path)
    try:
        yield from stream_pyav(source, lambda info: _increasing(times(info), info))
    except Unreadable as error:
        raise ClipReadError(f"{source.name}: cannot be read: {error}") from error


def _increasing(times: Iterable[float], info: VideoInfo) -> Iterator[float]:
    previous = 0.0
    for time in times:
        if not previous <= time <= info.duration + 1 / info.fps + TIME_TOLERANCE:
            raise ClipReadError(
                f"{info.path}: time {time} s must be in [{previous}, {info.duration:.3f}] s: after the one before, "
                "within the video."
            )
        previous = time
        yield time


def _read(source: VideoSource, times: Callable[[VideoInfo], np.ndarray], backend: str) -> tuple[np.ndarray, VideoInfo]:
    if backend != "auto" and backend not in _READERS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(_READERS)}, got {backend!r}.")
    name = "pyav" if backend == "auto" else backend
    try:
        return _READERS[name](source, times)
    except Unreadable as error:
        remedy = "" if name == "pyav" else " backend='pyav' may read it."
        raise ClipReadError(f"{source.name}: {name} cannot read it: {error}{remedy}") from error


__all__ = [
    "BACKENDS",
    "TIME_TOLERANCE",
    "ClipReadError",
    "VideoInfo",
    "VideoSource",
    "choose_backend",
    "clamp_window",
    "clip_times",
    "frame_indices",
    "frame_times",
    "probe_video",
    "read_clip",
    "read_clip_and_info",
    "stream_frames",
]
