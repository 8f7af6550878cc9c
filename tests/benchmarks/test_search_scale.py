"""benchmarks/search_scale.py on a few windows."""

import importlib
import json

import pytest

pytest.importorskip("faiss")


def test_both_ways_are_measured_at_the_size_of_the_base_model(tmp_path):
    """Catches windows that are counted as hours at another rate, and vectors of another width."""
    importlib.import_module("search_scale").main(
        ["--windows", "13500", "--rounds", "1", "--output", str(tmp_path / "scale.json")]
    )
    rows = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert [(row["windows"], row["hours"], row["width"]) for row in rows] == [(13500, 2.0, 256)] * 2
    assert all(row["cpu_ms"] > 0 and row["ms"] > 0 for row in rows)
