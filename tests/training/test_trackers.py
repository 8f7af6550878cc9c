"""Every part of the loss and of the data's course reaches the trackers that `report_to` names."""

import pytest
from transformers import TrainerCallback

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from tests.helpers.tiny_data import egomcq_item, write_json
from tests.helpers.tiny_pretraining import make_corpus, make_trainer

PARTS = {"loss", "contrastive", "vtm", "mlm", "temperature", "positives_per_clip", "vtm_negatives_per_clip"}
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


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_holds_them(tracker, corpus, tmp_path, monkeypatch):
    """Catches names or values that a tracker drops."""
    pytest.importorskip(tracker, reason=f"{tracker} is an option of its users")
    for name, value in (
        ("TENSORBOARD_LOGGING_DIR", tmp_path / "tensorboard"),
        ("WANDB_MODE", "offline"),
        ("WANDB_DIR", tmp_path),
        ("TRACKIO_DIR", tmp_path / "trackio"),
    ):
        monkeypatch.setenv(name, str(value))
    trainer = make_trainer(corpus, tmp_path / "run", SViTTEgoForPreTraining, max_steps=2, report_to=tracker)
    evaluator = EgoMCQEvaluator(corpus / "egomcq.json", corpus / "videos", trainer.processing_class, 4)
    trainer.evaluator, trainer.eval_dataset = evaluator, evaluator.dataset
    seen = Seen()
    trainer.add_callback(seen)
    trainer.train()
    trainer.evaluate()
    logged = {name for logs in seen.logs for name in logs}
    assert PARTS | COURSE | {"eval_intra"} <= logged
    if tracker != "tensorboard":
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in PARTS | COURSE} | {"eval/intra"} <= tags
    first = next(logs for logs in seen.logs if "mlm" in logs)
    assert events.Scalars("train/mlm")[0].value == pytest.approx(first["mlm"])


def test_evaluation_without_an_evaluator_is_logged(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, SViTTEgoModel, max_steps=1)
    seen = Seen()
    trainer.add_callback(seen)
    trainer.evaluate(EgoClipDataset(trainer.train_dataset.table, trainer.train_dataset.store))
    assert {"eval_loss", "eval_text_to_video_recall_at_1", "eval_video_to_text_recall_at_10"} <= set(seen.logs[0])
