"""The plan of a synthetic video: which objects are on the table and what the hand does with them, and when.

Everything follows from a seed. Most verbs come in twins that are each other's time reversal: only the order of the
frames tells them apart.
"""

import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from .synthetic_objects import COLOURS, NOUNS, SceneObject
from .synthetic_scene import ALL_VERBS, LONG_VERBS, VERBS, WORLD_WIDTH, ObjectState

ACTION_SECONDS = 1.4
PAUSE_SECONDS = (0.3, 0.6)
NUM_OBJECTS = 3  # on each table
COLOUR_SHARE = 0.3  # of the narrations name it; if most did, a model would learn colours and little else
UNDO_SHARE = 0.6  # of the actions that can be undone are, at once


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
    head_motion: float = 1.0  # as in [`WorldStatistics`]


@dataclass(frozen=True)
class WorldStatistics:
    """
    How often what happens in a world; the defaults are the demo's.

    Args:
        zipf (`float`): 0 makes all verbs about equally frequent and the objects of a table different. Above 0 the k-th
            verb and noun have the weight k**-zipf, as words have, and a table may hold the same noun twice: scenes
            with moments that look alike, and clips that share verb and noun with many others.
        long_verbs (`bool`): with the verbs that only more than two frames tell apart (`LONG_VERBS`).
        head_motion (`float`): factor on how far the head sways, which is 0.008 to 0.02 frame heights in each of two
            waves per axis. At 10 the whole picture moves during an action, by 0.1 to 0.2 in each wave.
    """

    zipf: float = 0.0
    long_verbs: bool = False
    head_motion: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.head_motion < math.inf:
            raise ValueError(f"head_motion ({self.head_motion}) must be a finite number of at least 0.")

    def changed(self) -> dict:
        """The fields that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(WorldStatistics, name)}


def plan_video(seed: Sequence[int], seconds: float, statistics: WorldStatistics | None = None) -> VideoPlan:
    """Draws a scene of NUM_OBJECTS objects and a run of actions that fit together, from the seed alone."""
    statistics = statistics or WorldStatistics()
    zipf = statistics.zipf
    rng = np.random.default_rng(seed)
    video_uid = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    objects = _draw_objects(zipf, rng)
    states: list[ObjectState] = []
    for thing in objects:
        angle = float(rng.uniform(-50, 50)) if NOUNS[thing.noun].lies_flat else 0.0
        states.append(ObjectState(*_free_place(states, rng), angle=angle))

    rank_of = {verb: rank for rank, verb in enumerate(ALL_VERBS, start=1)}
    actions: list[Action] = []
    used: Counter = Counter()
    start = float(rng.uniform(0.2, 0.6))
    while start + ACTION_SECONDS < seconds:
        options = list(_possible_actions(objects, states, rng, statistics.long_verbs))
        undo = [option for option in options if actions and _undoes(option, actions[-1])]
        # What was opened is often closed next: clips that differ in the order of their frames and in nothing else.
        if undo and rng.random() < UNDO_SHARE:
            options = undo
        per_verb = Counter(verb for verb, _, _ in options)
        # Rare verbs first, so that all occur about equally often; seldom the same object twice in a row otherwise.
        weights = np.array(
            [
                (0.25 if actions and actions[-1].index == index else 1.0)
                / per_verb[verb]
                / (rank_of[verb] ** zipf if zipf else (1 + used[verb]) ** 2)
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
    return VideoPlan(video_uid, seconds, tuple(objects), tuple(actions), tuple(seed), statistics.head_motion)


def _draw_objects(zipf: float, rng: np.random.Generator) -> list[SceneObject]:
    """NUM_OBJECTS things of different nouns, or of nouns by Zipf's law, each in a shade of its colour."""
    objects = []
    nouns = {"p": _zipf(len(NOUNS), zipf)} if zipf else {"replace": False}
    for noun in rng.choice(list(NOUNS), size=NUM_OBJECTS, **nouns):
        colour = str(rng.choice(list(COLOURS)))
        rgb = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.08) + rng.uniform(-14, 14, 3)
        rgb = tuple(int(c) for c in np.clip(rgb, 0, 255))
        objects.append(SceneObject(str(noun), colour, rgb, NOUNS[noun].size * float(rng.uniform(1.08, 1.42))))
    return objects


def _zipf(count: int, exponent: float) -> np.ndarray:
    """Probabilities (count,) of the ranks 1 to `count` by Zipf's law."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _undoes(option: tuple[str, int, ObjectState], action: Action) -> bool:
    """Whether `option` is the time reversal of `action`, on the same object."""
    verb, index, _ = option
    return index == action.index and action.verb in VERBS and verb == VERBS[action.verb].twin


def _narrate(verb: str, thing: SceneObject, rng: np.random.Generator) -> str:
    article = "the" if rng.random() < 0.9 else "a"
    colour = thing.colour if rng.random() < COLOUR_SHARE else ""
    if article == "a" and (colour or thing.noun)[0] in "aeiou":
        article = "an"
    phrases = ALL_VERBS[verb].phrases
    phrase = phrases[0] if rng.random() < 0.85 else str(rng.choice(phrases))
    return "#C C " + phrase.format(" ".join(word for word in (article, colour, thing.noun) if word))


def _is_free(x: float, y: float, states: Sequence[ObjectState], except_for: int | None, gap: float) -> bool:
    if not (0.25 <= x <= WORLD_WIDTH - 0.25 and 0.3 <= y <= 0.98):
        return False
    others = (s for i, s in enumerate(states) if i != except_for and not s.held)
    return all(math.hypot(x - s.x, 1.2 * (y - s.y)) >= gap for s in others)


def _free_place(states: Sequence[ObjectState], rng: np.random.Generator, except_for: int | None = None):
    gap = 0.48
    while True:
        for _ in range(30):
            x, y = float(rng.uniform(0.25, WORLD_WIDTH - 0.25)), float(rng.uniform(0.3, 0.98))
            if _is_free(x, y, states, except_for, gap):
                return x, y
        gap *= 0.85  # a crowded table: closer together rather than never


def _possible_actions(
    objects: Sequence[SceneObject], states: Sequence[ObjectState], rng: np.random.Generator, long_verbs: bool = False
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
        for verb in LONG_VERBS if long_verbs else ():
            yield verb, index, state
