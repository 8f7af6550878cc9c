"""The synthetic first-person world: scenes with a hand that acts on things, narrated, as the files of a real corpus.

plan (`synthetic_plan`: what happens when, from the seed) -> frames (`synthetic_scene`) -> H.264 (`synthetic_video`) ->
narrations -> egoclip.csv and the benchmarks (`egoclip_building` and its like). Train and test share no video and no
scene.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..corpus.egoclip_building import build_egoclip, write_egoclip
from ..corpus.egomcq_building import build_egomcq
from ..corpus.egonlq_building import build_egonlq
from ..corpus.narrations import Narration, write_narration_json
from ..data.taxonomy import Taxonomy, write_taxonomy
from ..files.writing import folder_aside, write_json
from .synthetic_objects import NOUNS
from .synthetic_plan import ACTION_SECONDS, VideoPlan, WorldStatistics, plan_video
from .synthetic_scene import ALL_VERBS, VERBS, Verb
from .synthetic_video import render_videos

WORLD_VERSION = 4  # raise it whenever the same arguments give other files
MARKER = "world.json"

_VERB_WORDS = {
    "pick up": ("take", "grab"),
    "put down": ("place",),
    "slide left": ("push left",),
    "slide right": ("push right",),
    "close": ("shut",),
}


def verb_taxonomy(verbs: Mapping[str, Verb]) -> Taxonomy:
    return Taxonomy(labels=tuple(verbs), words=tuple((verb, *_VERB_WORDS.get(verb, ())) for verb in verbs))


def twin_groups(verbs: Mapping[str, Verb]) -> dict[int, int]:
    """Verb group to the group of its twin."""
    groups = {label: group for group, label in enumerate(verbs)}
    return {groups[label]: groups[verb.twin] for label, verb in verbs.items() if verb.twin}


VERB_TAXONOMY = verb_taxonomy(VERBS)
NOUN_TAXONOMY = Taxonomy(labels=tuple(NOUNS), words=tuple((noun,) for noun in NOUNS))
TWIN_VERBS = twin_groups(VERBS)


@dataclass(frozen=True)
class SplitPaths:
    """The files of one split, named as in the real corpora."""

    root: Path

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def egoclip(self) -> Path:
        return self.root / "egoclip.csv"

    @property
    def egomcq(self) -> Path:
        return self.root / "egomcq.json"

    @property
    def nlq(self) -> Path:
        return self.root / "nlq.json"

    @property
    def narrations(self) -> Path:
        return self.root / "narration.json"

    @property
    def verb_taxonomy(self) -> Path:
        return self.root / "verb_taxonomy.csv"

    @property
    def noun_taxonomy(self) -> Path:
        return self.root / "noun_taxonomy.csv"

    @property
    def actions(self) -> Path:
        """Ground truth for debugging: what was drawn when."""
        return self.root / "actions.json"


@dataclass(frozen=True)
class WorldPaths:
    """The paths of a world: `paths["train"].egoclip`, `paths["test"].egomcq`, …"""

    root: Path
    splits: tuple[str, ...]

    def __getitem__(self, split: str) -> SplitPaths:
        if split not in self.splits:
            raise KeyError(f"{self.root} has the splits {list(self.splits)}, not {split!r}.")
        return SplitPaths(self.root / split)


def build_world(
    output_dir: str | Path,
    split_sizes: Mapping[str, int] | None = None,
    seconds_per_video: float = 90.0,
    seed: int = 0,
    height: int = 128,
    fps: int = 10,
    num_workers: int | None = None,
    video_splits: Sequence[str] | None = None,
    statistics: WorldStatistics | None = None,
) -> WorldPaths:
    """Renders the world and writes the files of each split; a finished folder of the same arguments is left as it is.

    Args:
        output_dir: made whole or not at all: it is written aside and then renamed.
        split_sizes: number of source videos per split, {"train": 40, "test": 10} by default.
        seconds_per_video: length of each source video.
        seed: of everything; the same arguments give the same bytes (with the same libraries).
        height: frames are height x height px; an even number.
        num_workers: processes; all cores by default, 1 renders in this process.
        video_splits: splits whose videos are written as mp4; all by default. The others have annotations only.
        statistics: how often what happens, in the training split; in the other splits all verbs and nouns are
            equally frequent.
    """
    split_sizes = dict(split_sizes or {"train": 40, "test": 10})
    output_dir = Path(output_dir)
    if height % 2 or height < 32:
        raise ValueError(f"height ({height}) must be an even number of at least 32 px.")
    if seconds_per_video < 2 * ACTION_SECONDS:
        raise ValueError(f"seconds_per_video ({seconds_per_video}) leaves no room for actions of {ACTION_SECONDS} s.")
    arguments = {
        "version": WORLD_VERSION,
        "split_sizes": split_sizes,
        "seconds_per_video": float(seconds_per_video),
        "seed": seed,
        "height": height,
        "fps": fps,
    }
    statistics = statistics or WorldStatistics()
    if statistics.changed():
        arguments["statistics"] = statistics.changed()
    even = replace(statistics, zipf=0.0)
    if video_splits is not None:
        arguments["video_splits"] = list(video_splits)
    paths = WorldPaths(output_dir, tuple(split_sizes))
    if output_dir.exists() and any(output_dir.iterdir()):
        _check_finished(output_dir, arguments)
        print(f"The synthetic world in {output_dir} is finished; nothing to render.")
        return paths
    num_workers = num_workers if num_workers is not None else os.cpu_count() or 1

    with folder_aside(output_dir) as part:
        for number, (split, size) in enumerate(split_sizes.items()):
            plans = plan_videos(seed, number, size, seconds_per_video, statistics if split == "train" else even)
            target = SplitPaths(part / split)
            target.videos.mkdir(parents=True)
            if video_splits is None or split in video_splits:
                render_videos(plans, target.videos, height, fps, num_workers, desc=f"render {split}")
            write_annotations(plans, target, split, seed, ALL_VERBS if statistics.long_verbs else VERBS)
        write_json(part / MARKER, arguments)
    return paths


def plan_videos(
    seed: int, split_number: int, size: int, seconds_per_video: float, statistics: WorldStatistics | None = None
) -> list[VideoPlan]:
    """The videos of one split of the world: `split_number` is its place in `split_sizes`."""
    return [plan_video((seed, split_number, index), seconds_per_video, statistics) for index in range(size)]


def _check_finished(output_dir: Path, arguments: dict) -> None:
    marker = output_dir / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{output_dir} is not empty and holds no synthetic world ({MARKER} is missing). Choose another folder."
        )
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found != arguments:
        changed = ", ".join(
            f"{key}: {found.get(key)!r} there, {arguments.get(key)!r} asked for"
            for key in sorted({*found, *arguments})
            if found.get(key) != arguments.get(key)
        )
        raise FileExistsError(f"{output_dir} holds a synthetic world of other arguments ({changed}).")


def write_annotations(
    plans: Sequence[VideoPlan], target: SplitPaths, split: str, seed: int, verbs: Mapping[str, Verb]
) -> None:
    """Writes narrations, taxonomies, egoclip.csv, egomcq.json, nlq.json and the ground truth of one split."""
    narrations = [
        Narration(plan.video_uid, plan.seconds, action.narration_time, action.text)
        for plan in plans
        for action in plan.actions
    ]
    verb_groups = verb_taxonomy(verbs)
    rows = build_egoclip(narrations, verb_groups, NOUN_TAXONOMY)
    actions = [(plan, action) for plan in plans for action in plan.actions]
    windows = {row["clip_idx"]: (action.start, action.end) for row, (_, action) in zip(rows, actions)}
    write_narration_json(narrations, target.narrations)
    write_taxonomy(verb_groups, target.verb_taxonomy)
    write_taxonomy(NOUN_TAXONOMY, target.noun_taxonomy)
    write_egoclip(rows, target.egoclip)
    _write_json(build_egomcq(rows, twin_verbs=twin_groups(verbs), seed=seed), target.egomcq)
    nlq_split = "train" if split == "train" else "val"
    _write_json(build_egonlq(rows, verb_groups, NOUN_TAXONOMY, windows, nlq_split), target.nlq)
    truth = [
        {
            "video_uid": plan.video_uid,
            "start": action.start,
            "end": action.end,
            "verb": action.verb,
            "object": asdict(plan.objects[action.index]),
            "before": asdict(action.before[action.index]),
            "after": asdict(action.after[action.index]),
            "text": action.text,
        }
        for plan, action in actions
    ]
    _write_json(truth, target.actions)


def _write_json(content, path: Path) -> None:
    write_json(path, content)
