"""How commands and example scripts end: mistakes and interrupts in one line, no process left behind."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_svitt_ego import cli
from modeling_svitt_ego.commands.running import Terminated, list_failures, one_line, run

REPO = Path(__file__).resolve().parents[2]


def ends(error):
    def work():
        raise error

    return run("svitt-ego test", work, "all is kept; go on with: svitt-ego test")


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("one\n  two"), 2, "svitt-ego test: one two"),
        (FileNotFoundError("There is no 'x'."), 2, "svitt-ego test: There is no 'x'."),
        (OSError(errno.ENOSPC, "no"), 2, "svitt-ego test: the disk is full; make space and run it again"),
        (KeyboardInterrupt(), 130, "svitt-ego test: interrupted; all is kept; go on with: svitt-ego test"),
        (Terminated(), 143, "svitt-ego test: terminated; all is kept; go on with: svitt-ego test"),
    ],
    ids=["value", "file", "disk", "interrupt", "terminate"],
)
def test_one_line_and_a_status(capsys, monkeypatch, error, status, line):
    monkeypatch.delenv("SVITT_EGO_DEBUG", raising=False)
    assert ends(error) == status
    assert capsys.readouterr().err.strip() == line
    monkeypatch.setenv("SVITT_EGO_DEBUG", "1")
    with pytest.raises(type(error)):
        ends(error)


def test_a_defect_keeps_its_traceback(monkeypatch):
    """Catches errors of ours that are sold as the user's."""
    monkeypatch.delenv("SVITT_EGO_DEBUG", raising=False)
    with pytest.raises(KeyError):
        ends(KeyError("x"))


def test_an_error_of_a_worker_process_is_its_last_line():
    text = "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  …\n"
    text += "OSError: 'c.mp4' is cut"
    assert one_line(OSError(text)) == "'c.mp4' is cut"


@pytest.mark.parametrize(
    "line, kept, then",
    [
        (["extract", "my videos", "o", "--model", "m"], "finished videos are kept", "continue with: {}"),
        (["search", "v", "a cup", "--model", "m"], "finished videos are kept in the cache", "continue with: {}"),
        (["convert", "in", "out"], "nothing was written", "start again with: {}"),
        (["pretrain", "--egoclip", "e.csv"], "checkpoints are kept", "continue with: {} --resume"),
        (["finetune", "--model", "m", "--resume"], "checkpoints are kept", "continue with: {}"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_interrupted_command_names_what_continues(monkeypatch, capsys, line, kept, then):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", [replace(command, run=stop) for command in cli.COMMANDS])
    assert cli.main(line) == 130
    error = capsys.readouterr().err.strip()
    assert kept in error and error.endswith(then.format(shlex.join(["svitt-ego", *line])))
    assert len(error.splitlines()) == 1


def test_many_failures_are_counted_and_the_first_are_named():
    """Catches a line for each of thousands of unreadable videos."""
    text = list_failures({f"v{number}.mp4": "it is cut" for number in range(1000)}, "out/failures.json")
    assert text.splitlines() == [
        *(f"  v{number}.mp4: it is cut" for number in range(5)),
        "  and 995 more, listed in out/failures.json",
    ]


def test_an_interrupt_in_a_destructor_is_not_lost(capsys):
    """Catches a Ctrl-C that Python drops because it arrived while an object was released."""

    class Released:
        def __del__(self):
            raise KeyboardInterrupt

    def work():
        Released()
        time.sleep(600)

    started = time.monotonic()
    assert run("svitt-ego test", work, "nothing is kept") == 130
    assert time.monotonic() - started < 600
    assert capsys.readouterr().err.strip() == "svitt-ego test: interrupted; nothing is kept"


POOL = """
import sys, time
from modeling_svitt_ego.commands.running import run
from modeling_svitt_ego.files.resumable_folder import run_jobs

def work():
    for _ in run_jobs(time.sleep, [(600,), (600,), (0,)], 3):
        print("ready", flush=True)

if __name__ == "__main__":
    sys.exit(run("test", work, "nothing is kept"))
"""
FORKED = """
import sys, time
from modeling_svitt_ego.commands.running import run
from modeling_svitt_ego.demo.synthetic_video import drawn_in_parallel

def work():
    for _ in drawn_in_parallel(time.sleep, [(600,), (600,), (0,)], 3):
        print("ready", flush=True)

if __name__ == "__main__":
    sys.exit(run("test", work, "nothing is kept"))
"""
LOADER = """
import sys, time
from torch.utils.data import DataLoader
from modeling_svitt_ego.commands.running import run
from modeling_svitt_ego.data.workers import start_worker
from modeling_svitt_ego.files.processes import workers_ignore_interrupts

class Slow:
    def __len__(self):
        return 100
    def __getitem__(self, index):
        time.sleep(600 if index else 0)
        return index

def work():
    with workers_ignore_interrupts():
        batches = iter(DataLoader(Slow(), batch_size=1, num_workers=2, worker_init_fn=start_worker))
    for _ in batches:
        print("ready", flush=True)

if __name__ == "__main__":
    sys.exit(run("test", work, "nothing is kept"))
"""


def session_members(session: int) -> list[int]:
    """Processes of a session that are not zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if folder.name.isdigit() and int(its_session) == session and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "number, status, to_all",
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True)],
    ids=["INT", "TERM", "TERM to all"],
)
@pytest.mark.parametrize("script", [POOL, FORKED, LOADER], ids=["pool", "forked", "loader"])
def test_workers_end_with_the_command_and_say_nothing(tmp_path, script, number, status, to_all):
    """Catches a traceback per worker, a wait for the jobs that are running, and processes that stay."""
    path = tmp_path / "work.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    # A suite that runs in the background of a shell ignores Ctrl-C, and so would its children.
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", hear, sys.executable, str(path)]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, start_new_session=True)
    try:
        assert process.stdout.readline() == "ready\n"
        if to_all:
            os.killpg(process.pid, number)  # as a terminal does with Ctrl-C, and Slurm with SIGTERM
        else:
            process.send_signal(number)
        _, error = process.communicate(timeout=600)
        assert process.returncode == status
        assert len(error.strip().splitlines()) == 1 and "nothing is kept" in error, error
        deadline = time.monotonic() + 600
        while session_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert session_members(process.pid) == []
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from safetensors.numpy import save_file
from modeling_svitt_ego.commands.running import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(run("test", lambda: save_file({"a": np.zeros(10000)}, sys.argv[1]), "nothing is kept"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
def test_a_full_disk_is_one_line(tmp_path):
    """Catches a traceback of safetensors, whose error is no OSError."""
    (tmp_path / "work.py").write_text(FULL_DISK)
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, str(tmp_path / "work.py"), str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "could not be written, perhaps because the disk is full" in done.stderr
