"""`svitt-ego finetune`: each method trains what it says, resumes, and leaves a folder that loads."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from modeling_svitt_ego import SViTTEgoForVideoClassification, SViTTEgoModel, SViTTEgoProcessor
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.training.finetuning import FineTuner, FineTuningRecipe
from tests.helpers.tiny_pretraining import make_corpus, small_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Videos, 16 labelled clips, and a dual encoder to start from."""
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    lines = ["video_uid,clip_start,clip_end,label"]
    lines += [f"video-{'ab'[i % 2]},{1 + i},{2 + i},{('open', 'close')[i % 2]}" for i in range(16)]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    SViTTEgoModel._from_config(small_config(lively=False)).save_pretrained(root / "model")
    build_processor(["#C C opens a box"]).save_pretrained(root / "model")
    return root


def finetune(root, output, **options):
    given = {
        "model": root / "model",
        "annotations": root / "labels.csv",
        "videos": root / "videos",
        "output_dir": output,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": "true",
        "learning_rate": 0.01,
    }
    pairs = [(f"--{name}", str(value)) for name, value in (given | options).items()]
    return main(["finetune", "--use_cpu", *(part for pair in pairs for part in pair)])


@pytest.mark.parametrize("method", ["full", "probe", "lora"])
def test_each_method_trains_what_it_says(method, root, tmp_path):
    """Catches a frozen head, trained weights under a probe, and a folder without its processor or its class names."""
    evaluation = {"eval_annotations": root / "labels.csv", "eval_strategy": "steps", "eval_steps": 2}
    assert finetune(root, tmp_path, method=method, **(evaluation if method == "full" else {})) == 0
    folder = tmp_path / "model"
    assert SViTTEgoProcessor.from_pretrained(folder).video_processor.num_frames == 4
    if method == "lora":
        saved = load_file(folder / "adapter_model.safetensors")
        assert any("lora_" in name for name in saved) and any("classifier" in name for name in saved)
        base = SViTTEgoForVideoClassification.from_pretrained(root / "model", num_labels=2)
        assert isinstance(PeftModel.from_pretrained(base, folder), PeftModel)
        return
    model = SViTTEgoForVideoClassification.from_pretrained(folder)
    assert sorted(model.config.id2label.values()) == ["close", "open"]
    before = SViTTEgoModel.from_pretrained(root / "model").vision_model.state_dict()
    changed = [name for name, value in model.vision_model.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) is (method == "full")
    if method == "full":
        scores = json.loads((tmp_path / "eval_results.json").read_text())
        assert scores["eval_num_items"] == 16 and 0 <= scores["eval_top1"] <= 100


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.8])
def test_a_resumed_run_ends_with_the_same_weights_and_other_labels_are_refused(mixup_alpha, root, tmp_path, capfd):
    settings = {"max_steps": 4, "mixup_alpha": mixup_alpha}
    assert finetune(root, tmp_path / "whole", **settings) == 0
    assert finetune(root, tmp_path / "stopped", **settings, save_total_limit=3) == 0
    for step in (3, 4):
        (tmp_path / "stopped" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert finetune(root, tmp_path / "stopped", **settings, resume="true") == 0
    expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    for name, value in load_file(tmp_path / "stopped" / "model" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    other = (root / "labels.csv").read_text().replace("2,3,close", "2,3,open")
    (tmp_path / "other.csv").write_text(other)
    resumed = settings | {"annotations": tmp_path / "other.csv", "max_steps": 5, "resume": "true"}
    assert finetune(root, tmp_path / "whole", **resumed) == 2
    assert "data: 16 rows" in capfd.readouterr().err


def test_a_resumed_run_must_have_the_method_of_the_checkpoint(root, tmp_path, capfd):
    """Catches a checkpoint whose weights are silently left out, because another method names them differently."""
    assert finetune(root, tmp_path, method="lora", max_steps=1) == 0
    for options, said in [
        ({"method": "probe"}, "method: lora there, probe now"),
        ({"method": "lora", "lora_rank": 4}, "lora_rank: 8 there, 4 now"),
    ]:
        assert finetune(root, tmp_path, resume="true", resume_changed="true", **options) == 2
        assert f"{said}). Use the settings of that run, or choose another output_dir" in capfd.readouterr().err
    assert finetune(root, tmp_path, resume="true", method="lora") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lerning_rate": 1}, "unknown option --lerning_rate; did you mean --learning_rate?"),
        ({"task": "verb"}, "--task (verb) must be one of label"),
        ({"videos": "nope"}, "--videos: there is no file or folder 'nope'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(options, said, root, tmp_path, capfd):
    assert finetune(root, tmp_path, **options) == 2
    assert f"svitt-ego finetune: {said}" in capfd.readouterr().err


LABELS = {
    "one class": ({"num_labels": 2}, torch.tensor([0, 1, 1, 0])),
    "two heads": (
        {"classifier_heads": {"verb": 2, "noun": 3}, "num_labels": 5},
        torch.tensor([[0, 2], [1, -100], [1, 0], [0, 1]]),
    ),
    "several classes": (
        {"num_labels": 2, "problem_type": "multi_label_classification"},
        torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]]),
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_mixup_is_off_by_default_and_mixes_clips_and_classes_alike(kind, monkeypatch, tmp_path):
    """Catches clips mixed with one share and classes with another."""
    fields, labels = LABELS[kind]
    model = SViTTEgoForVideoClassification(small_config(lively=False, **fields))
    clips = torch.randn(4, 4, 3, 64, 64)
    inputs = {"pixel_values_videos": clips, "labels": labels}
    arguments = FineTuningRecipe(str(tmp_path), report_to="none", use_cpu=True)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, shape=(): torch.tensor(0.25))
    model.train()
    plain = FineTuner(model=model, args=arguments).compute_loss(model, inputs)
    torch.testing.assert_close(plain, model(**inputs).loss)
    mixed = FineTuner(model=model, args=arguments, mixup_alpha=1.0).compute_loss(model, inputs)
    both = 0.25 * clips + 0.75 * clips.roll(1, 0)
    one, other = (model(pixel_values_videos=both, labels=x).loss for x in (labels, labels.roll(1, 0)))
    torch.testing.assert_close(mixed, 0.25 * one + 0.75 * other)
