"""Re-encode a part of one video into chunks from which clips are cheap to read.

The chunks are H.264 without audio, with short closed groups of pictures and the index at the front. There are no
B-frames: the frames are then stored in the order in which they are shown, so there is no edit list and the end of the
last frame is exact. Frames keep their own times, so a variable rate stays variable. A frame that is still shown when a
chunk begins is repeated at time 0 of that chunk. So for each t, the last frame that has begun by t is the same picture
in the source and in the chunks.

A chunk is written under a temporary name, decoded again frame by frame, and only then renamed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..files.writing import file_hash, publish, temporary_path

logger = logging.getLogger(__name__)

DURATION_TOLERANCE = 0.5  # seconds by which a video may end before the length that its container states


class TranscodeError(ValueError):
    """A video that cannot be re-encoded; the message names the file and the time."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """
    Args:
        short_side (`int`): Pixels of the shorter side, even; smaller videos keep their size.
        gop (`int`): Frames from one key frame to the next.
        crf (`int`): x264's quality, 0 (lossless) to 51; 23 is its default.
        preset (`str`): x264's speed.
    """

    short_side: int = 256
    gop: int = 30
    crf: int = 23
    preset: str = "veryfast"

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side ({self.short_side}) must be even and at least 16 pixels.")
        if self.gop < 1:
            raise ValueError(f"gop ({self.gop}) must be at least 1 frame.")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf ({self.crf}) must be in [0, 51].")

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result: even, the same shape, never larger."""
        scale = min(1.0, self.short_side / min(width, height))
        return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """
    What a finished file contains.

    Args:
        number (`int`): of the chunk.
        start (`float`): seconds from the first frame of the source.
        duration (`float`): seconds.
        bytes (`int`), sha256 (`str`): of the file.
    """

    number: int
    path: str
    start: float
    duration: float
    frames: int
    width: int
    height: int
    bytes: int
    sha256: str


def transcode(
    source: str | os.PathLike,
    path_of: Callable[[int], Path],
    chunk_seconds: float,
    first: int = 0,
    after: int | None = None,
    encoding: Encoding | None = None,
) -> list[Chunk]:
    """Write the chunks [first, after), except those that exist and decode without a fault.

    Args:
        source: A video file.
        path_of: Number of a chunk → its file. Chunk n holds the seconds [n * chunk_seconds, (n + 1) * chunk_seconds).
        chunk_seconds: Whole seconds, or `inf` for the whole video as chunk 0.
        after: The chunk before which to stop; the end of the video if not given.

    Returns:
        All chunks, new and old.

    Raises:
        TranscodeError: The source is not a video, is damaged, or ends before its container says or before chunk
            `after`; or a written chunk does not decode again. Chunks that were finished before stay.
    """
    import av

    done = []
    while first != after and (found := _find(path_of, first, chunk_seconds)):
        done.append(found)
        first += 1
    if first == after:
        return done
    try:
        # As in clip_reading: no playlist may open other files, and cut-off packets must not decode to grey.
        options = {"protocol_whitelist": "file", "fflags": "+discardcorrupt"}
        with av.open(f"file:{os.fspath(source)}", options=options) as container:
            return done + _transcode(container, os.fspath(source), path_of, chunk_seconds, first, after, encoding)
    except (av.FFmpegError, RuntimeError, OverflowError) as error:
        raise TranscodeError(f"{source}: {' '.join(str(error).split())}") from error


def _find(path_of: Callable[[int], Path], number: int, chunk_seconds: float) -> Chunk | None:
    """The chunk if its file exists and is whole; a damaged file is written again."""
    if not path_of(number).is_file():
        return None
    try:
        return inspect_chunk(path_of(number), number, float(_start(number, chunk_seconds)))
    except TranscodeError as error:
        logger.warning("%s; it is written again.", error)
        return None


def _start(number: int, chunk_seconds: float) -> Fraction | float:
    """Start of a chunk in seconds, exactly; the only chunk of an undivided video starts at 0."""
    if math.isinf(chunk_seconds):
        return math.inf if number else Fraction(0)
    return number * Fraction(chunk_seconds)


