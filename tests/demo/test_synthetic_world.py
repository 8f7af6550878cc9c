"""The synthetic world: its files have the real formats, its twins are time reversals, its bytes depend on the seed."""

import ast
import csv
import hashlib
import json
import re
import uuid
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest

from modeling_svitt_ego.corpus.egoclip_building import EGOCLIP_COLUMNS
from modeling_svitt_ego.data.taxonomy import read_taxonomy
from modeling_svitt_ego.demo.synthetic_objects import NOUNS, SceneObject
from modeling_svitt_ego.demo.synthetic_plan import NUM_OBJECTS, WorldStatistics, plan_video
from modeling_svitt_ego.demo.synthetic_scene import VERBS, ObjectState, SceneRenderer, action_pose
from modeling_svitt_ego.demo.synthetic_video import VideoRenderer, render_frames, render_videos
from modeling_svitt_ego.demo.synthetic_world import NOUN_TAXONOMY, TWIN_VERBS, VERB_TAXONOMY, build_world

ARGUMENTS = dict(split_sizes={"train": 2, "test": 5}, seconds_per_video=24.0, seed=5, height=48, fps=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world") / "demo", num_workers=2, **ARGUMENTS)


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_same_arguments_give_the_same_bytes_and_another_seed_other_ones(world, tmp_path):
    """Catches randomness outside the seed, clocks in files, and an order that depends on the workers."""
    again = build_world(tmp_path / "again", num_workers=1, **ARGUMENTS)
    assert digests(again.root) == digests(world.root)
    other = build_world(tmp_path / "other", num_workers=1, **{**ARGUMENTS, "seed": 6, "split_sizes": {"train": 1}})
    assert not {p.name for p in other["train"].videos.iterdir()} & {p.name for p in world["train"].videos.iterdir()}


def test_a_finished_world_is_left_alone_and_other_arguments_are_an_error(world, capsys, tmp_path):
    """Catches rendering twice, and mixing two worlds in one folder."""
    before = digests(world.root)
    assert build_world(world.root, **ARGUMENTS) == world
    assert "nothing to render" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="seed: 5 there, 7 asked for") as error:
        build_world(world.root, **{**ARGUMENTS, "seed": 7})
    assert str(world.root) in str(error.value)
    assert digests(world.root) == before
    (tmp_path / "mine.txt").write_text("not a world")
    with pytest.raises(FileExistsError, match="world.json is missing"):
        build_world(tmp_path, **ARGUMENTS)


