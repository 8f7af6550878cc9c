"""benchmarks/export.py on the tiny variant: every file is there, compared and timed."""

import importlib
import json

import pytest

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_every_file_is_compared_and_timed(tmp_path):
    """Catches an export that failed and was left out, and a ratio that is not to PyTorch."""
    options = ["--config", "svitt-ego-tiny", "--rounds", "1", "--batch-sizes", "2"]
    importlib.import_module("export").main([*options, "--output", str(tmp_path / "export.json")])
    result = json.loads((tmp_path / "export.json").read_text())
    exports = result["exports"]
    assert exports["archive"]["megabytes"] > 3
    assert all(tower["max_error"] <= 1e-4 for tower in exports["onnxruntime"]["towers"])
    int8 = exports["onnxruntime, int8"]
    assert [int8[tower]["precision"] for tower in ("text", "video")] == ["int8", "int8"]
    timed = {(row["tower"], row["engine"]): row["ratio"] for row in result["speed"]}
    assert len(timed) == 8 and all(timed[tower, "PyTorch"] == 1 for tower in ("video", "text", "both"))
