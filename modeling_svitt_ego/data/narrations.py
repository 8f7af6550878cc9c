"""From Ego4D-style narrations to EgoClip, EgoMCQ and EgoNLQ files. Pure functions, no torch, no video.

narration (time, text) -> clip window -> EgoClip row with verb and noun groups -> questions made of rows.
The window is EgoVLP's (arXiv:2206.01670): narration_time +- beta / (2 alpha); beta is the mean gap between consecutive
narrations of one video, alpha the mean of beta over all videos. Times are seconds from the start of the source video.
"""

import ast
import csv
import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
NUM_CHOICES = 5
MAX_DRAWS = 200  # tries to find four clips of other videos
INTER, INTRA = 1, 2  # EgoMCQ's `types`: five different videos, five clips of one video

Row = dict[str, Any]


@dataclass(frozen=True)
class Narration:
    """One sentence of one annotator about one moment.

    time (`float`): seconds from the start of the source video.
    """

    video_uid: str
    video_duration: float
    time: float
    text: str
    source: str = "narration_pass_1"


# ── narration.json ─────────────────────────────────────────────────────────────────────────────────────────────────


def write_narration_json(narrations: Iterable[Narration], path: str | Path, fps: float = 30.0) -> None:
    """Writes Ego4D's `narration.json`: video_uid -> pass -> narrations with timestamp_sec and narration_text."""
    videos: dict[str, dict] = {}
    for item in narrations:
        video = videos.setdefault(item.video_uid, {"status": "complete"})
        annotation_uid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{item.video_uid}/{item.source}"))
        video.setdefault(item.source, {"narrations": [], "summaries": []})["narrations"].append(
            {
                "timestamp_sec": item.time,
                "timestamp_frame": int(item.time * fps),
                "_unmapped_timestamp_sec": item.time,
                "narration_text": item.text,
                "annotation_uid": annotation_uid,
            }
        )
    Path(path).write_text(json.dumps(videos, indent=1) + "\n", encoding="utf-8")