def test_a_failed_run_leaves_nothing_behind(tmp_path, monkeypatch):
    """Catches a half-written world that a later run takes for finished."""

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr("modeling_svitt_ego.demo.synthetic_world.write_annotations", fail)
    arguments = dict(split_sizes={"train": 1}, seconds_per_video=5.0, height=32, fps=4, num_workers=1)
    with pytest.raises(RuntimeError, match="disk full"):
        build_world(tmp_path / "world", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_train_and_test_share_no_video(world):
    """Catches scenes of the training split in the test split."""
    uids = [{path.name for path in world[split].videos.iterdir()} for split in ("train", "test")]
    assert [len(found) for found in uids] == [2, 5]
    assert not uids[0] & uids[1]
    assert all(uuid.UUID(uid).version == 4 for uid in uids[0] | uids[1])
    with pytest.raises(KeyError, match="val"):
        world["val"]


def test_videos_are_h264_of_the_stated_length_with_short_gops(world):
    """Catches files that real decoders refuse or seek slowly in."""
    for path in world["train"].videos.glob("*/0.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec.name, stream.width, stream.height, stream.average_rate) == ("h264", 48, 48, 6)
            frames = list(container.decode(stream))
        assert len(frames) == 24 * 6
        assert [round(frame.time * 6) for frame in frames] == list(range(24 * 6))
        keys = [number for number, frame in enumerate(frames) if frame.key_frame]
        assert max(np.diff(keys)) <= 15


def test_long_videos_are_cut_as_egovlp_cuts_them(tmp_path, monkeypatch):
    """Catches a chunk that starts at the wrong frame: the parts together are the whole."""
    monkeypatch.setattr("modeling_svitt_ego.demo.synthetic_video.CHUNK_SECONDS", 4)
    plan = plan_video((0, 0, 0), 10.0)
    render_videos([plan], tmp_path, height=32, fps=4, num_workers=1)
    counts = []
    for number in range(3):
        with av.open(str(tmp_path / plan.video_uid / f"{number}.mp4")) as container:
            counts.append(sum(1 for _ in container.decode(video=0)))
    assert counts == [16, 16, 8]
    whole = list(render_frames(plan, 32, 4))
    np.testing.assert_array_equal(whole[16:24], list(render_frames(plan, 32, 4, first=16, last=24)))


def test_egoclip_rows_cover_their_actions(world):
    """Catches windows that miss the action, wrong tags, and narrations that are not in Ego4D's manner."""
    with open(world["train"].root / "egoclip.csv", encoding="utf-8") as file:
        assert tuple(file.readline().rstrip("\n").split("\t")) == EGOCLIP_COLUMNS
    rows, actions = read_rows(world["train"].egoclip), json.loads(world["train"].actions.read_text())
    assert len(rows) == len(actions) >= 18
    lengths = []
    for row, action in zip(rows, actions):
        start, end = float(row["clip_start"]), float(row["clip_end"])
        lengths.append(end - start)
        assert row["video_uid"] == action["video_uid"]
        assert action["start"] - 0.1 <= start < end <= action["end"] + 0.1
        assert re.match(r"#C C [a-z]+ ", row["clip_text"])
        assert ast.literal_eval(row["tag_verb"]) == [VERB_TAXONOMY.labels.index(action["verb"])]
        assert ast.literal_eval(row["tag_noun"]) == [NOUN_TAXONOMY.labels.index(action["object"]["noun"])]
        assert (world["train"].videos / row["video_uid"] / "0.mp4").is_file()
    assert np.mean(lengths) == pytest.approx(1.0, abs=0.05)
    assert read_taxonomy(world["train"].verb_taxonomy) == VERB_TAXONOMY
    assert read_taxonomy(world["train"].noun_taxonomy) == NOUN_TAXONOMY


def test_egomcq_of_the_test_split_asks_for_the_order_of_frames(world):
    """Catches questions without five videos or without twins among the choices."""
    questions = list(json.loads(world["test"].egomcq.read_text()).values())
    inter, intra = ([q for q in questions if q["types"] == kind] for kind in (1, 2))
    assert inter and intra
    assert all(len({choice["video_uid"] for choice in q["choices"].values()}) == 5 for q in inter)
    assert all(len({choice["video_uid"] for choice in q["choices"].values()}) == 1 for q in intra)
    with_twin = 0
    for question in intra:
        (verb,), (noun,) = (ast.literal_eval(question["query"][tag]) for tag in ("tag_verb", "tag_noun"))
        twin = (str([TWIN_VERBS.get(verb)]), str([noun]))
        with_twin += twin in [(choice["tag_verb"], choice["tag_noun"]) for choice in question["choices"].values()]
    assert with_twin >= len(intra) / 5


def test_nlq_answers_are_the_actions_asked_for(world):
    """Catches windows that point at another action."""
    actions = json.loads(world["test"].actions.read_text())
    content = json.loads(world["test"].nlq.read_text())
    assert content["videos"]
    for video in content["videos"]:
        known = {(a["start"], a["end"]) for a in actions if a["video_uid"] == video["video_uid"]}
        for query in video["clips"][0]["annotations"][0]["language_queries"]:
            assert (query["video_start_sec"], query["video_end_sec"]) in known


def test_there_are_enough_nouns_and_verbs_and_most_verbs_need_the_order():
    """Catches a world that a bag of frames could solve."""
    assert len(NOUNS) >= 10 and len(VERBS) >= 10
    assert sum(verb.twin is not None for verb in VERBS.values()) >= len(VERBS) / 2
    for name, verb in VERBS.items():
        if verb.twin:
            assert VERBS[verb.twin].twin == name
            assert VERBS[verb.twin].reversed != verb.reversed and VERBS[verb.twin].base is verb.base


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.twin and not verb.reversed])
def test_twins_are_time_reversals_of_each_other(verb):
    """Catches a twin that a single frame gives away: backwards, its frames are those of the other, to the pixel."""
    noun = "box" if verb == "open" else "knife"
    renderer = SceneRenderer([SceneObject(noun, "red", (214, 40, 40), 0.4)], 64, np.random.default_rng(0))
    first, last = ObjectState(0.7, 0.6), ObjectState(0.7, 0.6)
    changes = {
        "pick up": dict(held=True),
        "slide left": dict(x=0.3),
        "open": dict(opened=1.0),
        "cover": dict(covered=True),
    }[verb]
    last = ObjectState(**{**vars(first), **changes})

    def play(name, before, after):
        moments = [action_pose(name, noun, before, after, k / 16, 0.2) for k in range(17)]
        return [renderer.draw([before], (0.2, 0.2), 1.0, 0, pose, reach) for pose, reach in moments]

    forwards, backwards = play(verb, first, last), play(VERBS[verb].twin, last, first)
    np.testing.assert_array_equal(forwards, backwards[::-1])
    change = np.abs(np.float32(forwards[5]) - np.float32(forwards[11])).mean()
    assert change > 2.0  # grey levels: the motion is there to be seen
    # At both ends the hand is out of view and the scene is the one before and after.
    np.testing.assert_array_equal(forwards[0], renderer.draw([first], (0.2, 0.2)))
    np.testing.assert_array_equal(forwards[-1], renderer.draw([last], (0.2, 0.2)))


