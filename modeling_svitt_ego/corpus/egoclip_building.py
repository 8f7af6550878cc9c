"""Narrations -> `egoclip.csv`: windows, verb and noun groups, and an account of every sentence that makes no clip.

The window is EgoVLP's (arXiv:2206.01670): narration_time +- beta / (2 alpha); beta is the mean gap between consecutive
narrations of one annotator in one video, alpha the mean of beta over all of them. The program that made the published
file was never released. What differs here:

* the tags come from `NarrationTagger`'s rules, the published ones from a parser that nobody else has;
* which sentences were left out there is not known in full: here only unusable ones are, unless options say more;
* clips are ordered by video as in the file, then annotator, then time, and `narration_ind` counts kept sentences.
"""

import csv
import functools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data.taxonomy import Taxonomy, read_taxonomy
from ..files.json_records import read_json
from .narration_tagger import NarrationTagger
from .narrations import DroppedNarration, Narration, clip_windows, read_narration_json

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

# What may be left out on request: a pattern of the sentences concerned.
DROPPABLE = {"unsure": re.compile(r"#\s*unsure", re.I), "other": re.compile(r"#\s*o\b", re.I)}


@dataclass(frozen=True)
class Selection:
    """Which sentences make clips, and how long a clip may be. By default every usable one, and any length.

    Args:
        drop: Of `"unsure"` (sentences with `#unsure`, an unknown word) and `"other"` (`#O`, another person acts).
        min_words: Sentences with fewer words are left out; `#C C` and the like do not count.
        min_seconds, max_seconds: A window shorter or longer than this is widened or narrowed about its narration_time.
    """

    drop: tuple[str, ...] = ()
    min_words: int = 0
    min_seconds: float = 0.0
    max_seconds: float = float("inf")

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - set(DROPPABLE):
            raise ValueError(f"drop ({sorted(unknown)}) must be of {sorted(DROPPABLE)}.")
        if not 0 <= self.min_seconds <= self.max_seconds or self.max_seconds == 0:
            raise ValueError(f"Lengths from {self.min_seconds} to {self.max_seconds} s are not a range.")

    def window(self, start: float, end: float) -> tuple[float, float]:
        half = min(max(end - start, self.min_seconds), self.max_seconds) / 2
        middle = (start + end) / 2
        return middle - half, middle + half

    def fault(self, item: Narration, start: float) -> str | None:
        """Why this sentence makes no clip, if so."""
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
) -> Iterator[Row]:
    """EgoClip rows one by one: ordered by video as first seen, then annotator, then time.

    beta is taken over all sentences given, also those that the selection then leaves out: they too mark a moment at
    which something was done.
    """
    selection = selection or Selection()
    groups: dict[tuple[str, str], list[Narration]] = defaultdict(list)
    for item in narrations:
        groups[item.video_uid, item.source].append(item)
    for items in groups.values():
        items.sort(key=lambda item: item.time)  # Ego4D's file is not ordered in time
    windows = clip_windows({key: [item.time for item in items] for key, items in groups.items()})
    # Many sentences occur often, and parsing one takes far longer than looking it up.
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
    """Writes `egoclip.csv`: tab-separated, no quoting, list cells like `[93]`. Whole or not at all."""
    aside = Path(f"{path}.incomplete")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        file.write("\t".join(EGOCLIP_COLUMNS) + "\n")
        for row in rows:
            cells = [str(row[column]) for column in EGOCLIP_COLUMNS]
            if any("\t" in cell or "\n" in cell or "\r" in cell for cell in cells):
                # The published format has no quoting, so such a cell cannot be written.
                raise ValueError(f"{path}: clip {row['clip_idx']}: tab or line break in {row['clip_text']!r}.")
            file.write("\t".join(cells) + "\n")
    os.replace(aside, path)


# ── from file to file ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class BuildReport:
    """What became of every sentence of a narration file.

    Args:
        read, kept: sentences; `read - kept` are counted by reason in `dropped`.
        videos, passes: with at least one clip; a pass is one annotator's account of one video.
        other_person, unsure: clips whose text says `#O` or `#unsure`.
        no_verb, no_noun: clips without a group of that kind: positive only with themselves in EgoNCE.
        mean_seconds: length of a window, before readers clamp it to the video.
    """

    narrations: str
    output: str
    read: int = 0
    kept: int = 0
    videos: int = 0
    passes: int = 0
    other_person: int = 0
    unsure: int = 0
    no_verb: int = 0
    no_noun: int = 0
    mean_seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_list: str | None = None

    def as_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        def line(name: str, count: int, total: int) -> str:
            return f"  {name:36}{count:>12,}  {count / max(total, 1):7.2%}"

        lines = [f"{self.narrations}: {self.read:,} sentences", line("kept", self.kept, self.read)]
        lines += [line(f"dropped: {reason}", count, self.read) for reason, count in self.dropped.items()]
        lines += [
            f"{self.output}: {self.kept:,} clips of {self.mean_seconds:.2f} s on average, "
            f"{self.videos:,} videos, {self.passes:,} passes",
            line("another person acts (#O)", self.other_person, self.kept),
            line("an unknown word (#unsure)", self.unsure, self.kept),
            line("no verb group", self.no_verb, self.kept),
            line("no noun group", self.no_noun, self.kept),
        ]
        if self.dropped_list:
            lines.append(f"Dropped sentences are listed in {self.dropped_list}")
        return "\n".join(lines)