def read_narration_json(path: str | Path, durations: Mapping[str, float]) -> list[Narration]:
    """Reads Ego4D's `narration.json` (which is not ordered in time and holds no durations)."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    narrations = []
    for video_uid, video in content.items():
        for source, entry in sorted(video.items()):
            if not source.startswith("narration_pass"):
                continue
            if video_uid not in durations:
                raise ValueError(f"{path}: no duration given for video {video_uid}.")
            for item in entry["narrations"]:
                time, text = float(item["timestamp_sec"]), item["narration_text"].strip()
                narrations.append(Narration(video_uid, durations[video_uid], time, text, source))
    return narrations


# ── clip windows ───────────────────────────────────────────────────────────────────────────────────────────────────


def clip_windows(times: Mapping[Hashable, Sequence[float]]) -> dict[Hashable, list[tuple[float, float]]]:
    """EgoClip's window of every narration: time +- beta / (2 alpha) (EgoVLP, arXiv:2206.01670, section 3.1).

    Args:
        times: seconds of the narrations of each video, in any order. Two annotators of one video are two entries, for
            example keyed (video_uid, source): mixing their sentences would halve the gaps.

    Returns:
        (start, end) in seconds for each narration, in the order given. The start is negative where a narration stands
        at the very beginning, as in the published file; readers clamp. A video with one narration has no gap, so it
        gets the average window.
    """
    betas = {}
    for key, values in times.items():
        if len(values) > 1:
            betas[key] = (max(values) - min(values)) / (len(values) - 1)
    alpha = sum(betas.values()) / len(betas) if betas else 0.0
    windows = {}
    for key, values in times.items():
        # alpha is 0 only if all narrations of every video stand at one time; one second is then as good as any.
        half = 0.5 * (betas.get(key, alpha) / alpha if alpha > 0 else 1.0)
        windows[key] = [(time - half, time + half) for time in values]
    return windows


# ── verb and noun groups ───────────────────────────────────────────────────────────────────────────────────────────


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


def _stems(word: str) -> set[str]:
    """The word and what it may be a form of: cups -> cup, dries -> dry, closing -> clos, close, stopped -> stop."""
    stems = {word}
    for ending, replacements in (
        ("ies", ("y",)),
        ("es", ("", "e")),
        ("s", ("",)),
        ("ied", ("y",)),
        ("ed", ("", "e")),
        ("ing", ("", "e")),
    ):
        if word.endswith(ending) and len(word) - len(ending) >= 2 and not word.endswith("ss"):
            stem = word[: -len(ending)]
            stems.update(stem + replacement for replacement in replacements)
            if ending in ("ed", "ing") and stem[-1] == stem[-2]:  # stopped -> stop
                stems.add(stem[:-1])
    return stems


def _tokens(text: str) -> list[str]:
    text = re.sub(r"#\s*(unsure|c\s+c|c|o)\b", " ", text.lower())  # who acts, and words not understood
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[,.]", text)


_CLAUSE_STARTS = {"and", "while", "then", ",", "."}


class NarrationTagger:
    """Finds the verb and noun groups of a narration by rules.

    * Words are compared by their forms (picks, picking, picked = pick).
    * A noun entry must stand there word by word; longer entries win (cutting board over board).
    * A verb entry of several words may have others in between (slide the cup to the left = slide left); longer entries
      win. A verb counts only at the start of a clause: as its first word that any verb entry begins with. So `book` in
      `picks up the book` is no verb; `and`, `while`, `then`, a comma or a full stop start a new clause.

    EgoVLP's own tags were made with a parser that was not released; ambiguous words can differ from them.
    """

    def __init__(self, verbs: Taxonomy, nouns: Taxonomy):
        self._verbs = self._index(verbs)
        self._nouns = self._index(nouns)

    @staticmethod
    def _index(taxonomy: Taxonomy) -> dict[str, list[tuple[tuple[str, ...], int]]]:
        """First word -> (all words, group) of the entries that begin with it."""
        index = defaultdict(list)
        for group, words in enumerate(taxonomy.words):
            for word in words:
                entry = tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", word.lower()))
                if entry:
                    index[entry[0]].append((entry, group))
        return dict(index)

    @staticmethod
    def _candidates(index, stems):
        """(words, group) of the entries that begin with a form of this word, longest first."""
        found = {entry for stem in stems for entry in index.get(stem, ())}
        return sorted(found, key=lambda entry: (-len(entry[0]), entry))

    def tag(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the verb groups and the noun groups, each in order of appearance and without repeats."""
        tokens = [_stems(token) for token in _tokens(text)]
        verbs: list[int] = []
        nouns: list[int] = []
        is_verb = [False] * len(tokens)
        clause_open = True  # no verb found yet in this clause
        for i, stems in enumerate(tokens):
            clause_open = clause_open or bool(stems & _CLAUSE_STARTS)
            group = self._verb_at(tokens, i) if clause_open else None
            if group is not None:
                clause_open = False
                is_verb[i] = True
                verbs.append(group)
        i = 0
        while i < len(tokens):
            length, group = (1, None) if is_verb[i] else self._noun_at(tokens, i)
            if group is not None:
                nouns.append(group)
            i += length
        return list(dict.fromkeys(verbs)), list(dict.fromkeys(nouns))

    def _verb_at(self, tokens, i):
        end = next((k for k in range(i + 1, len(tokens)) if tokens[k] & _CLAUSE_STARTS), len(tokens))
        for entry, group in self._candidates(self._verbs, tokens[i]):
            place = i
            for word in entry[1:]:
                place = next((k for k in range(place + 1, end) if word in tokens[k]), None)
                if place is None:
                    break
            if place is not None:
                return group
        return None

    def _noun_at(self, tokens, i):
        for entry, group in self._candidates(self._nouns, tokens[i]):
            window = tokens[i : i + len(entry)]
            if len(window) == len(entry) and all(word in stems for word, stems in zip(entry, window)):
                return len(entry), group
        return 1, None


def tag_narration(text: str, verbs: Taxonomy, nouns: Taxonomy) -> tuple[list[int], list[int]]:
    """The verb and noun groups of one narration. For many, make one `NarrationTagger` and call its `tag`."""
    return NarrationTagger(verbs, nouns).tag(text)


# ── EgoClip ────────────────────────────────────────────────────────────────────────────────────────────────────────


def build_egoclip(narrations: Iterable[Narration], verbs: Taxonomy, nouns: Taxonomy) -> list[Row]:
    """EgoClip rows of all narrations: ordered by video as first seen, then annotator, then time."""
    groups: dict[tuple[str, str], list[Narration]] = defaultdict(list)
    for item in narrations:
        groups[item.video_uid, item.source].append(item)
    for items in groups.values():
        items.sort(key=lambda item: item.time)  # Ego4D's file is not ordered in time
    windows = clip_windows({key: [item.time for item in items] for key, items in groups.items()})
    tagger = NarrationTagger(verbs, nouns)
    rows: list[Row] = []
    for key, items in groups.items():
        for index, (item, (start, end)) in enumerate(zip(items, windows[key])):
            verb_groups, noun_groups = tagger.tag(item.text)
            rows.append(
                {
                    "clip_idx": len(rows),
                    "video_uid": item.video_uid,
                    "video_dur": round(item.video_duration, 6),
                    "narration_source": item.source,
                    "narration_ind": index,
                    "narration_time": round(item.time, 6),
                    "clip_start": round(start, 6),
                    "clip_end": round(end, 6),
                    "clip_text": item.text,
                    "tag_verb": verb_groups,
                    "tag_noun": noun_groups,
                }
            )
    return rows


