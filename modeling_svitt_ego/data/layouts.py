"""Where the frame at (video_uid, seconds) is on disk.

Ego4D videos are stored whole or cut into chunks, and every code base cuts them differently. EPIC-KITCHENS and EGTEA
Gaze+ add a folder per participant or session, whose name is the beginning of the uid:

    undivided    <uid>.mp4                               the whole video
    egovlp       <uid>/<n>.mp4         n = 0, 1, 2 …     chunks of 600 s, numbered
    lavila       <uid>.mp4/<s>.mp4     s = 0, 300 …      chunks of 300 s, named by their start
    avion        <uid>.mp4/<s>.mp4     s = 0, 15 …       chunks of 15 s (60 s also seen), named by their start
    epic         P01/videos/P01_11.MP4                   as EPIC-KITCHENS is downloaded
    epic-flat    P01/P01_11.MP4
    epic-avion   P01/P01_11.MP4/<s>.MP4                  chunks of 15 s, as AVION cuts EPIC-KITCHENS
    egtea        OP01-R01-PastaSalad/<clip>.mp4          EGTEA Gaze+'s trimmed clips; the clip's name is the uid

Numbers may have leading zeros (`000.mp4`), and the suffix may differ from file to file. Times are seconds from the
start of the *source* video everywhere outside this file; inside a chunk they count from the chunk's first frame. No
frame rate is assumed: the reader goes by the file's own timestamps.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..files.plain_names import shown
from ..model.clip_reading import ClipReadError, VideoInfo, clamp_window, probe_video, read_clip
from .video_files import VIDEO_SUFFIXES, chunks_in, is_video_file, is_video_name, named_by
from .video_uid import check_video_uid

logger = logging.getLogger(__name__)

# A chunk cut at a key frame ends a little before or after its nominal length, so a time this close to an edge may
# belong to the neighbouring file.
EDGE_TOLERANCE = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one video is spread over files.

    Args:
        name (`str`): What to call it in messages.
        folder (`str`): The video's folder below the root, with `{uid}` or `{group}`; empty for the root itself.
        named_by (`str`): `"uid"` (one file), `"index"` (chunks 0, 1, 2 …) or `"start"` (chunks named by their start).
        chunk_seconds (`float`): Nominal length of a chunk in seconds; `inf` for an undivided video.
        suffix (`str`): File name suffix, with the dot.
        group (`str`): A pattern whose first group, found at the start of the uid, is `{group}` in `folder`.
        num_digits (`int`): Chunk numbers are padded with zeros to this length.
    """

    name: str
    folder: str
    named_by: str
    chunk_seconds: float
    suffix: str = ".mp4"
    group: str = ""
    num_digits: int = 0

    def path(self, video_root: str | os.PathLike, video_uid: str, chunk: int) -> Path:
        """The file of chunk number `chunk` of the video."""
        check_video_uid(video_uid)
        folder = Path(video_root) / self.folder.format(uid=video_uid, group=self._group_of(video_uid))
        if self.named_by == "uid":
            return folder / f"{video_uid}{self.suffix}"
        name = str(chunk) if self.named_by == "index" else _plain_number(chunk * self.chunk_seconds)
        return folder / f"{name.zfill(self.num_digits)}{self.suffix}"

    def _group_of(self, video_uid: str) -> str:
        if not self.group:
            return ""
        match = re.match(self.group, video_uid)
        if match is None:
            raise ValueError(f"video_uid {video_uid!r} is not of the layout {self.name!r} (pattern {self.group!r}).")
        return match.group(1)

    def chunk_of(self, time: float) -> int:
        """Number of the chunk that contains `time` (seconds of the source video)."""
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
    "epic-flat": Layout("epic-flat", "{group}", "uid", math.inf, ".MP4", r"([^_]+)_"),
    "epic-avion": Layout("epic-avion", "{group}/{uid}.MP4", "start", 15.0, ".MP4", r"([^_]+)_"),
    "egtea": Layout("egtea", "{group}", "uid", math.inf, ".mp4", r"([^-]+-[^-]+-[^-]+)-"),
}


def find_layout(video_root: str | os.PathLike, num_videos: int = 64) -> Layout:
    """Recognise the layout of `video_root` from its first `num_videos` entries, in the order of their names.

    Raises:
        FileNotFoundError: The folder is missing or contains no video.
        ValueError: It contains several layouts; choose one with `VideoStore(video_root, layout=…)`.
    """
    root = Path(video_root)
    if not root.is_dir():
        raise FileNotFoundError(f"The video root {shown(root)!r} is not a folder.")
    examples: dict[str, list[Path]] = {}  # kind → files, or folders of chunks
    num_seen = 0
    for entry in sorted(root.iterdir()):
        kind, paths = _kind_of(entry)
        if kind is not None:
            examples.setdefault(kind, []).extend(paths)
            num_seen += 1
        if num_seen == num_videos:
            break
    if not examples:
        raise FileNotFoundError(
            f"No video found in {shown(root)!r}: expected <uid>.mp4, <uid>/<n>.mp4, <uid>.mp4/<start>.mp4 or "
            f"P01/videos/P01_11.MP4. The layouts are {sorted(LAYOUTS)}."
        )
    if len(examples) > 1:
        found = "; ".join(f"{len(paths)} x {kind}, such as {paths[0].name!r}" for kind, paths in examples.items())
        raise ValueError(f"{shown(root)!r} holds more than one layout ({found}). Choose one of {sorted(LAYOUTS)}.")
    ((kind, paths),) = examples.items()
    return _layout_of(kind, paths)


