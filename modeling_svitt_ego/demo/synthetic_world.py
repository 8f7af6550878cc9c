"""The synthetic first-person world: scenes with a hand that acts on things, narrated, as the files of a real corpus.

plan (what happens when, from the seed) -> frames (`synthetic_scene`) -> H.264 mp4 -> narrations -> egoclip.csv and the
benchmarks (`egoclip_building` and its like). Most verbs come in twins that are each other's time reversal: only the
order of the frames tells them apart. Train and test share no video and no scene.
"""

import json
import math
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..corpus.egoclip_building import build_egoclip, write_egoclip
from ..corpus.egomcq_building import build_egomcq
from ..corpus.egonlq_building import build_egonlq
from ..corpus.narrations import Narration, write_narration_json
from ..data.taxonomy import Taxonomy, write_taxonomy
from ..files.processes import end_workers, workers_ignore_interrupts
from .synthetic_objects import COLOURS, NOUNS, SceneObject
from .synthetic_scene import (
    VERBS,
    WORLD_HEIGHT,
    WORLD_WIDTH,
    ObjectState,
    SceneRenderer,
    action_pose,
    smoothstep,
)

WORLD_VERSION = 4  # raise it whenever the same arguments give other files
CHUNK_SECONDS = 600  # EgoVLP's layout: <video_uid>/<n>.mp4, n = floor(t / 600)
ACTION_SECONDS = 1.4
PAUSE_SECONDS = (0.3, 0.6)
NUM_OBJECTS = 3  # on each table
COLOUR_SHARE = 0.3  # of the narrations name it; if most did, a model would learn colours and little else
UNDO_SHARE = 0.6  # of the actions that can be undone are, at once
MARKER = "world.json"

VERB_TAXONOMY = Taxonomy(
    labels=tuple(VERBS),
    words=(
        ("pick up", "take", "grab"),
        ("put down", "place"),
        ("slide left", "push left"),
        ("slide right", "push right"),
        ("open",),
        ("close", "shut"),
        ("cover",),
        ("uncover",),
        ("shake",),
        ("tap",),
    ),
)
NOUN_TAXONOMY = Taxonomy(labels=tuple(NOUNS), words=tuple((noun,) for noun in NOUNS))
_VERB_GROUPS = {label: group for group, label in enumerate(VERB_TAXONOMY.labels)}
TWIN_VERBS = {_VERB_GROUPS[label]: _VERB_GROUPS[verb.twin] for label, verb in VERBS.items() if verb.twin}


# ── the plan of one video ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Action:
    """One narrated action; start and end in seconds. `before` are the states of all objects when it starts."""

    start: float
    end: float
    verb: str
    index: int  # of the object acted on
    before: tuple[ObjectState, ...]
    after: tuple[ObjectState, ...]
    camera: tuple[float, float]  # where the head looks: world position of the frame's top left corner
    narration_time: float
    text: str


@dataclass(frozen=True)
class VideoPlan:
    """Everything that happens in one source video; rendering adds nothing random but the looks of the scene."""

    video_uid: str
    seconds: float
    objects: tuple[SceneObject, ...]
    actions: tuple[Action, ...]
    seed: tuple[int, ...]


