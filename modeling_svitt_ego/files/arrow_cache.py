"""From an annotation file to a memory-mapped `datasets.Dataset`, cached by what the file holds.

The cache of `datasets` has three traps, and each costs a silently wrong table: two builders of one module share a
folder unless `dataset_name` is passed; a change of the parsing code does not change the folder; and a path in the
builder's config makes the same file elsewhere a different data set. So the folder's name here is the builder's own
name and version, and a hash of the files' bytes and of the options that change the table.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

logger = logging.getLogger(__name__)

REPORT_NAME = "rejected_lines.tsv"


class RejectedLine(NamedTuple):
    """One line (or record) of an annotation file that is not in the table."""

    file: str
    line: int  # 1-based line number, or number of the record in a JSON file
    reason: str
    text: str  # the start of the line, with control characters escaped


class AnnotationBuilder(datasets.ArrowBasedBuilder):
    """Base of the package's builders: one split, made of `pyarrow` tables from local annotation files.

    A subclass gives `NAME`, `VERSION` (raised whenever the parsing changes), `_info` and `tables`.

    Args:
        files (list of `str`): The annotation files.
        options (`dict`): Everything else that changes the table; part of the cache key.
    """

    NAME: str
    SLEEP_ON_THREADS_SHUTDOWNS = False

    def __init__(self, files: list[str], split: str, options: dict | None = None, cache_dir: str | None = None):
        self.files = [os.fspath(file) for file in files]
        self.split = split
        self.options = options or {}
        self.streaming = self.strict = False
        key = hashlib.sha256(repr(sorted(self.options.items())).encode())
        for file in self.files:
            key.update(content_hash(file))
        super().__init__(cache_dir=cache_dir, dataset_name=self.NAME, hash=f"{split}-{key.hexdigest()[:24]}")

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        """Yield the rows in order; append to `rejected` what is left out."""
        raise NotImplementedError

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name=self.split, gen_kwargs={"files": tuple(self.files)})]

    def _generate_tables(self, files):
        rejected: list[RejectedLine] = []
        for number, table in enumerate(self.tables(rejected)):
            if rejected and self.streaming and self.strict:
                break
            yield (0, number), table
        if rejected and self.streaming and self.strict:
            raise ValueError(_first_of(rejected))
        elif rejected and self.streaming:
            warn_of_rejected(rejected, "not kept, this is a stream")
        elif rejected:
            write_report(Path(self._output_dir) / REPORT_NAME, rejected)


def build(builder: AnnotationBuilder, streaming: bool, strict: bool):
    """Prepare (or find in the cache) and return the one split of `builder`."""
    if streaming:
        builder.streaming, builder.strict = True, strict
        return builder.as_streaming_dataset(split=builder.split)
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        # The library wraps every error; ours already says what is wrong and where.
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    dataset = builder.as_dataset(split=builder.split)
    rejected = rejected_lines(dataset)
    if rejected and strict:
        raise ValueError(_first_of(rejected))
    if rejected:
        warn_of_rejected(rejected, str(report_path(dataset)))
    return dataset


def _first_of(rejected: list[RejectedLine]) -> str:
    first = rejected[0]
    return f"{len(rejected)} malformed line(s), the first in {first.file!r}, line {first.line}: {first.reason}."


def rejected_lines(dataset: datasets.Dataset) -> list[RejectedLine]:
    """What the loader left out of `dataset`, from the report in the cache; empty if nothing was."""
    path = report_path(dataset)
    if path is None or not path.is_file():
        return []
    with open(path, encoding="utf-8") as report:
        next(report)
        rows = (line.rstrip("\n").split("\t") for line in report)
        return [RejectedLine(file, int(line), reason, text) for file, line, reason, text in rows]


def report_path(dataset: datasets.Dataset) -> Path | None:
    """Where the list of left-out lines of a prepared dataset is, or would be."""
    return Path(dataset.cache_files[0]["filename"]).parent / REPORT_NAME if dataset.cache_files else None


def write_report(path: Path, rejected: list[RejectedLine]) -> None:
    with open(path, "w", encoding="utf-8") as report:
        report.write("file\tline\treason\ttext\n")
        for line in rejected:
            report.write("\t".join((printable(line.file), str(line.line), printable(line.reason), line.text)) + "\n")


def warn_of_rejected(rejected: list[RejectedLine], where: str) -> None:
    first = "; ".join(f"line {line.line}: {line.reason}" for line in rejected[:3])
    logger.warning(
        "%d malformed line(s) of %s are left out (%s%s). List: %s",
        len(rejected),
        rejected[0].file,
        first,
        "; …" if len(rejected) > 3 else "",
        where,
    )


def printable(text: str, length: int = 500) -> str:
    """`text` on one line, cut to `length`, with control characters and undecodable bytes escaped."""
    escaped = text[:length].encode("unicode_escape").decode("ascii")
    return escaped + ("…" if len(text) > length else "")


def content_hash(path: str | os.PathLike) -> bytes:
    """SHA-256 of a file's bytes; 670 MB take about a second."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.digest()


def check_readable(path: str | os.PathLike, what: str) -> str:
    """Return the path of a non-empty file, or say which file is missing or empty."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no {what} at {path!r}.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"The {what} {path!r} is empty (0 bytes).")
    return path
