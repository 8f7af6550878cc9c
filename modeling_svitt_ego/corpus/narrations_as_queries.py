"""Narrations as queries (NaQ, arXiv:2301.00746): EgoClip in the form of EgoNLQ, to train a grounding head on far more.

The query is the narration, its answer the clip window, and the searched clip the whole video. A text that occurs
several times in a video has several right windows, of which each row names one; NaQ trains on all of them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ..files.writing import aside


def narrations_as_queries(rows: Iterable[dict]) -> dict:
    """
    Rows of `load_egoclip` → the content of an `nlq_*.json`, with one clip and one annotation per video.

    Windows are cut at the ends of the video (EgoClip's may reach beyond them); narrations whose window is then empty,
    or that have no text, are left out.
    """
    videos: dict[str, list[dict]] = defaultdict(list)
    durations: dict[str, float] = {}
    for row in rows:
        duration = durations[row["video_uid"]] = float(row["video_dur"])
        start, end = max(0.0, row["clip_start"]), min(duration, row["clip_end"])
        if end > start and row["clip_text"] and row["clip_text"].strip():
            videos[row["video_uid"]].append({"query": row["clip_text"], "clip_start_sec": start, "clip_end_sec": end})
    return {
        "version": "naq",
        "videos": [
            {
                "video_uid": uid,
                "clips": [
                    {
                        "clip_uid": f"naq-{uid}",
                        "video_start_sec": 0.0,
                        "video_end_sec": durations[uid],
                        "annotations": [{"annotation_uid": f"naq-{uid}", "language_queries": queries}],
                    }
                ],
            }
            for uid, queries in videos.items()
        ],
    }


def write_narrations_as_queries(rows: Iterable[dict], path: str | os.PathLike) -> Path:
    """Write [`narrations_as_queries`] to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as part:
        part.write_text(json.dumps(narrations_as_queries(rows)) + "\n", encoding="utf-8")
    return path
