"""Edit lists of MP4 and QuickTime files (ISO 14496-12, 8.6.6): which parts of a track are shown, in which order."""

import io
import struct

from .video_source import VideoSource

_NESTED = (b"moov", b"trak", b"edts")


def num_segments(source: VideoSource, track_id: int) -> int:
    """The number of segments of media in a track's edit list, 0 where the file or the track has none."""
    with io.BytesIO(source.data) if source.data is not None else open(source.name, "rb") as file:
        return _tracks(file, 0, source.size).get(track_id, 0)


def _tracks(file, start: int, end: int) -> dict[int, int]:
    """Segments by track number, of the boxes in [start, end) bytes."""
    found: dict[int, int] = {}
    track = segments = None
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", file.read(8))[0], start + 16
        size = size or end - start
        if size < body - start:
            break
        if kind in _NESTED:
            found |= _tracks(file, body, min(start + size, end))
        elif kind == b"tkhd":
            content = file.read(24)
            track = struct.unpack(">I", content[20:24] if content[:1] == b"\1" else content[12:16])[0]
        elif kind == b"elst":
            segments = _count(file.read(min(size, 2**16)))
        start += size
    if segments is not None:
        found[-1] = segments  # the track's number is in a box of the enclosing level
    if track is not None:
        found[track] = found.pop(-1, 0)
    return found


def _count(content: bytes) -> int:
    version, entries = content[0], struct.unpack(">I", content[4:8])[0]
    form = struct.Struct(">QqHH" if version == 1 else ">IiHH")
    whole = content[8 : 8 + min(entries, (len(content) - 8) // form.size) * form.size]
    return sum(media_time >= 0 for _, media_time, _, _ in form.iter_unpack(whole))