def _transcode(container, source, path_of, chunk_seconds, number, after, encoding) -> list[Chunk]:
    import av

    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise TranscodeError(f"{source}: it has no video stream.")
    if not stream.time_base or not (stream.average_rate or stream.guessed_rate):
        raise TranscodeError(f"{source}: its video stream has no frame rate.")
    stream.codec_context.thread_count = 1  # the processes are the parallelism
    done, writer, reached = [], None, None
    found: dict[int, Chunk | None] = {}  # chunks behind a hole that is filled now
    try:
        for frame, begin, end in _frames(container, stream, source, _start(number, chunk_seconds)):
            reached = end
            while number != after:
                opens, closes = _start(number, chunk_seconds), _start(number + 1, chunk_seconds)
                if end <= opens:
                    break
                if writer is None and number not in found:
                    found[number] = _find(path_of, number, chunk_seconds)
                if writer is None and found[number] is None:
                    writer = _Writer(path_of(number), number, float(opens), stream, frame, encoding or Encoding())
                if writer is not None:
                    writer.add(frame, max(begin, opens) - opens, min(end, closes) - opens)
                if end < closes:
                    break
                done.append(writer.finish() if writer is not None else found[number])
                writer, number = None, number + 1
            if number == after:
                break
        if after is None:
            _check_end(stream, container, source, reached)
            if writer is not None:
                done.append(writer.finish())
                writer = None
            elif found.get(number) is not None:  # the last chunk, which is shorter
                done.append(found[number])
        elif number != after:
            raise TranscodeError(f"{source}: ends before {float(_start(after, chunk_seconds)):.3f} s.")
    finally:
        if writer is not None:
            writer.discard()
    return done


def _frames(container, stream, source: str, start: Fraction) -> Iterator[tuple]:
    """Yield (frame, begin, end) in seconds from the first frame, beginning with the frame that is shown at `start`."""
    tick = stream.time_base
    lowest = min(0, stream.start_time or 0)
    origin = stream.start_time
    if origin is None:
        origin = next((frame.pts for frame in container.decode(stream)), None)
        if origin is None:
            raise TranscodeError(f"{source}: no frame can be decoded.")
        container.seek(lowest, stream=stream)
    target, back = origin + math.floor(start / tick), max(1, round(1 / tick))
    frames, held = container.decode(stream), None
    if start > 0:
        offset = target
        while True:
            container.seek(max(lowest, offset), stream=stream)
            frames = container.decode(stream)
            # Frames before the first key frame may refer to pictures that the seek skipped.
            held = next((frame for frame in frames if frame.key_frame or offset <= lowest), None)
            if offset <= lowest or (held is not None and held.pts is not None and held.pts <= target):
                break
            offset, back = offset - back, 2 * back
    for frame in frames:
        if frame.pts is None:
            raise TranscodeError(f"{source}: its frames carry no times.")
        if frame.is_corrupt:
            raise TranscodeError(f"{source}: the frame at {float((frame.pts - origin) * tick):.3f} s is damaged.")
        if held is not None and frame.pts > held.pts:
            if frame.pts > target:
                yield held, (held.pts - origin) * tick, (frame.pts - origin) * tick
            held = frame
        elif held is None:
            held = frame
    if held is not None:
        rate = stream.average_rate or stream.guessed_rate
        duration = held.duration * tick if held.duration else 1 / rate
        begin = (held.pts - origin) * tick
        if stream.duration and stream.duration * tick > begin:
            duration = min(duration, stream.duration * tick - begin)
        yield held, begin, begin + duration


def _check_end(stream, container, source: str, reached: Fraction | None) -> None:
    stated = (container.duration or 0) / 1e6 - float((stream.start_time or 0) * stream.time_base)
    if stream.duration:  # which counts from the first frame
        stated = float(stream.duration * stream.time_base)
    if reached is None or float(reached) < stated - DURATION_TOLERANCE:
        at = "no frame can be decoded" if reached is None else f"its frames end at {float(reached):.3f} s"
        raise TranscodeError(f"{source}: {at}, but it states a length of {stated:.3f} s: truncated?")


