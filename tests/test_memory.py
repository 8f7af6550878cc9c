"""Bytes kept for the backward, and the plan made of them."""

import pytest
import torch
from tiny_model import tiny_batch, tiny_config, tiny_model

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.memory import GIB, SavedBytes, TrainingMemory, count_saved_bytes, training_memory


def test_a_storage_counts_once_and_parameters_do_not():
    """Catches views counted again, or the weights counted as activations."""
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8, requires_grad=True)
    with SavedBytes(exclude=[weight]) as saved:
        y = x @ weight  # keeps x and the weight
        (y * y.view(2, 16).view(4, 8)).sum()  # keeps y, twice
    assert saved.total == 2 * 4 * 8 * 4


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_the_line_through_batches_1_and_2_predicts_a_batch_of_7(checkpointing):
    """Catches a term that does not grow with the batch as the plan assumes."""
    config = tiny_config()
    memory = training_memory(config, 4, 9, checkpointing)
    counted = count_saved_bytes(config, 7, 4, 9, checkpointing)
    assert memory.saved(7) == pytest.approx(counted, rel=0.1)
    assert memory.saved_per_clip > 0


def test_the_bytes_counted_without_data_are_those_of_a_real_forward():
    """Catches fake tensors that keep something else than real ones do."""
    model = tiny_model(SViTTEgoModel).train()
    batch = tiny_batch(3)
    batch |= {"attention_mask": torch.ones_like(batch["attention_mask"]), "input_ids": batch["input_ids"].clamp(min=5)}
    with SavedBytes(model.parameters()) as saved, torch.autocast("cpu", torch.bfloat16):
        model(**batch, return_loss=True)
    assert count_saved_bytes(model.config, 3, 4, 7, False) == pytest.approx(saved.total, rel=0.1)


def test_checkpointing_keeps_less():
    """Catches checkpointing that is not switched on for the count."""
    config = tiny_config(vision={"num_hidden_layers": 4, "prune_layers": [3]}, text={"num_hidden_layers": 4})
    plain, checkpointed = (count_saved_bytes(config, 4, 4, 9, on) for on in (False, True))
    assert checkpointed < plain / 2


def test_the_largest_batch_is_the_last_that_fits():
    """Catches an estimate off by one, and a negative batch where the weights alone do not fit."""
    memory = TrainingMemory(100_000_000, 1e8, 2e8, 3e8, 0.5e8)
    best = memory.largest_batch(8, reserve_gib=1)
    assert memory.peak(best) <= 7 * GIB < memory.peak(best + 1)
    assert memory.largest_batch(2.5, reserve_gib=1) == 0


def test_plan_prints_a_batch_and_that_it_is_an_estimate(tmp_path, capsys):
    """Catches the command broken, or a number shown as if a card had been asked."""
    tiny_config().save_pretrained(tmp_path)
    assert main(["plan", "--gpu-memory", "8", "--model", str(tmp_path), "--text-length", "9"]) == 0
    out = capsys.readouterr().out
    assert "8 GiB" in out and "not checked on a GPU" in out
    assert main(["plan", "--gpu-memory", "-1"]) == 2
    assert "--gpu-memory (-1.0)" in capsys.readouterr().err
