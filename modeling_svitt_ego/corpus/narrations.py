"""Ego4D's `narration.json`: who saw what when, and the clip window that EgoClip puts around each sentence.

The file is not ordered in time, has up to two annotators per video and no durations. Nothing here imports torch.
Times are seconds from the start of the source video.
"""

import math
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..data.video_uid import check_video_uid
from ..files.json_records import read_json
from ..files.writing import write_json


@dataclass(frozen=True, slots=True)
class Narration:
    """One sentence of one annotator about one moment.

    time (`float`): seconds from the start of the source video.
    """

    video_uid: str
    video_duration: float
    time: float
    text: str
    source: str = "narration_pass_1"


class DroppedNarration(NamedTuple):
    """One sentence of the file that does not become a clip."""

    reason: str
    video_uid: str
    source: str  # the annotator's pass
    index: int  # place in the file's list of that pass
    time: str  # as in the file
    text: str


def write_narration_json(narrations: Iterable[Narration], path: str | Path, fps: float = 30.0) -> None:
    """Write Ego4D's `narration.json`: video_uid -> pass -> narrations with timestamp_sec and narration_text."""
    videos: dict[str, dict] = {}
    for item in narrations:
        video = videos.setdefault(item.video_uid, {"status": "complete"})
        annotation_uid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{item.video_uid}/{item.source}"))
        video.setdefault(item.source, {"narrations": [], "summaries": []})["narrations"].append(
            {
                "timestamp_sec": item.time,
                "timestamp_frame": int(item.time * fps),
                "_unmapped_timestamp_sec": item.time,
                "narration_text": item.text,
                "annotation_uid": annotation_uid,
            }
        )
    write_json(path, videos)


def read_narration_json(
    path: str | Path, durations: Mapping[str, float], dropped: list[DroppedNarration] | None = None
) -> list[Narration]:
    """Read every usable sentence, in the order of the file.

    Args:
        path: `narration.json`; the videos are its top level or under a key `videos`.
        durations: video_uid -> seconds.
        dropped: sentences without a number as time, without text, before 0, repeated within their pass, or of a video
            of unknown duration are appended here. Without this list the first such sentence raises.

    Raises:
        ValueError: The file is not a narration file, a video_uid is not a plain name, or a sentence is unusable and
            `dropped` is not given.
    """
    return narrations_of(read_narrated_videos(path), path, durations, dropped)


def read_narrated_videos(path: str | Path) -> dict[str, dict]:
    """video_uid → its entry in `narration.json`.

    Raises:
        ValueError: The file is not a narration file, or no video in it was narrated.
    """
    content = read_json(str(path))
    videos = content.get("videos", content) if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        kind = type(content).__name__ if not isinstance(content, dict) else f"`videos` is a {type(videos).__name__}"
        raise ValueError(f"{path}: expected an object of videos by video_uid, got {kind}.")
    if all(isinstance(video, dict) and not _has_pass(video) for video in videos.values()):
        first = dict(list(videos.items())[:1])
        raise ValueError(
            f"{path}: none of its {len(videos)} videos has narration_pass_1 or narration_pass_2. The first: "
            f"{ascii(first)[:200]}."
        )
    return videos


def _has_pass(video: dict) -> bool:
    return any(name.startswith("narration_pass") for name in video)


def narrations_of(
    videos: Mapping[str, Any],
    path: str | Path,
    durations: Mapping[str, float],
    dropped: list[DroppedNarration] | None = None,
) -> list[Narration]:
    """The usable sentences of [`read_narrated_videos`]; see [`read_narration_json`]."""
    narrations = []
    for video_uid, video in videos.items():
        passes = _passes(video, f"{path}: video {video_uid!r:.100}")
        if passes:
            check_video_uid(video_uid)
        for source, items in passes:
            seen: set[tuple[float, str]] = set()
            for index, item in enumerate(items):
                fields = item if isinstance(item, dict) else {}
                text, time = fields.get("narration_text"), fields.get("timestamp_sec")
                # Runs of spaces, tabs and line breaks become one space: the csv has no quoting.
                text = " ".join(text.split()) if isinstance(text, str) else ""
                reason = _fault(time, text, video_uid in durations, seen)
                if reason is None:
                    seen.add((time, text))
                    narrations.append(Narration(video_uid, float(durations[video_uid]), float(time), text, source))
                elif dropped is None:
                    raise ValueError(f"{path}: video {video_uid}, {source}, narration {index}: {reason}.")
                else:
                    dropped.append(DroppedNarration(reason, video_uid, source, index, str(time)[:50], text[:500]))
    return narrations


def _passes(video: Any, where: str) -> list[tuple[str, list]]:
    """(annotator's pass, its sentences), in order; empty for a video that was not narrated."""
    if not isinstance(video, dict):
        raise ValueError(f"{where}: expected an object with narration_pass_1, narration_pass_2 or neither.")
    passes = []
    for source, entry in sorted(video.items()):
        if source.startswith("narration_pass"):
            items = entry.get("narrations") if isinstance(entry, dict) else None
            if not isinstance(items, list):
                raise ValueError(f"{where}: {source} has no list `narrations`.")
            passes.append((source, items))
    return passes


def _fault(time: Any, text: str, has_duration: bool, seen: set[tuple[float, str]]) -> str | None:
    """Why a sentence cannot become a clip, if so."""
    if not has_duration:
        return "no duration known for the video"
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
        return "time is not a number"
    if time < 0:
        return "time before the video's start"
    if not text:
        return "no text"
    if (time, text) in seen:
        return "same sentence at the same time"
    return None


def clip_windows(times: Mapping[Hashable, Sequence[float]]) -> dict[Hashable, list[tuple[float, float]]]:
    """EgoClip's window of every narration: time +- beta / (2 alpha) (EgoVLP, arXiv:2206.01670, section 3.1).

    Args:
        times: seconds of the narrations of each video, in any order. Two annotators of one video are two entries, for
            example keyed (video_uid, source): mixing their sentences would halve the gaps.

    Returns:
        (start, end) in seconds for each narration, in the order given. The start is negative for a narration at the
        very beginning, as in the published file; readers clamp it. A video with one narration has no gap and gets the
        average window.
    """
    betas = {}
    for key, values in times.items():
        if len(values) > 1:
            betas[key] = (max(values) - min(values)) / (len(values) - 1)
    alpha = sum(betas.values()) / len(betas) if betas else 0.0
    windows = {}
    for key, values in times.items():
        # alpha is 0 only if all narrations of every video have the same time; then every window is one second.
        half = 0.5 * (betas.get(key, alpha) / alpha if alpha > 0 else 1.0)
        windows[key] = [(time - half, time + half) for time in values]
    return windows
