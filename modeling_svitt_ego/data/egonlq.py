"""EgoNLQ (Ego4D natural language queries): a question about a video, and the window that answers it.

Times only: the frame fields of the published files can be wrong (all the same number).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa

from ..files.arrow_cache import AnnotationBuilder, RejectedLine, build, check_readable
from ..files.json_records import array, check_encodable, read_json, record, seconds, text
from .video_uid import check_video_uid

logger = logging.getLogger(__name__)

_SLOTS = ("template", "slot_x", "verb_x", "slot_y", "verb_y")
EGONLQ_FEATURES = datasets.Features(
    {
        "video_uid": datasets.Value("string"),
        "clip_uid": datasets.Value("string"),
        "clip_start": datasets.Value("float64"),  # of the clip that is searched, seconds of the video
        "clip_end": datasets.Value("float64"),
        "annotation_uid": datasets.Value("string"),
        "query_idx": datasets.Value("int32"),  # position in the annotation's list; part of the prediction file's key
        "query": datasets.Value("string"),  # null where the file has no text
        "answer_start": datasets.Value("float64"),  # seconds from the start of the clip; null in the test split
        "answer_end": datasets.Value("float64"),
        **{name: datasets.Value("string") for name in _SLOTS},
    }
)


class EgoNLQBuilder(AnnotationBuilder):
    """`nlq_{train,val,test}.json` → Arrow. Raise VERSION whenever the parsing changes."""

    NAME = "egonlq"
    VERSION = datasets.Version("1.0.0")

    def _info(self):
        return datasets.DatasetInfo(description="Ego4D natural language queries.", features=EGONLQ_FEATURES)

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        for file in self.files:
            rows = list(read_queries(file))
            for i in range(0, len(rows), 1000):
                yield pa.Table.from_pylist(rows[i : i + 1000], schema=EGONLQ_FEATURES.arrow_schema)


def load_egonlq(
    path: str | os.PathLike, split: str = "validation", streaming: bool = False, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """Load an EgoNLQ annotation file: one row per query, in the file's order, none left out.

    Queries without text (`query` is null) and answers of zero length stay in the table, because whether they are
    counted changes the score; their numbers are logged, and `query_flags` marks them.

    Args:
        path (`str`): JSON with `videos` → `clips` → `annotations` → `language_queries`.
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset`; the JSON is still read at once.
        cache_dir (`str`, *optional*): Where the Arrow file goes.
    """
    builder = EgoNLQBuilder([check_readable(path, "EgoNLQ file")], split, None, cache_dir)
    dataset = build(builder, streaming, strict=True)
    if not streaming:
        flags = query_flags(dataset)
        odd = {name: int((~flags[name]).sum()) for name in flags if not flags[name].all()}
        if odd:
            logger.warning("%s: %d queries, of which %s fail the check of that name.", path, len(dataset), odd)
    return dataset


def query_flags(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """By query, bool arrays of shape `(num_queries,)`: `has_text`, `has_answer` (a window is given), `has_length`
    (its end is after its start; true where no window is given)."""
    table = dataset.select_columns(["query", "answer_start", "answer_end"]).with_format("arrow")[:]
    start = table["answer_start"].to_numpy()  # null becomes nan
    end = table["answer_end"].to_numpy()
    return {
        "has_text": table["query"].is_valid().to_numpy(),
        "has_answer": np.isfinite(start) & np.isfinite(end),
        "has_length": ~(end <= start),
    }


def read_queries(path: str) -> Iterator[dict]:
    """Yield one checked row per query."""
    content = record(read_json(path), f"{path!r}")
    videos = array(content.get("videos"), f"{path!r}, videos")
    num_queries = 0
    for i, video in enumerate(videos):
        where = f"{path!r}, video {i}"
        video = record(video, where)
        try:
            video_uid = check_video_uid(video.get("video_uid"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for j, clip in enumerate(array(video.get("clips"), f"{where}, clips")):
            for row in _read_clip(clip, f"{where}, clip {j}"):
                num_queries += 1
                yield {"video_uid": video_uid, **row}
    if num_queries == 0:
        raise ValueError(f"{path!r} contains no queries.")


def _read_clip(clip: dict, where: str) -> Iterator[dict]:
    clip = record(clip, where)
    common = {
        "clip_uid": text(clip.get("clip_uid"), f"{where}, clip_uid"),
        "clip_start": seconds(clip.get("video_start_sec"), f"{where}, video_start_sec"),
        "clip_end": seconds(clip.get("video_end_sec"), f"{where}, video_end_sec"),
    }
    for k, annotation in enumerate(array(clip.get("annotations"), f"{where}, annotations")):
        place = f"{where}, annotation {k}"
        annotation = record(annotation, place)
        uid = text(annotation.get("annotation_uid"), f"{place}, annotation_uid")
        queries = array(annotation.get("language_queries"), f"{place}, language_queries")
        for number, query in enumerate(queries):
            row = _read_query(query, f"{place}, query {number}")
            yield {**common, "annotation_uid": uid, "query_idx": number, **row}


def _read_query(query: dict, where: str) -> dict:
    query = record(query, where)
    row: dict = {name: _optional_text(query.get(name), f"{where}, {name}") for name in ("query", *_SLOTS)}
    times = [query.get(name) for name in ("clip_start_sec", "clip_end_sec")]
    if (times[0] is None) != (times[1] is None):
        raise ValueError(f"{where}: clip_start_sec is {times[0]} and clip_end_sec is {times[1]}; one is missing.")
    for name, time in zip(("answer_start", "answer_end"), times):
        row[name] = None if time is None else seconds(time, f"{where}, {name}")
    return row


def _optional_text(value, where: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text, got {value!r:.100}.")
    return check_encodable(value, where)
