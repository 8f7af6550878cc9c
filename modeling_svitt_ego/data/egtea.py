"""EGTEA Gaze+ (arXiv:2006.00626): 106 actions of 19 verbs and 53 nouns in trimmed clips, three published splits.

`train_split1.txt`, `test_split1.txt`, … have a clip per line: its name, then the numbers of its action, its verb and
its nouns, counted from 1. `action_idx.txt`, `verb_idx.txt` and `noun_idx.txt` have a class per line: its name, then
its number. The clips are files of their own, `cropped_clips/<session>/<clip>.mp4` (layout "egtea").
"""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np

from ..files.arrow_cache import check_readable
from .labelled_clips import LabelledClips
from .video_uid import check_video_uid

WHOLE_FILE = 1e5  # seconds: a window that ends past the file is clamped to it, and the clips are trimmed already
INDEX_FILES = {"action": "action_idx.txt", "verb": "verb_idx.txt", "noun": "noun_idx.txt"}


def load_egtea(split_file: str | os.PathLike, index_folder: str | os.PathLike | None = None) -> LabelledClips:
    """
    Clips of one split with the heads `action`, `verb` and `noun` (the first noun).

    Papers report the mean class accuracy of the action, or its top-1, and often do not say which; the report has both.

    Args:
        split_file (`str`): `train_split1.txt`, `test_split1.txt`, …
        index_folder (`str`, *optional*): Folder of `action_idx.txt`, `verb_idx.txt`, `noun_idx.txt`; the split file's
            own by default. Class names are left out where a file is missing.

    Raises:
        ValueError: A line is malformed, or names a class that its index file does not have.
    """
    path = check_readable(split_file, "EGTEA split file")
    folder = Path(index_folder) if index_folder is not None else Path(path).parent
    names = {head: read_index(folder / file) for head, file in INDEX_FILES.items() if (folder / file).is_file()}
    clips, numbers = [], []
    for line, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        cells = text.split()
        if not cells:
            continue
        where = f"{path!r}, line {line}"
        if len(cells) < 4 or not all(cell.isascii() and cell.isdigit() and int(cell) > 0 for cell in cells[1:]):
            raise ValueError(f"{where}: {text[:80]!r} is not a clip, an action, a verb and nouns, numbered from 1.")
        try:
            clips.append(check_video_uid(cells[0]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        row = [int(cell) - 1 for cell in cells[1:4]]
        for (head, known), number in zip(((head, names.get(head)) for head in INDEX_FILES), row):
            if known is not None and number >= len(known):
                raise ValueError(f"{where}: {head} {number + 1} is not in {INDEX_FILES[head]} ({len(known)} classes).")
        numbers.append(row)
    if not clips:
        raise ValueError(f"{path!r} has no clip.")
    table = datasets.Dataset.from_dict(
        {"video_uid": clips, "clip_start": [0.0] * len(clips), "clip_end": [WHOLE_FILE] * len(clips)}
    )
    columns = np.array(numbers, dtype=np.int64).T
    classes = dict(zip(INDEX_FILES, columns))
    classes = {head: classes[head] for head in ("verb", "noun", "action")}  # the last one is the benchmark's
    return LabelledClips(table, classes, names=names, metric="mean_class", benchmark="egtea")


def read_index(path: str | os.PathLike) -> list[str]:
    """Class names by number from lines such as `Inspect/Read recipe 1`."""
    found: dict[int, str] = {}
    for line, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        name, _, number = text.strip().rpartition(" ")
        if not name or not (number.isascii() and number.isdigit()) or int(number) in found:
            raise ValueError(f"{str(path)!r}, line {line}: {text[:80]!r} is not a class name and a number of its own.")
        found[int(number)] = name.strip()
    if sorted(found) != list(range(1, len(found) + 1)):
        raise ValueError(f"{str(path)!r}: the class numbers must be 1 to {len(found)}, each once.")
    return [found[number] for number in sorted(found)]


__all__ = ["load_egtea"]
