"""Reading a few frames out of a video file: by time, exactly, or with one clear error.

Times are seconds counted from the first frame of the file; the frame at time t is the last one that has begun by t.
They are never frame numbers, because a file's frame rate need not be constant, nor the 30 that annotations assume.
Three decoders give the same pixels. decord is the default; PyAV takes the files that decord cannot read, reads wrong,
or reads slowly (`choose_backend` says which and why); torchcodec is there for those who have it. `backend=` here, in
`VideoStore` and (as `video_backend`) in the video processor names one for every file: "pyav" is never far behind on
short files and may be ahead, so measure yours with benchmarks/clip_reading.py. Nothing is kept open between calls, so
the functions are safe in forked and in spawned workers.

Frames keep their native size. Resizing in the decoder (decord's `width`, `height`) saves little, since decoding is
nearly all of the work; its pixels differ, and a random crop would be cut from the reduced picture
(`decode_time_resize` in the benchmark).
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

BACKENDS = ("decord", "pyav", "torchcodec")
# decord reads the whole file at each open: beyond this size PyAV, which seeks, costs clearly less. Below it the two
# are close, and decord is taken as the named default (benchmarks/clip_reading.py).
DECORD_MAX_BYTES = 4 * 2**20
DECORD_RUN = 16  # frames; a clip that spans no more is read whole: 8 instead of 13 ms of CPU at 128 px
# decord loops for ever on MPEG-TS and fails on others, so only containers that it is known to read.
MP4_SUFFIXES = (".mp4", ".mov", ".m4v")
DECORD_SUFFIXES = (*MP4_SUFFIXES, ".mkv", ".webm", ".avi")
# After a seek to a key frame that later frames look behind (an open group of pictures), decord is some frames off and
# does not know it. It must not read files marked so: HEVC (x265 opens groups by default) and H.264 whose x264 settings
# say it. Open groups in H.264 by another encoder are not seen here.
OPEN_GROUP_MARKS = (b"hvc1", b"hev1", b"V_MPEGH/ISO/HEVC", b"open_gop=1", b"intra_refresh=1")
# "file:" and the whitelist: a playlist or an odd name must not make FFmpeg open something else. Packets cut off by the
# end of a truncated file are dropped, or they would decode to grey.
_PYAV_OPTIONS = {"protocol_whitelist": "file", "fflags": "+discardcorrupt"}
# A frame that begins within this after t counts as begun: decord keeps times in float32.
TIME_TOLERANCE = 1e-3


class ClipReadError(ValueError):
    """A clip that cannot be read: the message names the file and the numbers at fault."""


@dataclass(frozen=True)
class VideoInfo:
    """
    What a file says about its video stream.

    Args:
        path (`str`): The file.
        backend (`str`): The decoder that opened it.
        duration (`float`): Seconds from the beginning of the first frame to the end of the last.
        fps (`float`): Mean frames per second.
        num_frames (`int`, *optional*): Number of frames, `None` where the container does not say.
        height (`int`): Of the upright picture, after the file's rotation flag; 0 while no frame is decoded yet.
        width (`int`): As `height`.
        start_time (`float`): The first frame's time on the file's own clock, in seconds.
        codec (`str`, *optional*): Codec name, `None` where the decoder does not say.
    """

    path: str
    backend: str
    duration: float
    fps: float
    num_frames: int | None
    height: int
    width: int
    start_time: float
    codec: str | None


# ------------------------------------------------------------------------------------------------- times within a clip


def clamp_window(start: float | None, end: float | None, duration: float, path: str) -> tuple[float, float]:
    """Clips [start, end) to [0, duration): `None` means the video's own bound; an empty rest is an error."""
    start, end = 0.0 if start is None else float(start), duration if end is None else float(end)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ClipReadError(f"{path}: window [{start}, {end}) s is not a pair of numbers.")
    if end <= start:
        raise ClipReadError(f"{path}: window [{start}, {end}) s is {'empty' if end == start else 'reversed'}.")
    if start >= duration or end <= 0:
        raise ClipReadError(f"{path}: window [{start}, {end}) s lies outside the video of {duration:.3f} s.")
    return max(start, 0.0), min(end, duration)


def _offsets(num: int, sampling: str, generator: torch.Generator | None) -> list[float]:
    """Where in its segment each frame lies, in [0, 1)."""
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


