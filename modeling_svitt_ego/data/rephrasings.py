"""Narrations said in other words (LaViLa, arXiv:2212.04501): several texts for one clip, one drawn each time.

LaViLa publishes pickles: a list of tuples (video, start, end, text or texts, …), seconds from the start of the video.
A pickle can run any code when it is opened; here one is read by an unpickler that makes lists, tuples, dicts, texts
and numbers and refuses everything else. The same content as csv or parquet is read too.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..files.arrow_cache import AnnotationBuilder, RejectedLine, build, check_readable
from .video_uid import check_video_uid

logger = logging.getLogger(__name__)

REPHRASED_FEATURES = datasets.Features(
    {
        "video_uid": datasets.Value("string"),
        "clip_start": datasets.Value("float64"),  # seconds from the start of the video
        "clip_end": datasets.Value("float64"),
        "clip_text": datasets.Value("string"),  # the first text
        "texts": datasets.List(datasets.Value("string")),  # all of them, each once
    }
)
COLUMNS = ("video_uid", "clip_start", "clip_end", "text")
_SAFE_BUILTINS = {"list", "tuple", "dict", "set", "frozenset", "str", "int", "float", "bool", "complex", "bytes"}


class PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain values only; whatever names another class or function is refused, before it runs."""

    def find_class(self, module: str, name: str):
        if module in ("builtins", "__builtin__") and name in _SAFE_BUILTINS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, and a pickle may run anything under such a name. Only lists, tuples, "
            "dicts, texts and numbers are read; convert the file to csv or parquet where you trust it"
        )

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to an object outside the file")


