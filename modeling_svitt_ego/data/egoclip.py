"""EgoClip (EgoVLP, arXiv:2206.01670): 3.85 million clips of Ego4D with their narrations, one per line of a TSV.

The file is read in blocks. A block is parsed column-wise by pyarrow; if anything in it is wrong it is halved until
the lines that are wrong stand alone, so a good line is never lost with a bad one and the fast parser alone decides
what is good. What is left out is counted and listed with line number and reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..files.arrow_cache import AnnotationBuilder, RejectedLine, build, check_readable, printable
from .video_uid import check_video_uid

NUM_VERBS = 118  # verb groups of the EgoClip taxonomy
NUM_NOUNS = 582  # noun groups

EGOCLIP_FEATURES = datasets.Features(
    {
        "clip_idx": datasets.Value("int64"),
        "video_uid": datasets.Value("string"),
        "video_dur": datasets.Value("float64"),  # seconds
        "narration_source": datasets.Value("string"),
        "narration_ind": datasets.Value("int32"),
        "narration_time": datasets.Value("float64"),  # seconds
        "clip_start": datasets.Value("float64"),  # seconds; may be negative in the published file
        "clip_end": datasets.Value("float64"),
        "clip_text": datasets.Value("string"),
        "tag_verb": datasets.List(datasets.Value("int32")),
        "tag_noun": datasets.List(datasets.Value("int32")),
    }
)
LIST_COLUMNS = ("tag_verb", "tag_noun")
FLOAT_COLUMNS = ("video_dur", "narration_time", "clip_start", "clip_end")

BLOCK_BYTES = 4 << 20
# More malformed lines than this mean a wrong file, not a few bad lines.
MAX_REJECTED_SHARE = 0.05
MIN_REJECTED = 20


class EgoClipBuilder(AnnotationBuilder):
    """`egoclip.csv` → Arrow. Raise VERSION whenever the parsing changes: the cache does not see code."""

    NAME = "egoclip"
    VERSION = datasets.Version("1.0.0")
    # Rows per Arrow record batch. Opening the file reads the head of every batch and the system maps 64 kB around
    # each: with the default of 1000 rows that alone is 240 MB of resident memory; 10,000 rows are as fast to access.
    DEFAULT_WRITER_BATCH_SIZE = 10_000

    def _info(self):
        return datasets.DatasetInfo(
            description="EgoClip: clips of Ego4D with narrations and verb and noun groups (arXiv:2206.01670).",
            features=EGOCLIP_FEATURES,
        )

    def tables(self, rejected: list[RejectedLine]) -> Iterator[pa.Table]:
        for file in self.files:
            yield from read_egoclip(file, rejected)


def load_egoclip(
    csv: str | os.PathLike,
    split: str = "train",
    streaming: bool = False,
    strict: bool = False,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load an EgoClip-style annotation file.

    Args:
        csv (`str`): Tab-separated file with a header line and the eleven columns of EgoClip, in any order.
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset` that reads the file as it goes, without a cache.
        strict (`bool`): Raise if a line is malformed. Otherwise such lines are left out, counted in a warning, and
            listed by `rejected_lines(dataset)`.
        cache_dir (`str`, *optional*): Where the Arrow file goes; the cache of `datasets` if not given.

    Returns:
        `datasets.Dataset`: Memory-mapped; tags are lists of integers, times are seconds. Narrations are kept verbatim
        (`#C C picks up …`).

    Raises:
        ValueError: The file is empty, has no tab-separated header with all columns, or more than 5 % of its lines (and
            more than 20) are malformed.
    """
    path = check_readable(csv, "EgoClip file")
    read_header(path)  # before the file is hashed: a wrong file should not take a second to be told
    builder = EgoClipBuilder([path], split, None, cache_dir)
    return build(builder, streaming, strict)


def read_header(path: str) -> tuple[list[str], int]:
    """The column names and the number of bytes before the first row."""
    with open(path, "rb") as file:
        line = file.readline(1 << 16)
    if line[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in line:
        raise ValueError(f"{path!r} is not UTF-8 text: it looks like UTF-16 or a binary file.")
    try:
        header = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}.") from None
    columns = header.split("\t")
    missing = [name for name in EGOCLIP_FEATURES if name not in columns]
    if missing:
        hint = ""
        if len(columns) == 1:
            other = next((c for c in (",", ";", "|") if header.count(c) >= 5), None)
            hint = f" The columns seem to be separated by {other!r}, not by tabs." if other else ""
        raise ValueError(
            f"{path!r} lacks the column(s) {missing}; its tab-separated header is {printable(header, 200)!r}.{hint}"
        )
    if len(set(columns)) < len(columns):
        twice = sorted({name for name in columns if columns.count(name) > 1})
        raise ValueError(f"{path!r} has the column(s) {twice} more than once.")
    return columns, len(line)


def read_egoclip(path: str, rejected: list[RejectedLine], block_bytes: int = BLOCK_BYTES) -> Iterator[pa.Table]:
    """Yield the good rows of an EgoClip file in order, as tables with the schema of `EGOCLIP_FEATURES`."""
    columns, offset = read_header(path)
    line, num_rows = 2, 0  # the header is line 1
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(block_bytes):
            block += file.readline()  # up to the end of the line
            for table in _good_rows(block, line, columns, path, rejected):
                num_rows += table.num_rows
                yield table
            line += block.count(b"\n")
            if len(rejected) > max(MIN_REJECTED, MAX_REJECTED_SHARE * (line - 2)):
                raise ValueError(_too_many(path, rejected, line - 2))
    if num_rows == 0:
        if rejected:
            raise ValueError(_too_many(path, rejected, len(rejected)))
        raise ValueError(f"{path!r} has a header but no rows.")