# ------------------------------------------------------------------------------------------------------ public reading


def choose_backend(path: str | os.PathLike) -> tuple[str, str]:
    """The decoder that "auto" tries first for this file, and the reason."""
    path = _check_path(path)
    refusal = _decord_refusal(path)
    if refusal:
        return "pyav", refusal
    if os.path.getsize(path) > DECORD_MAX_BYTES:
        return "pyav", f"of {os.path.getsize(path)} bytes, all of which decord would read"
    return "decord", "a short file of a kind that decord reads well"


def _decord_refusal(path: str) -> str | None:
    """Why decord must not read this file, if so."""
    if not path.lower().endswith(DECORD_SUFFIXES):
        return f"decord is used for {', '.join(DECORD_SUFFIXES)} only"
    with open(path, "rb") as file:
        ends = file.read(2**16)
        file.seek(max(0, os.path.getsize(path) - 2**18))
        ends += file.read()  # an mp4's index stands at either end
    if ends[:1] == ends[188:189] == b"G":
        return "MPEG-TS by its content, whatever its name: decord would not return"
    if any(mark in ends for mark in OPEN_GROUP_MARKS):
        return "HEVC or open groups of pictures, where decord would give wrong frames"
    try:
        import decord  # noqa: F401
    except (ImportError, OSError) as error:
        return f"decord cannot be imported ({error})"
    return None


def read_clip(
    path: str | os.PathLike, times: Sequence[float] | Callable[[VideoInfo], Sequence[float]], backend: str = "auto"
) -> np.ndarray:
    """
    The frames of a video at `times`, as `uint8` of shape `(len(times), height, width, 3)`, RGB, upright.

    Args:
        path (`str` or `os.PathLike`): A local video file.
        times (sequence of `float`, or a function of [`VideoInfo`] that returns one):
            Seconds from the first frame, in any order. The frame at t is the last one that has begun by t; t at the
            very end of the video gives its last frame.
        backend (`str`): "decord", "pyav", "torchcodec": that one, or an error. "auto": [`choose_backend`], which is
            decord for files up to 4 MiB that it reads rightly and PyAV for the rest, and PyAV when decord fails.

    Raises:
        ClipReadError: The file is missing, empty, damaged where it is needed, or not a video, or a time is outside it.
    """
    return read_clip_and_info(path, times, backend)[0]


def read_clip_and_info(
    path: str | os.PathLike, times: Sequence[float] | Callable[[VideoInfo], Sequence[float]], backend: str = "auto"
) -> tuple[np.ndarray, VideoInfo]:
    """Like [`read_clip`], with the [`VideoInfo`] of the file; opens it once."""
    path = _check_path(path)
    chosen: list[float] = []

    def times_once(info: VideoInfo) -> np.ndarray:
        # Drawn once, so that a fallback reads the same random moments.
        if not chosen:
            chosen.extend(times(info) if callable(times) else times)
        moments = np.asarray(chosen, dtype=np.float64)
        if moments.ndim != 1 or moments.size == 0 or not np.isfinite(moments).all():
            raise ClipReadError(f"{path}: times must be a non-empty list of numbers, got {chosen}.")
        # Decoders differ by about a frame in where they see the end.
        if moments.min() < 0 or moments.max() > info.duration + 1 / info.fps + TIME_TOLERANCE:
            raise ClipReadError(f"{path}: times {chosen} s are not all within the video of {info.duration:.3f} s.")
        return moments

    return _with_fallback(path, times_once, backend)


def probe_video(path: str | os.PathLike, backend: str = "auto") -> VideoInfo:
    """Opens a video and decodes its first frame; [`ClipReadError`] if that does not work."""
    return _with_fallback(_check_path(path), lambda info: np.zeros(1), backend)[1]


