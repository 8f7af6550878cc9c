"""The times of all frames of a file, without decoding them, and what else decord and torchcodec cannot be asked for.

Both decoders count frames and believe their counting; PyAV's view of the packets tells where that goes wrong.
"""

import functools
import json
import os
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .decode_pyav import MP4, opened
from .display_matrix import display_matrix, is_mirrored
from .video_source import Unreadable, VideoInfo, VideoSource

_IDR = MappingProxyType({"h264": {5}, "hevc": {19, 20}})  # NAL unit types (ITU-T H.264, table 7-1; H.265, table 7-1)


@dataclass(frozen=True)
class FrameTable:
    """
    Args:
        info (`VideoInfo`): As PyAV gives it.
        container (`str`): FFmpeg's name of the container.
        stream (`int`): Index of the video stream in the file.
        num_video_streams (`int`): How many there are.
        begins (`np.ndarray`): Seconds from the first frame at which each frame begins, in order of display.
        mappings (`str`): The frames as JSON, in the form of ffprobe that torchcodec takes.
        truncated (`bool`): Whether the container promises more than the file holds.
        reordered (`bool`): Whether frames are shown in another order than they are stored.
        leading (`bool`): Whether frames stored after a place to seek to are shown before it (open groups of pictures).
        all_idr (`bool`): Whether decoding can restart at every key frame of H.264 or HEVC.
        depth (`int`): Bits per colour.
        interlaced (`bool`): By the first frame.
        mirrored (`bool`): By the first frame's display matrix.
    """

    info: VideoInfo
    container: str
    stream: int
    num_video_streams: int
    begins: np.ndarray
    mappings: str
    truncated: bool
    reordered: bool
    leading: bool
    all_idr: bool
    depth: int
    interlaced: bool
    mirrored: bool


def frame_table(source: VideoSource) -> FrameTable:
    """
    Reads all packets of a file; the tables of the last 64 files on disk are kept until the files change.

    Raises:
        Unreadable: PyAV cannot read the file.
    """
    if source.data is not None:
        return _scan(source)
    status = os.stat(source.name)
    return _kept(source, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _kept(source: VideoSource, size: int, changed: int) -> FrameTable:
    return _scan(source)


def _scan(source: VideoSource) -> FrameTable:
    with opened(source) as cursor:
        container, stream, tick = cursor.container, cursor.stream, cursor.tick
        container.seek(cursor._lowest, stream=stream)
        first, packets, all_idr = None, [], True
        indexed = {entry.timestamp for entry in stream.index_entries if entry.is_keyframe}
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None:
                all_idr = all_idr and _restarts(packet, stream)
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.pts is not None and not packet.is_discard:
                stored = packet.pts if container.format.name == "matroska,webm" else packet.dts
                seekable = packet.is_keyframe or stored in indexed
                length = packet.duration or round(cursor.frame_ticks)
                packets.append((packet.pts, length, packet.is_keyframe, seekable))
        if first is None or not packets:
            raise Unreadable("no frame of it can be decoded.")
        times = np.array([pts for pts, _, _, _ in packets])
        since_key = np.maximum.accumulate(np.where([seekable for _, _, _, seekable in packets], times, times.min()))
        order = np.argsort(times, kind="stable")
        frames = [{"pts": packets[i][0], "duration": packets[i][1], "key_frame": int(packets[i][2])} for i in order]
        depth = max(component.bits for component in first.format.components)
        return FrameTable(
            info=cursor.info,
            container=container.format.name,
            stream=stream.index,
            num_video_streams=len(container.streams.video),
            begins=(times[order] - cursor.origin) * tick,
            mappings=json.dumps({"frames": frames}),
            truncated=cursor.truncated,
            reordered=bool((order != np.arange(len(order))).any()),
            leading=bool((times < since_key).any()),
            all_idr=all_idr,
            depth=depth,
            interlaced=bool(first.interlaced_frame),
            mirrored=is_mirrored(display_matrix(first)),
        )


def _restarts(packet, stream) -> bool:
    """Whether decoding can restart at this key frame, for the codecs in which a key frame need not be a restart."""
    codec = stream.codec_context.codec.canonical_name
    if codec not in _IDR:
        return True
    data, setup = memoryview(packet), bytes(stream.codec_context.extradata or b"")
    length = 4
    if setup[:1] == b"\1":
        length = (setup[4 if codec == "h264" else 21] & 3) + 1
    types = _nal_types(data, length if setup[:1] == b"\1" else None, codec)
    return any(kind in _IDR[codec] for kind in types)


def _nal_types(data: memoryview, length_bytes: int | None, codec: str):
    """Types of the NAL units of a packet: with their lengths before them (mp4, mkv), or between start codes."""
    if length_bytes is None:
        starts = [part[:1] for part in bytes(data).split(b"\0\0\1")[1:]]
    else:
        starts, place = [], 0
        while place + length_bytes < len(data):
            size = int.from_bytes(data[place : place + length_bytes], "big")
            place += length_bytes
            starts.append(bytes(data[place : place + 1]))
            place += size
    return [start[0] & 31 if codec == "h264" else start[0] >> 1 & 63 for start in starts if start]


def times_are_from_index(table: FrameTable) -> bool:
    """Whether the container has an index by which a decoder can seek exactly."""
    return table.container in (MP4, "matroska,webm", "avi")
