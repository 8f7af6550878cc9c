"""examples/finetune_ek100.py with minimal settings: a small world and a model without pretraining."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from modeling_svitt_ego import SViTTEgoForVideoTextRetrieval
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.demo.synthetic_benchmarks import read_actions
from modeling_svitt_ego.demo.synthetic_world import build_world
from modeling_svitt_ego.evaluation.ek100 import EK100Evaluator
from modeling_svitt_ego.hub.configs import hub_config
from modeling_svitt_ego.weights.loading import load_checkpoint, load_processor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_ek100.py"
SMALL = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The example's module, a pretrained folder and a world of 20 seconds for each split."""
    folder = tmp_path_factory.mktemp("finetune_ek100")
    world = build_world(folder / "world", {"train": 1, "test": 1}, 20.0, height=48, num_workers=1)
    processor = build_processor([*load_egoclip(world["train"].egoclip)["clip_text"]])
    torch.manual_seed(0)
    config = hub_config("svitt-ego-tiny")
    config.contrastive_weight = 0.0  # of the pretraining; the objective asked for is trained all the same
    SViTTEgoForVideoTextRetrieval(config).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    spec = importlib.util.spec_from_file_location("finetune_ek100", EXAMPLE)
    example = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # checkpoints name its class
    spec.loader.exec_module(example)
    return example, folder, world


def run(start, name, *arguments):
    example, folder, _ = start
    given = ["--model", str(folder / "model"), "--world", str(folder / "world"), "--output_dir", str(folder / name)]
    return example.main([*given, *SMALL, *arguments]), folder / name


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "--objective",
            "mi_mm",
            "--margin",
            "linear:0.2:0.4",
            "--contrastive_batch_size",
            "4",
            "--per_device_train_batch_size",
            "2",
        ],
        ["--objective", "info_nce", "--method", "lora", "--lora_modules", "q_proj,v_proj,fc1", "--rank", "2"],
        ["--objective", "sms", "--rerank_top_k", "3", "--temperature", "0.07", "--cache_clips", "CLIPS"],
        ["--objective", "soft_info_nce", "--method", "probe"],
    ],
    ids=["mi_mm-cached", "info_nce-lora", "sms-rerank", "probe"],
)
def test_a_run_saves_what_it_measured(start, arguments):
    """Catches results of other weights than those saved: the merged adapters included."""
    arguments = [str(start[1] / "clips") if name == "CLIPS" else name for name in arguments]
    results, output = run(start, arguments[1], *arguments)
    assert json.loads((output / "results.json").read_text()) == results
    assert results["num_test_clips"] == len(read_actions(start[2])["test"])
    assert results["options"]["relevance_threshold"] == (0.99 if "info_nce" in arguments else 0.1)
    assert ("rerank" in results["metrics"]) == ("sms" in arguments)
    method = next((name for name in ("lora", "probe") if name in arguments), "full")
    assert {"lora": results["trainable_share"] < 5, "probe": results["trainable_share"] < 6, "full": True}[method]
    assert (results["trainable_share"] > 50) == (method == "full")
    annotations = start[1] / "world" / "epic-kitchens"
    files = [annotations / f"EPIC_100_retrieval_test{kind}.csv" for kind in ("", "_sentence")]
    model = load_checkpoint(output / "model", "dual")
    evaluator = EK100Evaluator(*files, annotations / "videos", load_processor(output / "model"), 4, layout="epic")
    assert evaluator(model).metrics["map"] == pytest.approx(results["metrics"]["dual"]["map"], abs=0.5)
    before = load_checkpoint(start[1] / "model", "dual").video_projection.weight
    assert not torch.equal(model.video_projection.weight, before)
    tower = load_checkpoint(start[1] / "model", "dual").vision_model
    changed = [
        name
        for name, tensor in tower.named_parameters()
        if not torch.equal(tensor, dict(model.vision_model.named_parameters())[name])
    ]
    assert (changed == []) == (method == "probe")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_ends_with_the_same_weights(start, method):
    """Catches other sentences, frames or margins after a resume, and a checkpoint that is named and not used."""
    options = ["--method", method, "--margin", "cosine:0.4:0.8:5", "--save_strategy", "steps", "--save_steps", "2"]
    options += [
        "--eval_strategy",
        "no",
        "--ema_decay",
        "0.9",
        "--max_steps",
        "4",
        "--cache_clips",
        str(start[1] / "c"),
    ]
    _, whole = run(start, f"whole-{method}", *options)
    stopped = whole.with_name(f"stopped-{method}")
    stopped.mkdir()
    (whole / "checkpoint-2").rename(stopped / "checkpoint-2")
    _, resumed = run(start, stopped.name, *options, "--resume_from_checkpoint", str(stopped / "checkpoint-2"))
    expected, found = (load_checkpoint(folder / "model", "dual").state_dict() for folder in (whole, resumed))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_world_without_training_videos_is_refused(start, tmp_path):
    (tmp_path / "train" / "videos").mkdir(parents=True)
    with pytest.raises(ValueError, match="svitt-ego demo --training-videos"):
        start[0].main(["--model", str(start[1] / "model"), "--world", str(tmp_path), "--use_cpu", "true"])


def test_unknown_methods_are_refused(start):
    with pytest.raises(ValueError, match="--method"):
        run(start, "wrong", "--method", "half")
