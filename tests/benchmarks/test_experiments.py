"""benchmarks/experiments.py with two steps on the smallest world: what it writes, keeps and measures."""

import importlib
import json
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.demo.rendered_clips import ClipsInMemory
from modeling_svitt_ego.demo.synthetic_world import build_world
from modeling_svitt_ego.training.temporal_stages import parse_stages

experiments = importlib.import_module("experiments")
clips_in_memory, costs, inference, plan, report, training = (
    importlib.import_module(f"experiment_parts.{name}")
    for name in ("clips_in_memory", "costs", "inference", "plan", "report", "training")
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    build_world(folder, {"train": 2, "test": 6}, 25.0, num_workers=1)
    return folder


class Here:
    """A pool of no processes: a spawned one imports torch for longer than these runs take."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("experiments")
    line = "--train-videos 2 --test-videos 6 --video-seconds 25 --steps 2 --batch-size 8".split()
    line += "--cost-batch-size 2 --seeds 0".split()
    line += ["--cost-frames", "4", "--world", str(world), "--work", str(root), "--results", str(root / "results")]
    patch = pytest.MonkeyPatch()
    patch.setattr(experiments, "ProcessPoolExecutor", Here)
    trained = []
    train = training.train
    patch.setattr(
        experiments,
        "train",
        lambda setting, seed, *rest: (trained.append((setting, seed)), train(setting, seed, *rest))[1],
    )
    patch.setattr(inference, "INFERENCE_KEEP_RATES", (1.0, 0.7, 0.3))
    experiments.main([*line, "--only", "2,4"])
    first = len(trained)
    experiments.main([*line, "--only", "2,4"])
    yield root / "results", first, len(trained), trained
    patch.undo()


def test_a_finished_run_is_not_trained_again(finished):
    """Catches a resumption that starts over, and a run that two experiments share trained twice."""
    results, first, second, trained = finished
    assert first == second == len({(json.dumps([s.fields, s.arguments]), seed) for s, seed in trained}) == 7
    two, four = (json.loads((results / f"experiment_{n}.json").read_text()) for n in "24")
    assert len(two["runs"]) == 4 and len(four["runs"]) == 3
    for run in two["runs"]:
        assert {"command", "commit", "machine", "versions", "date", "seed"} <= run.keys()
        assert 0 <= run["result"]["inter"] <= 100 and run["result"]["num_inter"] > 50


def test_the_losses_differ_as_their_names_say(finished):
    """Catches settings that do not reach the model or the sampler."""
    runs = json.loads((finished[0] / "experiment_2.json").read_text())["runs"]
    results = {run["setting"]: run["result"] for run in runs if run["seed"] == 0}
    positives = {name: result["positives_per_clip"] for name, result in results.items()}
    assert positives["InfoNCE"] == positives["scene-aware negatives only"] == 1.0
    assert positives["action-aware positives only"] > 1.0 and positives["EgoNCE"] > 1.0
    assert len({result["loss"] for result in results.values()}) == 4


def test_inference_settings_change_the_answers_and_equal_the_trained_ones_where_they_are_the_same(finished):
    """Catches sparsity that is turned in a configuration that no layer reads."""
    results = finished[0]
    runs = json.loads((results / "experiment_4.json").read_text())["runs"]
    trained = {
        (run["setting"], run["seed"]): run["result"]
        for run in json.loads((results / "experiment_1.json").read_text())["runs"]
    }
    for run in runs:
        edges = "(1, 3, 4)" if "(1, 3, 4)" in run["setting"] else "(5, 1, 8)"
        same = "dense edges, q_v = 1.0" if run["setting"] == "dense" else f"{edges} edges, q_v = 0.7"
        assert run["result"][same]["inter"] == trained[run["setting"], run["seed"]]["inter"]
        assert run["result"][same]["intra"] == trained[run["setting"], run["seed"]]["intra"]
    assert any(len({tuple(answers.values()) for answers in run["result"].values()}) > 2 for run in runs)


def test_the_report_has_every_setting_and_its_pictures(finished):
    results = finished[0]
    text = (results / "README.md").read_text()
    for setting in plan.settings_of("2", "tiny"):
        assert f"| {setting.name} |" in text
    for name in ("experiment_4_model_1_inter.png", "experiment_4_model_3_intra.png"):
        assert name in text and (results / name).stat().st_size > 1000


def test_the_report_begins_with_what_the_others_are_compared_with(finished):
    """Catches differences to whichever run happened to finish first."""
    for number, first in (("1", "dense"), ("2", "InfoNCE"), ("4", "dense")):
        runs = json.loads((finished[0] / f"experiment_{number}.json").read_text())["runs"]
        ordered = report.in_order_of_the_plan(number, runs[::-1])
        assert ordered[0]["setting"] == first
        assert {r["setting"] for r in ordered} == {r["setting"] for r in runs} and len(ordered) == len(runs)
    text = (finished[0] / "README.md").read_text()
    assert text.index("| InfoNCE |") < text.index("| EgoNCE |")


def test_the_report_says_how_many_seeds_a_row_has_and_that_other_commands_made_some():
    """Catches a deviation over three runs under a heading that names five seeds."""
    machine = {"device": None, "arch": "x86_64"}
    budget = {"scale": "tiny", "num_frames": 4, "steps": 2, "batch_size": 8}
    columns = ("inter", "intra", "intra_frames_shuffled", "positives_per_clip", "cpu_seconds_per_step")
    runs = [
        {"setting": name, "seed": seed, "budget": budget, "data": "world", "machine": machine, "date": "2026-11-26",
         "command": f"python e.py --setting {name}", "result": dict.fromkeys(columns, float(seed))}
        for name, seeds in (("dense", range(5)), ("edges", (1, 3)))
        for seed in seeds
    ]  # fmt: skip
    table = report.accuracy_table({"runs": runs}).splitlines()
    assert table[2].startswith("| dense | 2.0 ± 1.6 | ") and table[3].startswith(
        "| edges (2 seeds) | 2.0 ± 1.4 [+0.0 ± 0.0]"
    )
    text = report.describe({"runs": runs})
    assert "seeds 0, 1, 2, 3, 4;" in text and "`python e.py --setting dense` and 1 more of its kind" in text


def test_clips_in_memory_are_the_decoded_ones(world, tmp_path):
    """Catches frames of another clip or another time."""
    table, store = load_egoclip(world / "train" / "egoclip.csv"), VideoStore(world / "train" / "videos")
    plain = EgoClipDataset(table, store, num_frames=4, sampling="middle")
    file = clips_in_memory.decode_once(plain, 4, tmp_path, limit_gb=1.0)
    kept = ClipsInMemory(table, file, num_frames=4, sampling="middle")
    for row in (0, 7, len(table) - 1):
        np.testing.assert_array_equal(kept[row]["video"], plain[row]["video"])
        assert {**kept[row], "video": 0} == {**plain[row], "video": 0}
    eight = clips_in_memory.decode_once(plain, 8, tmp_path, limit_gb=1.0)
    drawn = ClipsInMemory(table, eight, num_frames=4, sampling="random")
    epochs = []
    for epoch in range(4):
        drawn.set_epoch(epoch)
        epochs.append(drawn[3]["video"])
    assert any((epochs[0] != other).any() for other in epochs[1:]), "other frames in another epoch"
    assert clips_in_memory.decode_once(plain, 8, tmp_path, limit_gb=1e-4) is None


def test_costs_of_dense_attention_are_those_of_the_formula():
    """Catches products that are not counted, and a sparse setting that is measured dense."""
    dense, sparse, *_, both, _, eager = plan.measured_settings("1", "tiny")
    one, device = 2, torch.device("cpu")
    steps = {s.name: costs.Step(s, "tiny", 16, one, device) for s in (dense, sparse, both, eager)}
    flops = {name: step.flops() for name, step in steps.items()}
    tokens, width, layers, inner = 1 + 16 * 16, 96, 3, 384
    forward = layers * tokens * (8 * width**2 + 4 * width * inner)  # a multiply-add is two
    attention = layers * 4 * tokens**2 * width  # two products; the backward pass has four and the first once more
    patches = 2 * (tokens - 1) * 3 * 16 * 16 * width  # no gradient goes on to the pixels
    text = 2 * costs.TEXT_LENGTH * (8 * 128**2 + 4 * costs.TEXT_LENGTH * 128 + 4 * 128 * 256)
    assert flops["dense"] == pytest.approx(one * (3 * (forward + text) + 3.5 * attention + 2 * patches), rel=0.01)
    assert flops["edge (1, 3, 4)"] < 0.8 * flops["dense"]
    saved = {name: step.saved_bytes() for name, step in steps.items()}
    assert saved[both.name] < 0.9 * saved["dense"]
    # Each layer's probabilities (B, H, N, N), in float32.
    assert saved[eager.name] - saved["dense"] > layers * one * 4 * tokens**2 * 4
    assert steps["dense"].seconds() > 0


@pytest.mark.parametrize("experiment", ["3", "3m", "5", "5-16", "6"])
def test_every_setting_is_a_point_of_the_pictures_where_its_own_cost_is(experiment):
    """Catches a setting that no curve shows, and one that is shown at another's cost or accuracy."""
    names = [setting.name for setting in plan.settings_of(experiment, "tiny")]
    values = {name: float(place) for place, name in enumerate(names)}
    grouped = {name: {0: {"inter": value, "intra": value + 0.5}} for name, value in values.items()}
    rows = {n: {"saved_bytes": v * 1e6, "seconds": v, "unit_of_time": "CPU seconds"} for n, v in values.items()}
    pictures = report.accuracy_against_costs(experiment, grouped, rows)
    assert len(pictures) == 4
    for name, (curves, _) in pictures.items():
        shown = {point for points in curves.values() for point in points}
        assert shown == {(value, value + 0.5 * ("intra" in name)) for value in values.values()}
        assert all(len(points) > 1 or "motion" in curve for curve, points in curves.items())


def test_costs_of_a_choice_of_tokens_include_the_choice(monkeypatch):
    """Catches the costs of the model's own choice under another's name."""
    motion = next(s for s in plan.settings_of("6", "tiny") if s.pruner == "motion")
    installed = []
    monkeypatch.setattr(costs, "install_pruner", lambda tower, name: installed.append(name))
    costs.Step(motion, "tiny", 4, 2, torch.device("cpu"))
    assert installed == ["motion"]


def test_costs_of_the_fusion_tower_fall_with_its_keep_rate():
    """Catches pruning that torch's counter cannot follow (it hooks what requires gradients), or that saves nothing."""
    settings = plan.settings_of("3m", "tiny")
    flops = [costs.Step(setting, "tiny", 4, 2, torch.device("cpu")).flops() for setting in settings]
    assert settings[0].fields["fusion_keep_rate"] == 1.0
    assert max(flops) == flops[0] and len(set(flops)) == len(flops)


@pytest.mark.parametrize("scale", ["tiny", "base"])
def test_every_setting_is_a_valid_configuration_and_states_what_is_varied(scale):
    for number in plan.TRAINED:
        settings = plan.settings_of(number, scale)
        assert len({s.name for s in settings}) == len(settings)
        for setting in settings:
            config = costs.config_of(setting, scale, 4)
            vision = config.vision_config
            assert {"num_random_blocks", "keep_rate"} <= setting.fields.keys()
            assert vision.num_random_blocks == setting.fields["num_random_blocks"]
            if setting.fusion:
                assert config.cross_modal_config.keep_rate == setting.fields["fusion_keep_rate"]
                assert config.cross_modal_config.num_hidden_layers > 1 + min(config.cross_modal_config.prune_layers)


@pytest.mark.parametrize("experiment", ["5", "5-8", "5-16"])
@pytest.mark.parametrize("scale", ["tiny", "base"])
def test_temporal_edges_are_compared_at_no_more_than_two_fifths_of_the_keys(experiment, scale):
    """Catches a pattern that does not fit the model, and one that attends to more than is claimed."""
    settings = plan.settings_of(experiment, scale)
    assert [s.name for s in settings[:2]] == ["dense", "dense, nodes 0.7"]
    assert len({s.name for s in settings}) == len({json.dumps(s.fields) for s in settings}) == len(settings)
    for setting in (s for s in settings if not s.name.startswith("dense")):
        vision = costs.config_of(setting, scale, plan.FRAMES[experiment]).vision_config
        attended = vision.num_local_blocks + vision.num_temporal_blocks + vision.num_random_blocks
        tokens = vision.num_frames * vision.patches_per_frame
        assert tokens % vision.block_size == 0
        assert attended * vision.block_size <= 0.4 * tokens


@pytest.mark.parametrize("scale", ["tiny", "base"])
@pytest.mark.parametrize("experiment", ["5-8", "5-16"])
def test_stages_end_with_the_setting_that_they_are_named_after(experiment, scale):
    """Catches a model that is trained with another pattern than its row says, or not first at 4 frames."""
    for setting in plan.settings_of(experiment, scale):
        first, last = parse_stages(setting.arguments["temporal_stages"])
        assert (first.num_frames, last.num_frames) == (4, plan.FRAMES[experiment])
        fields = {"num_temporal_blocks": 0, **setting.fields}
        assert last.sparsity.items() <= {**fields, "num_frames": last.num_frames}.items()
        started = training.first_fields(setting, training.Budget(num_frames=last.num_frames))
        assert first.sparsity.items() <= started.items() and first.keep_rate == last.keep_rate


def test_only_known_settings_are_chosen():
    settings = plan.settings_of("5", "tiny")
    assert experiments.chosen(settings, []) == settings
    assert [s.name for s in experiments.chosen(settings, ["dense"])] == ["dense"]
    with pytest.raises(SystemExit, match="edges.*is not in the experiment. Its settings: dense; dense, nodes 0.7"):
        experiments.chosen(settings, ["edges"])


def test_a_larger_contrastive_batch_has_fewer_steps_and_the_same_clips():
    budget = training.Budget(steps=64, batch_size=64)
    seen = {}
    for setting in plan.settings_of("8", "tiny"):
        steps, batch = training.steps_and_batch(setting, budget)
        seen.setdefault(setting.clips_per_step, set()).add((steps, batch))
    assert seen == {32: {(128, 32)}, 128: {(32, 64)}, 512: {(8, 64)}, 1024: {(4, 64)}}
    for equal_clips, equal_steps in zip(plan.settings_of("8", "tiny"), plan.settings_of("8-steps", "tiny")):
        assert training.steps_and_batch(equal_steps, budget) == (64, min(64, equal_steps.clips_per_step))
        assert replace(equal_steps, equal_steps=None) == equal_clips


def test_a_continued_model_starts_from_the_first_ones_weights(world, tmp_path):
    """Catches a continuation that starts from new weights, and one whose record is taken for another's."""
    corpus = experiments.find_corpus(
        experiments.parse(["--train-videos", "2", "--test-videos", "6", "--video-seconds", "25", "--world", str(world),
                           "--work", str(tmp_path)]), {}
    )  # fmt: skip
    budget = training.Budget(steps=1, batch_size=8)
    training.prepare(corpus, budget, 0)
    dense, edge = (s for s in plan.settings_of("7", "tiny")[:2])
    first = training.first_weights(edge, 0, corpus, budget, 0)
    model, _ = training.build_model(edge, budget, 0, ["a narration"])
    assert model.load_state_dict(first)
    names = {training.model_folder(corpus, setting, budget, 0).name for setting in (dense, edge)}
    recipes = [experiments.recipe_of(s, 0, corpus, budget) for s in (dense, edge, plan.settings_of("1", "tiny")[0])]
    assert len(names) == 2 and len({json.dumps(recipe, sort_keys=True) for recipe in recipes}) == 3
    assert recipes[0]["more"] == {"first": dense.first} and "more" not in recipes[2]


def test_experiments_on_other_worlds_have_worlds_of_their_own():
    assert plan.STATISTICS == {
        "5-16": {"long_verbs": True},
        "8": {"zipf": 1.0},
        "8-steps": {"zipf": 1.0},
        "9": {"head_motion": 10.0},
        "9-long": {"head_motion": 10.0},
    }
    assert all(number in plan.TITLES for number in plan.STATISTICS)


def test_a_call_ends_in_time_and_the_next_one_goes_on(world, tmp_path, monkeypatch):
    """Catches a run that is started after the time is up, and one that is lost by it."""
    monkeypatch.setattr(experiments, "ProcessPoolExecutor", Here)
    columns = ("inter", "intra", "intra_frames_shuffled", "positives_per_clip", "cpu_seconds_per_step")
    monkeypatch.setattr(experiments, "train", lambda setting, seed, *rest: dict.fromkeys(columns, 1.0))
    line = ["--train-videos", "2", "--test-videos", "6", "--video-seconds", "25", "--world", str(world)]
    line += ["--work", str(tmp_path), "--results", str(tmp_path / "results"), "--only", "2", "--seeds", "0"]
    with pytest.raises(SystemExit, match="4 of 4 runs of experiment 2 were not started within --minutes 0"):
        experiments.main([*line, "--minutes", "0"])
    experiments.main(line)
    assert len(json.loads((tmp_path / "results" / "experiment_2.json").read_text())["runs"]) == 4