def plan_video(seed: Sequence[int], seconds: float) -> VideoPlan:
    """Draws a scene of NUM_OBJECTS objects and a run of actions that fit together, from the seed alone."""
    rng = np.random.default_rng(seed)
    video_uid = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    objects = []
    for noun in rng.choice(list(NOUNS), size=NUM_OBJECTS, replace=False):
        colour = str(rng.choice(list(COLOURS)))
        rgb = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.08) + rng.uniform(-14, 14, 3)
        rgb = tuple(int(c) for c in np.clip(rgb, 0, 255))
        objects.append(SceneObject(str(noun), colour, rgb, NOUNS[noun].size * float(rng.uniform(1.08, 1.42))))
    states: list[ObjectState] = []
    for thing in objects:
        angle = float(rng.uniform(-50, 50)) if NOUNS[thing.noun].lies_flat else 0.0
        states.append(ObjectState(*_free_place(states, rng), angle=angle))

    actions: list[Action] = []
    used: Counter = Counter()
    start = float(rng.uniform(0.2, 0.6))
    while start + ACTION_SECONDS < seconds:
        options = list(_possible_actions(objects, states, rng))
        undo = [option for option in options if actions and _undoes(option, actions[-1])]
        # What was opened is often closed next: clips that differ in the order of their frames and in nothing else.
        if undo and rng.random() < UNDO_SHARE:
            options = undo
        per_verb = Counter(verb for verb, _, _ in options)
        # Rare verbs first, so that all occur about equally often; seldom the same object twice in a row otherwise.
        weights = np.array(
            [
                (0.25 if actions and actions[-1].index == index else 1.0) / per_verb[verb] / (1 + used[verb]) ** 2
                for verb, index, _ in options
            ]
        )
        verb, index, after_state = options[int(rng.choice(len(options), p=weights / weights.sum()))]
        used[verb] += 1
        after = [*states]
        after[index] = after_state
        on_table = states[index] if not states[index].held else after_state
        landed = after_state if not after_state.held else on_table
        look = [(on_table.x + landed.x) / 2 - 0.5, (on_table.y + landed.y) / 2 - 0.5]
        look = [float(value + rng.uniform(-0.06, 0.06)) for value in look]
        end = start + ACTION_SECONDS
        jitter = float(np.clip(rng.normal(0, 0.05), -0.1, 0.1))
        actions.append(
            Action(
                start=start,
                end=end,
                verb=verb,
                index=index,
                before=tuple(states),
                after=tuple(after),
                camera=(look[0], look[1]),
                narration_time=round((start + end) / 2 + jitter, 4),
                text=_narrate(verb, objects[index], rng),
            )
        )
        states = after
        start = end + float(rng.uniform(*PAUSE_SECONDS))
    return VideoPlan(video_uid, seconds, tuple(objects), tuple(actions), tuple(seed))


def _undoes(option: tuple[str, int, ObjectState], action: Action) -> bool:
    """Whether `option` is the time reversal of `action`, on the same object."""
    verb, index, _ = option
    return index == action.index and verb == VERBS[action.verb].twin


def _narrate(verb: str, thing: SceneObject, rng: np.random.Generator) -> str:
    article = "the" if rng.random() < 0.9 else "a"
    colour = thing.colour if rng.random() < COLOUR_SHARE else ""
    if article == "a" and (colour or thing.noun)[0] in "aeiou":
        article = "an"
    phrases = VERBS[verb].phrases
    phrase = phrases[0] if rng.random() < 0.85 else str(rng.choice(phrases))
    return "#C C " + phrase.format(" ".join(word for word in (article, colour, thing.noun) if word))


def _is_free(x: float, y: float, states: Sequence[ObjectState], besides: int | None, gap: float) -> bool:
    if not (0.25 <= x <= WORLD_WIDTH - 0.25 and 0.3 <= y <= 0.98):
        return False
    others = (s for i, s in enumerate(states) if i != besides and not s.held)
    return all(math.hypot(x - s.x, 1.2 * (y - s.y)) >= gap for s in others)


def _free_place(states: Sequence[ObjectState], rng: np.random.Generator, besides: int | None = None):
    gap = 0.48
    while True:
        for _ in range(30):
            x, y = float(rng.uniform(0.25, WORLD_WIDTH - 0.25)), float(rng.uniform(0.3, 0.98))
            if _is_free(x, y, states, besides, gap):
                return x, y
        gap *= 0.85  # a crowded table: closer together rather than never


def _possible_actions(
    objects: Sequence[SceneObject], states: Sequence[ObjectState], rng: np.random.Generator
) -> Iterator[tuple[str, int, ObjectState]]:
    """(verb, object, its state afterwards) for everything that can be done now."""
    held = sum(state.held for state in states)
    for index, (thing, state) in enumerate(zip(objects, states)):
        noun = NOUNS[thing.noun]
        if state.held:
            x, y = _free_place(states, rng, index)
            yield "put down", index, replace(state, held=False, x=x, y=y)
            continue
        if state.covered:
            yield "uncover", index, replace(state, covered=False)
            continue
        if held < 2 and not state.opened:
            yield "pick up", index, replace(state, held=True)
        for verb, direction in (("slide left", -1), ("slide right", 1)):
            x = state.x + direction * float(rng.uniform(0.38, 0.52))
            if _is_free(x, state.y, states, index, gap=0.34):
                yield verb, index, replace(state, x=x)
        if noun.open_grip is not None:
            verb = "close" if state.opened else "open"
            yield verb, index, replace(state, opened=1.0 - state.opened)
        if not state.opened:
            yield "cover", index, replace(state, covered=True)
        yield "shake", index, state
        yield "tap", index, state


