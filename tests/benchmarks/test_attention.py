"""The benchmark of attention: its FLOP count, its record, and what it says."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_svitt_ego import SViTTEgoVisionModel

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "attention.py"
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("pattern", ["dense", "edge", "node", "both"])
def test_the_flops_are_those_torch_counts(benchmark, pattern):
    """Catches a term of the bound left out or counted twice, pruning included; torch counts what is really done."""
    config = benchmark["vision_config"](pattern, 2, image_size=64, block_size=8, prune_layers=[0, 1], **SMALL)
    # In bfloat16, because torch does not count the product added in place that float32 takes.
    model = SViTTEgoVisionModel._from_config(config, attn_implementation="sdpa").eval().bfloat16()
    # And as plain products, because torch 2.11 does not count the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 2, 3, 64, 64))
    counted = counter.get_total_flops()
    # [CLS]'s row is scored once more where a layer prunes after library attention; the last block is filled up.
    assert benchmark["tower_flops"](config, 2) == pytest.approx(counted, rel=0.02)


def test_the_bound_is_that_of_the_base_size(benchmark):
    """Catches the bound drifting: 156.1 GFLOP dense at 4 frames, 1.71 times fewer with both, projection apart."""
    flops, config = benchmark["tower_flops"], benchmark["vision_config"]
    dense, both = (flops(config(name, 4), 4) / 1e9 for name in ("dense", "both"))
    projection = 2 * 784 * 768**2 / 1e9
    assert dense - projection == pytest.approx(156.1, abs=0.1)
    assert flops(config("edge", 16), 16) / 1e9 - 4 * projection == pytest.approx(559.0, abs=0.5)
    assert (dense - projection) / (both - projection) == pytest.approx(1.71, abs=0.01)


def test_an_interrupted_run_goes_on_and_only_measures_what_is_missing(benchmark, tmp_path, capsys, monkeypatch):
    """Catches a record that is started over, or rounds counted twice."""
    path = tmp_path / "attention.json"
    weighed = []

    def weigh(name, num_frames, arguments):
        weighed.append(name)
        return {"peak_bytes": 1, "saved_bytes": 1}

    monkeypatch.setitem(benchmark["run"].__globals__, "_weigh_apart", weigh)
    sizes = json.dumps(SMALL | {"prune_layers": [1]})
    given = ["--output", str(path), "--frames", "1", "--kinds", "step", "--sizes", sizes, "--threads", "1"]
    given += ["--device", "cpu", "--only", "dense/library", "both/sdpa", "--keep-models"]
    benchmark["main"]([*given, "--rounds", "1"])
    first = json.loads(path.read_text())["runs"]["T1-B1"]["step"]
    benchmark["main"]([*given, "--rounds", "2"])
    second = json.loads(path.read_text())["runs"]["T1-B1"]["step"]
    assert weighed == ["dense/library", "both/sdpa"]
    for name in ("dense/library", "both/sdpa"):
        assert second[name][:1] == first[name] and len(second[name]) == 2
    assert "step: against the best dense one (dense/library) both/sdpa is" in capsys.readouterr().out


def test_ratios_are_taken_within_a_round(benchmark):
    """Catches a ratio of medians: the machine was three times slower in the second round, the ratio was not."""
    times = {"dense/library": [4.0, 12.0, 4.4], "both/sdpa": [2.0, 6.0, 2.2]}
    assert benchmark["speedup"](times, "both/sdpa") == 2.0
    assert benchmark["speedup"](times, "bigbird") is None


def test_every_configuration_runs_a_step(benchmark):
    """Catches an implementation that the script names and cannot run; without a GPU the flex ones are not listed."""
    sizes = SMALL | {"num_hidden_layers": 1, "prune_layers": [0], "num_attention_heads": 3}
    names = benchmark["names"]("cpu")
    assert not any("flex" in name for name in names) and any("flex" in name for name in benchmark["names"]("cuda"))
    for name in names:
        runner = benchmark["Runner"](name, 4 if name in benchmark["OTHERS"] else 2, 1, "cpu", False, sizes)
        assert runner.timed("step") > 0 and runner.timed("forward") > 0
