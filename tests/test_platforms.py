"""What other platforms lack: decord and triton on arm64 and macOS, fork and slashes on Windows."""

import ntpath
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_svitt_ego.model.clip_reading import ClipReadError, read_clip
from modeling_svitt_ego.model.video_source import is_url
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video

REPO = Path(__file__).resolve().parents[1]
# Reading and attention; tests/helpers/block_modules.py says how to run everything in this way.
WITHOUT_WHEELS = [
    "tests/model/test_clip_reading.py::test_a_decoder_that_is_missing_or_unknown_is_an_error",
    "tests/model/test_exact_reading.py::test_auto_is_pyav_and_says_what_the_others_would_do",
    "tests/model/test_video_processing.py::test_windows_of_files",
    "tests/model/test_sparsity.py",
    "tests/data/test_clips.py",
]


def environment(**changes) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"} | changes


def test_reading_and_attention_without_decord_torchcodec_and_triton():
    """Catches an import of a wheel that Linux on arm64 and macOS do not have."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "tests.helpers.block_modules",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *WITHOUT_WHEELS],
        cwd=REPO,
        env=environment(SVITT_EGO_BLOCK="decord,torchcodec,triton"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


WITHOUT_FORK = """
import multiprocessing, os, sys

def no_fork(*arguments):
    raise OSError("there is no fork on this platform")

if __name__ == "__main__":
    os.fork = no_fork
    del os.forkpty
    multiprocessing.set_start_method("spawn")
    import torch
    from modeling_svitt_ego.cli import main
    from modeling_svitt_ego.data import EgoClipDataset, VideoStore, load_egoclip

    raw, table, out = sys.argv[1:]
    assert main(["prepare", raw, out, "--chunk-seconds", "300", "--short-side", "32", "--num-workers", "2"]) == 0
    clips = EgoClipDataset(load_egoclip(table), VideoStore(raw), num_frames=2)
    loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=2)
    alone = [clips[i]["video"] for i in range(len(clips))]
    for mine, theirs in zip(alone, loader, strict=True):
        assert (torch.as_tensor(mine) == torch.as_tensor(theirs["video"])).all()
    print(len(alone), "clips")
"""


def test_workers_without_fork(tmp_path):
    """Catches a lambda or an open reader in a data set, and a pool that counts on fork (Windows, macOS)."""
    write_video(tmp_path / "raw" / "video-a.mp4", 200)
    write_video(tmp_path / "raw" / "video-b.mp4", 40)
    write_egoclip(tmp_path / "egoclip.csv", [egoclip_row(i) for i in range(4)])
    (tmp_path / "script.py").write_text(WITHOUT_FORK)
    arguments = [tmp_path / "raw", tmp_path / "egoclip.csv", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", *map(str, arguments)],
        cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "hf"), HF_DATASETS_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 clips" in done.stdout


WITHOUT_UNIX = """
import pkgutil, types
import psutil  # which needs them on this platform
from tests.helpers.block_modules import block

block({"resource", "grp", "syslog"})
import modeling_svitt_ego

for module in pkgutil.walk_packages(modeling_svitt_ego.__path__, "modeling_svitt_ego."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from modeling_svitt_ego.training.run_summary import peak_memory

psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=5)  # of Windows only
print(peak_memory())
"""


def test_every_module_is_imported_without_those_of_unix():
    """Catches a module that cannot be imported on Windows, and a run that ends there without its peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX],
        cwd=REPO,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(5, 'main process')"


@pytest.mark.parametrize("path", [r"C:\videos\v.mp4", "C:/videos/v.mp4", "C://videos/v.mp4", r"\\server\share\v.mp4"])
def test_paths_of_windows_are_paths(path):
    """Catches a drive letter taken for the scheme of an address."""
    assert ntpath.isabs(path) and not is_url(path)
    with pytest.raises(ClipReadError, match="no such file"):
        read_clip(path, [0.0])


@pytest.mark.skipif(os.name == "nt", reason="Windows allows none of these names")
@pytest.mark.parametrize("name", ["C:v.mp4", "http:v.mp4", "a%03d.mp4", "*.mp4", "[1].mp4", "-i.mp4", "ü 中.mp4"])
def test_names_that_ffmpeg_could_take_for_something_else(tmp_path, monkeypatch, name):
    """Catches a protocol, a pattern or an option read into a file's name."""
    write_video(tmp_path / name, 10)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        assert read_clip(path, [0.25]).shape == (1, 32, 48, 3)
