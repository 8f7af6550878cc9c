"""Reading frames with PyAV: seek to the key frame before the moment, decode forwards, keep the last frame begun.

This is the decoder that all files are read by unless another is named, and the one that the others are compared with.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from .display_matrix import display_matrix, upright
from .edit_lists import num_segments
from .needed_frames import NeededFrames
from .video_source import Unreadable, VideoInfo, VideoSource, one_line

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
# FFmpeg's names of the containers whose frames were shown to be read exactly (tests/model/test_exact_reading.py).
CONTAINERS = (MP4, "matroska,webm", "avi", "mpegts", "flv", "asf", "mxf", "gif")
# In an AVI file, FFmpeg guesses the times of reordered frames from the order in which they are stored.
_REORDERING_IN_AVI = ("h264", "hevc")
_OPTIONS = {
    "protocol_whitelist": "file",  # a playlist or an unusual name must not make FFmpeg open something else
    "fflags": "+discardcorrupt",  # packets cut off by the end of a truncated file would decode to grey
}
MOST_PIXELS = 2**26  # of a frame, 8192 x 8192: a small file can claim more than a machine has memory for
_CHECKED_AT_END = 20  # packets; more than the longest reordering


def read_pyav(source: VideoSource, times: Callable[[VideoInfo], np.ndarray]) -> tuple[np.ndarray, VideoInfo]:
    """The frames at `times`, in any order, as `uint8` of shape `(len(times), height, width, 3)`, RGB, upright."""
    with opened(source) as cursor:
        info = cursor.info
        moments = times(info)
        cursor.targets = sorted(map(cursor.ticks, moments.tolist()))
        frames: list[np.ndarray | None] = [None] * len(moments)
        order = np.argsort(moments, kind="stable")
        for i, picture in zip(order, cursor.pictures(moments[order])):
            frames[i] = picture
    if len({frame.shape for frame in frames}) > 1:
        raise Unreadable(f"its frames change size: {sorted({frame.shape[:2] for frame in frames})}.")
    stacked = np.stack(frames)
    return stacked, replace(info, height=stacked.shape[1], width=stacked.shape[2])


def stream_pyav(source: VideoSource, times: Callable[[VideoInfo], Iterable[float]]) -> Iterator[np.ndarray]:
    """The frames at times that do not decrease, from one pass over the file."""
    with opened(source) as cursor:
        cursor.one_pass = True
        yield from cursor.pictures(times(cursor.info))


@contextmanager
def opened(source: VideoSource) -> Iterator["Cursor"]:
    """
    A cursor on the video stream of a file, closed afterwards.

    Raises:
        Unreadable: PyAV is missing, or the file is not a video that can be read exactly.
    """
    try:
        import av
    except (ImportError, OSError) as error:
        raise Unreadable(f"PyAV cannot be imported ({one_line(error)}); pip install av.") from error
    try:
        file = f"file:{source.name}" if source.data is None else io.BytesIO(source.data)
        with av.open(file, options=_OPTIONS) as container:
            yield Cursor(av, container, source)
    except (av.FFmpegError, OSError, RuntimeError, OverflowError) as error:
        raise Unreadable(one_line(error)) from error


class Cursor:
    """
    Moves forwards through the video stream of an open container.

    Args:
        av (module): PyAV.
        container (`av.container.InputContainer`): The open file.
        source (`VideoSource`): Where it was opened from.

    Attributes:
        info (`VideoInfo`): What the file says about the stream.
        truncated (`bool`): Whether the container promises more than the file holds.
        one_pass (`bool`): Never seek, for times that are close together.
    """

    def __init__(self, av, container, source: VideoSource):
        self.av, self.container, self.stream = av, container, _video_stream(av, container)
        stream = self.stream
        stream.codec_context.thread_count = 1  # the loader's workers are the parallelism
        self.tick = float(stream.time_base or 0)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if self.tick <= 0 or fps <= 0:
            raise Unreadable("its video stream has no frame rate.")
        self.frame_ticks = 1 / (fps * self.tick)
        self.held: Any = None  # the frame shown last, and the one after it
        self.ahead: Any = None
        self.frames, self.one_pass = iter(()), False
        self.targets: list[float] = []
        self.truncated = False
        self.origin = stream.start_time
        self._check_order(source)
        self.end = self._end()
        self.truncated = self._is_truncated(source)
        duration = (self.end - self.origin) * self.tick
        start, codec = self.origin * self.tick, _codec(stream)
        self.info = VideoInfo(source.name, "pyav", duration, fps, stream.frames or None, 0, 0, start, codec)

    def _check_order(self, source: VideoSource) -> None:
        """Refuses files whose frames have no reliable times; finds the first frame where the container hides it."""
        kind, context = self.container.format.name, self.stream.codec_context
        if kind == MP4 and context.has_b_frames:
            segments = num_segments(source, self.stream.id)
            if segments > 1:
                raise Unreadable(
                    f"its edit list joins {segments} segments of reordered frames, which FFmpeg shows wrong: convert "
                    "it once (svitt-ego prepare, or ffmpeg)."
                )
        if kind == "avi" and context.has_b_frames:
            codec = _codec(self.stream)
            # Packets of a few bytes: two frames are packed into the one before, as DivX wrote them.
            if codec in _REORDERING_IN_AVI or any(entry.size < 16 for entry in self.stream.index_entries):
                raise Unreadable(
                    f"an AVI file has no times for the reordered frames of {codec}: convert it to mp4 or mkv."
                )
        if self.origin is None or kind == "avi":
            self.origin = self.seek(self.origin or 0).pts

    def _end(self) -> int:
        """Where the last frame ends, in ticks: as stated where the index agrees, else from the last packets."""
        stream, index = self.stream, self.stream.index_entries
        if stream.duration and len(index) > _CHECKED_AT_END and stream.start_time is not None:
            last = [entry.timestamp for entry in index[-_CHECKED_AT_END:]]
            step = last[1] - last[0]
            regular = all(after - before == step for before, after in zip(last, last[1:]))
            reordering = stream.start_time - index[0].timestamp
            if regular and abs(last[-1] + step + reordering - stream.start_time - stream.duration) <= step / 100:
                return self.origin + stream.duration
        return self._end_of_packets()

    def _end_of_packets(self) -> int:
        stream, container = self.stream, self.container
        stated = self.origin + (stream.duration or 0)
        if container.duration:
            stated = max(stated, math.ceil(container.duration / 1e6 / self.tick))
        step = max(1, round(1 / self.tick))
        offset, lowest = stated, self._lowest
        while True:
            container.seek(max(offset, lowest), stream=stream)
            shown = [packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard]
            self.held = None  # the container is at its end now: seek before the next frame
            if shown and (len(shown) >= _CHECKED_AT_END or offset <= lowest):
                last = max(shown, key=lambda packet: packet.pts)
                return last.pts + (last.duration or round(self.frame_ticks))
            if offset <= lowest:
                raise Unreadable("its video stream has no packets with times.")
            # Sound may go on after the picture, and the last packets need not hold the last frame.
            offset, step = offset - step, 2 * step

    def _is_truncated(self, source: VideoSource) -> bool:
        stream, index = self.stream, self.stream.index_entries
        if len(index) and index[-1].pos + index[-1].size > source.size:
            return True
        promised = _tagged_duration(stream) or (self.container.duration or 0) / 1e6
        return not stream.duration and promised - self.end * self.tick > 2 * self.frame_ticks * self.tick

    @property
    def _lowest(self) -> int:
        return min(0, self.stream.start_time or 0)

    def seek(self, target: float):
        """Begins decoding at a frame that is shown no later than `target`, if there is one; returns it."""
        lowest = self._lowest
        offset, step = max(target, lowest), max(1, round(1 / self.tick))
        while True:
            self.container.seek(offset, stream=self.stream)
            self.frames = self._decoded()
            # Frames before the first key frame may refer to pictures that the seek skipped, except at the very start.
            first = next((frame for frame in self.frames if frame.key_frame or offset == lowest), None)
            if first is not None and first.pts is None:
                raise Unreadable("its frames carry no times.")
            if offset == lowest or (first is not None and first.pts <= target):
                break
            # The index counts in decoding order, so the seek can end one key frame too late.
            offset, step = max(lowest, offset - step), 2 * step
        if first is None:
            raise Unreadable(f"no frame can be decoded at {target * self.tick:.3f} s.")
        self.held, self.ahead = first, next(self.frames, None)
        return first

    def _decoded(self) -> Iterator:
        """Frames from the container's position on; not those that are neither asked for nor referred to."""
        # FFmpeg skips the same frames of HEVC, but there frames of higher temporal layers may refer to them.
        if self.targets and not self.truncated and _codec(self.stream) == "h264":
            return NeededFrames(self.container, self.stream, self.targets)
        return self.container.decode(self.stream)

    def ticks(self, moment: float) -> float:
        """Seconds from the first frame as ticks of the stream; infinity at the end of the video."""
        if moment >= self.info.duration - self.info.tolerance:
            return math.inf
        return self.origin + math.floor((moment + self.info.tolerance) / self.tick)

    def pictures(self, moments: Iterable[float]) -> Iterator[np.ndarray]:
        """The upright RGB picture at each of `moments`, which must not decrease; the same array while it is shown."""
        convert = self.av.video.reformatter.VideoReformatter()
        previous = picture = None
        for moment in moments:
            frame = self.frame_at(self.ticks(moment))
            if frame is not previous:
                picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
                picture, previous = upright(picture, display_matrix(frame)), frame
            yield picture

    def frame_at(self, target: float):
        """The last frame with pts <= target, which must not decrease from call to call; infinity for the last one."""
        if self.held is None or (not self.one_pass and self._key_frame_between(min(target, self.end))):
            self.seek(min(target, self.end))
        while self.ahead is not None and self.ahead.pts <= target:
            if self.ahead.pts <= self.held.pts:
                raise Unreadable(f"the times of its frames step back at {self.ahead.pts * self.tick:.3f} s.")
            self.held, self.ahead = self.ahead, next(self.frames, None)
        if self.held.pts - target > self.frame_ticks:
            raise Unreadable(f"nothing can be decoded before {(self.held.pts - self.origin) * self.tick:.3f} s.")
        # The last frame before a hole in a truncated file must not stand in for the missing ones.
        held_end = self.held.pts + (self.held.duration or self.frame_ticks)
        ends = self.ahead is None and not getattr(self.frames, "complete", False)
        hole = ends or (self.truncated and self.ahead.pts - held_end > self.frame_ticks / 2)
        if hole and held_end <= min(target, self.end - self.info.tolerance / self.tick):
            raise Unreadable(f"frames are missing from {held_end * self.tick:.3f} s on: truncated?")
        if self.held.is_corrupt:
            raise Unreadable(f"the frame at {self.held.pts * self.tick:.3f} s is damaged.")
        return self.held

    def _key_frame_between(self, target: float) -> bool:
        index = self.stream.index_entries
        found = index.search_timestamp(target)
        return self.ahead is not None and found >= 0 and index[found].timestamp > self.ahead.pts


def _video_stream(av, container):
    """The video stream that FFmpeg takes for the main one, in a container that is read exactly."""
    kind = container.format.name
    if kind == "tty" or kind.startswith("image2") or kind.endswith("_pipe"):
        raise Unreadable(f"it is not a video (FFmpeg takes it for {kind!r}).")  # FFmpeg "plays" text and pictures
    if kind not in CONTAINERS:
        raise Unreadable(
            f"its container ({container.format.long_name}) does not say exactly when its frames are shown: convert it "
            "to mp4 or mkv."
        )
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise Unreadable("it has no video stream.")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MOST_PIXELS:
        raise Unreadable(f"its frames of {width} x {height} pixels are larger than the limit of {MOST_PIXELS} pixels.")
    # A frame inside may be larger than the file says at its beginning.
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MOST_PIXELS)}
    return stream


def _codec(stream) -> str:
    return stream.codec_context.codec.canonical_name  # "av1", and not the name of the library that decodes it


def _tagged_duration(stream) -> float | None:
    """Seconds by the tag that Matroska files have for each stream ("00:00:03.000000000")."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return None
