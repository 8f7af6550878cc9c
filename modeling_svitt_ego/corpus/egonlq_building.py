"""EgoClip rows -> questions about moments in the form of Ego4D's `nlq_{train,val}.json`."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ..data.taxonomy import Taxonomy
from .egoclip_building import Row

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
    unique: bool = True,
) -> dict:
    """Questions about moments in the form of Ego4D's `nlq_{train,val}.json` (v2), each video one clip.

    A question is asked only where it has one answer: its verb and noun occur together once in the video. Without
    `unique` it is asked once for each of its answers; this is no benchmark, but gives many more questions to train on.

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
        queries = _queries_of(items, duration, verbs, nouns, windows or {}, unique)
        key = f"nlq/{video_uid}" if unique else f"nlq-repeated/{video_uid}"
        if queries:
            videos.append({"video_uid": video_uid, "clips": [_clip(key, duration, queries)], "split": split})
    return {
        "version": "2",
        "date": date,
        "description": f"NLQ annotations ({split})",
        "manifest": "manifest.csv",
        "videos": videos,
    }


def _queries_of(items: list[Row], duration: float, verbs: Taxonomy, nouns: Taxonomy, windows, unique: bool) -> list:
    """All questions about one video, whose rows are in the order of time."""
    actions = [
        (verbs.labels[row["tag_verb"][0]], nouns.labels[row["tag_noun"][0]]) if row["tag_verb"] and row["tag_noun"]
        else ("", "")
        for row in items
    ]  # fmt: skip
    counts = Counter(actions)
    queries = []
    for index, (row, (verb, noun)) in enumerate(zip(items, actions)):
        if not verb or (unique and counts[verb, noun] > 1):
            continue
        asked = []
        if verb in QUERY_TEMPLATES:
            asked.append((*QUERY_TEMPLATES[verb], row, verb))
        for earlier, later, template, question in SEQUENCE_TEMPLATES:
            follower = next((k for k in range(index + 1, len(items)) if actions[k][0] == later), None)
            if verb == earlier and follower is not None:
                asked.append((template, question, items[follower], later))
        for template, question, answer, verb_x in asked:
            start, end = windows.get(answer.get("clip_idx"), (answer["clip_start"], answer["clip_end"]))
            start, end = max(0.0, float(start)), min(duration, float(end))
            query = question.format(noun=noun).lower()
            queries.append(_language_query(template, query, noun, verb_x, start, end))
    return queries


def _clip(key: str, duration: float, queries: list) -> dict:
    """A clip that is the whole video, with one annotation."""
    return {
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
