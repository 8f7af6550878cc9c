"""Lengths of the videos of a narration file: from a table, or from the videos themselves."""

import logging
from pathlib import Path

from tqdm.auto import tqdm

from ..files.json_records import read_json
from ..files.text_tables import read_rows
from .narrations import read_narrated_videos

logger = logging.getLogger(__name__)


def read_durations(path: str | Path) -> dict[str, float]:
    """video_uid -> seconds, from `ego4d.json` (`videos` with video_uid and duration_sec) or a csv of these columns."""
    if str(path).lower().endswith(".json"):
        content = read_json(str(path))
        records = content.get("videos") if isinstance(content, dict) else None
        records = [("", item) for item in records] if isinstance(records, list) else []
    else:
        records = [(f" (line {line})", row) for line, row in read_rows(path)]
    if not records:
        raise ValueError(f"{path}: expected a list `videos`, or csv lines, with video_uid and duration_sec.")
    durations = {}
    for number, (place, item) in enumerate(records):
        try:
            durations[item["video_uid"]] = float(item["duration_sec"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: entry {number}{place} needs video_uid and a number duration_sec: {ascii(item)[:200]}."
            ) from None
    return durations


def measure_durations(
    narration_json: str | Path, video_root: str | Path, layout: str | None = None
) -> dict[str, float]:
    """video_uid -> seconds of the videos of the narration file that exist and can be read, from the files themselves.

    The sentences of the other videos are later dropped with the reason "no duration known for the video".
    """
    from ..data.layouts import VideoStore  # imports torch, which nothing else here needs
    from ..model.clip_reading import ClipReadError

    store = VideoStore(video_root, layout)
    durations = {}
    for uid in tqdm(read_narrated_videos(narration_json), desc="Measuring videos", unit="video"):
        try:
            durations[uid] = store.duration(uid)
        except FileNotFoundError:
            continue
        except (ClipReadError, OSError) as error:
            logger.warning("Its sentences are dropped: %s", error)
    return durations
