"""examples/jobs: inline dependencies that installers understand, and a run of each on tiny shards."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import modeling_svitt_ego
from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.data.clip_shards import ShardSettings, write_clip_shards
from modeling_svitt_ego.hub.upload import find_parts
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video
from tests.helpers.tiny_folder import save_tiny_folder

JOBS = Path(__file__).resolve().parents[2] / "examples" / "jobs"
CAPTURED = {"capture_output": True, "text": True}
QUICK = "--use_cpu --max_steps 2 --per_device_train_batch_size 4 --report_to none --disable_tqdm true".split()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / f"{uid}.mp4", 200, first=5 * first)
    csv = write_egoclip(root / "e.csv", [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(12)])
    settings = ShardSettings(frames_per_clip=4, clips_per_shard=6)
    write_clip_shards(csv, root / "videos", root / "shards", settings, num_workers=1, cache_dir=str(root / "c"))
    return root / "shards"


@pytest.mark.parametrize("name", ["pretrain.py", "finetune.py"])
def test_inline_dependencies(name):
    """PEP 723: a block of comments that is TOML, with requirements as pip writes them and as setup.py has them."""
    tomllib = pytest.importorskip("tomllib")
    text = (JOBS / name).read_text(encoding="utf-8")
    (block,) = re.findall(r"(?m)^# /// script\n((?:#(?: .*)?\n)+)# ///$", text)
    content = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    setup = (JOBS.parents[1] / "setup.py").read_text(encoding="utf-8")
    for requirement in content["dependencies"]:
        assert Requirement(requirement).name in text.split("# ///")[2] and f'"{requirement}"' in setup
    assert content["requires-python"] == ">=3.10" and 'python_requires=">=3.10"' in setup


@pytest.mark.parametrize("name", ["pretrain.py", "finetune.py"])
def test_the_command_of_the_docstring_is_one_that_hf_jobs_takes(name, tmp_path):
    """Catches an option that `hf jobs uv run` does not have, and a wheel of another name than pip writes."""
    hf = shutil.which("hf", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hf is None or "--dry-run" not in subprocess.run([hf, "jobs", "uv", "run", "--help"], **CAPTURED).stdout:
        pytest.skip("this huggingface_hub has no `hf jobs uv run --dry-run`")
    text = (JOBS / name).read_text(encoding="utf-8")
    (command,) = re.findall(r"(?ms)^    hf jobs (uv run .*?[^\\])\n", text)
    wheel = f"/wheels/modeling_svitt_ego-{modeling_svitt_ego.__version__}-py3-none-any.whl"
    assert f"--volume ./dist:/wheels --with {wheel} " in command
    words = shlex.split(command.replace("\\\n", " ").replace("--volume ./dist:/wheels", ""))  # would be uploaded
    words[2:2] = ["--dry-run", "--namespace", "user"]
    settings = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_nobody", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([hf, "jobs", *words], cwd=JOBS.parents[1], env=os.environ | settings, **CAPTURED)
    assert done.returncode == 0 and f"examples/jobs/{name}" in done.stdout and wheel in done.stdout, done.stderr


def test_pretraining_runs_saves_and_resumes(shards, tmp_path, capsys):
    model = save_tiny_folder(tmp_path / "start", SViTTEgoForPreTraining)
    arguments = ["--shards", str(shards), "--model", str(model), "--output_dir", str(tmp_path / "run"), *QUICK]
    arguments += ["--scene_aware_negatives", "false"]
    main = runpy.run_path(str(JOBS / "pretrain.py"))["main"]
    main([*arguments, "--save_steps", "1"])
    assert "12 clips" in capsys.readouterr().out
    assert find_parts(tmp_path / "run" / "model").files
    main(arguments)  # finished: loaded, not trained again
    assert find_parts(tmp_path / "run" / "model").files


def test_fine_tuning_runs_and_saves_what_can_be_pushed(shards, tmp_path):
    model = save_tiny_folder(tmp_path / "start")
    main = runpy.run_path(str(JOBS / "finetune.py"))["main"]
    main(["--shards", str(shards), "--model", str(model), "--output_dir", str(tmp_path / "run"), *QUICK])
    assert "modeling_svitt_ego.py" in find_parts(tmp_path / "run" / "model").files
