"""The synthetic world as the downstream benchmarks: EPIC-KITCHENS-100, EGTEA Gaze+ and Charades-Ego, file by file.

The videos are those of the world; names, columns and layouts are those of the published files. Each video is a
kitchen, and the kitchens of train and test differ. Classes have a long tail, as in the real corpora: the later a verb
or noun comes in its list, the fewer of its actions are kept.
"""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.taxonomy import Taxonomy
from .synthetic_video import write_video
from .synthetic_world import NOUN_TAXONOMY, VERB_TAXONOMY, WorldPaths

# Of the k-th class (k + 1) ** -TAIL of the actions are kept.
VERB_TAIL, NOUN_TAIL = 0.35, 0.2
COLOUR_SHARE = 0.3  # of the narrations name it, half of these behind a comma: "take cup, red"
EPIC_COLUMNS = (
    "narration_id participant_id video_id narration_timestamp start_timestamp stop_timestamp start_frame stop_frame "
    "narration verb verb_class noun noun_class all_nouns all_noun_classes"
).split()


@dataclass(frozen=True)
class KitchenAction:
    """One action of the world; `kitchen` counts over all splits, `start` and `end` are seconds."""

    kitchen: int
    source: Path
    start: float
    end: float
    verb: int
    noun: int
    colour: str


def read_actions(world: WorldPaths, seed: int = 0) -> dict[str, list[KitchenAction]]:
    """The kept actions of every split, in the order of kitchens and time."""
    verbs, nouns = (
        {label: number for number, label in enumerate(taxonomy.labels)} for taxonomy in (VERB_TAXONOMY, NOUN_TAXONOMY)
    )
    result, first = {}, 0
    for number, split in enumerate(world.splits):
        rng = np.random.default_rng((seed, number))
        truth = json.loads(world[split].actions.read_text(encoding="utf-8"))
        kitchens = list(dict.fromkeys(entry["video_uid"] for entry in truth))
        result[split] = []
        for entry in truth:
            verb, noun = verbs[entry["verb"]], nouns[entry["object"]["noun"]]
            if rng.random() >= (verb + 1) ** -VERB_TAIL * (noun + 1) ** -NOUN_TAIL:
                continue
            chunks = sorted((world[split].videos / entry["video_uid"]).iterdir())
            if len(chunks) > 1:
                raise ValueError(
                    f"{chunks[0].parent} has several files; these benchmarks need videos of one file each."
                )
            kitchen = first + kitchens.index(entry["video_uid"])
            colour = entry["object"]["colour"]
            result[split].append(KitchenAction(kitchen, chunks[0], entry["start"], entry["end"], verb, noun, colour))
        first += len(kitchens)
    return result


# ── EPIC-KITCHENS-100 ──────────────────────────────────────────────────────────────────────────────────────────────


def write_epic_kitchens(world: WorldPaths, output: str | os.PathLike, seed: int = 0, fps: int = 10) -> Path:
    """
    Writes retrieval and recognition files of every split (`EPIC_100_retrieval_train.csv` with its sentences,
    `EPIC_100_train.csv`, the test split's recognition file as `EPIC_100_validation.csv`, its times without labels as
    `EPIC_100_test_timestamps.csv`), the class lists, and `videos/` in the layout "epic".
    """
    output, actions = Path(output), read_actions(world, seed)
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 100))
    for split, of_split in actions.items():
        rows = [_epic_row(number, action, rng, fps) for number, action in enumerate(of_split)]
        recognition = "validation" if split == "test" else split
        for name in (f"EPIC_100_retrieval_{split}.csv", f"EPIC_100_{recognition}.csv"):
            _write_csv(output / name, EPIC_COLUMNS, rows)
        if split == "test":
            _write_csv(output / "EPIC_100_test_timestamps.csv", EPIC_COLUMNS[:8], rows)
        sentences = {row["narration"]: row["narration_id"] for row in reversed(rows)}  # the first row that has it
        named = [{"narration_id": name, "narration": text} for text, name in reversed(sentences.items())]
        _write_csv(output / f"EPIC_100_retrieval_{split}_sentence.csv", ("narration_id", "narration"), named)
    for kind, taxonomy in (("verb", VERB_TAXONOMY), ("noun", NOUN_TAXONOMY)):
        _write_classes(output / f"EPIC_100_{kind}_classes.csv", taxonomy)
    for action in {action.kitchen: action for part in actions.values() for action in part}.values():
        participant, video = _epic_names(action)
        _link(action.source, output / "videos" / participant / "videos" / f"{video}.MP4")
    return output


def _epic_names(action: KitchenAction) -> tuple[str, str]:
    participant = f"P{action.kitchen + 1:02d}"
    return participant, f"{participant}_01"


