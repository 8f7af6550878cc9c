"""Verb and noun groups: words that count as one class (Ego4D's and EPIC-KITCHENS' taxonomy files)."""

import ast
import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Taxonomy:
    """Groups of words that count as one class; the group number is the place in the list."""

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.labels)


def write_taxonomy(taxonomy: Taxonomy, path: str | Path) -> None:
    """Writes Ego4D's `narration_{verb,noun}_taxonomy.csv`: columns label and group; the group number is the row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "group"])
        for label, words in zip(taxonomy.labels, taxonomy.words):
            writer.writerow([label, str(list(words))])


def read_taxonomy(path: str | Path) -> Taxonomy:
    """Reads Ego4D's taxonomy (label, group) or EPIC-KITCHENS' class list (id, key, instances, category)."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    label, words = ("label", "group") if rows and "group" in rows[0] else ("key", "instances")
    if not rows or label not in rows[0] or words not in rows[0]:
        raise ValueError(f"{path}: a taxonomy needs rows and the columns label,group or id,key,instances.")
    if "id" in rows[0]:
        rows.sort(key=lambda row: int(row["id"]))
        if [int(row["id"]) for row in rows] != list(range(len(rows))):
            raise ValueError(f"{path}: the ids must be 0 to {len(rows) - 1}, each once.")
    groups = []
    for number, row in enumerate(rows):
        try:
            group = ast.literal_eval(row[words])
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: row {number}: {row[words]!r} is not a list of words.") from error
        groups.append(tuple(str(word) for word in group))
    return Taxonomy(tuple(row[label] for row in rows), tuple(groups))
