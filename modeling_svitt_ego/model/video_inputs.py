"""The forms in which users and libraries hand clips around, told apart: files, windows of files, decoded frames."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.video_utils import VideoMetadata

from .decoded_frames import is_array, is_frame
from .video_source import VideoSource, name_of

_WINDOW_KEYS = {"path", "bytes", "start", "end"}
_FORMS = (
    "a path, bytes, an open file, a torchcodec VideoDecoder, one of these with its start and end, decoded frames or "
    "an image"
)


@dataclass(frozen=True)
class Window:
    """
    A part of a video that must be decoded.

    Args:
        video: A path, a [`VideoSource`], a binary file object or a torchcodec `VideoDecoder`.
        start (`float`, *optional*): Seconds from the first frame; `None` for the beginning.
        end (`float`, *optional*): Seconds from the first frame; `None` for the end.
    """

    video: Any
    start: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        """The file, for messages."""
        return name_of(self.video)


@dataclass(frozen=True)
class Frames:
    """
    A clip that was decoded elsewhere.

    Args:
        frames: An array or tensor of a clip, a list of pictures, or one picture.
        metadata (`VideoMetadata`, *optional*): What came with the frames.
    """

    frames: Any
    metadata: VideoMetadata | None = None


def clips_of(videos: Any) -> list[Window | Frames]:
    """
    The clips of a clip, of a batch, or of a column of a data set.

    Raises:
        ValueError: There is none, or something in it is no clip.
    """
    clips = list(_flatten(videos))
    if not clips:
        raise ValueError("No video was given.")
    return clips


def is_video(value: Any) -> bool:
    """Whether `value` is a whole video that must be decoded: a path, bytes, an open file or a `VideoDecoder`."""
    return (
        isinstance(value, (str, os.PathLike, bytes, bytearray, VideoSource))
        or hasattr(value, "read")
        or is_video_decoder(value)
    )


def is_video_decoder(value: Any) -> bool:
    """Whether `value` is a torchcodec `VideoDecoder`, which `datasets.Video` columns give, without importing it."""
    return any(
        base.__name__ == "VideoDecoder" and base.__module__.startswith("torchcodec.") for base in type(value).__mro__
    )


def is_column(value: Any) -> bool:
    """Whether `value` is a sequence of clips that is not a list, such as the column of a data set."""
    return isinstance(value, Sequence) and not isinstance(value, (list, tuple)) and not is_video(value)


def metadata_of(value: Any) -> list[VideoMetadata]:
    """`video_metadata` as transformers takes it: nothing, one entry, or lists of entries, nested like the clips."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [entry for item in value for entry in metadata_of(item)]
    return [value if isinstance(value, VideoMetadata) else VideoMetadata(**_known(value))]


def _known(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What `VideoMetadata` has a field for; `total_num_frames` is the only one it demands."""
    known = {name: value for name, value in entries.items() if name in VideoMetadata.__dataclass_fields__}
    known.setdefault("total_num_frames", entries.get("num_frames"))
    return known


def _flatten(videos: Any) -> Iterator[Window | Frames]:
    if is_video(videos):
        yield Window(_opened(videos))
    elif isinstance(videos, Mapping):
        yield _from_mapping(videos)
    elif _is_window(videos):
        yield Window(_opened(videos[0]), videos[1], videos[2])
    elif is_frame(videos):
        yield Frames(videos)
    elif is_array(videos) and videos.ndim in (4, 5):
        yield from [Frames(videos)] if videos.ndim == 4 else map(Frames, videos)
    elif not is_array(videos) and isinstance(videos, Iterable):
        yield from _flatten_sequence(videos)
    else:
        got = f"an array of shape {tuple(videos.shape)}" if is_array(videos) else type(videos).__name__
        raise ValueError(f"A clip is {_FORMS}; got {got}.")


def _flatten_sequence(videos: Iterable) -> Iterator[Window | Frames]:
    if isinstance(videos, (list, tuple)) and videos and all(is_frame(frame) for frame in videos):
        yield Frames(videos)
        return
    for i, video in enumerate(videos):
        if isinstance(video, (list, tuple)) and not video:
            raise ValueError(f"Clip {i}: has no frames.")  # leaving it out would pair texts with wrong clips
        yield from _flatten(video)


def _from_mapping(clip: Mapping[str, Any]) -> Window | Frames:
    keys = set(clip)
    if "array" in keys and keys <= {"array", "video_metadata"}:
        metadata = metadata_of(clip.get("video_metadata"))
        if len(metadata) > 1:
            raise ValueError(f"One clip has one video_metadata, got {len(metadata)}.")
        return Frames(clip["array"], metadata[0] if metadata else None)
    if not keys <= _WINDOW_KEYS or not keys & {"path", "bytes"}:
        raise ValueError(
            "A clip has the keys path or bytes, start and end, or the keys array and video_metadata; got "
            f"{sorted(map(str, clip))}."
        )
    path, data = clip.get("path"), clip.get("bytes")
    if data is not None:
        video = VideoSource(os.fspath(path) if path is not None else "<video in memory>", bytes(data))
    elif path is not None:
        video = path
    else:
        raise ValueError("A clip has neither a path nor bytes: both are None.")
    return Window(_opened(video), clip.get("start"), clip.get("end"))


def _is_window(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 3
        and is_video(value[0])
        and not any(is_video(bound) or isinstance(bound, (tuple, list, Mapping)) for bound in value[1:])
    )


def _opened(video: Any) -> Any:
    """The file behind a `VideoDecoder` of a data set, which any decoder can read; other videos as they are."""
    encoded = getattr(video, "_hf_encoded", None) if is_video_decoder(video) else None
    if isinstance(encoded, Mapping):
        path, data = encoded.get("path"), encoded.get("bytes")
        if data is not None:
            return VideoSource(path or "<video in memory>", data)
        if path is not None and os.path.isfile(path):
            return path
    return video
