"""Which files of a folder are videos, and which of them are chunks of one video.

Used by everything that takes "a folder of videos": training (`VideoStore`), `prepare`, `extract` and `search`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files.plain_names import name_fault, shown

VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".wmv", ".3gp", ".flv",
)  # fmt: skip
_MAX_DIGITS = 9  # longer numbers are dates, as phones write them


def is_video_name(name: str) -> bool:
    """By its suffix, in any case. Hidden files do not count: `._x.mp4` is metadata that macOS stores about `x.mp4`."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_video_file(path: Path) -> bool:
    """A video by its name; `.ts` files also by their content, because TypeScript has the same suffix."""
    if not is_video_name(path.name) or not path.is_file():
        return False
    return path.suffix.lower() != ".ts" or _is_transport_stream(path)


def _is_transport_stream(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(2 * 192 + 5)
    except OSError:
        return True  # reading it will say why
    return any(head[start : start + 1] == head[start + size : start + size + 1] == b"G" for start, size in _PACKETS)


_PACKETS = ((0, 188), (4, 192), (0, 204))  # first sync byte and distance to the next


def chunk_number(name: str) -> int | None:
    """`"015.mp4"` → 15; None for other names."""
    stem, _ = os.path.splitext(name)
    is_number = stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS
    return int(stem) if is_number and is_video_name(name) else None


def chunks_in(folder: Path) -> dict[int, Path]:
    """The numbered video files of a folder by their number; empty if the folder does not exist."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    numbers = {name: chunk_number(name) for name in names}
    return {number: folder / name for name, number in numbers.items() if number is not None}


def named_by(folder: Path, chunks: dict[int, Path]) -> str | None:
    """How the numbered files of a folder divide one video.

    Returns:
        `"start"` if the folder is called as a video file is (`<uid>.mp4/15.mp4`: seconds), `"index"` if its videos
        count from 0 (`<uid>/0.mp4`), else None: `4/1.mp4` and `4/2.mp4` are separate videos.
    """
    if not chunks:
        return None
    if is_video_name(folder.name):
        return "start"
    all_numbered = sum(is_video_name(name) for name in os.listdir(folder)) == len(chunks)
    return "index" if 0 in chunks and all_numbered else None


@dataclass(frozen=True)
class FoundVideo:
    """
    A video somewhere below a folder.

    Args:
        uid (`str`): its name without suffix.
        path (`Path`): the file, or the folder of its chunks.
        named_by (`str`): `"uid"` (one file), `"index"` or `"start"` (chunks).
        chunks (`dict`): by number, the files.
    """

    uid: str
    path: Path
    named_by: str
    chunks: dict[int, Path]


def walk_videos(root: str | os.PathLike, skipped: dict[str, str] | None = None) -> Iterator[FoundVideo]:
    """Every video below `root`, in the order of the paths; hidden folders are not entered.

    Args:
        skipped (`dict`): videos whose name cannot be used, and why, are added here. Without it the first one raises.

    Raises:
        ValueError: A name cannot be used, and `skipped` is not given.
        FileNotFoundError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"The video root {shown(root)!r} is not a folder.")
    for video in _walk(root, is_root=True, seen=set()):
        fault = video_name_fault(video.uid, video.path, *video.chunks.values())
        if fault is None:
            yield video
        elif skipped is None:
            raise ValueError(f"{shown(video.path)!r}: {fault}")
        else:
            skipped[shown(video.path)] = fault


def video_name_fault(uid: str, *paths: Path) -> str | None:
    """Why a video of this name and with these files cannot be used; None if it can."""
    fault = name_fault(uid)
    try:
        for path in paths:
            os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:  # the decoders take UTF-8
        fault = fault or "its path is not valid UTF-8"
    return f"the name cannot be used: {fault}; rename it." if fault else None


def _walk(folder: Path, is_root: bool, seen: set[str]) -> Iterator[FoundVideo]:
    real = os.path.realpath(folder)
    if real in seen:  # a link to a folder above
        return
    seen.add(real)
    chunks = chunks_in(folder)
    divided = named_by(folder, chunks)
    if divided == "start" or (divided == "index" and not is_root):
        uid = os.path.splitext(folder.name)[0] if divided == "start" else folder.name
        yield FoundVideo(uid, folder, divided, chunks)
        return
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        return
    for entry in entries:
        if is_video_file(entry):
            yield FoundVideo(os.path.splitext(entry.name)[0], entry, "uid", {0: entry})
        elif entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry, False, seen)
