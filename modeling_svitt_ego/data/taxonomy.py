"""Verb and noun groups: words that count as one class (Ego4D's and EPIC-KITCHENS' taxonomy files)."""

import ast
import csv
from dataclasses import dataclass
from pathlib import Path

from ..files.text_tables import read_rows
from ..files.writing import aside

_COLUMNS = (("label", "group"), ("key", "instances"))  # Ego4D's, EPIC-KITCHENS'


@dataclass(frozen=True)
class Taxonomy:
    """Groups of words that count as one class; the number of a group is its place in the list."""

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.labels)


def write_taxonomy(taxonomy: Taxonomy, path: str | Path) -> None:
    """Write Ego4D's `narration_{verb,noun}_taxonomy.csv`: columns label and group; the group number is the row."""
    with aside(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "group"])
        for label, words in zip(taxonomy.labels, taxonomy.words):
            writer.writerow([label, str(list(words))])


def read_taxonomy(path: str | Path) -> Taxonomy:
    """Read Ego4D's taxonomy (label, group) or EPIC-KITCHENS' class list (id, key, instances, category).

    Raises:
        ValueError: The file is not such a table; the message names the file and the line.
    """

    def missing(header: list[str]) -> list[str]:
        return [] if any(set(names) <= set(header) for names in _COLUMNS) else ["label", "group"]

    rows = list(read_rows(path, missing))
    if not rows:
        raise ValueError(f"{path}: a taxonomy needs rows and the columns label,group or id,key,instances.")
    label, words = next(names for names in _COLUMNS if set(names) <= set(rows[0][1]))
    groups = []
    for place, (line, row) in enumerate(rows):
        groups.append((_group_number(path, line, row, place), row[label], _words(path, line, row[words])))
    groups.sort(key=lambda group: group[0])
    if [number for number, *_ in groups] != list(range(len(rows))):
        raise ValueError(f"{path}: the ids must be 0 to {len(rows) - 1}, each once.")
    return Taxonomy(tuple(name for _, name, _ in groups), tuple(entries for *_, entries in groups))


def _group_number(path, line: int, row: dict, place: int) -> int:
    try:
        return int(row.get("id", place))
    except ValueError:
        raise ValueError(f"{path}, line {line}: the id {row['id']!r} is not a whole number.") from None


def _words(path, line: int, cell: str) -> tuple[str, ...]:
    try:
        group = ast.literal_eval(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        group = None
    if not isinstance(group, (list, tuple)):
        raise ValueError(f"{path}, line {line}: {cell[:100]!r} is not a list of words.")
    return tuple(str(word) for word in group)
