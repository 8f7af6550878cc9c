"""EgoClip (EgoVLP, arXiv:2206.01670): 3.85 million clips of Ego4D with their narrations, one per line of a TSV.

The file is read in blocks. A block is parsed column-wise by pyarrow; if it contains a malformed line, it is halved
until that line is alone. So a good line is never lost with a bad one, and the fast parser alone decides which lines
are good. Lines that are left out are counted and listed with line number and reason.

The published file has no quoting: a quotation mark is part of the text. Files that pandas or another csv writer saved
do have it; a line is unquoted if a csv writer would give exactly this line for its cells.
"""

from __future__ import annotations

import csv as csv_module
import io
import os
import re
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

_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.I)

BLOCK_BYTES = 4 << 20
# More malformed lines than this mean a wrong file, not a few bad lines.
MAX_REJECTED_SHARE = 0.05
MIN_REJECTED = 20


class EgoClipBuilder(AnnotationBuilder):
    """`egoclip.csv` → Arrow. Raise VERSION whenever the parsing changes: the cache does not see code."""

    NAME = "egoclip"
    VERSION = datasets.Version("1.1.0")
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
            for line, table in _numbered_tables(file, rejected):
                self._check_taxonomy(file, line, table)
                yield table

    def _check_taxonomy(self, file: str, first_line: int, table: pa.Table) -> None:
        """Find a tag beyond the taxonomy now, with its line, and not in the middle of a training run."""
        for name, limit in self.options.items():
            column = table["tag_verb" if name == "num_verbs" else "tag_noun"].combine_chunks()
            beyond = np.flatnonzero(column.flatten().to_numpy() >= limit)
            if len(beyond):
                tag = column.flatten()[int(beyond[0])].as_py()
                row = int(np.searchsorted(column.offsets.to_numpy(), beyond[0], side="right")) - 1
                raise ValueError(
                    f"{file!r}, line {first_line + row}: the tag {tag} is not below {name} ({limit}). For another "
                    f"taxonomy give its size: load_egoclip(…, {name}=…)."
                )


