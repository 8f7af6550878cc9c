"""Evaluation without an evaluator: loss and recall over the whole set, from every row of it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import EarlyStoppingCallback, TrainerCallback

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from modeling_svitt_ego.training import evaluating
from modeling_svitt_ego.training.evaluating import contrastive_loss_of_set, recalls
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from tests.helpers.tiny_data import egomcq_item, write_json
from tests.helpers.tiny_model import tiny_batch, tiny_model
from tests.helpers.tiny_pretraining import make_corpus, make_trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def evaluating_trainer(corpus, folder, cls=SViTTEgoModel, **arguments):
    """16 clips to evaluate on in batches of 5: the last one is incomplete."""
    trainer = make_trainer(corpus, folder, cls=cls, per_device_eval_batch_size=5, **arguments)
    trainer.eval_dataset = EgoClipDataset(trainer.train_dataset.table, trainer.train_dataset.store, sampling="middle")
    return trainer


@pytest.mark.parametrize("rows_at_once", [2, 1024])
@pytest.mark.parametrize("loss", ["ego_nce", "info_nce"])
def test_the_loss_of_a_set_is_that_of_one_batch(loss, rows_at_once, monkeypatch):
    """Catches slices compared with themselves only, and positives taken from the wrong rows."""
    monkeypatch.setattr(evaluating, "ROWS_AT_ONCE", rows_at_once)
    model, batch = tiny_model(SViTTEgoModel, contrastive_loss=loss), tiny_batch(5)
    with torch.no_grad():
        outputs = model(**batch, return_loss=True)
    found = contrastive_loss_of_set(
        model, outputs.video_embeds, outputs.text_embeds, batch["verb_tags"], batch["noun_tags"]
    )
    assert found == pytest.approx(outputs.loss_info["contrastive"].item(), rel=1e-5)


def test_recall_counts_the_own_clip_and_a_tie_against_it(monkeypatch):
    monkeypatch.setattr(evaluating, "ROWS_AT_ONCE", 2)
    texts = torch.eye(3)
    videos = torch.stack([texts[0], texts[2], texts[2]])  # narration 1 finds nothing, narration 2 two alike
    found = recalls(videos, texts)
    assert found["text_to_video_recall_at_1"] == pytest.approx(100 / 3)
    assert found["video_to_text_recall_at_1"] == pytest.approx(200 / 3)
    assert found["text_to_video_recall_at_5"] == 100
    alike = F.normalize(torch.ones(12, 4), dim=-1)
    assert recalls(alike, alike)["text_to_video_recall_at_10"] == 0


@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForPreTraining])
def test_evaluation_and_prediction_keep_every_row(cls, corpus, tmp_path):
    """Catches rows of the last batch dropped as in training, and compute_metrics never called."""
    trainer = evaluating_trainer(corpus, tmp_path, cls)
    assert trainer.args.dataloader_drop_last
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions[0].shape, prediction.label_ids.tolist()))
        return {"half": 0.5}

    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert seen == [((16, 16), list(range(16)))]
    assert metrics["eval_half"] == 0.5 and 0 <= metrics["eval_text_to_video_recall_at_5"] <= 100
    with torch.no_grad():
        batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(16)])
        whole = trainer.model.eval()(**batch, return_loss=True).loss_info["contrastive"].item()
    assert metrics["eval_loss"] == pytest.approx(whole, rel=1e-4)
    rows = trainer.eval_dataset.table.select(range(7))
    output = trainer.predict(EgoClipDataset(rows, trainer.train_dataset.store, sampling="middle"))
    assert [len(x) for x in output.predictions] == [7, 7]
    assert output.metrics["test_loss"] > 0
    assert trainer.args.dataloader_drop_last


def test_evaluation_does_not_crop_at_random(corpus, tmp_path):
    """Catches the training's augmentation in the evaluation's clips."""
    trainer = evaluating_trainer(corpus, tmp_path)
    plain = trainer.evaluate()["eval_loss"]
    trainer.data_collator = ClipCollator(trainer.processing_class, do_random_resized_crop=True)
    assert trainer.evaluate()["eval_loss"] == plain
    assert trainer.data_collator.processor_kwargs == {"do_random_resized_crop": True}


def test_early_stopping_and_the_best_model_work_on_the_loss_and_on_recall(corpus, tmp_path):
    """Catches `KeyError: eval_loss` at the first evaluation."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for number, metric in enumerate((None, "text_to_video_recall_at_1")):
        trainer = evaluating_trainer(corpus, tmp_path / str(number), max_steps=1)
        arguments = {"load_best_model_at_end": True, "metric_for_best_model": metric, "learning_rate": 0.0}
        trainer = make_trainer_like(trainer, tmp_path / str(number), max_steps=6, **arguments, **every)
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
        trainer.train()
        assert trainer.state.global_step == 3, "nothing improves at a learning rate of 0"
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def make_trainer_like(trainer, folder, **arguments):
    """Another trainer of the same model and data, without a data_collator."""
    settings = dict(report_to="none", use_cpu=True, logging_steps=1, per_device_train_batch_size=4, disable_tqdm=True)
    return SViTTEgoTrainer(
        model=trainer.model,
        args=type(trainer.args)(output_dir=str(folder), **settings | arguments),
        train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset,
        processing_class=trainer.processing_class,
    )


