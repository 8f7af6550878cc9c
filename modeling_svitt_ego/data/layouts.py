"""Where the frame at (video_uid, seconds) lies on disk.

Ego4D videos are stored whole or cut into chunks, and every code base cuts them differently:

    undivided   <uid>.mp4                               the whole video
    egovlp      <uid>/<n>.mp4         n = 0, 1, 2 …     chunks of 600 s, numbered
    lavila      <uid>.mp4/<s>.mp4     s = 0, 300 …      chunks of 300 s, named by their start
    avion       <uid>.mp4/<s>.mp4     s = 0, 15 …       chunks of 15 s (60 s also seen), named by their start

The other corpora of first-person video sort them into a folder for each kitchen or session. These are not found by
looking; name them:

    epic        P01/videos/P01_01.MP4                   EPIC-KITCHENS as it is downloaded
    epic-avion  P01/P01_01.MP4/<s>.MP4                  EPIC-KITCHENS as AVION cuts it, chunks of 15 s
    egtea       OP01-R01-PastaSalad/<clip>.mp4          EGTEA Gaze+'s trimmed clips; the clip's name is the uid

Times are seconds from the start of the *source* video everywhere outside this file; inside a chunk they count from
the chunk's first frame. No frame rate is assumed: the reader goes by the file's own timestamps.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..model.clip_reading import ClipReadError, VideoInfo, clamp_window, probe_video, read_clip
from .video_uid import check_video_uid

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi")
# A chunk cut at a key frame ends a little before or after its nominal length, so a time this close to an edge may
# belong to the neighbouring file.
EDGE_TOLERANCE = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one video is spread over files.

    Args:
        name (`str`): What to call it in messages.
        folder (`str`): The video's folder below the root, with `{uid}` or `{group}`; empty if the video is one file in
            the root.
        named_by (`str`): `"uid"` (one file), `"index"` (chunks 0, 1, 2 …) or `"start"` (chunks named by their start).
        chunk_seconds (`float`): Nominal length of a chunk in seconds; `inf` for an undivided video.
        suffix (`str`): File name ending, with the dot.
        group (`str`): A pattern whose first group, found at the start of the uid, is `{group}` in `folder`.
    """

    name: str
    folder: str
    named_by: str
    chunk_seconds: float
    suffix: str = ".mp4"
    group: str = ""

    def path(self, video_root: str | os.PathLike, video_uid: str, chunk: int) -> Path:
        """The file that holds chunk number `chunk` of the video."""
        check_video_uid(video_uid)
        folder = Path(video_root) / self.folder.format(uid=video_uid, group=self._group_of(video_uid))
        if self.named_by == "uid":
            return folder / f"{video_uid}{self.suffix}"
        name = chunk if self.named_by == "index" else _plain_number(chunk * self.chunk_seconds)
        return folder / f"{name}{self.suffix}"

    def _group_of(self, video_uid: str) -> str:
        if not self.group:
            return ""
        match = re.match(self.group, video_uid)
        if match is None:
            raise ValueError(f"video_uid {video_uid!r} is not of the layout {self.name!r} (pattern {self.group!r}).")
        return match.group(1)

    def chunk_of(self, time: float) -> int:
        """Number of the chunk in which `time` (seconds of the source video) falls."""
        return 0 if math.isinf(self.chunk_seconds) else int(time // self.chunk_seconds)

    def start_of(self, chunk: int) -> float:
        """Start of a chunk in seconds of the source video."""
        return 0.0 if chunk == 0 else chunk * self.chunk_seconds


LAYOUTS = {
    "undivided": Layout("undivided", "", "uid", math.inf),
    "egovlp": Layout("egovlp", "{uid}", "index", 600.0),
    "lavila": Layout("lavila", "{uid}.mp4", "start", 300.0),
    "avion": Layout("avion", "{uid}.mp4", "start", 15.0),
    "epic": Layout("epic", "{group}/videos", "uid", math.inf, ".MP4", r"([^_]+)_"),
    "epic-avion": Layout("epic-avion", "{group}/{uid}.MP4", "start", 15.0, ".MP4", r"([^_]+)_"),
    "egtea": Layout("egtea", "{group}", "uid", math.inf, ".mp4", r"([^-]+-[^-]+-[^-]+)-"),
}


def find_layout(video_root: str | os.PathLike, num_videos: int = 64) -> Layout:
    """Tell the layout of `video_root` from its first `num_videos` entries, in the order of their names.

    Raises:
        FileNotFoundError: The folder is missing or holds no video.
        ValueError: Several layouts lie side by side; name one with `VideoStore(video_root, layout=…)`.
    """
    root = Path(video_root)
    if not root.is_dir():
        raise FileNotFoundError(f"The video root {str(root)!r} is not a folder.")
    with os.scandir(root) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)

    examples: dict[tuple[str, str], list[Path]] = {}  # (kind, suffix) → entries of that kind
    seen = 0
    for entry in entries:
        kind = _kind_of(entry)
        if kind is not None:
            examples.setdefault(kind, []).append(Path(entry.path))
            seen += 1
        if seen == num_videos:
            break
    if not examples:
        raise FileNotFoundError(
            f"No video found in {str(root)!r}: expected <uid>.mp4, <uid>/<n>.mp4 or <uid>.mp4/<start>.mp4. Other "
            f"layouts are not found by looking; name one of {sorted(LAYOUTS)}."
        )
    if len(examples) > 1:
        found = "; ".join(f"{len(paths)} x {kind}, such as {paths[0].name!r}" for (kind, _), paths in examples.items())
        raise ValueError(f"{str(root)!r} holds more than one layout ({found}). Name one of {sorted(LAYOUTS)}.")

    ((kind, suffix), folders) = next(iter(examples.items()))
    if kind == "uid":
        return dataclasses.replace(LAYOUTS["undivided"], suffix=suffix)
    if kind == "index":
        return dataclasses.replace(LAYOUTS["egovlp"], suffix=suffix, chunk_seconds=_measured_chunk_length(folders))
    # Chunks named by their start: the length is what all starts have in common. Where every video has only chunk 0
    # any length leads to the right file, and LaViLa's is taken.
    step = math.gcd(*(number for folder in folders for number in _chunk_numbers(folder)))
    known = {300: "lavila", 15: "avion", 60: "avion", 0: "lavila"}
    return Layout(known.get(step, f"chunks of {step} s"), "{uid}.mp4", "start", float(step or 300), suffix)


