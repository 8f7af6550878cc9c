"""Narrations -> `egoclip.csv`: windows, verb and noun groups, and a list of every sentence that was left out.

The window is EgoVLP's (arXiv:2206.01670): narration_time +- beta / (2 alpha); beta is the mean gap between consecutive
narrations of one annotator in one video, alpha the mean of beta over all of them. The program that made the published
file was never released. What differs here:

* the tags come from `NarrationTagger`'s rules, the published ones from a parser that nobody else has;
* which sentences were left out there is not known in full: here only unusable ones are, unless options say more;
* clips are ordered by video as in the file, then annotator, then time, and `narration_ind` counts kept sentences.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.taxonomy import Taxonomy
from ..files.writing import aside
from .durations import measure_durations, read_durations  # noqa: F401 (imported from here by earlier code)
from .narration_tagger import NarrationTagger
from .narrations import DroppedNarration, Narration, clip_windows

EGOCLIP_COLUMNS = (
    "clip_idx",
    "video_uid",
    "video_dur",
    "narration_source",
    "narration_ind",
    "narration_time",
    "clip_start",
    "clip_end",
    "clip_text",
    "tag_verb",
    "tag_noun",
)
Row = dict[str, Any]

# What may be left out on request, and the pattern of such sentences.
DROPPABLE = {"unsure": re.compile(r"#\s*unsure", re.I), "other": re.compile(r"#\s*o\b", re.I)}


@dataclass(frozen=True)
class Selection:
    """Which sentences become clips, and how long a clip may be. By default every usable one, with any length.

    Args:
        drop: `"unsure"` (sentences with `#unsure`, an unknown word), `"other"` (`#O`, another person acts) or both.
        min_words: Sentences with fewer words are left out; `#C C` and the like do not count.
        min_seconds, max_seconds: Shorter and longer windows are widened and narrowed around their narration_time.
    """

    drop: tuple[str, ...] = ()
    min_words: int = 0
    min_seconds: float = 0.0
    max_seconds: float = float("inf")

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - set(DROPPABLE):
            raise ValueError(f"drop ({sorted(unknown)}) must be of {sorted(DROPPABLE)}.")
        if not 0 <= self.min_seconds <= self.max_seconds or self.max_seconds == 0:
            raise ValueError(f"min_seconds ({self.min_seconds}) must be from 0 to max_seconds ({self.max_seconds}).")

    def window(self, start: float, end: float) -> tuple[float, float]:
        half = min(max(end - start, self.min_seconds), self.max_seconds) / 2
        middle = (start + end) / 2
        return middle - half, middle + half

    def fault(self, item: Narration, start: float) -> str | None:
        """Why this sentence is left out; None if it is kept."""
        if start >= item.video_duration:
            return "window past the video's end"
        for name in self.drop:
            if DROPPABLE[name].search(item.text):
                return f"says {'#unsure' if name == 'unsure' else '#O'}"
        if len(re.findall(r"\w+", re.sub(r"#\s*(unsure|c\s+c|c|o)\b", " ", item.text.lower()))) < self.min_words:
            return f"fewer than {self.min_words} words"
        return None


def egoclip_rows(
    narrations: Iterable[Narration],
    verbs: Taxonomy,
    nouns: Taxonomy,
    selection: Selection | None = None,
    dropped: list[DroppedNarration] | None = None,
    tag: Callable[[str], tuple[Sequence[int], Sequence[int]]] | None = None,
) -> Iterator[Row]:
    """Yield EgoClip rows ordered by video as first seen, then annotator, then time.

    beta is computed over all sentences, including those that the selection leaves out: they also mark a moment at
    which something was done.

    Args:
        tag (function): verb and noun groups of a text; `NarrationTagger`'s rules by default.
    """
    selection = selection or Selection()
    groups: dict[tuple[str, str], list[Narration]] = defaultdict(list)
    for item in narrations:
        groups[item.video_uid, item.source].append(item)
    for items in groups.values():
        items.sort(key=lambda item: item.time)  # Ego4D's file is not ordered in time
    windows = clip_windows({key: [item.time for item in items] for key, items in groups.items()})
    if tag is None:  # many sentences occur often, and parsing takes far longer than a look-up
        tag = functools.lru_cache(maxsize=1 << 18)(NarrationTagger(verbs, nouns).tag)
    clip_idx = 0
    for key, items in groups.items():
        narration_ind = 0
        for index, (item, window) in enumerate(zip(items, windows[key])):
            start, end = selection.window(*window)
            reason = selection.fault(item, start)
            if reason is not None:
                if dropped is not None:
                    dropped.append(DroppedNarration(reason, *key, index, str(item.time), item.text))
                continue
            verb_groups, noun_groups = tag(item.text)
            yield {
                "clip_idx": clip_idx,
                "video_uid": item.video_uid,
                "video_dur": round(item.video_duration, 6),
                "narration_source": item.source,
                "narration_ind": narration_ind,
                "narration_time": round(item.time, 6),
                "clip_start": round(start, 6),
                "clip_end": round(end, 6),
                "clip_text": item.text,
                "tag_verb": list(verb_groups),
                "tag_noun": list(noun_groups),
            }
            clip_idx, narration_ind = clip_idx + 1, narration_ind + 1


def build_egoclip(narrations: Iterable[Narration], verbs: Taxonomy, nouns: Taxonomy) -> list[Row]:
    """All rows of [`egoclip_rows`], with nothing left out on request."""
    return list(egoclip_rows(narrations, verbs, nouns))


def write_egoclip(rows: Iterable[Row], path: str | Path) -> None:
    """Write `egoclip.csv`, whole or not at all: tab-separated, no quoting, list cells like `[93]`."""
    with aside(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        file.write("\t".join(EGOCLIP_COLUMNS) + "\n")
        for row in rows:
            cells = [str(row[column]) for column in EGOCLIP_COLUMNS]
            if any("\t" in cell or "\n" in cell or "\r" in cell for cell in cells):
                # The published format has no quoting, so such a cell cannot be written.
                raise ValueError(f"{path}: clip {row['clip_idx']}: tab or line break in {row['clip_text']!r}.")
            file.write("\t".join(cells) + "\n")