def test_every_noun_can_be_drawn_in_every_state():
    """Catches drawing calls that fail at some opening or size."""
    things = [SceneObject(noun, "blue", (40, 92, 214), spec.size) for noun, spec in NOUNS.items()]
    renderer = SceneRenderer(things, 64, np.random.default_rng(1))
    empty = renderer.draw([ObjectState(0.5, 0.5, held=True)] * len(things), (0.0, 0.0))
    for index in range(len(things)):
        for opened in np.linspace(0, 1, 25):
            states = [ObjectState(0.5, 0.5, held=k != index, opened=float(opened)) for k in range(len(things))]
            assert (renderer.draw(states, (0.0, 0.0)) != empty).any()


def test_plans_are_consistent_and_all_verbs_and_nouns_occur_about_equally_often():
    """Catches objects that jump between actions, and verbs that hardly ever happen."""
    verbs, nouns = [], []
    for index in range(40):
        plan = plan_video((0, 0, index), 90.0)
        assert len({thing.noun for thing in plan.objects}) == len(plan.objects) == NUM_OBJECTS >= 3
        for action, following in zip(plan.actions, plan.actions[1:]):
            assert action.after == following.before
            assert action.end < following.start
        for action in plan.actions:
            changed = [k for k, (a, b) in enumerate(zip(action.before, action.after)) if a != b]
            assert changed in ([], [action.index])
            assert action.start < action.narration_time < action.end
            verbs.append(action.verb)
            nouns.append(plan.objects[action.index].noun)
    for names, found in ((VERBS, verbs), (NOUNS, nouns)):
        counts = [found.count(name) for name in names]
        assert min(counts) > 0.3 * len(found) / len(names)
    gaps = [b.narration_time - a.narration_time for a, b in zip(plan.actions, plan.actions[1:])]
    assert 1.7 <= np.mean(gaps) <= 2.2  # an action of 1.4 s and a pause


@pytest.mark.parametrize("wrong", [dict(height=47), dict(height=16), dict(seconds_per_video=2.0)])
def test_impossible_arguments_are_refused(tmp_path, wrong):
    """Catches odd sizes that H.264 cannot hold and videos too short for one action."""
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        build_world(tmp_path / "world", **{**ARGUMENTS, **wrong})


