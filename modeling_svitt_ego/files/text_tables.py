"""Comma-separated tables as programs of all kinds write them: with a byte order mark, blank lines, other encodings."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator


def read_rows(
    path: str | os.PathLike, missing: Callable[[list[str]], list] = lambda header: []
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column name); blank lines are skipped.

    Args:
        missing (function): the required columns that a header lacks.

    Raises:
        ValueError: The file is not UTF-8, has an unclosed quotation, lacks columns, or a line has another number of
            cells than the header; the message names the file and the line.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next((cells for cells in reader if cells), [])
            if absent := missing(header):
                shown = ",".join(header)[:200]
                raise ValueError(f"{path!r} lacks the column(s) {absent}; its comma-separated header is {shown!r}.")
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{path!r}, line {reader.line_num}: {len(cells)} cells instead of {len(header)}.")
                yield reader.line_num, dict(zip(header, cells))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{path!r}, line {reader.line_num}: {error}.") from None
