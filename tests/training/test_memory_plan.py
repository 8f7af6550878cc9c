"""Bytes kept for the backward and alive at the peak, and the plan made of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.training.memory_plan import (
    GIB,
    LiveBytes,
    SavedBytes,
    TrainingMemory,
    count_bytes,
    training_memory,
)
from tests.helpers.tiny_model import tiny_batch, tiny_config, tiny_model
from tests.helpers.tiny_pretraining import GENEROUS


def test_a_storage_counts_once_and_parameters_do_not():
    """Catches views counted again, or the weights counted as activations."""
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8, requires_grad=True)
    with SavedBytes(exclude=[weight]) as saved:
        y = x @ weight  # keeps x and the weight
        (y * y.view(2, 16).view(4, 8)).sum()  # keeps y, twice
    assert saved.total == 2 * 4 * 8 * 4


def test_bytes_are_alive_from_when_they_are_made_until_nothing_refers_to_them():
    """Catches views and in-place results counted again, freed tensors that stay, and a backward that is not seen."""
    x = torch.randn(1000, requires_grad=True)
    x.grad = torch.zeros_like(x)
    with LiveBytes(exclude=[x, x.grad]) as live:
        y = x.view(10, 100) * 2
        y.add_(1).view(-1)
        assert (live.now, live.peak) == (4000, 4000)
        z = y.exp()
        del y
        assert (live.now, live.peak) == (4000, 8000)  # the result is what exp keeps for its backward
        z.sum().backward()  # its gradient, then that of y, and of x, which is accumulated
        assert live.peak >= 12000
        del z
        assert live.now == 0


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_the_lines_through_the_counted_batches_predict_others(checkpointing):
    """Catches a term that does not grow with the batch as the plan assumes."""
    config = tiny_config()
    memory = training_memory(config, 4, 9, checkpointing)
    for batch_size in (5, 48):
        _, counted = count_bytes(config, batch_size, 4, 9, checkpointing)
        batch = memory.batch_bytes * batch_size
        assert memory.peak(batch_size) - memory.states - batch == pytest.approx(counted, rel=0.1)
    assert memory.per_clip > memory.batch_bytes > 4 * 3 * 32 * 32 * 4


def test_the_bytes_counted_without_data_are_those_of_a_real_step():
    """Catches fake tensors that keep something else than real ones do, or are freed at another time."""
    model = tiny_model(SViTTEgoModel).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = tiny_batch(3)
    batch |= {"attention_mask": torch.ones_like(batch["attention_mask"]), "input_ids": batch["input_ids"].clamp(min=5)}
    known = [*model.parameters(), *(p.grad for p in model.parameters()), *batch.values()]
    with LiveBytes(known) as live:
        with SavedBytes(known) as saved, torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, return_loss=True).loss
        loss.backward()
    counted, peak = count_bytes(model.config, 3, 4, 7, False)
    assert counted == pytest.approx(saved.total, rel=0.1)
    assert peak == pytest.approx(live.peak, rel=0.1)
    assert peak > counted


def test_checkpointing_keeps_less():
    """Catches checkpointing not switched on for the count, and a peak that forgets the layer that is recomputed."""
    config = tiny_config(vision={"num_hidden_layers": 4, "prune_layers": [3]}, text={"num_hidden_layers": 4})
    (plain, plain_peak), (kept, peak) = (count_bytes(config, 4, 4, 9, on) for on in (False, True))
    assert kept < plain / 2
    assert kept + plain / 8 < peak < plain_peak


def test_the_largest_batch_is_the_last_that_fits():
    """Catches an estimate off by one, and a negative batch where the weights alone do not fit."""
    memory = TrainingMemory(100_000_000, {1: 5e8, 8: 30e8, 16: 40e8}, 10**6)
    assert memory.peak(8) == 16e8 + 30e8 + 8e6 and memory.peak(12) == 16e8 + 35e8 + 12e6
    for gib in (4, 5.5, 8, 24):  # before, between and beyond the counted batches
        best = memory.largest_batch(gib, reserve_gib=1)
        assert memory.peak(best) <= (gib - 1) * GIB < memory.peak(best + 1)
    assert memory.largest_batch(2.5, reserve_gib=1) == 0


def test_plan_prints_a_batch_and_that_it_is_an_estimate(tmp_path, capsys):
    """Catches the command broken, or a number shown as if a card had been asked."""
    tiny_config().save_pretrained(tmp_path)
    assert main(["plan", "--gpu-memory", "8", "--model", str(tmp_path), "--text-length", "9"]) == 0
    out, progress = capsys.readouterr()
    assert "counting, with checkpointing: 100%" in progress
    assert "8 GiB" in out and "Not checked on a GPU" in out
    assert main(["plan", "--gpu-memory", "-1"]) == 2
    assert "--gpu-memory (-1)" in capsys.readouterr().err
    for name in ("--num-frames", "--text-length"):
        assert main(["plan", name, "0"]) == 2
        assert f"{name} (0) must be at least 1" in capsys.readouterr().err


def test_the_plan_is_compared_with_real_steps(tmp_path):
    """Catches benchmarks/training_memory.py broken: it is the check of the plan where there is a GPU."""
    tiny_config(text={"max_position_embeddings": 32}).save_pretrained(tmp_path)
    script = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"
    given = ["--model", tmp_path, "--batch-sizes", "2", "--device", "cpu", "--threads", "1"]
    subprocess.run([sys.executable, script, *given, "--output", tmp_path / "found.json"], check=True, timeout=GENEROUS)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["checkpointing"] for row in found["rows"]] == [False, True]
    assert all(row["measured_bytes"] > 0 and row["planned_bytes"] > 0 for row in found["rows"])
    assert found["machine"]["precision"] == "fp32"
