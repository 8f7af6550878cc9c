"""Finds the videos in a file or a folder, and reads the frames of each in one pass; used by extract and search."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.layouts import EDGE_TOLERANCE, chunk_seconds
from ..data.video_files import FoundVideo, video_name_fault, walk_videos
from ..files.plain_names import shown
from ..model.clip_reading import VideoInfo, probe_video, stream_frames
from ..model.video_source import is_url


@dataclass(frozen=True)
class SourceVideo:
    """
    A video and its files.

    Args:
        uid (`str`): its name.
        files (tuple of (`float`, `Path`)): start in seconds and path of each file, in order of time.
    """

    uid: str
    files: tuple[tuple[float, Path], ...]

    @property
    def shown(self) -> str:
        """The path of the file, or of the folder of the chunks. Messages use it, because names may repeat."""
        first = self.files[0][1]
        return shown(first if len(self.files) == 1 else first.parent)

    def duration(self) -> float:
        """Seconds from the first frame of the first file to the end of the last one."""
        start, path = self.files[-1]
        return start + probe_video(path, backend="pyav").duration

    def stamp(self) -> list[list]:
        """Absolute path, size and modification time of each file, which identify the video."""
        entries = [(path.resolve(), path.stat()) for _, path in self.files]
        return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in entries]

    def frames(self, times: np.ndarray) -> Iterator[np.ndarray]:
        """The frame at each of the increasing `times`, as [`stream_frames`]: one pass over each file."""
        starts = [start for start, _ in self.files]
        which = np.searchsorted(starts, times, side="right") - 1
        for number in np.unique(which):
            start, path = self.files[number]
            local = times[which == number] - start
            followed = number + 1 < len(self.files)

            def within(info: VideoInfo, local=local, followed=followed) -> np.ndarray:
                # A chunk cut at a key frame may end early. Its last frame is shown until the next chunk begins.
                past = local.max() - info.duration
                return np.minimum(local, info.duration) if followed and 0 < past <= EDGE_TOLERANCE else local

            yield from stream_frames(path, within)


def find_videos(
    path: str | os.PathLike,
    uids: set[str] | None = None,
    skipped: dict[str, str] | None = None,
    unique: bool = True,
) -> list[SourceVideo]:
    """
    The video that `path` is, or every video below the folder: dated sub-folders of a home folder, DCIM trees of
    cameras, and all layouts of [`VideoStore`], whose chunks are one video.

    Args:
        uids (`set[str]`, *optional*): Return only these videos; a missing one is an error.
        skipped (`dict`, *optional*): Receives the videos whose name cannot be used, with the reason. Without it, the
            first such video is an error.
        unique (`bool`): Whether to refuse two videos with one name, because their features would share a file.

    Raises:
        FileNotFoundError: There is no such file or folder, no video in it, or one of `uids` is missing.
        ValueError: Two videos have the same name.
    """
    path = check_source(path)
    if path.is_file():
        return _single(path, skipped)
    found = [_source(video) for video in walk_videos(path, skipped) if uids is None or video.uid in uids]
    if uids is not None and (missing := sorted(uids - {video.uid for video in found})):
        raise FileNotFoundError(
            f"{len(missing)} of {len(uids)} videos are not in {shown(path)!r}, the first: {', '.join(missing[:3])}."
        )
    if not found and not skipped:
        raise FileNotFoundError(f"No video found in {shown(path)!r} or in the folders below it.")
    if unique:
        _check_unique(found)
    return found


def check_source(path: str | os.PathLike) -> Path:
    """
    The path of a video or folder that exists. Commands call this before they load a model.

    Raises:
        FileNotFoundError: There is no such file or folder, or it is a URL.
    """
    if is_url(path):
        raise FileNotFoundError(f"{path} is a URL, and only local files are read: download the video first.")
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no video or folder {shown(Path(path))!r}.")
    return Path(path)


def _single(path: Path, skipped: dict[str, str] | None) -> list[SourceVideo]:
    fault = video_name_fault(path.stem, path)
    if fault is None:
        return [SourceVideo(path.stem, ((0.0, path),))]
    if skipped is None:
        raise ValueError(f"{shown(path)!r}: {fault}")
    skipped[shown(path)] = fault
    return []


def _check_unique(videos: list[SourceVideo]) -> None:
    by_uid: dict[str, SourceVideo] = {}
    for video in videos:
        other = by_uid.setdefault(video.uid, video)
        if other is not video:
            raise ValueError(f"{other.shown!r} and {video.shown!r} would get the same name {video.uid!r}.")


def _source(video: FoundVideo) -> SourceVideo:
    numbers = sorted(video.chunks)
    unit = chunk_seconds({video.path: video.chunks}) if video.named_by == "index" else 1.0
    starts = [0.0] if video.named_by == "uid" else [number * unit for number in numbers]
    return SourceVideo(video.uid, tuple((start, video.chunks[number]) for start, number in zip(starts, numbers)))
