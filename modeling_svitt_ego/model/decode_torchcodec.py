"""Reading frames with torchcodec, for files that it was shown to read exactly; the others are refused with the reason.

torchcodec is given the frames of the file (`custom_frame_mappings`), which are kept from one call to the next: it then
does not read the whole file each time it opens it.

"torchcodec-cuda" lets an NVIDIA GPU decode. It has not been run on a GPU by us: neither its pixels nor its speed were
compared with the other decoders.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .frame_table import FrameTable, frame_table, times_are_from_index
from .video_source import ClipReadError, Unreadable, VideoInfo, VideoSource, one_line


def torchcodec_refusal(table: FrameTable) -> str | None:
    """Why torchcodec must not read this file; `None` if it reads it exactly."""
    if not times_are_from_index(table):
        return f"torchcodec does not seek exactly in {table.container!r}."
    if table.container == "avi" and table.reordered:
        return "it is an AVI file with reordered frames, whose end torchcodec does not reach."
    if table.truncated:
        return "it is truncated, and torchcodec would take it for a shorter video."
    if table.info.codec == "h264" and not table.all_idr:
        return "its H.264 has key frames that are not complete restarts, where torchcodec gives wrong frames."
    if table.depth > 8:
        return f"it has {table.depth} bits per colour, which torchcodec's FFmpeg turns into other colours."
    if table.interlaced:
        return "it is interlaced, and torchcodec may count fields instead of frames."
    if table.mirrored:
        return "its display matrix mirrors the picture, which torchcodec ignores."
    return None


def read_torchcodec(
    source: VideoSource, times: Callable[[VideoInfo], np.ndarray], device: str = "cpu"
) -> tuple[np.ndarray, VideoInfo]:
    """The frames at `times`, in any order, as `uint8` of shape `(len(times), height, width, 3)`, RGB, upright."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise Unreadable(
            f"torchcodec cannot be imported ({one_line(error)}): pip install torchcodec, which needs the shared "
            "libraries of FFmpeg 4 to 9 (apt-get install ffmpeg)."
        ) from error
    table = frame_table(source)
    refusal = torchcodec_refusal(table)
    if refusal:
        raise Unreadable(refusal)
    info = replace(table.info, backend="torchcodec")
    indices = np.searchsorted(table.begins, times(info) + info.tolerance, side="right") - 1
    try:
        decoder = VideoDecoder(
            source.name if source.data is None else source.data,
            stream_index=table.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            custom_frame_mappings=table.mappings,
            device=device,
        )
        frames = decoder.get_frames_at(indices.tolist()).data.cpu().numpy()
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unreadable(one_line(error)) from error
    if device != "cpu" and decoder.cpu_fallback:
        raise Unreadable(f"the GPU does not decode it, torchcodec would use the CPU ({decoder.cpu_fallback}).")
    return frames, replace(info, height=frames.shape[1], width=frames.shape[2])


def read_torchcodec_cuda(
    source: VideoSource, times: Callable[[VideoInfo], np.ndarray]
) -> tuple[np.ndarray, VideoInfo]:
    """
    As [`read_torchcodec`], decoded by the current GPU and copied to the CPU. **Not tested on a GPU by us.**

    A file that the GPU cannot decode is refused; it is not decoded on the CPU instead. Data loader workers must be
    spawned, because CUDA does not work in forked ones.
    """
    if not torch.cuda.is_available():
        raise Unreadable("torchcodec-cuda needs an NVIDIA GPU, and PyTorch finds none.")
    warnings.warn("The video decoder 'torchcodec-cuda' has not been tested on a GPU by its authors.", stacklevel=2)
    frames, info = read_torchcodec(source, times, "cuda")
    return frames, replace(info, backend="torchcodec-cuda")


def read_video_decoder(decoder: Any, times: Callable[[VideoInfo], Sequence[float]]) -> tuple[np.ndarray, VideoInfo]:
    """
    The frames that an open `torchcodec.decoders.VideoDecoder` shows at `times`, as [`read_torchcodec`] gives them.

    Its file cannot be asked for, so a decoder opened with `seek_mode="approximate"` is an error, and where torchcodec
    itself seeks wrong (see [`torchcodec_refusal`]) so does this.

    Raises:
        ClipReadError: The decoder cannot be read exactly, or a time is outside the video.
    """
    meta, name = decoder.metadata, str(getattr(decoder.metadata, "path", None) or "<VideoDecoder>")
    if getattr(meta, "begin_stream_seconds_from_content", None) is None:
        raise ClipReadError(f"{name}: the VideoDecoder was opened with seek_mode='approximate': open it with 'exact'.")
    begin, last = meta.begin_stream_seconds, decoder.get_frame_at(len(decoder) - 1)
    fps = float(meta.average_fps)
    # The container may give the last frame no length.
    end = last.pts_seconds + (last.duration_seconds or 1 / fps)
    info = VideoInfo(name, "torchcodec", end - begin, fps, len(decoder), 0, 0, begin, meta.codec)
    moments = np.asarray(times(info), dtype=np.float64)
    if moments.size == 0 or not ((moments >= 0) & (moments <= info.duration + 1 / fps)).all():
        raise ClipReadError(f"{name}: times {moments.tolist()} s are not all within {info.duration:.3f} s.")
    moments = moments + begin + info.tolerance
    at_end = moments >= last.pts_seconds
    frames = torch.empty((len(moments), *last.data.shape), dtype=last.data.dtype)
    frames[torch.from_numpy(at_end)] = last.data.cpu()
    if not at_end.all():
        shown = decoder.get_frames_played_at(seconds=moments[~at_end].tolist()).data
        frames[torch.from_numpy(~at_end)] = shown.cpu()
    if frames.dtype != torch.uint8:
        raise ClipReadError(f"{name}: the VideoDecoder gives {frames.dtype}, and torch.uint8 is needed.")
    if frames.shape[1] == 3 and (frames.shape[-1] != 3 or last.data.shape[1:] == (meta.height, meta.width)):
        frames = frames.permute(0, 2, 3, 1)
    return frames.numpy(), replace(info, height=frames.shape[1], width=frames.shape[2])
