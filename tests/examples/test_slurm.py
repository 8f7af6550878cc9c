"""examples/slurm and examples/docker, run with stand-ins for what only a cluster has."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.data.layouts import VideoStore
from tests.helpers.tiny_data import write_video

REPO = Path(__file__).resolve().parents[2]
SLURM = REPO / "examples" / "slurm"

# The stand-ins write down how they were called. "torchrun" trains until SIGTERM, then saves for a moment.
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" = show ] && printf "node-a\\nnode-b\\n" || true',
    "torchrun": """trap 'sleep 0.5; echo saved >> "$CALLS"; exit 143' TERM
echo "torchrun $*" >> "$CALLS"; echo "timeout $TORCH_ELASTIC_SHUTDOWN_TIMEOUT" >> "$CALLS"
for i in $(seq "$STEPS"); do sleep 0.1; done
echo finished >> "$CALLS"; exit "$CODE" """,
    "svitt-ego": f'exec {sys.executable} -m modeling_svitt_ego.cli "$@"',
}


@pytest.fixture
def environment(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, content in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{content}\n")
        (folder / name).chmod(0o755)
    return {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPO),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8",
        "STEPS": "0", "CODE": "0",
    }  # fmt: skip


def start(script, *arguments, env):
    command = ["bash", str(SLURM / script), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=REPO)


def test_the_array_prepares_everything_once(tmp_path, environment):
    """Catches a shard that is numbered from 1, and a task that fails because one video cannot be read."""
    for i in range(4):
        write_video(tmp_path / "raw" / f"v{i}.mp4", 20)
    (tmp_path / "raw" / "bad.mp4").write_bytes(b"no video")
    options = ["--chunk-seconds", "1", "--short-side", "32"]
    arguments = [tmp_path / "raw", tmp_path / "out", *options]
    for task in range(2):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        process = start("prepare_array.sbatch", *arguments, env=environment | array)
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
    assert main(["prepare", *map(str, arguments), "--merge"]) == 1  # the unreadable one is listed
    assert [VideoStore(tmp_path / "out", "avion").chunks(f"v{i}")[0][0] for i in range(4)] == [0.0] * 4
    process = start("prepare_array.sbatch", tmp_path / "absent", tmp_path / "out", env=environment | array)
    assert process.wait(timeout=600) == 2


def test_a_pretraining_job_saves_queues_itself_again_and_resumes(tmp_path, environment):
    """Catches a job that is requeued before its checkpoint is whole, and one that is requeued after its end."""
    process = start("pretrain.sbatch", "--output_dir", "runs/x", env=environment | {"STEPS": "6000"})
    deadline = time.monotonic() + 1800
    calls = Path(environment["CALLS"])
    while not (calls.exists() and "timeout" in calls.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=1800)
    assert process.returncode == 0, error
    lines = calls.read_text().splitlines()
    assert lines[-2:] == ["saved", "scontrol requeue 7"]
    run = next(line for line in lines if line.startswith("torchrun"))
    assert "--nnodes 2 --nproc_per_node 8" in run and "--rdzv_endpoint node-a:29500" in run
    assert run.endswith("examples/pretrain_egoclip.py --resume --output_dir runs/x") and "timeout 240" in lines
    for code in ("0", "3"):
        calls.unlink()
        process = start("pretrain.sbatch", env=environment | {"CODE": code})
        process.communicate(timeout=1800)
        assert process.returncode == int(code) and "requeue" not in calls.read_text()


def test_the_dockerfile_runs_the_two_commands_of_the_readme():
    text = (REPO / "examples" / "docker" / "Dockerfile").read_text()
    readme = (REPO / "README.md").read_text()
    assert "pip install -e . && svitt-ego demo" in readme and 'pytest -q -n 2 tests -m "not slow"' in readme
    assert "svitt-ego demo && pytest -q -n 2 tests -m 'not slow'" in text
    assert '-e ".[test]"' in text and "COPY . ." in text
