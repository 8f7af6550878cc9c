"""EPIC-KITCHENS-100: narrated actions with verb and noun classes; its multi-instance retrieval benchmark.

`EPIC_100_retrieval_test.csv` has the clips, `EPIC_100_retrieval_test_sentence.csv` the distinct narrations, each named
by a narration_id of the first file, from which its classes come. Both are real csv: cells with commas are quoted.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator

import datasets
import pyarrow as pa

from ..files.arrow_cache import AnnotationBuilder, RejectedLine, build, check_readable
from ..files.text_tables import read_rows
from .video_uid import check_video_uid

EPIC_FEATURES = datasets.Features(
    {
        "narration_id": datasets.Value("string"),
        "video_uid": datasets.Value("string"),  # video_id in the file
        "clip_start": datasets.Value("float64"),  # seconds
        "clip_end": datasets.Value("float64"),
        "clip_text": datasets.Value("string"),  # the narration
        "verb": datasets.Value("string"),
        "verb_class": datasets.Value("int32"),
        "noun": datasets.Value("string"),
        "noun_class": datasets.Value("int32"),
        "all_nouns": datasets.List(datasets.Value("string")),
        "all_noun_classes": datasets.List(datasets.Value("int32")),
    }
)
REQUIRED = (
    "narration_id video_id start_timestamp stop_timestamp narration verb verb_class noun noun_class all_nouns "
    "all_noun_classes"
).split()
PLACES = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")
NO_LABELS = {
    **dict.fromkeys(("clip_text", "verb", "noun"), ""),
    **dict.fromkeys(("verb_class", "noun_class"), -1),
    **dict.fromkeys(("all_nouns", "all_noun_classes"), ()),
}
_TIMESTAMP = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)", re.ASCII)
# Published versions of the sentence file name their two columns differently.
SENTENCE_HEADERS = (("narration_id", "narration"), ("index", "sentence"))


class EpicKitchensBuilder(AnnotationBuilder):
    """EPIC-KITCHENS-100 csv → Arrow. Raise VERSION whenever the parsing changes."""

    NAME = "epic_kitchens"
    VERSION = datasets.Version("1.1.0")

    def _info(self):
        return datasets.DatasetInfo(
            description="EPIC-KITCHENS-100 action narrations (arXiv:2006.13256).", features=EPIC_FEATURES
        )

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        rows = list(read_clips(self.files[0], self.options.get("labelled", True)))
        if len(self.files) == 2:
            rows = list(read_sentences(self.files[1], {row["narration_id"]: row for row in rows}))
        for i in range(0, len(rows), 1000):
            yield pa.Table.from_pylist(rows[i : i + 1000], schema=EPIC_FEATURES.arrow_schema)


def load_epic_kitchens(
    csv: str | os.PathLike,
    sentence_csv: str | os.PathLike | None = None,
    split: str = "test",
    streaming: bool = False,
    cache_dir: str | None = None,
    labelled: bool = True,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load EPIC-KITCHENS-100 annotations.

    Anything malformed raises, naming file and line: this is a benchmark.

    Args:
        csv (`str`): The clips, such as `EPIC_100_retrieval_test.csv`.
        sentence_csv (`str`, *optional*): The distinct narrations. If given they are the rows, in the order of this
            file, with the times and classes of the clip that they are named by. Without it the clips are the rows.
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset`.
        cache_dir (`str`, *optional*): Where the Arrow file goes.
        labelled (`bool`): False reads a file without narrations and classes, such as `EPIC_100_test_timestamps.csv`:
            texts are then empty and classes -1.
    """
    files = [check_readable(csv, "EPIC-KITCHENS file")]
    if sentence_csv is not None:
        files.append(check_readable(sentence_csv, "EPIC-KITCHENS sentence file"))
    options = None if labelled else {"labelled": False}
    return build(EpicKitchensBuilder(files, split, options, cache_dir), streaming, strict=True)


def read_clips(path: str, labelled: bool = True) -> Iterator[dict]:
    """Yield one checked row per action."""
    seen = set()
    needed = REQUIRED if labelled else PLACES

    def missing(header: list[str]) -> list[str]:
        absent = [name for name in needed if name not in header]
        if "verb_class" in absent and "narration_id" in header:
            raise ValueError(
                f"{path!r} lacks the column(s) {absent}; a file without classes cannot be scored, read it with "
                "labelled=False."
            )
        return absent

    for line, cells in read_rows(path, missing):
        where = f"{path!r}, line {line}"
        if cells["narration_id"] in seen:
            raise ValueError(f"{where}: narration_id {cells['narration_id']!r} occurs twice.")
        seen.add(cells["narration_id"])
        try:
            yield {
                "narration_id": cells["narration_id"],
                "video_uid": check_video_uid(cells["video_id"]),
                "clip_start": parse_timestamp(cells["start_timestamp"]),
                "clip_end": parse_timestamp(cells["stop_timestamp"]),
                **(_labels(cells) if labelled else NO_LABELS),
            }
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not seen:
        raise ValueError(f"{path!r} has a header but no rows.")


def _labels(cells: dict[str, str]) -> dict:
    return {
        "clip_text": cells["narration"],
        "verb": cells["verb"],
        "verb_class": _class_number(cells["verb_class"]),
        "noun": cells["noun"],
        "noun_class": _class_number(cells["noun_class"]),
        "all_nouns": _list_of(cells["all_nouns"], str),
        "all_noun_classes": _list_of(cells["all_noun_classes"], int),
    }


def read_sentences(path: str, clips: dict[str, dict]) -> Iterator[dict]:
    """Yield for each sentence the row of the clip that it is named by, with the sentence as text."""

    def missing(header):
        return [] if any(set(names) <= set(header) for names in SENTENCE_HEADERS) else list(SENTENCE_HEADERS[0])

    for line, cells in read_rows(path, missing):
        key, name = next(names for names in SENTENCE_HEADERS if set(names) <= set(cells))
        if cells[key] not in clips:
            raise ValueError(f"{path!r}, line {line}: {cells[key]!r} is not a narration_id of the clips.")
        yield {**clips[cells[key]], "clip_text": cells[name]}


def parse_timestamp(cell: str) -> float:
    """`"00:01:02.345"` → 62.345 seconds."""
    match = _TIMESTAMP.fullmatch(cell.strip())
    if match is None or len(cell) > 30:
        raise ValueError(f"{cell[:40]!r} is not a time like 00:01:02.345.")
    hours, minutes, secs = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(secs)


def _class_number(cell: str) -> int:
    if not re.fullmatch(r"\d{1,6}", cell.strip(), re.ASCII):
        raise ValueError(f"{cell[:40]!r} is not a class number.")
    return int(cell)


def _list_of(cell: str, kind: type) -> list:
    try:
        value = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        value = None
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise ValueError(f"{cell[:60]!r} is not a list of {'texts' if kind is str else 'whole numbers'}.")
    if kind is int and any(not 0 <= item < 10**6 for item in value):
        raise ValueError(f"{cell[:60]!r} has a class number out of range.")
    return value