def load_egoclip(
    csv: str | os.PathLike,
    split: str = "train",
    streaming: bool = False,
    strict: bool = False,
    cache_dir: str | None = None,
    num_verbs: int | None = NUM_VERBS,
    num_nouns: int | None = NUM_NOUNS,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load an EgoClip-style annotation file.

    Args:
        csv (`str`): Tab-separated file with a header line and the eleven columns of EgoClip, in any order.
        split (`str`): Name of the split.
        streaming (`bool`): Return an `IterableDataset` that reads the file as it goes, without a cache.
        strict (`bool`): Raise if a line is malformed. Otherwise such lines are left out, counted in a warning, and
            listed by `rejected_lines(dataset)`.
        cache_dir (`str`, *optional*): Where the Arrow file goes; the cache of `datasets` if not given.
        num_verbs (`int`, *optional*), num_nouns (`int`, *optional*): Sizes of the taxonomies; `None` checks nothing.

    Returns:
        `datasets.Dataset`: Memory-mapped; tags are lists of integers, times are seconds. Narrations are kept verbatim
        (`#C C picks up …`).

    Raises:
        ValueError: The file is empty, has no tab-separated header with all columns, more than 5 % of its lines (and
            more than 20) are malformed, or a tag is beyond its taxonomy.
    """
    path = check_readable(csv, "EgoClip file")
    read_header(path)  # before the file is hashed: a wrong file is reported at once
    limits = {"num_verbs": num_verbs, "num_nouns": num_nouns}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    builder = EgoClipBuilder([path], split, limits, cache_dir)
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
    columns = next(csv_module.reader([header], delimiter="\t"), []) if header[:1] == '"' else header.split("\t")
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
    return (table for _, table in _numbered_tables(path, rejected, block_bytes))


def _numbered_tables(
    path: str, rejected: list[RejectedLine], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, pa.Table]]:
    """As `read_egoclip`, with the line number of the first row; the rows of a table are consecutive lines."""
    columns, offset = read_header(path)
    size = os.path.getsize(path)
    line, num_rows = 2, 0  # the header is line 1
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(block_bytes):
            block += file.readline()  # up to the end of the line
            if file.tell() == size:  # editors append blank lines
                block = block.rstrip(b"\r\n") + b"\n" if block.strip(b"\r\n") else b""
            for first, table in _good_rows(block, line, columns, path, rejected) if block else ():
                num_rows += table.num_rows
                yield first, table
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
) -> Iterator[tuple[int, pa.Table]]:
    """Parse whole lines; halve them as long as one is malformed, down to that line."""
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
    yield first_line, table


def _split_at_newlines(block: bytes) -> list[bytes]:
    """Lines as an editor numbers them: `bytes.splitlines` would also break at a lone carriage return."""
    lines = [line + b"\n" for line in block.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def parse_lines(block: bytes, columns: list[str]) -> pa.Table:
    """All rows of a block; an error if any row is malformed."""
    num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    block, tab = unquoted(block)
    schema = EGOCLIP_FEATURES.arrow_schema
    raw = {f.name: pa.string() if f.name in LIST_COLUMNS else f.type for f in schema}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(block),
        pyarrow.csv.ReadOptions(column_names=columns, use_threads=False, block_size=len(block) + 1),
        # A lone quotation mark is part of the text. With quoting on, it would swallow the rows up to the next one.
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(
            include_columns=list(raw), column_types=raw, null_values=[], strings_can_be_null=False
        ),
    )
    if tab is not None:
        for name in ("narration_source", "clip_text"):
            text = pc.replace_substring(table[name], tab, "\t")
            table = table.set_column(table.schema.get_field_index(name), name, text)
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


def unquoted(block: bytes) -> tuple[bytes, str | None]:
    """The block without the quoting of csv writers, and the character that stands for a tab inside a cell, if any."""
    if not (block.startswith(b'"') or b'\t"' in block or b'\n"' in block):
        return block, None
    tab = next((mark for mark in "\x1f\x1e\x1d" if mark.encode() not in block), None)
    lines, has_tab = _split_at_newlines(block), False
    for number, line in enumerate(lines):
        if line.startswith(b'"') or b'\t"' in line:
            cells = _csv_cells(line)
            if cells is not None and (tab is not None or not any("\t" in cell for cell in cells)):
                has_tab = has_tab or any("\t" in cell for cell in cells)
                lines[number] = "\t".join(cell.replace("\t", tab or "") for cell in cells).encode() + b"\n"
    return b"".join(lines), tab if has_tab else None


def _csv_cells(line: bytes) -> list[str] | None:
    """The cells of a line that a csv writer wrote with quoting; None if no writer would have written it so."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
        (cells,) = csv_module.reader([text], delimiter="\t", strict=True)
    except (UnicodeDecodeError, csv_module.Error, ValueError):
        return None
    minimal = io.StringIO()
    csv_module.writer(minimal, delimiter="\t", lineterminator="").writerow(cells)
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    words = [q if not _NUMBER.fullmatch(cell) else cell for q, cell in zip(quoted, cells)]  # csv.QUOTE_NONNUMERIC
    return cells if text in (minimal.getvalue(), "\t".join(quoted), "\t".join(words)) else None


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
    """Why `parse_lines` refuses this line, in words; None if the reason is not known."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
    if (quoted := _csv_cells(line)) is not None and ('"' in text):
        text = "\t".join(cell.replace("\t", " ") for cell in quoted)
    if "\r" in text:
        return "a carriage return inside the line"
    cells = text.split("\t")
    if len(cells) != len(columns):
        hint = " (a quotation that continues on the next line?)" if text.count('"') % 2 else ""
        return f"{len(cells)} cells instead of {len(columns)}{hint}"
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
