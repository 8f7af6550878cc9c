"""Charades-Ego (arXiv:1804.09626): whole videos with any number of 157 actions each, scored by mean average precision.

`CharadesEgo_v1_test_only1st.csv` has a row per video: `id`, `length` in seconds, `actions` such as
`c092 11.90 21.20;c147 0.00 12.60`, and more. `Charades_v1_classes.txt` has a class per line, `c000 Holding some
clothes`. Videos are `<id>.mp4` in one folder. The test set is scored by video: the times of the actions are not used.
"""

from __future__ import annotations

import csv as csv_module
import os
import re
from pathlib import Path

import datasets
import numpy as np

from ..files.arrow_cache import check_readable
from .labelled_clips import LabelledClips
from .video_uid import check_video_uid

NUM_CLASSES = 157
_ACTION = re.compile(r"c(\d{3})(?:\s+(\S+)\s+(\S+))?", re.ASCII)


def load_charades_ego(
    csv: str | os.PathLike, classes_file: str | os.PathLike | None = None, by: str = "video"
) -> LabelledClips:
    """
    Videos, or their annotated moments, with the head `label`, several labels for each.

    Args:
        csv (`str`): `CharadesEgo_v1_{train,test}_only1st.csv`.
        classes_file (`str`, *optional*): `Charades_v1_classes.txt`; the one in the csv's folder by default. Without
            it the classes are called c000 to c156.
        by (`str`): `"video"`: a row per video with all its actions, as the test is scored. `"moment"`: a row per
            annotated action with its times, labelled with all actions of the video at its middle, for training.

    Raises:
        ValueError: A row is malformed; the line is named.
    """
    if by not in ("video", "moment"):
        raise ValueError(f"by ('{by}') must be 'video' or 'moment'.")
    path = check_readable(csv, "Charades-Ego file")
    default = Path(path).parent / "Charades_v1_classes.txt"
    names = read_classes(classes_file or default) if classes_file or default.is_file() else None
    names = names or [f"c{number:03d}" for number in range(NUM_CLASSES)]
    places, rows = [], []
    for line, cells in _rows(path):
        try:
            uid, length = check_video_uid(cells["id"]), _seconds(cells["length"])
            actions = [_action(text, len(names)) for text in cells["actions"].split(";") if text.strip()]
        except ValueError as error:
            raise ValueError(f"{path!r}, line {line}: {error}") from None
        if by == "video":
            places.append((uid, 0.0, length))
            rows.append({number for number, _, _ in actions})
            continue
        for _, start, end in actions:
            middle = (start + end) / 2
            places.append((uid, start, end))
            rows.append({number for number, first, last in actions if first <= middle <= last})
    if not places:
        raise ValueError(f"{path!r} has no {'video' if by == 'video' else 'annotated action'}.")
    labels = np.zeros((len(rows), len(names)), dtype=bool)
    for row, numbers in enumerate(rows):
        labels[row, sorted(numbers)] = True
    columns = dict(zip(("video_uid", "clip_start", "clip_end"), (list(column) for column in zip(*places))))
    return LabelledClips(
        datasets.Dataset.from_dict(columns), {"label": labels}, names, metric="map", benchmark="charades-ego"
    )


def read_classes(path: str | os.PathLike) -> list[str]:
    """Class names by number from lines such as `c000 Holding some clothes`."""
    names = []
    for line, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        code, _, name = text.strip().partition(" ")
        if code != f"c{len(names):03d}" or not name.strip():
            raise ValueError(f"{str(path)!r}, line {line}: {text[:80]!r} is not class c{len(names):03d} and its name.")
        names.append(name.strip())
    return names


def _rows(path: str):
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv_module.DictReader(file, strict=True)
            missing = [name for name in ("id", "length", "actions") if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"{path!r} lacks the column(s) {missing}; it has {reader.fieldnames}.")
            for cells in reader:
                if None in cells or None in cells.values():
                    raise ValueError(f"{path!r}, line {reader.line_num}: not {len(reader.fieldnames)} cells.")
                yield reader.line_num, cells
    except (UnicodeDecodeError, csv_module.Error) as error:
        raise ValueError(f"{path!r} is not a csv file in UTF-8: {error}.") from None


def _action(text: str, num_classes: int) -> tuple[int, float, float]:
    match = _ACTION.fullmatch(text.strip())
    if match is None or int(match[1]) >= num_classes:
        raise ValueError(f"{text.strip()[:40]!r} is not an action c000 to c{num_classes - 1:03d} with start and end.")
    return int(match[1]), _seconds(match[2] or "0"), _seconds(match[3] or "0")


def _seconds(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e6:
        raise ValueError(f"{cell[:40]!r} is not a number of seconds.")
    return value


__all__ = ["load_charades_ego"]