def _epic_row(number: int, action: KitchenAction, rng: np.random.Generator, fps: int) -> dict:
    participant, video = _epic_names(action)
    verb = str(rng.choice(VERB_TAXONOMY.words[action.verb]))
    noun, colour = NOUN_TAXONOMY.labels[action.noun], rng.random()
    text = f"{verb} {noun}"
    if colour < COLOUR_SHARE:
        text = f"{verb} {action.colour} {noun}" if colour < COLOUR_SHARE / 2 else f"{verb} {noun}, {action.colour}"
    return {
        "narration_id": f"{video}_{number}",
        "participant_id": participant,
        "video_id": video,
        "narration_timestamp": _timestamp((action.start + action.end) / 2),
        "start_timestamp": _timestamp(action.start),
        "stop_timestamp": _timestamp(action.end),
        "start_frame": round(action.start * fps) + 1,
        "stop_frame": round(action.end * fps),
        "narration": text,
        "verb": verb.replace(" ", "-"),
        "verb_class": action.verb,
        "noun": noun,
        "noun_class": action.noun,
        "all_nouns": str([noun]),
        "all_noun_classes": str([action.noun]),
    }


def _timestamp(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{seconds:05.2f}"


def _write_classes(path: Path, taxonomy: Taxonomy) -> None:
    rows = [
        {"id": number, "key": label, "instances": str(list(words)), "category": "synthetic"}
        for number, (label, words) in enumerate(zip(taxonomy.labels, taxonomy.words))
    ]
    _write_csv(path, ("id", "key", "instances", "category"), rows)


# ── EGTEA Gaze+ and Charades-Ego ───────────────────────────────────────────────────────────────────────────────────


def write_egtea(world: WorldPaths, output: str | os.PathLike, seed: int = 0, fps: int = 10) -> Path:
    """Writes `<split>_split1.txt`, the three index files, and trimmed clips in `cropped_clips/`, layout "egtea"."""
    output, actions = Path(output), read_actions(world, seed)
    output.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(actions)
    for split, of_split in actions.items():
        lines, frames = [], {}
        for action in of_split:
            session = f"OP{action.kitchen + 1:02d}-R01-Table"
            first, last = round(action.start * fps), round(action.end * fps)
            name = f"{session}-{round(1000 * action.start)}-{round(1000 * action.end)}-F{first:06d}-F{last:06d}"
            if action.source not in frames:
                frames = {action.source: _all_frames(action.source)}
            path = output / "cropped_clips" / session / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(iter(frames[action.source][first:last]), path, fps)
            number = pairs.index((action.verb, action.noun))
            lines.append(f"{name} {number + 1} {action.verb + 1} {action.noun + 1} ")
        (output / f"{split}_split1.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {
        "action": [f"{VERB_TAXONOMY.labels[v].capitalize()} {NOUN_TAXONOMY.labels[n]}" for v, n in pairs],
        "verb": VERB_TAXONOMY.labels,
        "noun": NOUN_TAXONOMY.labels,
    }
    for kind, of_kind in names.items():
        text = "".join(f"{name} {number}\n" for number, name in enumerate(of_kind, start=1))
        (output / f"{kind}_idx.txt").write_text(text, encoding="utf-8")
    return output


def write_charades_ego(world: WorldPaths, output: str | os.PathLike, seed: int = 0) -> Path:
    """Writes `CharadesEgo_v1_<split>_only1st.csv`, `Charades_v1_classes.txt`, and `videos/<id>.mp4`."""
    output, actions = Path(output), read_actions(world, seed)
    output.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(actions)
    columns = ("id", "subject", "scene", "quality", "length", "actions", "egocentric")
    for split, of_split in actions.items():
        by_video: dict[int, list[KitchenAction]] = {}
        for action in of_split:
            by_video.setdefault(action.kitchen, []).append(action)
        rows = []
        for kitchen, done in by_video.items():
            name = f"K{kitchen + 1:04d}EGO"
            labels = [f"c{pairs.index((a.verb, a.noun)):03d} {a.start:.2f} {a.end:.2f}" for a in done]
            length = f"{max(a.end for a in done) + 0.5:.2f}"
            values = (name, f"S{kitchen + 1}", "Table, small", 6, length, ";".join(labels), "Yes")
            rows.append(dict(zip(columns, values)))
            _link(done[0].source, output / "videos" / f"{name}.mp4")
        _write_csv(output / f"CharadesEgo_v1_{split}_only1st.csv", columns, rows)
    lines = [
        f"c{number:03d} {VERB_TAXONOMY.labels[v].capitalize()} some {NOUN_TAXONOMY.labels[n]}\n"
        for number, (v, n) in enumerate(pairs)
    ]
    (output / "Charades_v1_classes.txt").write_text("".join(lines), encoding="utf-8")
    return output


def _pairs(actions: dict[str, list[KitchenAction]]) -> list[tuple[int, int]]:
    """The actions' classes: every pair of verb and noun that occurs in any split, sorted."""
    return sorted({(action.verb, action.noun) for part in actions.values() for action in part})


def _all_frames(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


__all__ = ["write_charades_ego", "write_egtea", "write_epic_kitchens"]