class VideoStore:
    """Frames of any video below one root, by (video_uid, seconds), whatever the layout.

    The store keeps paths and a few durations, never an open reader, so it is cheap to pickle and safe in forked and
    in spawned workers.

    Args:
        video_root (`str` or `os.PathLike`): Folder of the videos.
        layout (`str` or `Layout`, *optional*):
            `"undivided"`, `"egovlp"`, `"lavila"`, `"avion"` or a `Layout` with other numbers. Found by looking if not
            given.
        backend (`str`): The decoder, as in `read_clip`: "auto" goes by the file, a name holds for all of them.
    """

    def __init__(
        self, video_root: str | os.PathLike, layout: str | Layout | None = None, backend: str = "auto"
    ) -> None:
        self.video_root = Path(video_root)
        if not self.video_root.is_dir():
            raise FileNotFoundError(f"The video root {str(self.video_root)!r} is not a folder.")
        if layout is None:
            layout = find_layout(self.video_root)
        elif isinstance(layout, str):
            if layout not in LAYOUTS:
                raise ValueError(f"Unknown video layout {layout!r}; there are {sorted(LAYOUTS)}.")
            layout = LAYOUTS[layout]
        self.layout = layout
        self.backend = backend
        self._durations: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"VideoStore({str(self.video_root)!r}, layout={self.layout.name!r})"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_durations": {}}

    def read(self, video_uid: str, times: Sequence[float]) -> np.ndarray:
        """The frames shown at `times`, from as many files as they lie in.

        Args:
            video_uid (`str`): Name of the video.
            times (sequence of `float`): Seconds from the start of the source video, in any order.

        Returns:
            `np.ndarray` of shape `(len(times), height, width, 3)`, uint8 RGB: for each time the last frame that
            starts at or before it.

        Raises:
            ValueError: The uid is not a plain name, or a time is negative or not finite.
            FileNotFoundError: A file is missing.
            ClipReadError: A file cannot be decoded, or a time lies past its end.
        """
        if len(times) == 0:
            raise ValueError(f"No times were asked for of video {video_uid!r}.")
        places = [self._locate(video_uid, float(time)) for time in times]
        frames: list[np.ndarray | None] = [None] * len(places)
        for path, chunk in dict.fromkeys((path, chunk) for path, chunk, _ in places):  # each file is opened once
            slots = [i for i, place in enumerate(places) if place[0] == path]
            local = np.array([places[i][2] for i in slots])
            # A chunk cut at a key frame may end before its nominal end; its last frame then stays on till the next.
            shown = functools.partial(self._within_chunk, video_uid, chunk, local)
            for slot, frame in zip(slots, read_clip(path, shown, backend=self.backend)):
                frames[slot] = frame
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            paths = sorted({str(path) for path, _, _ in places})
            raise ClipReadError(f"Chunks of one clip differ in size ({sorted(sizes)}): {', '.join(paths)}.")
        return np.stack(frames)

    def read_window(
        self, video_uid: str, start: float, end: float, times_of: Callable[[float, float], Sequence[float]]
    ) -> tuple[np.ndarray, float, float]:
        """Frames of the window [start, end), after clamping it to the video; opens each file once.

        Args:
            video_uid (`str`): Name of the video.
            start (`float`), end (`float`): Seconds of the source video; may reach past either end of it.
            times_of (function of two `float`): The times to read, given the clamped window.

        Returns:
            The frames (as `read` gives them), and the clamped start and end in seconds.
        """
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ClipReadError(f"{self.path(video_uid)}: window [{start}, {end}) s is not a pair of numbers.")
        chunk = self.layout.chunk_of(max(start, 0.0))
        offset = self.layout.start_of(chunk)
        path = self.layout.path(self.video_root, video_uid, chunk)
        if self.layout.chunk_of(max(end, 0.0)) != chunk or not path.is_file():
            start, end = clamp_window(start, self._clamped_end(video_uid, end), math.inf, str(path))
            return self.read(video_uid, times_of(start, end)), start, end

        window: list[float] = []

        def local_times(info: VideoInfo) -> list[float]:
            window[:] = clamp_window(start - offset, end - offset, info.duration, info.path)
            return [time - offset for time in times_of(window[0] + offset, window[1] + offset)]

        frames = read_clip(path, local_times, backend=self.backend)
        return frames, window[0] + offset, window[1] + offset

    def duration(self, video_uid: str) -> float:
        """Length of the whole video in seconds, from the files themselves."""
        if video_uid not in self._durations:
            start, path = self.chunks(video_uid)[-1]
            self._durations[video_uid] = start + probe_video(path).duration
        return self._durations[video_uid]

    def chunks(self, video_uid: str) -> list[tuple[float, Path]]:
        """All files of a video as (start in seconds, path), in order of time."""
        first = self.layout.path(self.video_root, video_uid, 0)
        if self.layout.named_by == "uid":
            if not first.is_file():
                raise FileNotFoundError(f"Video {video_uid!r} is missing: there is no {str(first)!r}.")
            return [(0.0, first)]
        numbers = sorted(_chunk_numbers(first.parent, self.layout.suffix))
        if not numbers:
            raise FileNotFoundError(f"Video {video_uid!r} is missing: no chunks in {str(first.parent)!r}.")
        unit = self.layout.chunk_seconds if self.layout.named_by == "index" else 1.0
        return [(number * unit, first.with_name(f"{number}{self.layout.suffix}")) for number in numbers]

    def path(self, video_uid: str, time: float = 0.0) -> Path:
        """The file in which `time` falls; for messages, it need not exist."""
        return self.layout.path(self.video_root, video_uid, self.layout.chunk_of(max(0.0, time)))

    def _locate(self, video_uid: str, time: float) -> tuple[Path, int, float]:
        """The file that shows `time`, its chunk number, and the seconds from that file's first frame."""
        if not 0 <= time < math.inf:
            raise ValueError(f"Time {time} of video {video_uid!r} is not a number of seconds >= 0.")
        chunk = self.layout.chunk_of(time)
        path = self.layout.path(self.video_root, video_uid, chunk)
        local = time - self.layout.start_of(chunk)
        if path.is_file():
            return path, chunk, local
        if chunk > 0 and local <= EDGE_TOLERANCE:
            # The video ends at the edge, so there is no next chunk: the time belongs to the end of the last one.
            previous = self.layout.path(self.video_root, video_uid, chunk - 1)
            if previous.is_file():
                return previous, chunk - 1, time - self.layout.start_of(chunk - 1)
        raise FileNotFoundError(
            f"Second {time:.3f} of video {video_uid!r} is missing: there is no {str(path)!r} "
            f"(layout {self.layout.name!r})."
        )

    def _within_chunk(self, video_uid: str, chunk: int, local: np.ndarray, info: VideoInfo) -> np.ndarray:
        """Times inside one file, those just past its end moved to its last frame if another chunk follows."""
        past = local.max() - info.duration
        if 0 < past <= EDGE_TOLERANCE and self.layout.path(self.video_root, video_uid, chunk + 1).is_file():
            return np.minimum(local, info.duration)
        return local

    def _clamped_end(self, video_uid: str, end: float) -> float:
        """`end`, or the end of the video if that comes first; for windows that reach into a next chunk."""
        chunk = self.layout.chunk_of(max(end, 0.0))
        path = self.layout.path(self.video_root, video_uid, chunk)
        if path.is_file() and path != self.chunks(video_uid)[-1][1]:
            return end
        return min(end, self.duration(video_uid))


