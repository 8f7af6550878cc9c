"""EgoMCQ (EgoVLP, arXiv:2206.01670): one narration, five clips; which clip does it describe?

Inter questions take the five clips from different videos, intra questions from one video. Several code bases print
the two names swapped (EgoVLP#19, EgoVLPv2#11), so here the video ids decide, and `types` (1 = inter, 2 = intra) must
agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa

from ..files.arrow_cache import AnnotationBuilder, RejectedLine, build, check_readable
from ..files.json_records import integer, read_json, record, seconds, tags, text
from .video_uid import check_video_uid

NUM_CHOICES = 5
TYPE_NAMES = {1: "inter", 2: "intra"}

_CLIP = {
    "video_uid": datasets.Value("string"),
    "clip_start": datasets.Value("float64"),  # seconds
    "clip_end": datasets.Value("float64"),
    "clip_text": datasets.Value("string"),
    "tag_verb": datasets.List(datasets.Value("int32")),
    "tag_noun": datasets.List(datasets.Value("int32")),
}
EGOMCQ_FEATURES = datasets.Features(
    {
        "question_id": datasets.Value("int32"),
        "clip_text": datasets.Value("string"),  # the question
        "choices": datasets.List(_CLIP),  # five of them
        "answer": datasets.Value("int32"),  # 0 … 4
        "types": datasets.Value("int32"),  # 1 inter, 2 intra
    }
)


class EgoMCQBuilder(AnnotationBuilder):
    """`egomcq.json` → Arrow. Raise VERSION whenever the parsing changes."""

    NAME = "egomcq"
    VERSION = datasets.Version("1.0.0")

    def _info(self):
        return datasets.DatasetInfo(
            description="EgoMCQ: multiple-choice questions over clips of Ego4D (arXiv:2206.01670).",
            features=EGOMCQ_FEATURES,
        )

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        for file in self.files:
            rows = [read_question(key, item, file) for key, item in questions(file)]
            for i in range(0, len(rows), 1000):
                yield pa.Table.from_pylist(rows[i : i + 1000], schema=EGOMCQ_FEATURES.arrow_schema)


def load_egomcq(
    path: str | os.PathLike, split: str = "test", streaming: bool = False, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """Load EgoMCQ.

    Every question is checked; a benchmark with a question left out would not be that benchmark, so anything wrong
    raises and names the question.

    Args:
        path (`str`): `egomcq.json`, a dict of questions keyed "0" … "N-1".
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset`; the JSON is still read at once.
        cache_dir (`str`, *optional*): Where the Arrow file goes.

    Returns:
        `datasets.Dataset` with `question_id`, `clip_text` (the question), five `choices`, `answer` (0 to 4) and
        `types` (1 = inter, 2 = intra), in the order of the keys.
    """
    return build(EgoMCQBuilder([check_readable(path, "EgoMCQ file")], split, None, cache_dir), streaming, strict=True)


def questions(path: str) -> list[tuple[str, dict]]:
    """All (key, item) of the file in the order 0 … N-1."""
    items = record(read_json(path), f"{path!r}")
    if not items:
        raise ValueError(f"{path!r} contains no questions.")
    expected = {str(number) for number in range(len(items))}
    if set(items) != expected:
        odd = sorted(set(items) - expected)[:3]
        raise ValueError(
            f'{path!r}: {len(items)} questions should have the keys "0" … "{len(items) - 1}", but there is {odd}.'
        )
    return [(str(number), items[str(number)]) for number in range(len(items))]


def read_question(key: str, item: dict, path: str) -> dict:
    """One checked row of the table."""
    where = f"{path!r}, question {key}"
    item = record(item, where)
    query = record(item.get("query"), f"{where}, query")
    choices = record(item.get("choices"), f"{where}, choices")
    if sorted(choices) != [str(number) for number in range(NUM_CHOICES)]:
        raise ValueError(
            f'{where}: {len(choices)} choices with the keys {sorted(choices)}, expected five, "0" to "4".'
        )
    answer = integer(item.get("answer"), f"{where}, answer")
    if not 0 <= answer < NUM_CHOICES:
        raise ValueError(f"{where}: answer is {answer}, expected 0 to {NUM_CHOICES - 1}.")
    types = integer(item.get("types"), f"{where}, types")
    if types not in TYPE_NAMES:
        raise ValueError(f"{where}: types is {types}, expected 1 (inter) or 2 (intra).")
    clips = [_read_clip(choices[str(number)], f"{where}, choice {number}") for number in range(NUM_CHOICES)]
    if (len({clip["video_uid"] for clip in clips}) == 1) != (types == 2):
        videos = len({clip["video_uid"] for clip in clips})
        raise ValueError(
            f"{where}: types is {types} ({TYPE_NAMES[types]}-video), but its choices come from {videos} video(s). "
            "Several published loaders swap the two names; 1 is inter, 2 is intra (five clips of one video)."
        )
    return {
        "question_id": int(key),
        "clip_text": text(query.get("clip_text"), f"{where}, query, clip_text"),
        "choices": clips,
        "answer": answer,
        "types": types,
    }


def _read_clip(clip: dict, where: str) -> dict:
    clip = record(clip, where)
    try:
        video_uid = check_video_uid(clip.get("video_uid"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return {
        "video_uid": video_uid,
        "clip_start": seconds(clip.get("clip_start"), f"{where}, clip_start"),
        "clip_end": seconds(clip.get("clip_end"), f"{where}, clip_end"),
        # Only the question's text counts, so a choice may lack its text.
        "clip_text": clip["clip_text"] if isinstance(clip.get("clip_text"), str) else "",
        "tag_verb": tags(clip.get("tag_verb"), f"{where}, tag_verb"),
        "tag_noun": tags(clip.get("tag_noun"), f"{where}, tag_noun"),
    }


class EgoMCQClips:
    """EgoMCQ by its unique clips and texts: each clip is decoded once and each text is encoded once.

    Args:
        questions (`datasets.Dataset`): From `load_egomcq`.

    Attributes:
        clips (`datasets.Dataset`): The unique (video_uid, clip_start, clip_end), with the columns of EgoClip that
            `EgoClipDataset` reads, in the order of the videos and of time (neighbours share files).
        texts (`list[str]`): The unique questions, in order of first use.
        choices (`np.ndarray` of shape `(num_questions, 5)`): For each question the rows of `clips`.
        text_of (`np.ndarray` of shape `(num_questions,)`): For each question the position in `texts`.
        answers (`np.ndarray` of shape `(num_questions,)`): 0 to 4.
        types (`np.ndarray` of shape `(num_questions,)`): 1 = inter, 2 = intra.
    """

    def __init__(self, questions: datasets.Dataset) -> None:
        table = questions.with_format("arrow")[:]
        flat = table["choices"].combine_chunks().flatten()
        rows = list(
            zip(
                flat.field("video_uid").to_pylist(),
                flat.field("clip_start").to_pylist(),
                flat.field("clip_end").to_pylist(),
            )
        )
        unique = sorted(set(rows))
        position = {row: number for number, row in enumerate(unique)}
        first = {}
        for number, row in enumerate(rows):
            first.setdefault(row, number)
        kept = flat.take(pa.array([first[row] for row in unique]))
        self.clips = datasets.Dataset(
            pa.Table.from_arrays([kept.field(name) for name in _CLIP], names=list(_CLIP)).cast(
                datasets.Features(_CLIP).arrow_schema
            )
        )
        self.choices = np.array([position[row] for row in rows], dtype=np.int64).reshape(-1, NUM_CHOICES)
        asked = table["clip_text"].to_pylist()
        self.texts = list(dict.fromkeys(asked))
        number_of = {asked: number for number, asked in enumerate(self.texts)}
        self.text_of = np.array([number_of[text] for text in asked], dtype=np.int64)
        self.answers = table["answer"].to_numpy().astype(np.int64)
        self.types = table["types"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def is_intra(self) -> np.ndarray:
        """`np.ndarray` of shape `(num_questions,)`, bool: the five clips come from one video."""
        return self.types == 2