def stream_frames(path: str | os.PathLike, times: Callable[[VideoInfo], Iterable[float]]) -> Iterator[np.ndarray]:
    """
    The frames at many increasing times, one after the other, from a single pass over the file.

    Gives what [`read_clip`] gives with PyAV, without holding more than one frame and without a seek per clip: for
    features of a whole video, where it is the dense times that cost.

    Args:
        path (`str` or `os.PathLike`): A local video file.
        times (function of [`VideoInfo`]): Seconds from the first frame, not decreasing.

    Yields:
        `uint8` arrays of shape `(height, width, 3)`, RGB, upright; the same array as long as the same frame is shown.

    Raises:
        ClipReadError: As [`read_clip`], when the pass gets there.
    """
    path = _check_path(path)
    try:
        import av
    except (ImportError, OSError) as error:
        raise ClipReadError(f"{path}: PyAV cannot be imported ({error}); pip install av.") from error
    try:
        with av.open(f"file:{path}", options=_PYAV_OPTIONS) as container:
            cursor, info = _begin(av, container, path)
            cursor.one_pass = True
            yield from cursor.pictures(av, _increasing(times(info), info), info)
    except (_Unreadable, av.FFmpegError, OSError, RuntimeError, OverflowError) as error:
        raise ClipReadError(f"{path}: cannot be read: {_one_line(error)}") from error


def _increasing(times: Iterable[float], info: VideoInfo) -> Iterator[float]:
    previous = 0.0
    for time in times:
        if not previous <= time <= info.duration + 1 / info.fps + TIME_TOLERANCE:
            raise ClipReadError(
                f"{info.path}: time {time} s must lie in [{previous}, {info.duration:.3f}] s: after the one before, "
                "within the video."
            )
        previous = time
        yield time


def _check_path(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    if os.path.isdir(path):
        raise ClipReadError(f"{path}: is a folder, not a video.")
    if not os.path.isfile(path):
        raise ClipReadError(f"{path}: no such file.")
    if not os.access(path, os.R_OK):
        raise ClipReadError(f"{path}: may not be read by this user.")
    if os.path.getsize(path) == 0:
        raise ClipReadError(f"{path}: is empty (0 bytes).")
    return path


def _with_fallback(path: str, times: Callable[[VideoInfo], np.ndarray], backend: str) -> tuple[np.ndarray, VideoInfo]:
    readers = {"decord": _read_decord, "pyav": _read_pyav, "torchcodec": _read_torchcodec}
    if backend != "auto" and backend not in readers:
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, got {backend!r}.")
    first = backend
    if backend == "auto":
        first = "pyav" if os.path.getsize(path) > DECORD_MAX_BYTES else "decord"  # which may refuse: choose_backend
    try:
        return readers[first](path, times)
    except _Unreadable as error:
        if backend != "auto" or first == "pyav":
            raise ClipReadError(f"{path}: {first} cannot read it: {error}") from error
        try:
            return _read_pyav(path, times)
        except _Unreadable as second:
            raise ClipReadError(f"{path}: cannot be read. PyAV: {second} decord: {error}") from second


class _Unreadable(Exception):
    """A decoder's failure, before it is known whether another decoder manages."""


# -------------------------------------------------------------------------------------------------------------- decord


def _read_decord(path: str, times: Callable[[VideoInfo], np.ndarray]) -> tuple[np.ndarray, VideoInfo]:
    refusal = _decord_refusal(path)
    if refusal:
        raise _Unreadable(refusal + ".")
    try:
        import decord
        from decord._ffi.base import DECORDError, DECORDLimitReachedError
    except ImportError as error:
        raise _Unreadable(_one_line(error)) from error
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64).reshape(-1, 2)
        # decord knows no edit lists: it shows as a negative first time or as times that step back.
        if len(spans) == 0 or spans[0, 0] < -TIME_TOLERANCE or (np.diff(spans[:, 0]) <= 0).any():
            raise _Unreadable(f"{len(spans)} frames whose times do not increase from 0 (an edit list?).")
        begins = spans[:, 0] - spans[0, 0]
        duration = float(spans[-1, 1] - spans[0, 0])
        fps = float(reader.get_avg_fps())
        info = VideoInfo(path, "decord", duration, fps, len(spans), 0, 0, float(spans[0, 0]), None)
        indices = np.searchsorted(begins, times(info) + TIME_TOLERANCE, side="right") - 1
        gaps = np.append(begins[1:], duration)[indices] - (spans[indices, 1] - spans[0, 0])
        if (gaps > 0.5 / fps).any() and not path.lower().endswith(MP4_SUFFIXES):
            # The file may be cut within a group of pictures; of an mp4 in that state decord reads nothing at all.
            raise _Unreadable("a frame does not last until the next: truncated, or a varying rate; PyAV must judge.")
        # decord seeks anew for each frame unless the next one follows at once: near frames are cheaper read in a run.
        first, last = int(indices.min()), int(indices.max())
        if last - first < DECORD_RUN:
            frames = reader.get_batch(list(range(first, last + 1))).asnumpy()[indices - first]
        else:
            wanted, inverse = np.unique(indices, return_inverse=True)
            frames = reader.get_batch(wanted.tolist()).asnumpy()[inverse]
    except (DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, IndexError) as error:
        raise _Unreadable(_one_line(error)) from error
    return frames, replace(info, height=frames.shape[1], width=frames.shape[2])