def _kind_of(entry: os.DirEntry) -> tuple[str, str] | None:
    """(`"uid"` | `"index"` | `"start"`, suffix) of one entry of a video root; None if it is no video."""
    suffix = Path(entry.name).suffix
    if entry.is_file():
        return ("uid", suffix) if suffix.lower() in VIDEO_SUFFIXES else None
    if not entry.is_dir():
        return None
    with os.scandir(entry.path) as files:
        for name in sorted(file.name for file in files):
            stem, inner = os.path.splitext(name)
            if stem.isascii() and stem.isdigit() and inner.lower() in VIDEO_SUFFIXES:
                return ("start" if suffix.lower() == ".mp4" else "index", inner)
    return None


def _chunk_numbers(folder: Path, suffix: str | None = None) -> list[int]:
    """The numbers in the file names of a folder of chunks."""
    if not folder.is_dir():
        return []
    names = (os.path.splitext(name) for name in os.listdir(folder))
    return [
        int(stem)
        for stem, ending in names
        if stem.isascii() and stem.isdigit() and (ending == suffix if suffix else ending.lower() in VIDEO_SUFFIXES)
    ]


def _measured_chunk_length(folders: list[Path]) -> float:
    """Seconds per numbered chunk: the name does not say, so the first chunk that has a successor is measured."""
    nominal = LAYOUTS["egovlp"].chunk_seconds
    for folder in folders:
        if {0, 1} <= set(_chunk_numbers(folder)):
            first = next(path for path in folder.iterdir() if path.stem == "0")
            try:
                measured = probe_video(first).duration
            except ClipReadError as error:
                logger.warning("Could not measure the length of a chunk: %s", error)
                continue
            if abs(measured - nominal) <= 5:
                return nominal
            logger.warning("%s is %.1f s long, so chunks of %d s are assumed.", first, measured, round(measured))
            return float(round(measured))
    return nominal


def _plain_number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