def test_with_zipfs_law_few_verbs_are_most_of_the_actions_and_tables_hold_look_alikes():
    """Catches statistics that are drawn but not used, and a test split that is skewed too."""
    verbs, repeated = Counter(), 0
    for index in range(30):
        plan = plan_video((0, 0, index), 40.0, WorldStatistics(zipf=1.0))
        verbs.update(action.verb for action in plan.actions)
        repeated += len({thing.noun for thing in plan.objects}) < NUM_OBJECTS
    even = Counter(action.verb for index in range(30) for action in plan_video((0, 0, index), 40.0).actions)
    assert verbs["pick up"] > 3 * verbs["tap"] and even["pick up"] < 2 * even["tap"]
    assert repeated > 5


def test_long_verbs_are_tagged_and_ask_which_side_was_first(tmp_path):
    """Catches a verb without a group, and a pair that its first and last frames tell apart."""
    statistics = WorldStatistics(long_verbs=True)
    world = build_world(tmp_path / "w", {"train": 8}, 30.0, 3, 32, 4, 1, video_splits=(), statistics=statistics)
    labels = read_taxonomy(world["train"].verb_taxonomy).labels
    assert labels[-2:] == ("rock left", "rock right")
    rows = [row for row in read_rows(world["train"].egoclip) if "rocks" in row["clip_text"]]
    assert len(rows) > 3
    for row in rows:
        expected = "rock left" if "to the left" in row["clip_text"] else "rock right"
        assert [labels[group] for group in ast.literal_eval(row["tag_verb"])] == [expected]
    state = ObjectState(1.0, 0.6)
    for progress, expected in ((0.0, 0), (0.3, -1), (0.5, 1), (0.7, -1), (1.0, 0)):  # left, right, left
        for side, sign in (("left", 1), ("right", -1)):
            pose, _ = action_pose(f"rock {side}", "cup", state, state, progress, 0.1)
            assert np.sign(round(pose.state.x - 1.0, 6)) == sign * expected
    with pytest.raises(FileExistsError, match="statistics"):
        build_world(tmp_path / "w", {"train": 8}, 30.0, 3, 32, 4, 1, video_splits=())


def test_head_motion_moves_the_picture_and_changes_nothing_that_happens(tmp_path):
    """Catches a factor that is drawn but not used, in one of the splits, and one that changes the default world."""
    still, moving = (plan_video((0, 0, 0), 20.0, WorldStatistics(head_motion=factor)) for factor in (0.0, 10.0))
    assert replace(moving, head_motion=1.0) == plan_video((0, 0, 0), 20.0) == replace(still, head_motion=1.0)
    rest = still.actions[0].start  # nobody acts before
    shifts = []
    for plan in (still, moving):
        first, last = (VideoRenderer(plan, 64, 20).frame(number).astype(float) for number in (0, int(20 * rest) - 1))
        first, last = first / first.mean(), last / last.mean()  # the light flickers
        shifts.append(float(np.abs(first - last).mean()))
    assert shifts[1] > 5 * shifts[0]
    statistics = WorldStatistics(head_motion=10.0)
    sizes = {"train": 1, "test": 1}
    for name, given in (("moving", statistics), ("default", None)):
        build_world(tmp_path / name, sizes, 10.0, 3, 32, 4, 1, statistics=given)
    files = {path.relative_to(tmp_path / "moving") for path in (tmp_path / "moving").rglob("*") if path.is_file()}
    differing = {f for f in files if (tmp_path / "moving" / f).read_bytes() != (tmp_path / "default" / f).read_bytes()}
    assert {f.name for f in differing} == {"0.mp4", "world.json"} and len(differing) == 3
    assert json.loads((tmp_path / "moving" / "world.json").read_text())["statistics"] == {"head_motion": 10.0}
    with pytest.raises(ValueError, match="head_motion"):
        WorldStatistics(head_motion=-1.0)