def _too_many(path: str, rejected: list[RejectedLine], num_lines: int) -> str:
    examples = "; ".join(f"line {line.line}: {line.reason}" for line in rejected[:3])
    return f"{len(rejected)} of the first {num_lines} lines of {path!r} are malformed ({examples})."


def _good_rows(
    block: bytes, first_line: int, columns: list[str], path: str, rejected: list[RejectedLine]
) -> Iterator[pa.Table]:
    """Parse whole lines; halve them where something is wrong, down to the single line that is."""
    try:
        table = parse_lines(block, columns)
    except (pa.ArrowException, ValueError) as error:
        lines = _split_at_newlines(block)
        if len(lines) == 1:
            reason = explain(block, columns) or str(error)
            rejected.append(RejectedLine(path, first_line, reason, printable(block.decode("utf-8", "replace"))))
            return
        half = len(lines) // 2
        yield from _good_rows(b"".join(lines[:half]), first_line, columns, path, rejected)
        yield from _good_rows(b"".join(lines[half:]), first_line + half, columns, path, rejected)
        return
    yield table


def _split_at_newlines(block: bytes) -> list[bytes]:
    """Lines as an editor numbers them: `bytes.splitlines` would also break at a lone carriage return."""
    lines = [line + b"\n" for line in block.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def parse_lines(block: bytes, columns: list[str]) -> pa.Table:
    """All rows of a block, or an error if any row is malformed."""
    num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    schema = EGOCLIP_FEATURES.arrow_schema
    raw = {f.name: pa.string() if f.name in LIST_COLUMNS else f.type for f in schema}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(block),
        pyarrow.csv.ReadOptions(column_names=columns, use_threads=False, block_size=len(block) + 1),
        # A lone quotation mark is part of the text. With quoting on, one of them swallows the rows up to the next.
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(
            include_columns=list(raw), column_types=raw, null_values=[], strings_can_be_null=False
        ),
    )
    if table.num_rows != num_lines:
        raise ValueError(f"{num_lines} lines gave {table.num_rows} rows: a carriage return inside a line.")
    for name in FLOAT_COLUMNS:
        if not pc.all(pc.is_finite(table[name])).as_py():
            raise ValueError(f"{name} is not finite.")
    for uid in pc.unique(table["video_uid"]).to_pylist():
        check_video_uid(uid)
    if pc.any(pc.equal(pc.utf8_trim_whitespace(table["clip_text"]), "")).as_py():
        raise ValueError("clip_text is empty.")
    for name in LIST_COLUMNS:
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, parse_list_column(table[name].combine_chunks()))
    return table.cast(schema)


def parse_list_column(cells: pa.StringArray) -> pa.ListArray:
    """`["[192, 115]", "[]"]` → `[[192, 115], []]` for a whole column, without evaluating anything."""
    if not pc.all(pc.match_substring_regex(cells, r"^\s*\[\s*(\d+\s*(,\s*\d+\s*)*)?\]\s*$")).as_py():
        raise ValueError("A tag cell is not a list of integers >= 0.")
    digits = pc.replace_substring_regex(cells, r"[\[\]\s]", "")
    is_empty = pc.equal(digits, "").to_numpy(zero_copy_only=False)
    lengths = pc.count_substring(digits, ",").to_numpy(zero_copy_only=False) + 1
    offsets = np.zeros(len(cells) + 1, dtype=np.int32)
    np.cumsum(np.where(is_empty, 0, lengths), out=offsets[1:])
    items = pc.split_pattern(digits, ",").flatten()  # an empty cell gives one empty item
    values = items.filter(pc.not_equal(items, "")).cast(pa.int32())
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def explain(line: bytes, columns: list[str]) -> str | None:
    """Say in words why `parse_lines` refuses this line; None if the reason is another."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
    if "\r" in text:
        return "a carriage return inside the line"
    cells = text.split("\t")
    if len(cells) != len(columns):
        return f"{len(cells)} cells instead of {len(columns)}"
    for name, cell in zip(columns, cells):
        if name not in EGOCLIP_FEATURES:
            continue
        try:
            _check_cell(name, cell)
        except (ValueError, pa.ArrowException) as error:
            return f"{name}: {printable(str(error), 200)}"
    return None


def _check_cell(name: str, cell: str) -> None:
    if name in LIST_COLUMNS:
        try:
            parse_list_column(pa.array([cell]))
        except (ValueError, pa.ArrowException):
            raise ValueError(f"{cell[:100]!r} is not a list of integers from 0 to 2147483647") from None
    elif name == "video_uid":
        check_video_uid(cell)
    elif name == "clip_text" and not cell.strip():
        raise ValueError("empty")
    elif EGOCLIP_FEATURES[name].dtype.startswith(("int", "float")):
        kind = "number" if EGOCLIP_FEATURES[name].dtype.startswith("float") else "whole number in range"
        try:
            value = pc.cast(pa.array([cell.strip(" ")]), pa.type_for_alias(EGOCLIP_FEATURES[name].dtype))
        except pa.ArrowException:
            raise ValueError(f"{cell[:100]!r} is not a {kind}") from None
        if name in FLOAT_COLUMNS and not np.isfinite(value[0].as_py()):
            raise ValueError(f"{cell!r} is not finite")
