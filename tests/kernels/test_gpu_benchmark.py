"""benchmarks/gpu.py, which needs a GPU: its dry run, and its table."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import only_interpreted

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
QUICK = ["attention alone", "rate", "launches"]


def dry_run(tmp_path, *arguments):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(SCRIPT), "--dry", "--output", str(tmp_path / "gpu.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((tmp_path / "gpu.json").read_text())


def numbers(value) -> list:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


@only_interpreted
def test_a_dry_run_computes_and_measures_nothing(tmp_path):
    """Catches a script that fails on the card, and a dry record that could be taken for a measurement."""
    printed, record = dry_run(tmp_path, "--only", *QUICK)
    assert printed.splitlines()[-1] == "DRY RUN: nothing was measured."
    assert "figures" not in record and set(record["dry_run"]) == set(QUICK)
    assert all(record["dry_run"][name] for name in QUICK)
    assert numbers(record["dry_run"]) == []


@pytest.mark.slow
@only_interpreted
def test_every_figure_runs_dry(tmp_path):
    _, record = dry_run(tmp_path)
    assert len(record["dry_run"]) == 10 and all(record["dry_run"].values())


def test_the_table_names_what_failed_and_what_was_skipped(tmp_path, monkeypatch):
    """Catches a failed figure that looks like one that was not asked for."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    table = runpy.run_path(str(SCRIPT))["table"]
    tower = {
        "T=8 B=32 both": {"step ms": 50.0, "forward ms": 20.0, "peak MB": 8000},
        "T=8 B=32 dense, flash without bias": {"step ms": 100.0, "forward ms": 50.0, "peak MB": 12000},
        "T=4 B=32 both": {"error": "out of memory"},
    }
    figures = {"tower": tower, "batches": {"skipped": "3 s were left and about 5 s are needed"}}
    lines = table({"machine": {"processor": "a card"}, "figures": figures}).splitlines()
    assert any(line.startswith("both ") and "50 (20) · 8,000" in line and "out of memory" in line for line in lines)
    assert "step ms of 'dense, flash without bias' / both: 2.00, –, –, –" in lines
    assert lines[-1] == "batches: skipped 3 s were left and about 5 s are needed"