# ── from the plan to frames and files ──────────────────────────────────────────────────────────────────────────────


def render_frames(
    plan: VideoPlan, height: int, fps: int, first: int = 0, last: int | None = None
) -> Iterator[np.ndarray]:
    """Yields frames first .. last - 1 of a video, each (height, height, 3) uint8."""
    rng = np.random.default_rng((*plan.seed, 1))
    renderer = SceneRenderer(plan.objects, height, rng)
    sway = rng.uniform([0.008, 0.15, 0.0], [0.02, 0.6, 2 * math.pi], (2, 2, 3))  # axis, wave, (amplitude, Hz, phase)
    flicker = rng.uniform([0.01, 0.1, 0.0], [0.04, 0.7, 2 * math.pi])
    last = round(plan.seconds * fps) if last is None else last
    current = 0
    for number in range(first, last):
        time = number / fps
        while current + 1 < len(plan.actions) and time >= plan.actions[current + 1].start:
            current += 1
        action = plan.actions[current] if plan.actions else None
        camera = _camera_at(plan.actions, current, time)
        camera = tuple(
            value + sum(size * math.sin(2 * math.pi * rate * time + phase) for size, rate, phase in waves)
            for value, waves in zip(camera, sway)
        )
        light = 1.0 + flicker[0] * math.sin(2 * math.pi * flicker[1] * time + flicker[2])
        if action is None or time < action.start:
            states = action.before if action else ()
            yield renderer.draw(states, camera, light)
        elif time >= action.end:
            yield renderer.draw(action.after, camera, light)
        else:
            progress = (time - action.start) / (action.end - action.start)
            noun = plan.objects[action.index].noun
            before, after = action.before[action.index], action.after[action.index]
            pose, reach = action_pose(action.verb, noun, before, after, progress, action.camera[1])
            yield renderer.draw(action.before, camera, light, action.index, pose, reach)


def _camera_at(actions: Sequence[Action], current: int, time: float) -> tuple[float, float]:
    """Still during an action; the head turns to the next one in the pause before it."""
    if not actions:
        return (WORLD_WIDTH - 1) / 2, (WORLD_HEIGHT - 1) / 2
    here = actions[current]
    if time < here.end or current + 1 == len(actions):
        return here.camera
    there = actions[current + 1]
    m = smoothstep((time - here.end) / (there.start - here.end))
    return tuple(a + (b - a) * m for a, b in zip(here.camera, there.camera))


def write_video(frames: Iterator[np.ndarray], path: Path, fps: int, gop: int = 15) -> int:
    """Encodes frames to H.264 with one thread, so that the bytes depend on the frames only. Returns their number."""
    import av

    count = 0
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        options = {"preset": "veryfast", "crf": "21", "g": str(gop), "bf": "0", "threads": "1", "tune": "fastdecode"}
        # x264's lookahead gives different bytes from run to run on frames this small.
        options["x264-params"] = "rc-lookahead=0:mbtree=0:scenecut=0"
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for array in frames:
            if count == 0:
                stream.height, stream.width = array.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
            count += 1
        for packet in stream.encode():
            container.mux(packet)
    return count


def _render_chunk(plan: VideoPlan, chunk: int, path: Path, height: int, fps: int) -> int:
    total = round(plan.seconds * fps)
    first, last = chunk * CHUNK_SECONDS * fps, min((chunk + 1) * CHUNK_SECONDS * fps, total)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(render_frames(plan, height, fps, first, last), path, fps)


