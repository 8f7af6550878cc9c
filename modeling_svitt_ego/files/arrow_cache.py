"""From an annotation file to a memory-mapped `datasets.Dataset`, cached by the content of the file.

The cache of `datasets` has four traps, each of which gives a wrong table without an error: two builders of one module
share a folder unless `dataset_name` is passed; a change of the parsing code does not change the folder; a path in the
config of a builder makes the same file in another place a different data set; and an Arrow file that was cut between
two messages opens as a shorter table. So the folder is named by the builder's own name and version and by a hash of
the files and of the options that change the table, and every file in it is compared with its hash when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from .writing import file_hash, flush_folder, is_whole, make_cache_folder, write_json

logger = logging.getLogger(__name__)

REPORT_NAME = "rejected_lines.tsv"
CHECKSUMS_NAME = "checksums.json"


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
        make_cache_folder(
            cache_dir or datasets.config.HF_DATASETS_CACHE,
            "Pass another cache_dir, or set HF_DATASETS_CACHE (or HF_HOME) to a folder that can be written.",
        )
        place = {"cache_dir": cache_dir, "dataset_name": self.NAME, "hash": f"{split}-{key.hexdigest()[:24]}"}
        try:
            super().__init__(**place)
        except (ValueError, KeyError, TypeError) as error:  # dataset_info.json is damaged
            logger.warning("The cache %s is damaged (%s); it is built again.", self._cache_dir, error)
            shutil.rmtree(self._cache_dir)
            super().__init__(**place)

    def _download_and_prepare(self, dl_manager, **kwargs):
        super()._download_and_prepare(dl_manager, **kwargs)
        folder = Path(self._output_dir)  # a temporary one, renamed when this returns
        files = {path.name: [path.stat().st_size, file_hash(path)] for path in sorted(folder.iterdir())}
        write_json(folder / CHECKSUMS_NAME, files)
        flush_folder(folder)

    def damaged_file(self) -> str | None:
        """A file of the cache that is missing or differs from its hash; None if all are whole."""
        folder = Path(self.cache_dir)
        try:
            files = json.loads((folder / CHECKSUMS_NAME).read_text(encoding="utf-8"))
            damaged = (name for name, (size, sha256) in files.items() if not is_whole(folder / name, size, sha256))
            name = next(damaged, None)
        except (OSError, ValueError, TypeError, AttributeError):
            name = CHECKSUMS_NAME
        return None if name is None else str(folder / name)

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        """Yield the rows in order; append the lines that are left out to `rejected`."""
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
    """Prepare the one split of `builder`, or take it from the cache if it is whole there."""
    if streaming:
        builder.streaming, builder.strict = True, strict
        return builder.as_streaming_dataset(split=builder.split)
    _prepare(builder)
    if damaged := builder.damaged_file():
        logger.warning("The cache file %s is damaged; the table is built again.", damaged)
        _prepare(builder, download_mode="force_redownload", verification_mode="no_checks")
    dataset = builder.as_dataset(split=builder.split)
    rejected = rejected_lines(dataset)
    if rejected and strict:
        raise ValueError(_first_of(rejected))
    if rejected:
        warn_of_rejected(rejected, str(report_path(dataset)))
    return dataset


def _prepare(builder: AnnotationBuilder, **options) -> None:
    try:
        builder.download_and_prepare(**options)
    except DatasetGenerationError as error:
        # The library wraps every error; ours already says what is wrong and where.
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise


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
    """The path of the list of left-out lines of a prepared data set, whether or not it exists."""
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
    """SHA-256 of a file's bytes."""
    return bytes.fromhex(file_hash(path))


def check_readable(path: str | os.PathLike, what: str) -> str:
    """Return the path of a non-empty file, or say which file is missing or empty."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no {what} at {path!r}.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"The {what} {path!r} is empty (0 bytes).")
    return path
