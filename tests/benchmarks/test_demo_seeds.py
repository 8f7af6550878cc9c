"""benchmarks/demo_seeds.py: the numbers of its table, and finished folders that are read and not run again."""

import importlib
import json

demo_seeds = importlib.import_module("demo_seeds")


def write_metrics(folder, inter, intra):
    folder.mkdir(parents=True)
    value = {"inter": inter, "intra": intra}
    metrics = {"untrained": {"inter": 20.0, "intra": 20.0}, "trained": value, "shuffled_frames": value}
    (folder / "demo_metrics.json").write_text(json.dumps(metrics))


def test_finished_seeds_are_summed_up_by_mean_deviation_and_extremes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_seeds, "subprocess", None)  # a run would need it
    for seed, (inter, intra) in enumerate([(90.0, 70.0), (94.0, 80.0), (98.0, 75.0)]):
        write_metrics(tmp_path / "work" / str(seed), inter, intra)
    (tmp_path / "work" / "1" / "demo_seconds.json").write_text('{"seconds": 200.0, "cpu_seconds": 250.0}')
    output = tmp_path / "seeds.json"
    demo_seeds.main(["--seeds", "0,1,2", "--work", str(tmp_path / "work"), "--output", str(output)])
    assert "| **trained** | 94.0 ± 4.0 (90.0 to 98.0) | 75.0 ± 5.0 (70.0 to 80.0) |" in capsys.readouterr().out
    record = json.loads(output.read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2] and record["commit"]
    assert record["runs"][1]["cpu_seconds"] == 250.0 and "seconds" not in record["runs"][0]