def read_plain_pickle(path: str | os.PathLike):
    """The content of a pickle of lists, tuples, dicts, texts and numbers; `ValueError` for any other."""
    with open(path, "rb") as file:
        try:
            return PlainUnpickler(file).load()
        except (
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(f"{os.fspath(path)!r} cannot be read as a plain pickle: {error}.") from error


class RephrasedBuilder(AnnotationBuilder):
    """Rephrased narrations → Arrow. Raise VERSION whenever the parsing changes."""

    NAME = "rephrased"
    VERSION = datasets.Version("1.0.0")

    def _info(self):
        return datasets.DatasetInfo(description="Clips with rephrased narrations.", features=REPHRASED_FEATURES)

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        for file in self.files:
            rows = list(read_rephrased(file))
            for i in range(0, len(rows), 10_000):
                yield pa.Table.from_pylist(rows[i : i + 10_000], schema=REPHRASED_FEATURES.arrow_schema)


def load_rephrased(
    path: str | os.PathLike, split: str = "train", streaming: bool = False, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Clips with several texts each, as a table that [`EgoClipDataset`] takes.

    Args:
        path (`str`): A `.pkl` or `.pickle` as LaViLa publishes, or a `.csv` or `.parquet` with the columns video_uid,
            clip_start, clip_end (seconds) and text; rows of the same video and window are one clip. A parquet column
            may hold a list of texts.
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset`.
        cache_dir (`str`, *optional*): Where the Arrow file goes.

    Raises:
        ValueError: The file holds something else; the row or line is named.
    """
    files = [check_readable(path, "file of rephrased narrations")]
    return build(RephrasedBuilder(files, split, None, cache_dir), streaming, strict=True)


def read_rephrased(path: str) -> Iterator[dict]:
    """Yield one checked row per clip, in the order in which the file first names it."""
    suffix = Path(path).suffix.lower()
    if suffix in (".pkl", ".pickle"):
        entries = _pickled(path)
    elif suffix in (".csv", ".parquet"):
        entries = _tabular(path, suffix)
    else:
        raise ValueError(
            f"{path!r} is a {suffix or 'nameless'} file; rephrased narrations are .pkl, .csv or .parquet."
        )
    clips: dict[tuple, dict[str, None]] = {}
    for where, (uid, start, end, texts) in entries:
        try:
            key = check_video_uid(uid), _seconds(start), _seconds(end)
        except ValueError as error:
            raise ValueError(f"{path!r}, {where}: {error}") from None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path!r}, {where}: {texts!r:.80} is neither a text nor a list of texts.")
        clips.setdefault(key, {}).update(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not clips:
        raise ValueError(f"{path!r} holds no clip.")
    for (uid, start, end), texts in clips.items():
        if not texts:
            raise ValueError(f"{path!r}: the clip of {uid!r} from {start} s to {end} s has no text with words in it.")
        yield {
            "video_uid": uid,
            "clip_start": start,
            "clip_end": end,
            "clip_text": next(iter(texts)),
            "texts": list(texts),
        }


def _pickled(path: str) -> Iterator[tuple[str, tuple]]:
    content = read_plain_pickle(path)
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{path!r} holds a {type(content).__name__} instead of a list of clips.")
    for number, entry in enumerate(content):
        if not isinstance(entry, (list, tuple)) or len(entry) < 4:
            raise ValueError(f"{path!r}, entry {number}: {entry!r:.80} is not (video, start, end, texts).")
        uid, start, end, texts = entry[:4]
        yield f"entry {number}", (uid, start, end, texts)


def _tabular(path: str, suffix: str) -> Iterator[tuple[str, tuple]]:
    try:
        table = pyarrow.csv.read_csv(path) if suffix == ".csv" else pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path!r} lacks the column(s) {missing}; it has {table.column_names}.")
    number = 0
    for batch in table.select(COLUMNS).to_batches():
        for row in batch.to_pylist():
            yield f"row {number}", tuple(row[name] for name in COLUMNS)
            number += 1


def _seconds(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a number of seconds.")
    return float(value)


class Rephrasings:
    """
    Other texts for the rows of a table, found by video and time; for `EgoClipDataset(…, texts=…)`.

    A row gets the texts of the clip of its video whose middle is nearest to the row's own, if that is within
    `tolerance`. Each time it is drawn, one of its own narration and those texts is taken, evenly, by the seed alone. A
    row without any keeps its narration. `num_found` says how many rows got some.

    Args:
        table (`datasets.Dataset`): the data set's rows: `video_uid`, `clip_start`, `clip_end`, `clip_text`.
        rephrased (`datasets.Dataset`): from [`load_rephrased`].
        tolerance (`float`): seconds between the middles.
    """

    def __init__(self, table: datasets.Dataset, rephrased: datasets.Dataset, tolerance: float = 0.5) -> None:
        if tolerance < 0:
            raise ValueError(f"tolerance ({tolerance}) must not be negative.")
        self.own_texts = table.select_columns(["clip_text"])
        self.rephrased = rephrased.select_columns(["texts"])
        self.match = nearest_in_time(table, rephrased, tolerance)
        self.num_found = int((self.match >= 0).sum())
        logger.info("%d of %d rows have rephrased narrations.", self.num_found, len(table))
        if self.num_found == 0:
            raise ValueError(
                f"None of the {len(table)} rows has a rephrased narration within {tolerance} s: are both of the same "
                "videos, and the times of both from the start of the video?"
            )

    def __len__(self) -> int:
        return len(self.match)

    def draw(self, row: int, seed: int) -> dict:
        """The `text` of the row this time."""
        texts = [self.own_texts[row]["clip_text"]]
        if self.match[row] >= 0:
            texts += [text for text in self.rephrased[int(self.match[row])]["texts"] if text != texts[0]]
        return {"text": texts[np.random.default_rng(seed).integers(len(texts))]}


def nearest_in_time(table, others, tolerance: float) -> np.ndarray:
    """For each row of `table` the row of `others` of the same video with the nearest middle; -1 beyond `tolerance`."""

    def columns(of):
        part = of.select_columns(["video_uid", "clip_start", "clip_end"]).with_format("arrow")[:]
        middle = (part["clip_start"].to_numpy() + part["clip_end"].to_numpy()) / 2
        return part["video_uid"].to_numpy(zero_copy_only=False), middle

    uids, middles = columns(table)
    other_uids, other_middles = columns(others)
    names, codes = np.unique(np.concatenate([uids, other_uids]), return_inverse=True)
    codes, other_codes = codes[: len(uids)], codes[len(uids) :]
    order, own_order = np.lexsort((other_middles, other_codes)), np.argsort(codes, kind="stable")
    numbers = np.arange(len(names) + 1)
    starts, own_starts = np.searchsorted(other_codes[order], numbers), np.searchsorted(codes[own_order], numbers)
    result = np.full(len(uids), -1, dtype=np.int64)
    for code in np.intersect1d(codes, other_codes):
        candidates = order[starts[code] : starts[code + 1]]
        rows = own_order[own_starts[code] : own_starts[code + 1]]
        times = other_middles[candidates]
        right = np.searchsorted(times, middles[rows]).clip(max=len(times) - 1)
        left = (right - 1).clip(min=0)
        nearer_left = np.abs(times[left] - middles[rows]) <= np.abs(times[right] - middles[rows])
        chosen = np.where(nearer_left, left, right)
        within = np.abs(times[chosen] - middles[rows]) <= tolerance
        result[rows[within]] = candidates[chosen[within]]
    return result


__all__ = ["Rephrasings", "load_rephrased", "read_plain_pickle"]
