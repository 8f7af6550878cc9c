"""Every part of the loss and of the data's course reaches the trackers that `report_to` names."""

import pytest
import torch
from PIL import Image
from transformers import IntervalStrategy, TrainerCallback

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from modeling_svitt_ego.training import kept_patches
from tests.helpers.tiny_data import egomcq_item, write_json
from tests.helpers.tiny_pretraining import make_corpus, make_trainer

PARTS = {"loss", "contrastive", "vtm", "mlm", "temperature", "positives_per_clip", "vtm_negatives_per_clip"}
PICTURE = (788, 648)  # 4 frames of 192 pixels; the input and after each of two pruning layers
COURSE = {"learning_rate", "grad_norm", "scene_partners", "clips_per_second"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    items = [egomcq_item(["video-a"] * 5, answer=i, text=f"#C C picks item {i}", start=float(i)) for i in range(2)]
    write_json(root / "egomcq.json", {str(i): item for i, item in enumerate(items)})
    return root


class Seen(TrainerCallback):
    """What a tracker is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


@pytest.mark.parametrize("cached", [None, 8], ids=["plain", "cached"])
def test_each_part_is_logged_as_a_number(cached, corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, SViTTEgoForPreTraining, max_steps=3, contrastive_batch_size=cached)
    seen = Seen()
    trainer.add_callback(seen)
    trainer.train()
    steps = [logs for logs in seen.logs if "loss" in logs]
    assert len(steps) == 3
    for logs in steps:
        assert PARTS | COURSE <= set(logs) and all(isinstance(value, (int, float)) for value in logs.values())
        assert logs["scene_partners"] == 1 and logs["clips_per_second"] > 0


def test_partners_from_elsewhere_lower_the_share(corpus, tmp_path):
    """Catches a share of all steps instead of those since the last log, and one that is always 1."""
    trainer = make_trainer(corpus, tmp_path, max_steps=4, scene_seconds=1.0)  # each clip is alone in its scene
    trainer.train()
    shares = [entry["scene_partners"] for entry in trainer.state.log_history if "scene_partners" in entry]
    assert shares == [0.0] * 4
    trainer = make_trainer(corpus, tmp_path, max_steps=1, scene_aware_negatives=False)
    trainer.train()
    assert not any("scene_partners" in entry for entry in trainer.state.log_history)


@pytest.fixture
def quiet_trackers(tmp_path, monkeypatch):
    """All of them write below `tmp_path`, and none asks the network."""
    for name, value in (
        ("TENSORBOARD_LOGGING_DIR", tmp_path / "tensorboard"),
        ("WANDB_MODE", "offline"),
        ("WANDB_DIR", tmp_path),
        ("TRACKIO_DIR", tmp_path / "trackio"),
    ):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_holds_them(tracker, corpus, tmp_path, quiet_trackers):
    """Catches names, values or pictures that a tracker drops."""
    pytest.importorskip(tracker, reason=f"{tracker} is an option of its users")
    trainer = make_trainer(corpus, tmp_path / "run", SViTTEgoForPreTraining, max_steps=2, report_to=tracker)
    evaluator = EgoMCQEvaluator(corpus / "egomcq.json", corpus / "videos", trainer.processing_class, 4)
    trainer.evaluator, trainer.eval_dataset = evaluator, evaluator.dataset
    seen = Seen()
    trainer.add_callback(seen)
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 1
    trainer.train()
    logged = {name for logs in seen.logs for name in logs}
    assert PARTS | COURSE | {"eval_intra"} <= logged
    if tracker != "tensorboard":
        kept = [path for path in tmp_path.rglob("*.png") if tmp_path / "run" not in path.parents]
        assert [Image.open(path).size for path in kept] == [PICTURE] * 2
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in PARTS | COURSE} | {"eval/intra"} <= tags
    first = next(logs for logs in seen.logs if "mlm" in logs)
    assert events.Scalars("train/mlm")[0].value == pytest.approx(first["mlm"])
    shown = events.Images("eval/kept_patches")
    assert [image.step for image in shown] == [1, 2] and (shown[0].width, shown[0].height) == PICTURE


class Raw(Seen):
    """Also keeps a weight after each update."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.logs.append(model.video_projection.weight.detach().clone())


def evaluate_every(trainer, steps):
    trainer.eval_dataset = EgoClipDataset(trainer.train_dataset.table, trainer.train_dataset.store)
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, steps


def test_the_picture_shows_the_same_frames_and_the_model_that_is_evaluated(corpus, tmp_path, monkeypatch):
    """Catches frames that another epoch drew, and raw weights where their average is evaluated."""
    drawn, raw = [], Raw()

    def draw(core, processor, frames, title):
        drawn.append((frames.copy(), title, core.video_projection.weight.detach().clone()))

    monkeypatch.setattr(kept_patches, "draw_surviving_patches", draw)
    monkeypatch.setitem(kept_patches._SEND, Seen, lambda *sent: None)
    trainer = make_trainer(corpus, tmp_path / "run", max_steps=9, ema_decay=0.5)  # an epoch has 8 steps
    evaluate_every(trainer, 3)
    trainer.add_callback(raw)
    trainer.train()
    assert len(drawn) == 3 and drawn[0][1] == trainer.train_dataset.table[0]["clip_text"]
    assert (drawn[0][0] == drawn[2][0]).all()
    weights = [entry for entry in raw.logs if isinstance(entry, torch.Tensor)]
    assert not torch.equal(drawn[1][2], weights[5]) and not torch.equal(drawn[1][2], weights[4])

    dense = {"vision_config": trainer.core.config.vision_config.to_dict() | {"keep_rate": 1.0}}
    trainer = make_trainer(corpus, tmp_path / "dense", config=dense, max_steps=1)
    evaluate_every(trainer, 1)
    trainer.add_callback(Raw())
    trainer.train()
    assert len(drawn) == 3


def test_evaluation_without_an_evaluator_is_logged(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, SViTTEgoModel, max_steps=1)
    seen = Seen()
    trainer.add_callback(seen)
    trainer.evaluate(EgoClipDataset(trainer.train_dataset.table, trainer.train_dataset.store))
    assert {"eval_loss", "eval_text_to_video_recall_at_1", "eval_video_to_text_recall_at_10"} <= set(seen.logs[0])