def _kind_of(entry: Path) -> tuple[str | None, list[Path]]:
    """What an entry of a video root is (`"uid"`, `"index"`, `"start"`, or a layout with groups), and examples."""
    if is_video_file(entry):
        return "uid", [entry]
    if not entry.is_dir() or entry.name.startswith("."):
        return None, []
    if divided := named_by(entry, chunks_in(entry)):
        return divided, [entry]
    for kind, folder, is_one in (
        ("epic", entry / "videos", is_video_file),
        ("epic-flat", entry, is_video_file),
        ("epic-avion", entry, lambda path: named_by(path, chunks_in(path)) == "start"),
        ("egtea", entry, is_video_file),
    ):
        if found := _of_group(kind, entry.name, folder, is_one):
            return kind, found
    return None, []


def _of_group(layout: str, group: str, folder: Path, is_one: Callable[[Path], bool], limit: int = 64) -> list[Path]:
    """The first videos of a folder whose names begin with its group, as the layout prescribes."""
    if not folder.is_dir():
        return []
    matches = {path: re.match(LAYOUTS[layout].group, path.name) for path in sorted(folder.iterdir())}
    paths = (path for path, match in matches.items() if match is not None and match.group(1) == group)
    return [path for path in paths if is_video_name(path.name) and is_one(path)][:limit]


def _layout_of(kind: str, paths: list[Path]) -> Layout:
    if kind in ("uid", "epic", "epic-flat", "egtea"):
        base = LAYOUTS["undivided" if kind == "uid" else kind]
        return dataclasses.replace(base, suffix=_commonest(path.suffix for path in paths))
    chunks = {folder: chunks_in(folder) for folder in paths}
    files = [file for numbered in chunks.values() for file in numbered.values()]
    suffix = _commonest(file.suffix for file in files)
    shortest = min(len(file.stem) for file in files)
    num_digits = shortest if any(len(f.stem) == shortest > 1 and f.stem[0] == "0" for f in files) else 0
    names = {"suffix": suffix, "num_digits": num_digits}
    if kind == "index":
        return dataclasses.replace(LAYOUTS["egovlp"], **names, chunk_seconds=chunk_seconds(chunks))
    folder = "{uid}" + _commonest(path.suffix for path in paths)
    # Chunks named by their start: the length is what all starts have in common. Where every video has only chunk 0
    # any length leads to the right file, and LaViLa's is taken.
    step = math.gcd(*(number for numbered in chunks.values() for number in numbered))
    if kind == "epic-avion":
        base = LAYOUTS[kind]
        seconds = float(step or base.chunk_seconds)
        return dataclasses.replace(base, **names, folder="{group}/" + folder, chunk_seconds=seconds)
    known = {300: "lavila", 15: "avion", 60: "avion", 0: "lavila"}
    return Layout(known.get(step, f"chunks of {step} s"), folder, "start", float(step or 300), **names)


def _commonest(suffixes) -> str:
    counts = Counter(suffixes)
    return max(sorted(counts), key=counts.get)


def chunk_seconds(chunks: dict[Path, dict[int, Path]]) -> float:
    """Seconds per numbered chunk: the name does not say, so the first chunk that has a successor is measured."""
    nominal = LAYOUTS["egovlp"].chunk_seconds
    for numbered in chunks.values():
        if 0 in numbered and 1 in numbered:
            try:
                measured = probe_video(numbered[0]).duration
            except (ClipReadError, OSError) as error:
                logger.warning("Could not measure the length of a chunk: %s", error)
                continue
            if abs(measured - nominal) <= 5:
                return nominal
            logger.warning("%s is %.1f s long, so chunks of %d s are assumed.", numbered[0], measured, round(measured))
            return float(max(1, round(measured)))
    return nominal