def write_egoclip(rows: Iterable[Row], path: str | Path) -> None:
    """Writes `egoclip.csv`: tab-separated, no quoting, list cells like `[93]`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write("\t".join(EGOCLIP_COLUMNS) + "\n")
        for row in rows:
            cells = [str(row[column]) for column in EGOCLIP_COLUMNS]
            if any("\t" in cell or "\n" in cell or "\r" in cell for cell in cells):
                # The published format has no quoting, so such a cell cannot be written.
                raise ValueError(f"{path}: clip {row['clip_idx']}: tab or line break in {row['clip_text']!r}.")
            file.write("\t".join(cells) + "\n")


# ── EgoMCQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _same_action(a: Row, b: Row) -> bool:
    """EgoNCE's rule for positives, or the same sentence: such a clip would be a second right answer."""
    shares_verb = set(a["tag_verb"]) & set(b["tag_verb"])
    shares_noun = set(a["tag_noun"]) & set(b["tag_noun"])
    return bool(shares_verb and shares_noun) or a["clip_text"] == b["clip_text"]


def _is_twin(query: Row, row: Row, twin_verbs: Mapping[int, int]) -> bool:
    wanted = {twin_verbs[verb] for verb in query["tag_verb"] if verb in twin_verbs}
    return bool(wanted & set(row["tag_verb"]) and set(row["tag_noun"]) & set(query["tag_noun"]))


def _pick_choices(query: Row, pool: Iterable[Row], distinct_videos: bool) -> list[Row] | None:
    """The query and the first four of `pool` such that no two are the same action; None if there are too few."""
    chosen = [query]
    for row in pool:
        if distinct_videos and any(row["video_uid"] == other["video_uid"] for other in chosen):
            continue
        if any(_same_action(row, other) for other in chosen):
            continue
        chosen.append(row)
        if len(chosen) == NUM_CHOICES:
            return chosen
    return None


def build_egomcq(
    rows: Sequence[Row],
    max_inter: int | None = None,
    max_intra: int | None = None,
    twin_verbs: Mapping[int, int] | None = None,
    seed: int = 0,
) -> dict[str, dict]:
    """Multiple-choice questions in the form of `egomcq.json`: one text, five clips, one of them right.

    Each row is the query of at most one inter question (five clips of five videos, `types` 1) and one intra question
    (five clips of one video, `types` 2). No two choices share a verb and a noun group, or the text. Rows without a
    verb or a noun are left out, because nothing says what they are not.

    Args:
        rows: EgoClip rows with lists in tag_verb and tag_noun.
        max_inter, max_intra: at most so many questions of a kind; all there are by default.
        twin_verbs: verb group -> the group of the same action played backwards. Where the video has a clip of the same
            noun with the twin verb, it is one of the intra choices.
        seed: of the choice of distractors, questions and places.
    """
    rng = np.random.default_rng(seed)
    rows = [row for row in rows if row["tag_verb"] and row["tag_noun"]]
    by_video: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_video[row["video_uid"]].append(row)

    questions: dict[int, list[list[Row]]] = {INTER: [], INTRA: []}
    for query in rows:
        # Draws with repeats: a repeated row is the same action as itself, so it is never taken twice.
        others = (rows[i] for i in rng.integers(len(rows), size=MAX_DRAWS))
        choices = _pick_choices(query, others, distinct_videos=True)
        if choices:
            questions[INTER].append(choices)
        video = by_video[query["video_uid"]]
        neighbours = [video[i] for i in rng.permutation(len(video))]
        # Twins first, then the rest in the same random order.
        neighbours.sort(key=lambda row: not _is_twin(query, row, twin_verbs or {}))
        choices = _pick_choices(query, neighbours, distinct_videos=False)
        if choices:
            questions[INTRA].append(choices)

    result: dict[str, dict] = {}
    for kind, limit in ((INTER, max_inter), (INTRA, max_intra)):
        kept = questions[kind]
        if limit is not None and len(kept) > limit:
            kept = [kept[i] for i in sorted(rng.permutation(len(kept))[:limit])]
        for choices in kept:
            order = rng.permutation(NUM_CHOICES)
            result[str(len(result))] = {
                "answer": int(np.flatnonzero(order == 0)[0]),
                "query": _json_row(choices[0]),
                "choices": {str(place): _json_row(choices[i]) for place, i in enumerate(order)},
                "types": kind,
            }
    return result


def _json_row(row: Row) -> Row:
    """An EgoClip row as it stands in json files: the tags as the cells of the csv, that is as strings."""
    return {**row, "tag_verb": str(row["tag_verb"]), "tag_noun": str(row["tag_noun"])}


# ── EgoNLQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# verb label -> (Ego4D's template name, the question); {noun} is the object of the narration.
QUERY_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "put down": ("Place: Where did I put X?", "Where did I put the {noun}?"),
    "pick up": ("Objects: Where is object X before / after event Y?", "Where was the {noun} before I picked it up?"),
    "open": ("Objects: State of an object", "When did I open the {noun}?"),
    "close": ("Objects: State of an object", "Did I close the {noun}?"),
    "cover": ("Objects: State of an object", "Did I cover the {noun}?"),
    "uncover": ("Objects: State of an object", "When did I uncover the {noun}?"),
}
# (earlier verb label, later verb label, template name, question): what was the object of the later one?
SEQUENCE_TEMPLATES: Sequence[tuple[str, str, str, str]] = (
    ("open", "pick up", "Objects: What X did I Y?", "What did I pick up after I opened the {noun}?"),
    ("close", "put down", "Objects: What X did I Y?", "What did I put down after I closed the {noun}?"),
    ("put down", "pick up", "Objects: What X did I Y?", "What did I pick up after I put down the {noun}?"),
)


def build_egonlq(
    rows: Sequence[Row],
    verbs: Taxonomy,
    nouns: Taxonomy,
    windows: Mapping[int, tuple[float, float]] | None = None,
    split: str = "val",
    date: str = "",
) -> dict:
    """Questions about moments in the form of Ego4D's `nlq_{train,val}.json` (v2), each video one clip.

    A question is asked only where it has one answer: its verb and noun occur together once in the video.

    Args:
        rows: EgoClip rows with lists in tag_verb and tag_noun.
        windows: clip_idx -> (start, end) seconds of the answer where it is known better than the row's clip window.
        date: of the file's head; fixed by default, so that a file depends on its rows only.
    """
    by_video: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_video[row["video_uid"]].append(row)

    videos = []
    for video_uid, items in by_video.items():
        items = sorted(items, key=lambda row: row["narration_time"])
        duration = float(items[0]["video_dur"])
        actions = [
            (verbs.labels[row["tag_verb"][0]], nouns.labels[row["tag_noun"][0]]) if row["tag_verb"] and row["tag_noun"]
            else ("", "")
            for row in items
        ]  # fmt: skip
        counts = Counter(actions)
        queries = []
        for index, (row, (verb, noun)) in enumerate(zip(items, actions)):
            if not verb or counts[verb, noun] > 1:
                continue
            asked = []
            if verb in QUERY_TEMPLATES:
                asked.append((*QUERY_TEMPLATES[verb], row, verb))
            for earlier, later, template, question in SEQUENCE_TEMPLATES:
                follower = next((k for k in range(index + 1, len(items)) if actions[k][0] == later), None)
                if verb == earlier and follower is not None:
                    asked.append((template, question, items[follower], later))
            for template, question, answer, verb_x in asked:
                start, end = (windows or {}).get(answer["clip_idx"], (answer["clip_start"], answer["clip_end"]))
                start, end = max(0.0, float(start)), min(duration, float(end))
                query = question.format(noun=noun).lower()
                queries.append(_language_query(template, query, noun, verb_x, start, end))
        key = f"nlq/{video_uid}"
        clip = {
            "clip_uid": str(uuid.uuid5(uuid.NAMESPACE_OID, key)),
            "video_start_sec": 0.0,
            "video_end_sec": duration,
            "video_start_frame": 0,
            "video_end_frame": int(duration * 30),
            "clip_start_sec": 0.0,
            "clip_end_sec": duration,
            "source_clip_uid": str(uuid.uuid5(uuid.NAMESPACE_OID, key + "/source")),
            "annotations": [
                {"annotation_uid": str(uuid.uuid5(uuid.NAMESPACE_OID, key + "/a")), "language_queries": queries}
            ],
        }
        videos.append({"video_uid": video_uid, "clips": [clip] if queries else [], "split": split})
    return {
        "version": "2",
        "date": date,
        "description": f"NLQ annotations ({split})",
        "manifest": "manifest.csv",
        "videos": [video for video in videos if video["clips"]],
    }


def _language_query(template: str, query: str, noun: str, verb: str, start: float, end: float) -> dict:
    # The clip is the whole video, so its clock and the video's agree.
    return {
        "clip_start_sec": start,
        "clip_end_sec": end,
        "video_start_sec": start,
        "video_end_sec": end,
        "video_start_frame": int(start * 30),  # Ego4D counts frames at 30 per second
        "video_end_frame": int(end * 30),
        "template": template,
        "query": query,
        "slot_x": noun,
        "verb_x": verb,
        "slot_y": "",
        "verb_y": "",
        "raw_tags": [template, query, noun, verb, "", ""],
    }