# ---------------------------------------------------------------------------------------------------------------- PyAV


def _read_pyav(path: str, times: Callable[[VideoInfo], np.ndarray]) -> tuple[np.ndarray, VideoInfo]:
    try:
        import av
    except (ImportError, OSError) as error:
        raise _Unreadable(f"PyAV cannot be imported ({error}); pip install av.") from error
    try:
        with av.open(f"file:{path}", options=_PYAV_OPTIONS) as container:
            return _read_container(av, container, path, times)
    except (av.FFmpegError, OSError, RuntimeError, OverflowError) as error:
        raise _Unreadable(_one_line(error)) from error


def _read_container(av, container, path: str, times) -> tuple[np.ndarray, VideoInfo]:
    cursor, info = _begin(av, container, path)
    moments = times(info)
    frames: list[np.ndarray | None] = [None] * len(moments)
    order = np.argsort(moments, kind="stable")
    for i, picture in zip(order, cursor.pictures(av, moments[order], info)):
        frames[i] = picture
    if len({frame.shape for frame in frames}) > 1:
        raise _Unreadable(f"its frames change size: {sorted({frame.shape[:2] for frame in frames})}.")
    frames = np.stack(frames)
    return frames, replace(info, height=frames.shape[1], width=frames.shape[2])


def _begin(av, container, path: str):
    """A cursor on the video stream of an open container, and what the file says about it."""
    kind = container.format.name
    if kind == "tty" or kind.startswith("image2") or kind.endswith("_pipe"):
        raise _Unreadable(f"it is not a video (FFmpeg takes it for {kind!r}).")  # FFmpeg "plays" text and pictures
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise _Unreadable("it has no video stream.")
    stream.codec_context.thread_count = 1  # the workers are the parallelism
    tick, fps = float(stream.time_base or 0), float(stream.average_rate or stream.guessed_rate or 0)
    if tick <= 0 or fps <= 0:
        raise _Unreadable("its video stream has no frame rate.")
    cursor = _Cursor(container, stream, frame_ticks=1 / (fps * tick))
    cursor.origin = stream.start_time if stream.start_time is not None else cursor.seek(0).pts
    cursor.end = cursor.origin + stream.duration if stream.duration else cursor.last_pts()
    cursor.truncated = _is_truncated(container, stream, path, cursor.end)
    duration, codec = (cursor.end - cursor.origin) * tick, stream.codec_context.name
    return cursor, VideoInfo(path, "pyav", duration, fps, stream.frames or None, 0, 0, cursor.origin * tick, codec)


def _is_truncated(container, stream, path: str, end: int) -> bool:
    """Whether the container promises more than the file holds."""
    index = stream.index_entries
    if len(index) and index[-1].pos + index[-1].size > os.path.getsize(path):
        return True
    promised = (container.duration or 0) / 1e6 - end * float(stream.time_base)
    return not stream.duration and promised > 2 / float(stream.average_rate or stream.guessed_rate)


