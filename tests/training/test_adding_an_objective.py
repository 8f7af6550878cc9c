"""A loss written in this file alone trains in forward, under gradient caching and in the Trainer's freezing."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.model import objective_base
from modeling_svitt_ego.model.objective_base import CachedObjective, EmbeddingObjective, Objective
from modeling_svitt_ego.model.objectives import OBJECTIVES
from modeling_svitt_ego.training.gradient_caching import CachedStep, MicroBatches
from modeling_svitt_ego.training.objectives import freeze_unreached_parameters
from tests.helpers.tiny_model import STILL, assert_same_gradients, gradients, tiny_batch, tiny_model


class MaxMargin(EmbeddingObjective):
    """Hinge of the cosines by a margin that a column of the batch scales; no temperature."""

    name = "max_margin"
    columns = ("importance",)
    reaches = tuple(part for part in EmbeddingObjective.reaches if part != "temperature")

    def of_rows(self, config, rows):
        own = torch.arange(len(rows)) + rows.first
        margins = 0.3 * (rows.own("importance")[:, None] + rows.everyone("importance"))
        losses = []
        for cosines in (rows.cosines_per_video, rows.cosines_per_text):
            hinge = (margins + cosines - cosines.gather(1, own[:, None])).relu()
            losses.append(hinge.scatter(1, own[:, None], 0.0).mean())
        return sum(losses), {"largest_margin": margins.max()}


class ShortTexts(Objective):
    """A loss of each row by itself: the size of the text's first token state."""

    name = "short_texts"

    def loss(self, model, batch):
        return batch.outputs.text_model_output.last_hidden_state[:, 0].square().mean(), {}

    def in_cached_step(self, step):
        return CachedShortTexts(self, step)


class CachedShortTexts(CachedObjective):
    def of_micro_batch(self, core, part, outputs):
        return outputs.text_model_output.last_hidden_state[:, 0].square().mean() * (part.size / self.step.num_rows)


def batch_of(rows):
    batch = tiny_batch(rows)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    return batch | {"importance": torch.linspace(0, 1, rows, dtype=torch.float64)}


@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForPreTraining], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("others", [(), OBJECTIVES], ids=["alone", "with-the-others"])
def test_a_new_loss_trains_in_forward_and_in_the_cached_step(cls, others, monkeypatch):
    """Catches a place that still enumerates the objectives by name, and gradients of two objectives overwritten."""
    monkeypatch.setattr(objective_base, "ROWS_AT_ONCE", 3)
    model = tiny_model(cls, vtm_weight=0, mlm_weight=0, **STILL).double().train()
    model.objectives = [*others, MaxMargin(weight=2.0), ShortTexts(weight=0.5)]
    batch = batch_of(7)
    whole = model(**batch, return_loss=True)
    whole.loss.backward()
    expected, info = gradients(model), whole.loss_info
    weighted = 2 * info["max_margin"] + 0.5 * info["short_texts"] + (info["contrastive"] if others else 0)
    torch.testing.assert_close(whole.loss.detach(), weighted)
    assert info["max_margin"] > 0 and (whole.loss_info.keys() >= {"contrastive"}) == bool(others)

    parts = [{name: value[first : first + 3] for name, value in batch.items()} for first in (0, 3, 6)]
    step = CachedStep(model, model, MicroBatches(iter(parts), 3))
    loss = step.start() + sum(step.advance() for _ in parts)
    torch.testing.assert_close(loss, whole.loss.detach(), rtol=1e-12, atol=1e-12)
    assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-10)
    for name in ("max_margin", "short_texts"):
        torch.testing.assert_close(step.loss_info[name], info[name])


def test_what_a_new_loss_does_not_reach_is_frozen():
    """Catches DDP waiting for the temperature, which this loss leaves alone."""
    model = tiny_model(**STILL).train()
    model.objectives = [MaxMargin()]
    frozen = freeze_unreached_parameters(model)
    assert {"temperature", "vtm_head.weight", "mlm_head.dense.weight", "vision_model.layernorm.weight"} <= {*frozen}
    batch = tiny_batch() | {"importance": torch.ones(4)}
    model(**batch, return_loss=True).loss.backward()
    assert gradients(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}
