"""Videos whose frames show their own number, so that a test can tell which frame it was given."""

import importlib
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

SIDE, CELL = 64, 16
TICK = Fraction(1, 3000)


def picture(number: int) -> np.ndarray:
    """A 64 x 64 picture with `number` in binary, as 16-pixel squares: 12 bits, 3 guards of white, 1 of black."""
    bits = [(number >> i) & 1 for i in range(12)] + [1, 0, 1, 1]
    squares = np.array(bits, dtype=np.uint8).reshape(4, 4) * 200 + 20
    return np.stack([np.kron(squares, np.ones((CELL, CELL), dtype=np.uint8))] * 3, axis=-1)


def number_of(frame: np.ndarray) -> int:
    assert frame.shape == (SIDE, SIDE, 3) and frame.dtype == np.uint8
    squares = frame.reshape(4, CELL, 4, CELL, 3).astype(float).mean((1, 3, 4)).ravel() > 120
    assert squares[12:].tolist() == [True, False, True, True], "not a picture of this test: black, rotated or damaged"
    return sum(int(bit) << i for i, bit in enumerate(squares[:12]))


def is_usable(backend: str) -> bool:
    """Whether a decoder of videos is installed here."""
    try:
        importlib.import_module({"pyav": "av", "torchcodec": "torchcodec.decoders"}.get(backend, backend))
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def regular(num_frames, fps, tick=3000):
    return [round(i * tick / fps) for i in range(num_frames)]


def expected_numbers(times, pts, tick=3000):
    """The definition: the last frame that has begun by t."""
    begins = (np.asarray(pts) - pts[0]) / tick
    return [int(np.flatnonzero(begins <= t + 1e-3)[-1]) for t in times]


def write_video(
    path,
    pts,
    fps=30,
    codec="libx264",
    tick=TICK,
    gop=12,
    rotation=0,
    options=None,
    mux=None,
    pix_fmt="yuv420p",
    b_frames=None,
    filters=None,
    sound_seconds=0.0,
    second_video=False,
):
    """
    Frame i shows the number i and begins at pts[i] ticks.

    Args:
        rotation: Degrees of the file's display matrix.
        options, mux: Options of the encoder and of the container.
        b_frames: Most frames in a row that refer to later ones; `None` for the codec's own number.
        filters: A bitstream filter of FFmpeg between encoder and file.
        sound_seconds: Length of a silent sound track.
        second_video: Whether a second video stream of poorer quality shows other numbers.
    """
    with av.open(str(path), "w", options=mux or {}) as container:
        streams = [_video_stream(container, fps, codec, tick, gop, options, pix_fmt, b_frames)]
        if second_video:
            streams.append(_video_stream(container, fps, codec, tick, gop, {"crf": "51"}, pix_fmt, b_frames))
        if rotation and not hasattr(streams[0], "set_display_rotation"):
            pytest.skip("PyAV writes rotation flags, which this test needs, from 17.1 on")
        if rotation:
            streams[0].set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000) if sound_seconds else None
        chain = None
        for i, p in enumerate(pts):
            for number, stream in enumerate(streams):
                shown = np.ascontiguousarray(np.rot90(picture(i + 1000 * number), -rotation // 90))
                frame = av.VideoFrame.from_ndarray(shown)
                if pix_fmt != "yuv420p":
                    frame = frame.reformat(format=pix_fmt)
                frame.pts, frame.time_base = int(p), tick
                packets = stream.encode(frame)
                if filters:
                    chain = chain or av.bitstream.BitStreamFilterContext(filters, stream)
                    packets = [out for packet in packets for out in chain.filter(packet)]
                container.mux(packets)
        for stream in streams:
            packets = stream.encode()
            container.mux([out for packet in packets for out in chain.filter(packet)] if chain else packets)
        if sound:
            _write_silence(container, sound, sound_seconds)
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # Run by root, SVT-AV1 leaves its caller a real-time process, and no other process runs next to it.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return str(path)


def _video_stream(container, fps, codec, tick, gop, options, pix_fmt, b_frames):
    stream = container.add_stream(codec, rate=fps)
    stream.width = stream.height = SIDE
    stream.pix_fmt, stream.time_base, stream.codec_context.time_base = pix_fmt, tick, tick
    stream.gop_size, stream.options = gop, options or {}
    if b_frames is not None:
        stream.codec_context.max_b_frames = b_frames
    return stream


def _write_silence(container, stream, seconds):
    silence = np.zeros((1, round(16000 * seconds)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


# --------------------------------------------------------------------------------------------- boxes of finished files


def _box(data: bytes, path: list[bytes], start: int = 0, end: int | None = None) -> tuple[int, int] | None:
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if kind == path[0]:
            return (start, start + size) if len(path) == 1 else _box(data, path[1:], start + 8, start + size)
        start += size
    return None


def with_display_matrix(video, path, matrix) -> str:
    """A copy of an mp4 file with (a, b, c, d) of its display matrix replaced."""
    data = bytearray(Path(video).read_bytes())
    start, _ = _box(data, [b"moov", b"trak", b"tkhd"])
    a, b, c, d = (65536 * value for value in matrix)
    place = start + 12 + (20 if data[start + 8] == 0 else 32) + 16
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(path).write_bytes(data)
    return str(path)


def with_edit_list(video, path, edits) -> str:
    """
    A copy of an mp4 file, whose index is at its end, with another edit list.

    Args:
        edits: (milliseconds shown, first tick of the media, -1 for nothing) of each segment.
    """
    data = Path(video).read_bytes()
    moov, moov_end = _box(data, [b"moov"])
    trak, trak_end = _box(data, [b"moov", b"trak"])
    old, old_end = _box(data, [b"moov", b"trak", b"edts"])
    assert moov_end == len(data)
    mvhd, _ = _box(data, [b"moov", b"mvhd"])
    place = mvhd + (28 if data[mvhd + 8] == 1 else 20)
    clock = struct.unpack(">I", data[place : place + 4])[0]  # ticks a second; not the same by every FFmpeg
    entries = b"".join(struct.pack(">Iihh", length * clock // 1000, first, 1, 0) for length, first in edits)
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    inner = data[trak + 8 : old] + edts + data[old_end:trak_end]
    inner = data[moov + 8 : trak] + struct.pack(">I4s", 8 + len(inner), b"trak") + inner + data[trak_end:moov_end]
    Path(path).write_bytes(data[:moov] + struct.pack(">I4s", 8 + len(inner), b"moov") + inner)
    return str(path)