class _Cursor:
    """Walks one video stream forwards; times are in the stream's ticks."""

    def __init__(self, container, stream, frame_ticks: float):
        self.container, self.stream, self.frame_ticks = container, stream, frame_ticks
        self.tick = float(stream.time_base)
        self.frames, self.held, self.ahead, self.truncated = iter(()), None, None, False
        self.origin, self.end, self.one_pass = 0, 0, False

    def seek(self, target: int):
        """Begins decoding at a frame that is shown no later than `target`, if there is one; returns it."""
        lowest = min(0, self.stream.start_time or 0)
        offset, step = max(target, lowest), max(1, round(1 / self.tick))
        while True:
            self.container.seek(offset, stream=self.stream)
            self.frames = self.container.decode(self.stream)
            # Frames before the first key frame may lean on pictures that the seek skipped, except at the very start.
            first = next((frame for frame in self.frames if frame.key_frame or offset == lowest), None)
            if first is not None and first.pts is None:
                raise _Unreadable("its frames carry no times.")
            if offset == lowest or (first is not None and first.pts <= target):
                break
            # The index counts in decoding order, so the seek can land one key frame late.
            offset, step = max(lowest, offset - step), 2 * step
        if first is None:
            raise _Unreadable(f"no frame can be decoded at {target * self.tick:.3f} s.")
        self.held, self.ahead = first, next(self.frames, None)
        return first

    def pictures(self, av, moments: Iterable[float], info: VideoInfo) -> Iterator[np.ndarray]:
        """The upright RGB picture at each of `moments`, which must not decrease; the same array while it is shown."""
        convert = av.video.reformatter.VideoReformatter()
        previous = picture = None
        for moment in moments:
            at_end = moment >= info.duration - TIME_TOLERANCE
            ticks = math.inf if at_end else self.origin + math.floor((moment + TIME_TOLERANCE) / self.tick)
            frame = self.frame_at(ticks)
            if frame is not previous:
                picture = convert.reformat(frame, format="rgb24").to_ndarray()
                # The angle is the picture's own, anticlockwise, in quarter turns.
                picture, previous = np.rot90(picture, round(frame.rotation / 90) % 4), frame
            yield picture

    def frame_at(self, target: float):
        """The last frame with pts <= target, which must not decrease from call to call; infinity for the last one."""
        if self.held is None or (not self.one_pass and self._key_frame_between(min(target, self.end))):
            self.seek(min(target, self.end))
        while self.ahead is not None and self.ahead.pts <= target:
            self.held, self.ahead = self.ahead, next(self.frames, None)
        # The last frame before a hole in a truncated file must not stand in for the missing ones.
        held_end = self.held.pts + (self.held.duration or self.frame_ticks)
        hole = self.ahead is None or (self.truncated and self.ahead.pts - held_end > self.frame_ticks / 2)
        if hole and held_end <= min(target, self.end - TIME_TOLERANCE / self.tick):
            raise _Unreadable(f"frames are missing from {held_end * self.tick:.3f} s on: truncated?")
        if self.held.is_corrupt:
            raise _Unreadable(f"the frame at {self.held.pts * self.tick:.3f} s is damaged.")
        return self.held

    def _key_frame_between(self, target: int) -> bool:
        index = self.stream.index_entries
        found = index.search_timestamp(target)
        return self.ahead is not None and found >= 0 and index[found].timestamp > self.ahead.pts

    def last_pts(self) -> int:
        """Where the last packet ends, for containers that do not state the stream's duration."""
        if self.container.duration:
            self.container.seek(self.container.duration)
        ends = [p.pts + (p.duration or 0) for p in self.container.demux(self.stream) if p.pts is not None]
        if not ends:
            raise _Unreadable("its video stream has no packets with times.")
        self.held = None  # the container now stands at its end: seek before the next frame
        return max(ends)


# ---------------------------------------------------------------------------------------------------------- torchcodec


def _read_torchcodec(path: str, times: Callable[[VideoInfo], np.ndarray]) -> tuple[np.ndarray, VideoInfo]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise _Unreadable(f"torchcodec cannot be imported ({_one_line(error)}).") from error
    try:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
        meta = decoder.metadata
        begin, end = meta.begin_stream_seconds, meta.end_stream_seconds
        shape = meta.num_frames, meta.height, meta.width
        info = VideoInfo(path, "torchcodec", end - begin, meta.average_fps, *shape, begin, meta.codec)
        # torchcodec refuses t at the very end of the stream, which here means the last frame.
        moments = np.minimum(begin + times(info) + TIME_TOLERANCE, end - TIME_TOLERANCE / 10)
        frames = decoder.get_frames_played_at(seconds=moments.tolist()).data.numpy()
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, ClipReadError):
            raise
        raise _Unreadable(_one_line(error)) from error
    return frames, replace(info, height=frames.shape[1], width=frames.shape[2])


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
