"""Reading frames with decord, for files that it was shown to read exactly; the others are refused with the reason.

decord seeks to a key frame and counts frames from there. It cannot count where frames that follow a key frame in the
file are shown before it, ignores edit lists, and does not return from an MPEG transport stream.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .decode_pyav import MP4
from .frame_table import FrameTable, frame_table
from .video_source import Unreadable, VideoInfo, VideoSource, one_line

RUN = 16  # frames; a clip that spans no more is read whole: 8 instead of 13 ms of CPU at 128 px
_CONTAINERS = (MP4, "matroska,webm", "avi")
_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "vp8", "vp9")


def decord_refusal(source: VideoSource, table: FrameTable) -> str | None:
    """Why decord must not read this file; `None` if it reads it exactly."""
    if source.data is not None:
        return "decord reads files on disk only, and this video is in memory."
    if table.container not in _CONTAINERS:
        return f"decord is used for mp4, mov, mkv, webm and avi only, and this is {table.container!r}."
    if table.info.codec not in _CODECS:
        return f"decord was not shown to read {table.info.codec}."
    if table.num_video_streams > 1:
        return f"it has {table.num_video_streams} video streams, and decord may take another one."
    if table.truncated:
        return "it is truncated, and decord does not say which frames are missing."
    if table.leading or not table.all_idr:
        return "it has open groups of pictures, where decord counts frames wrong."
    if table.depth > 8:
        return f"it has {table.depth} bits per colour, which decord turns into other colours."
    if table.interlaced:
        return "it is interlaced, and decord may count fields instead of frames."
    if table.mirrored:
        return "its display matrix mirrors the picture, which decord ignores."
    return None


def read_decord(source: VideoSource, times: Callable[[VideoInfo], np.ndarray]) -> tuple[np.ndarray, VideoInfo]:
    """The frames at `times`, in any order, as `uint8` of shape `(len(times), height, width, 3)`, RGB, upright."""
    try:
        import decord
        from decord._ffi.base import DECORDError, DECORDLimitReachedError
    except (ImportError, OSError) as error:
        raise Unreadable(f"decord cannot be imported ({one_line(error)}).") from error
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg would print dozens of lines about a damaged file
    table = frame_table(source)
    refusal = decord_refusal(source, table)
    if refusal:
        raise Unreadable(refusal)
    try:
        reader = decord.VideoReader(source.name, ctx=decord.cpu(0), num_threads=1)
        spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64).reshape(-1, 2)
        _check_times(spans[:, 0], table)
        info = replace(table.info, backend="decord")
        indices = np.searchsorted(table.begins, times(info) + info.tolerance, side="right") - 1
        # decord seeks again for each frame unless the next one follows at once: frames close together are read in one
        # run.
        first, last = int(indices.min()), int(indices.max())
        if last - first < RUN:
            frames = reader.get_batch(list(range(first, last + 1))).asnumpy()[indices - first]
        else:
            wanted, inverse = np.unique(indices, return_inverse=True)
            frames = reader.get_batch(wanted.tolist()).asnumpy()[inverse]
    except (DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, IndexError) as error:
        raise Unreadable(one_line(error)) from error
    return frames, replace(info, height=frames.shape[1], width=frames.shape[2])


def _check_times(begins: np.ndarray, table: FrameTable) -> None:
    """Compares decord's frames with the file's: an edit list, or fields taken for frames, shows here."""
    if len(begins) != len(table.begins):
        raise Unreadable(
            f"decord counts {len(begins)} frames, and the file shows {len(table.begins)} (an edit list?)."
        )
    begins = begins - begins[0]
    distance = np.abs(begins - (table.begins - table.begins[0]))
    # decord keeps times as float32.
    if (distance > table.info.tolerance + 1e-6 * np.abs(begins)).any():
        worst = int(np.argmax(distance))
        raise Unreadable(
            f"decord shows frame {worst} at {begins[worst]:.3f} s, and the file at {table.begins[worst]:.3f} s (an "
            "edit list?)."
        )
