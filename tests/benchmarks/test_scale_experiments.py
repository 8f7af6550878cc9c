"""benchmarks/scale_experiments.py at tiny size: world, shards and a run, and a second call that finds them."""

import importlib
import json

from tests.benchmarks.test_experiments import Here

scale_experiments = importlib.import_module("scale_experiments")


def test_a_call_makes_everything_and_the_next_one_finds_it(tmp_path, monkeypatch, capsys):
    """Catches a stage that is done again, and shards that the experiments do not read."""
    monkeypatch.setattr(scale_experiments.experiments, "ProcessPoolExecutor", Here)
    line = ["--work", str(tmp_path), "--scale", "tiny", "--train-videos", "1", "--test-videos", "6", "--steps", "1"]
    line += ["--batch-size", "8", "--seeds", "0", "--only", "2", "--workers", "0", "--setting", "InfoNCE"]
    scale_experiments.main(line)
    (run,) = json.loads((tmp_path / "results" / "experiment_2.json").read_text())["runs"]
    assert run["data"] == "shards and egomcq.json" and run["result"]["steps"] == 1
    capsys.readouterr()
    scale_experiments.main(line)
    assert "nothing to render" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results" / "experiment_2.json").read_text())["runs"]) == 1
