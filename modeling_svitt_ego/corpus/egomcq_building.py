"""EgoClip rows -> questions in the form of `egomcq.json`: one text, five clips, one of them right."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .egoclip_building import Row

NUM_CHOICES = 5
MAX_DRAWS = 200  # tries to find four clips of other videos
INTER, INTRA = 1, 2  # EgoMCQ's `types`: five different videos, five clips of one video


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
        max_inter, max_intra: the maximum number of questions of a kind; no limit by default.
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
    """An EgoClip row as in the json files, where tags are strings as in the cells of the csv."""
    return {**row, "tag_verb": str(row["tag_verb"]), "tag_noun": str(row["tag_noun"])}