def build_egoclip_file(
    narration_json: str | Path,
    output: str | Path,
    verb_taxonomy: str | Path,
    noun_taxonomy: str | Path,
    durations: Mapping[str, float],
    selection: Selection | None = None,
) -> BuildReport:
    """`narration.json` -> `egoclip.csv`, and a list of what was dropped beside it (`<output>.dropped.tsv`).

    Raises:
        ValueError: A file is malformed, or not one sentence could be kept; then nothing is written.
    """
    verbs, nouns = read_taxonomy(verb_taxonomy), read_taxonomy(noun_taxonomy)
    dropped: list[DroppedNarration] = []
    narrations = read_narration_json(narration_json, durations, dropped)
    report = BuildReport(str(narration_json), str(output), read=len(narrations) + len(dropped))
    videos, passes, seconds = set(), set(), 0.0

    def counted(rows: Iterable[Row]) -> Iterator[Row]:
        nonlocal seconds
        for row in rows:
            report.kept += 1
            videos.add(row["video_uid"])
            passes.add((row["video_uid"], row["narration_source"]))
            seconds += row["clip_end"] - row["clip_start"]
            report.other_person += bool(DROPPABLE["other"].search(row["clip_text"]))
            report.unsure += bool(DROPPABLE["unsure"].search(row["clip_text"]))
            report.no_verb += not row["tag_verb"]
            report.no_noun += not row["tag_noun"]
            yield row
        if report.kept == 0:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in _count(dropped).items())
            raise ValueError(f"{narration_json}: none of its {report.read} sentences makes a clip ({reasons}).")

    rows = egoclip_rows(narrations, verbs, nouns, selection, dropped)
    try:
        write_egoclip(counted(tqdm(rows, total=len(narrations), desc="Tagging", unit="sentence")), output)
    except ValueError:
        Path(f"{output}.incomplete").unlink(missing_ok=True)
        raise
    report.videos, report.passes = len(videos), len(passes)
    report.mean_seconds = round(seconds / report.kept, 4)
    report.dropped = _count(dropped)
    listed = Path(f"{output}.dropped.tsv")
    listed.unlink(missing_ok=True)
    if dropped:
        report.dropped_list = str(listed)
        with open(listed, "w", encoding="utf-8") as file:
            file.write("\t".join(DroppedNarration._fields) + "\n")
            file.writelines("\t".join(str(cell) for cell in item) + "\n" for item in dropped)
    return report


def _count(dropped: Sequence[DroppedNarration]) -> dict[str, int]:
    return dict(Counter(item.reason for item in dropped).most_common())


def read_durations(path: str | Path) -> dict[str, float]:
    """video_uid -> seconds, from `ego4d.json` (`videos` with video_uid and duration_sec) or a csv of these columns."""
    if str(path).lower().endswith(".json"):
        content = read_json(str(path))
        records = content.get("videos") if isinstance(content, dict) else None
    else:
        with open(path, newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path}: expected a list `videos`, or csv lines, with video_uid and duration_sec.")
    durations = {}
    for number, item in enumerate(records):
        try:
            durations[item["video_uid"]] = float(item["duration_sec"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: entry {number} needs video_uid and a number duration_sec: {json.dumps(item)[:200]}."
            ) from None
    return durations


def measure_durations(
    narration_json: str | Path, video_root: str | Path, layout: str | None = None
) -> dict[str, float]:
    """video_uid -> seconds of those videos of the narration file that are there, from the files themselves."""
    from ..data.layouts import VideoStore  # imports torch, which nothing else here needs

    content = read_json(str(narration_json))
    store = VideoStore(video_root, layout)
    durations = {}
    for uid in tqdm(content.get("videos", content), desc="Measuring videos", unit="video"):
        try:
            durations[uid] = store.duration(uid)
        except FileNotFoundError:
            continue  # its sentences are then dropped by name: "no duration known for the video"
    return durations
