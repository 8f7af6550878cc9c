"""Objectives with relevance: forward, gradient caching, frozen parameters, schedules under the Trainer."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.model import objective_base
from modeling_svitt_ego.training import retrieval_objectives
from modeling_svitt_ego.training.gradient_caching import CachedStep, MicroBatches
from modeling_svitt_ego.training.objectives import freeze_unreached_parameters
from modeling_svitt_ego.training.relevance_losses import symmetric_multi_similarity, tag_relevance
from modeling_svitt_ego.training.retrieval_objectives import (
    RETRIEVAL_OBJECTIVES,
    AdaptiveMaxMargin,
    FollowSchedules,
    RelevanceMatching,
    SymmetricMultiSimilarity,
)
from tests.helpers.tiny_model import STILL, assert_same_gradients, gradients, tiny_batch, tiny_model
from tests.helpers.tiny_pretraining import make_corpus, make_trainer


def batch_of(rows):
    """Clips, and texts drawn for them: their classes differ from the clips' for some rows."""
    batch = tiny_batch(rows)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    generator = torch.Generator().manual_seed(0)
    for kind in ("verb", "noun"):
        batch[f"{kind}_tags"] = torch.randint(0, 2, (rows, 4), generator=generator).double()
        batch[f"text_{kind}_tags"] = torch.randint(0, 2, (rows, 4), generator=generator).double()
    return batch


def nearest(logits, positives, generator=None):
    """No draw: the most similar negative."""
    ids = logits.detach().masked_fill(positives, float("-inf")).argmax(-1)
    return torch.where(positives.all(-1), -1, ids)


@pytest.mark.parametrize("objective", [*RETRIEVAL_OBJECTIVES.values(), RelevanceMatching], ids=lambda kind: kind.name)
def test_the_cached_step_equals_forward(objective, monkeypatch):
    """Catches relevances of the wrong slice of rows, and texts' classes that do not reach the objective."""
    monkeypatch.setattr(objective_base, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(retrieval_objectives, "sample_hard_negatives", nearest)
    kind = SViTTEgoForVideoTextRetrieval if objective is RelevanceMatching else SViTTEgoModel
    model = tiny_model(kind, **STILL).double().train()
    model.objectives = [objective(weight=2.0)]
    batch = batch_of(7)
    whole = model(**batch, return_loss=True)
    whole.loss.backward()
    expected = gradients(model)
    parts = [{key: value[first : first + 3] for key, value in batch.items()} for first in (0, 3, 6)]
    step = CachedStep(model, model, MicroBatches(iter(parts), 3))
    loss = step.start() + sum(step.advance() for _ in parts)
    torch.testing.assert_close(loss, whole.loss.detach(), rtol=1e-12, atol=1e-12)
    assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-10)


def test_the_objective_equals_the_pure_function():
    """Catches relevance of clips with clips where the texts have their own classes."""
    model = tiny_model(SViTTEgoModel, **STILL).double()
    model.objectives = [SymmetricMultiSimilarity()]
    batch = batch_of(5)
    outputs = model(**batch, return_loss=True)
    cosines = outputs.logits_per_video * model.temperature
    relevance = tag_relevance(*(batch[f"{k}_tags"] for k in ("verb", "noun", "text_verb", "text_noun")))
    expected = symmetric_multi_similarity(cosines, cosines.T, relevance, relevance.T)
    torch.testing.assert_close(outputs.loss, expected)
    without = {name: value for name, value in batch.items() if not name.startswith("text_")}
    own = tag_relevance(batch["verb_tags"], batch["noun_tags"])
    expected = symmetric_multi_similarity(cosines, cosines.T, own, own.T)
    torch.testing.assert_close(model(**without, return_loss=True).loss, expected)


def test_matching_learns_the_relevance(monkeypatch):
    """Catches drawn sentences of relevance 0.5 that count as matches, and pairs of relevance 1 as mismatches."""
    monkeypatch.setattr(retrieval_objectives, "sample_hard_negatives", nearest)
    model = tiny_model(SViTTEgoForVideoTextRetrieval, **STILL).double()
    model.objectives = [RelevanceMatching()]
    batch = batch_of(4)
    classes = {"verb": [0, 0, 1, 1], "noun": [0, 0, 0, 3], "text_verb": [0, 0, 1, 2], "text_noun": [1, 0, 0, 3]}
    batch |= {f"{name}_tags": torch.eye(4).double()[rows] for name, rows in classes.items()}
    outputs = model(**batch, return_loss=True)
    relevance = tag_relevance(*(batch[f"{kind}_tags"] for kind in ("verb", "noun", "text_verb", "text_noun")))
    own = torch.eye(4, dtype=torch.bool)
    texts = nearest(outputs.logits_per_video, own | (relevance == 1))
    videos = nearest(outputs.logits_per_video.T, own | (relevance.T == 1))
    assert relevance.diagonal().tolist() == [0.5, 1, 1, 0.5] and texts[0] != 1
    rows = torch.arange(4)
    expected = torch.cat([relevance.diagonal(), relevance[videos, rows], relevance[rows, texts]])
    log_odds = outputs.vtm_logits[:, 1] - outputs.vtm_logits[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, expected)
    torch.testing.assert_close(outputs.loss, loss)


def test_a_margin_leaves_the_temperature_alone():
    model = tiny_model(SViTTEgoModel, **STILL).train()
    model.objectives = [AdaptiveMaxMargin()]
    assert "temperature" in freeze_unreached_parameters(model)
    model(
        **{k: v.float() if v.is_floating_point() else v for k, v in batch_of(4).items()}, return_loss=True
    ).loss.backward()
    assert gradients(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_classes_are_asked_for():
    model = tiny_model(SViTTEgoModel)
    model.objectives = [AdaptiveMaxMargin()]
    batch = {name: value for name, value in tiny_batch().items() if "tags" not in name}
    with pytest.raises(ValueError, match="needs verb_tags and noun_tags"):
        model(**batch, return_loss=True)


def test_schedules_follow_the_steps_of_a_run(tmp_path):
    """Catches a schedule in epochs or in calls of the objective, and a temperature that is trained besides."""
    trainer = make_trainer(make_corpus(tmp_path), tmp_path / "run", max_steps=4, scene_aware_negatives=False)
    objective = SymmetricMultiSimilarity(margin="linear:0.8:0.4")
    trainer.core.objectives = [objective]
    callback = FollowSchedules([objective], temperature="linear:0.02:0.06")
    trainer.add_callback(callback)
    callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.train()
    margins = [entry["margin"] for entry in trainer.state.log_history if "margin" in entry]
    assert margins == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert trainer.core.temperature.item() == pytest.approx(0.05)
    with pytest.raises(ValueError, match="temperature_max"):
        FollowSchedules([], temperature=0.2).on_train_begin(None, None, None, model=trainer.core)