class VideoStore:
    """Frames of any video below one root, by (video_uid, seconds), whatever the layout.

    The store keeps paths and a few durations, never an open reader, so it is cheap to pickle and safe in forked and
    in spawned workers.

    Args:
        video_root (`str` or `os.PathLike`): Folder of the videos.
        layout (`str` or `Layout`, *optional*):
            A name of `LAYOUTS`, or a `Layout` with other numbers. Recognised from the files if not given.
        backend (`str`): The decoder, as in `read_clip`: "auto" is PyAV.
    """

    def __init__(
        self, video_root: str | os.PathLike, layout: str | Layout | None = None, backend: str = "auto"
    ) -> None:
        self.video_root = Path(video_root)
        if not self.video_root.is_dir():
            raise FileNotFoundError(f"The video root {shown(self.video_root)!r} is not a folder.")
        if layout is None:
            layout = find_layout(self.video_root)
        elif isinstance(layout, str):
            if layout not in LAYOUTS:
                raise ValueError(f"Unknown video layout {layout!r}; choose one of {sorted(LAYOUTS)}.")
            layout = LAYOUTS[layout]
        self.layout = layout
        self.backend = backend
        self._durations: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"VideoStore({str(self.video_root)!r}, layout={self.layout.name!r})"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_durations": {}}

    def file(self, video_uid: str, chunk: int) -> Path:
        """The file of a chunk, whatever its suffix; if there is none, the path where it is expected."""
        expected = self.layout.path(self.video_root, video_uid, chunk)
        if expected.is_file():
            return expected
        suffixes = [spelled for suffix in VIDEO_SUFFIXES for spelled in (suffix, suffix.upper())]
        if self.layout.named_by == "uid":
            others = (expected.with_name(f"{video_uid}{suffix}") for suffix in suffixes)
            return next((path for path in others if path.is_file()), expected)
        number = chunk if self.layout.named_by == "index" else int(self.layout.start_of(chunk))
        folders = [expected.parent]
        if is_video_name(expected.parent.name):
            folders += [expected.parent.with_suffix(suffix) for suffix in suffixes]
        for folder in folders:
            if number in (numbered := chunks_in(folder)):
                return numbered[number]
        return expected

    def read(self, video_uid: str, times: Sequence[float]) -> np.ndarray:
        """The frames shown at `times`, from as many files as needed.

        Args:
            video_uid (`str`): Name of the video.
            times (sequence of `float`): Seconds from the start of the source video, in any order.

        Returns:
            `np.ndarray` of shape `(len(times), height, width, 3)`, uint8 RGB: for each time the last frame that
            starts at or before it.

        Raises:
            ValueError: The uid is not a plain name, or a time is negative or not finite.
            FileNotFoundError: A file is missing.
            ClipReadError: A file cannot be decoded, or a time is past its end.
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
        path = self.file(video_uid, chunk)
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
        first = self.file(video_uid, 0)
        if self.layout.named_by == "uid":
            if not first.is_file():
                raise FileNotFoundError(f"Video {video_uid!r} is missing: there is no {str(first)!r}.")
            return [(0.0, first)]
        numbered = chunks_in(first.parent)
        if not numbered:
            raise FileNotFoundError(f"Video {video_uid!r} is missing: no chunks in {str(first.parent)!r}.")
        unit = self.layout.chunk_seconds if self.layout.named_by == "index" else 1.0
        return [(number * unit, numbered[number]) for number in sorted(numbered)]

    def path(self, video_uid: str, time: float = 0.0) -> Path:
        """The file in which `time` falls; for messages; it need not exist."""
        return self.file(video_uid, self.layout.chunk_of(max(0.0, time)))

    def _locate(self, video_uid: str, time: float) -> tuple[Path, int, float]:
        """The file that contains `time`, its chunk number, and the seconds from that file's first frame."""
        if not 0 <= time < math.inf:
            raise ValueError(f"Time {time} of video {video_uid!r} is not a number of seconds >= 0.")
        chunk = self.layout.chunk_of(time)
        path = self.file(video_uid, chunk)
        local = time - self.layout.start_of(chunk)
        if path.is_file():
            return path, chunk, local
        if chunk > 0 and local <= EDGE_TOLERANCE:
            # The video ends at the edge, so there is no next chunk; the time belongs to the end of the last one.
            previous = self.file(video_uid, chunk - 1)
            if previous.is_file():
                return previous, chunk - 1, time - self.layout.start_of(chunk - 1)
        raise FileNotFoundError(
            f"Second {time:.3f} of video {video_uid!r} is missing: there is no {str(path)!r} "
            f"(layout {self.layout.name!r})."
        )

    def _within_chunk(self, video_uid: str, chunk: int, local: np.ndarray, info: VideoInfo) -> np.ndarray:
        """Times inside one file, those just past its end moved to its last frame if another chunk follows."""
        past = local.max() - info.duration
        if 0 < past <= EDGE_TOLERANCE and self.file(video_uid, chunk + 1).is_file():
            return np.minimum(local, info.duration)
        return local

    def _clamped_end(self, video_uid: str, end: float) -> float:
        """`end`, or the end of the video if that comes first; for windows that reach into a next chunk."""
        chunk = self.layout.chunk_of(max(end, 0.0))
        path = self.file(video_uid, chunk)
        if path.is_file() and path != self.chunks(video_uid)[-1][1]:
            return end
        return min(end, self.duration(video_uid))


def _plain_number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