class _Writer:
    """Writes one chunk under a temporary name, checks it and renames it."""

    def __init__(self, path: Path, number: int, start: float, source, frame, encoding: Encoding) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.number, self.start = path, number, start
        self.part = temporary_path(path)
        self.turns = round(frame.rotation / 90) % 4  # anticlockwise, as the file's flag asks
        self.source_size = frame.width, frame.height
        self.size = encoding.size(*self.source_size)
        self.reformatter = av.video.reformatter.VideoReformatter()
        rate = source.average_rate or source.guessed_rate
        # avi counts in frames, not in parts of a second: use a fine tick there.
        self.tick = source.time_base if source.time_base.numerator == 1 else Fraction(1, 90000)
        self.container = av.open(f"file:{self.part}", "w", format="mp4", options={"movflags": "+faststart"})
        # fastdecode: reading clips takes half the time, and files are 15 % larger (benchmarks/clip_reading.py).
        options = {
            "crf": str(encoding.crf),
            "preset": encoding.preset,
            "tune": "fastdecode",
            "bf": "0",
            "threads": "1",
        }
        self.stream = self.container.add_stream("libx264", rate=rate, options=options)
        context = self.stream.codec_context
        context.width, context.height = self.size if self.turns % 2 == 0 else self.size[::-1]
        context.pix_fmt, context.gop_size, context.thread_count = "yuv420p", encoding.gop, 1
        self.stream.time_base = context.time_base = self.tick
        # Without these tags players would guess by the size, and a shrunk HD picture would change its colours.
        for name in ("color_primaries", "color_trc", "colorspace"):
            setattr(context, name, getattr(source.codec_context, name))
        self.ends: dict[int, int] = {}  # ticks
        self.last = (0, 0)

    def add(self, frame, begin: Fraction, end: Fraction) -> None:
        """Show `frame` from `begin` to `end`, in seconds of this chunk."""
        import av

        first, after = round(begin / self.tick), round(end / self.tick)
        if after <= first:
            return  # shorter than a tick: never shown
        if (frame.width, frame.height) != self.source_size:
            raise TranscodeError(f"{self.path}: the source's frames change size at {self.start + float(begin):.3f} s.")
        if self.turns:
            picture = self.reformatter.reformat(frame, *self.size, format="rgb24", interpolation="BICUBIC", threads=1)
            turned = np.ascontiguousarray(np.rot90(picture.to_ndarray(), self.turns))
            small = av.VideoFrame.from_ndarray(turned, format="rgb24").reformat(format="yuv420p", threads=1)
        else:
            small = self.reformatter.reformat(frame, *self.size, format="yuv420p", interpolation="BICUBIC", threads=1)
        # The source's frame type would otherwise be forced on the encoder, and with it the source's key frames.
        small.pict_type = av.video.frame.PictureType.NONE
        small.pts, small.time_base = first, self.tick
        self.ends[first] = after
        self.last = first, after
        self._mux(self.stream.encode(small))

    def _mux(self, packets) -> None:
        for packet in packets:
            if packet.pts in self.ends and packet.time_base == self.tick:
                packet.duration = self.ends[packet.pts] - packet.pts
            self.container.mux(packet)

    def finish(self) -> Chunk:
        try:
            self._mux(self.stream.encode())
            self.container.close()
            chunk = inspect_chunk(self.part, self.number, self.start)
            expected = float(self.last[1] * self.tick)
            if chunk.frames != len(self.ends) or abs(chunk.duration - expected) > 2e-3:
                raise TranscodeError(
                    f"{self.path}: {chunk.frames} frames of {chunk.duration:.3f} s decode again, {len(self.ends)} "
                    f"frames of {expected:.3f} s were written."
                )
            publish(self.part, self.path)
        except BaseException:
            self.discard()
            raise
        return dataclasses.replace(chunk, path=str(self.path))

    def discard(self) -> None:
        self.container.close()
        self.part.unlink(missing_ok=True)


def inspect_chunk(path: Path, number: int, start: float) -> Chunk:
    """Decode a whole file; `start` is copied into the result.

    Raises:
        TranscodeError: A frame is damaged or missing, or the first one is not at time 0.
    """
    import av

    count, end, frame = 0, Fraction(0), None
    try:
        with av.open(f"file:{path}", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt or (count == 0 and frame.pts != 0):
                    raise TranscodeError(f"{path}: frame {count} (pts {frame.pts}) is damaged or out of place.")
                count += 1
                end = max(end, (frame.pts + (frame.duration or 0)) * stream.time_base)
            if stream.frames and count != stream.frames:
                raise TranscodeError(f"{path}: {count} of its {stream.frames} frames decode: truncated?")
    except (av.FFmpegError, IndexError) as error:
        raise TranscodeError(f"{path}: does not decode: {' '.join(str(error).split())}") from error
    if frame is None:
        raise TranscodeError(f"{path}: contains no frame.")
    size = os.path.getsize(path)
    return Chunk(number, str(path), start, float(end), count, frame.width, frame.height, size, file_hash(path))
