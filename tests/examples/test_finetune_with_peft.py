"""examples/finetune_with_peft.py with minimal settings: a world of two videos and a model without pretraining."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForVideoClassification, AutoProcessor, pipeline

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.demo.synthetic_world import build_world
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.hub.configs import hub_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_with_peft.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The example's module, its folder and its results."""
    folder = tmp_path_factory.mktemp("finetune")
    world = build_world(folder / "world", {"train": 1, "test": 1}, seconds_per_video=20.0, num_workers=1)
    processor = build_processor(load_egoclip(world["train"].egoclip)["clip_text"])
    torch.manual_seed(0)
    SViTTEgoModel(hub_config("svitt-ego-tiny")).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    spec = importlib.util.spec_from_file_location("finetune_with_peft", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    arguments = ["--steps", "2", "--batch-size", "4", "--num-workers", "0", "--output", str(folder / "output")]
    arguments += ["--model", str(folder / "model"), "--world", str(folder / "world")]
    return example, folder, example.main(arguments)


def test_results_hold_the_three_methods_beside_chance(run):
    """Catches a method that trains other parameters than it says, and a table that differs from the file."""
    example, folder, results = run
    assert json.loads((folder / "output" / "results.json").read_text()) == results
    assert results["num_train_clips"] > 4 and results["num_test_clips"] > 4
    assert results["num_classes"] == 10 and results["chance"] == 10.0
    methods = results["methods"]
    assert list(methods) == ["linear probe", "LoRA", "full fine-tuning"]
    assert methods["linear probe"]["trainable_parameters"] == 96 * 10 + 10
    assert methods["LoRA"]["trainable_parameters"] == 970 + 3 * 2 * 8 * (96 + 96)
    assert 0 < methods["linear probe"]["trainable_share"] < methods["LoRA"]["trainable_share"] < 3
    assert methods["full fine-tuning"]["trainable_share"] > 99  # a norm that no output depends on stays frozen
    table = example.format_table(results)
    assert all(f"{row['accuracy']:.1f}" in table for row in methods.values())
    assert all(0 <= row["accuracy"] <= 100 for row in methods.values())


def test_the_saved_adapter_goes_on_the_pretrained_model(run):
    """Catches an adapter saved without its classifier: on the base model it must score as the trained one did."""
    example, folder, results = run
    clips = example.decode_clips(folder / "world" / "test", example.AutoProcessor.from_pretrained(folder / "model"), 0)
    base = AutoModelForVideoClassification.from_pretrained(folder / "model", num_labels=10)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = PeftModel.from_pretrained(base, folder / "output" / "LoRA").eval()
    with torch.no_grad():
        logits = tuned(pixel_values_videos=clips.tensors[0].float()).logits
    accuracy = 100 * (logits.argmax(-1) == clips.tensors[1]).float().mean().item()
    assert accuracy == pytest.approx(results["methods"]["LoRA"]["accuracy"])
    head = tuned.base_model.model.classifier
    assert not torch.equal(head.modules_to_save["default"].weight, before["classifier.weight"])


def test_every_folder_works_without_the_script(run, capsys):
    """Catches a folder without its processor: AutoProcessor, the pipeline and `evaluate --scoring head` take each."""
    _, folder, results = run
    rows = list(load_egoclip(folder / "world" / "test" / "egoclip.csv"))
    video = str(next((folder / "world" / "test" / "videos").rglob("*.mp4")))
    names = {"linear_probe": "linear probe", "LoRA_merged": "LoRA", "full_fine-tuning": "full fine-tuning"}
    for name, method in names.items():
        model = folder / "output" / name
        output = str(folder / f"{name}.json")
        line = ["evaluate", "video-classification", str(model), "--task", "verb", "--num-workers", "0"]
        line += ["--annotations", str(folder / "world" / "test" / "egoclip.csv"), "--output", output]
        assert main([*line, "--videos", str(folder / "world" / "test" / "videos")]) == 0
        report = EvaluationReport.load(output)
        assert report.scoring_mode == "head" and report.num_items == len(rows)
        assert report.metrics["verb_top1"] == pytest.approx(results["methods"][method]["accuracy"], abs=0.1)
    assert AutoProcessor.from_pretrained(folder / "output" / "LoRA").video_processor.num_frames == 4
    classify = pipeline("video-classification", model=str(model), trust_remote_code=True)
    assert classify(video)[0]["label"] in report_labels(model)


def report_labels(model):
    return json.loads((model / "config.json").read_text())["label2id"]


@pytest.mark.parametrize(
    "line, message",
    [
        (["--steps", "0"], "--steps (0) must be at least 1"),
        (["--model", "no-model"], "There is no folder 'no-model'"),
        (["--world", "no-world"], "no-world"),
    ],
    ids=["steps", "model", "world"],
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, capsys, line, message):
    example, folder, _ = run
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(folder / "model"), "--world", str(folder / "world"), "--num-workers", "0"]
    with pytest.raises(SystemExit) as end:
        run_script(lambda: example.main([*common, *line]))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_the_frozen_part_stays_as_pretrained(run):
    """Catches a linear probe that moves the tower."""
    _, folder, _ = run
    load = AutoModelForVideoClassification.from_pretrained
    pretrained = load(folder / "model", num_labels=10).vision_model.state_dict()
    probe = load(folder / "output" / "linear_probe").vision_model.state_dict()
    full = load(folder / "output" / "full_fine-tuning").vision_model.state_dict()
    assert all(torch.equal(value, pretrained[name]) for name, value in probe.items())
    assert not all(torch.equal(value, pretrained[name]) for name, value in full.items())
