"""benchmarks/clip_reading.py, on a video of a few seconds: what it says it measures is in its file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("decord", reason="the ratio is to decord, which has no wheel for this platform")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "clip_reading.py"
LAYOUTS = ("raw, undivided", "chunks of 600 s", "chunks of 300 s", "chunks of 15 s", "chunks of 15 s, VP9")


def test_every_layout_decoder_and_frame_count_is_measured(tmp_path):
    """Catches a combination that is left out, shares that are no shares, and a resize compared with another frame."""
    options = ["--seconds", "17", "--height", "96", "--clips", "3", "--repeats", "1", "--frames", "2", "4"]
    output = tmp_path / "new" / "clip_reading.json"
    command = [sys.executable, str(SCRIPT), *options, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text())
    measured = {(row["layout"], row["backend"], row["num_frames"]) for row in result["reading"]}
    wanted = {(layout, backend, n) for layout in LAYOUTS for backend in ("auto", "decord", "pyav") for n in (2, 4)}
    assert wanted | {("jpeg shards", "pillow", n) for n in (2, 4)} <= measured
    assert all(row["cpu_ms_per_clip"] > 0 and row["ratio"] > 0 for row in result["reading"])
    assert len(result["encodings"]) == 5 and all(row["cpu_ms_per_clip"] > 0 for row in result["encodings"])
    for row in result["training_batch"]:
        assert row["shares"].keys() == {"decode", "resize", "transfer"}
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.01)
    # Another frame of the moving texture would be below 16 dB.
    assert [row["psnr_db"] > 16 for row in result["decode_time_resize"]] == [True, True]
    assert result["versions"]["decord"] and result["machine"]["cores"] and options[0] in result["command"]