def test_a_missing_collator_is_the_clips_own_and_return_loss_is_tolerated(corpus, tmp_path):
    """Catches the Trainer's collator of texts on clips, and `return_loss` given twice to the model."""
    trainer = make_trainer_like(evaluating_trainer(corpus, tmp_path), tmp_path, max_steps=1)
    assert isinstance(trainer.data_collator, ClipCollator)
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: {**collate(examples), "return_loss": True}
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="processing_class"):
        SViTTEgoTrainer(model=trainer.model, args=trainer.args, train_dataset=trainer.train_dataset)


@pytest.mark.parametrize("settings", [{}, {"contrastive_batch_size": 1}], ids=["plain", "cached"])
def test_a_batch_without_negatives_is_said_once(settings, corpus, tmp_path, caplog):
    """Catches a run that trains at loss 0 in silence."""
    arguments = {"per_device_train_batch_size": 1, "scene_aware_negatives": False, "max_steps": 2}
    make_trainer(corpus, tmp_path / "one", **arguments | settings).train()
    assert caplog.text.count("contrastive loss of step 1 is 0") == caplog.text.count("loss of step") == 1
    caplog.clear()
    make_trainer(corpus, tmp_path / "two", max_steps=1).train()
    assert "contrastive loss of step" not in caplog.text


def test_an_evaluator_and_an_evaluation_set_are_one_evaluation(corpus, tmp_path):
    """Catches an eval_loss that an evaluator takes away, and early stopping that counts each evaluation twice."""
    items = [egomcq_item(["video-a"] * 5, answer=i, text=f"#C C picks item {i}", start=float(i)) for i in range(2)]
    path = write_json(tmp_path / "egomcq.json", {str(i): item for i, item in enumerate(items)})
    plain = evaluating_trainer(corpus, tmp_path)
    evaluator = EgoMCQEvaluator(path, corpus / "videos", plain.processing_class, 4)
    trainer = SViTTEgoTrainer(
        model=plain.model,
        args=plain.args,
        eval_dataset=plain.eval_dataset,
        processing_class=plain.processing_class,
        evaluator=evaluator,
    )
    seen = []

    class Count(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append(set(metrics))

    trainer.add_callback(Count())
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_intra", "eval_text_to_video_recall_at_1"} <= set(metrics)
    assert len(seen) == 1 and {"eval_loss", "eval_intra"} <= seen[0]
    assert trainer.args.metric_for_best_model is None and trainer.compute_metrics is None