def render_videos(
    plans: Sequence[VideoPlan], root: Path, height: int, fps: int, num_workers: int, desc: str = "render"
) -> None:
    """Writes `<root>/<video_uid>/<n>.mp4` of every plan, files in parallel, with a progress bar in frames."""
    jobs = [
        (plan, chunk, root / plan.video_uid / f"{chunk}.mp4", height, fps)
        for plan in plans
        for chunk in range(math.ceil(plan.seconds / CHUNK_SECONDS))
    ]
    total = sum(round(plan.seconds * fps) for plan in plans)
    if num_workers <= 1:
        with tqdm(total=total, desc=desc, unit="frame") as bar:
            for job in jobs:
                bar.update(_render_chunk(*job))
        return
    # fork starts at once where it is safe; the workers only draw and encode.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        with workers_ignore_interrupts():
            futures = [pool.submit(_render_chunk, *job) for job in jobs]
        try:
            with tqdm(total=total, desc=desc, unit="frame") as bar:
                for future in as_completed(futures):
                    bar.update(future.result())
        except KeyboardInterrupt:
            end_workers()
            raise


# ── the world ──────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """Where a world lies: `paths["train"].egoclip`, `paths["test"].egomcq`, …"""

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
) -> WorldPaths:
    """Renders the world and writes the files of each split; a finished folder of the same arguments is left as it is.

    Args:
        output_dir: made whole or not at all: it is written aside and then renamed.
        split_sizes: number of source videos per split, {"train": 40, "test": 10} by default.
        seconds_per_video: length of each source video.
        seed: of everything; the same arguments give the same bytes (with the same libraries).
        height: frames are height x height px; an even number.
        num_workers: processes; all cores by default, 1 renders in this process.
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
    paths = WorldPaths(output_dir, tuple(split_sizes))
    if output_dir.exists() and any(output_dir.iterdir()):
        _check_finished(output_dir, arguments)
        print(f"The synthetic world in {output_dir} is finished; nothing to render.")
        return paths
    num_workers = num_workers if num_workers is not None else os.cpu_count() or 1

    aside = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.part")
    try:
        for number, (split, size) in enumerate(split_sizes.items()):
            plans = [plan_video((seed, number, index), seconds_per_video) for index in range(size)]
            target = SplitPaths(aside / split)
            target.videos.mkdir(parents=True)
            render_videos(plans, target.videos, height, fps, num_workers, desc=f"render {split}")
            write_annotations(plans, target, split, seed)
        (aside / MARKER).write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()  # empty, as checked above
        aside.rename(output_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return paths


def _check_finished(output_dir: Path, arguments: dict) -> None:
    marker = output_dir / MARKER
    if not marker.is_file():
        raise FileExistsError(f"{output_dir} is not empty and holds no synthetic world ({MARKER} is missing).")
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found != arguments:
        changed = ", ".join(
            f"{key}: {found.get(key)!r} there, {arguments.get(key)!r} asked for"
            for key in sorted({*found, *arguments})
            if found.get(key) != arguments.get(key)
        )
        raise FileExistsError(f"{output_dir} holds a synthetic world of other arguments ({changed}).")


def write_annotations(plans: Sequence[VideoPlan], target: SplitPaths, split: str, seed: int) -> None:
    """Writes narrations, taxonomies, egoclip.csv, egomcq.json, nlq.json and the ground truth of one split."""
    narrations = [
        Narration(plan.video_uid, plan.seconds, action.narration_time, action.text)
        for plan in plans
        for action in plan.actions
    ]
    rows = build_egoclip(narrations, VERB_TAXONOMY, NOUN_TAXONOMY)
    actions = [(plan, action) for plan in plans for action in plan.actions]
    windows = {row["clip_idx"]: (action.start, action.end) for row, (_, action) in zip(rows, actions)}
    write_narration_json(narrations, target.narrations)
    write_taxonomy(VERB_TAXONOMY, target.verb_taxonomy)
    write_taxonomy(NOUN_TAXONOMY, target.noun_taxonomy)
    write_egoclip(rows, target.egoclip)
    _write_json(build_egomcq(rows, twin_verbs=TWIN_VERBS, seed=seed), target.egomcq)
    nlq_split = "train" if split == "train" else "val"
    _write_json(build_egonlq(rows, VERB_TAXONOMY, NOUN_TAXONOMY, windows, nlq_split), target.nlq)
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
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
