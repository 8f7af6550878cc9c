"""examples/jobs: inline dependencies that installers understand, and a run of each on tiny shards."""

import re
import runpy
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.data.clip_shards import ShardSettings, write_clip_shards
from modeling_svitt_ego.hub.upload import find_parts
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video
from tests.helpers.tiny_folder import save_tiny_folder

JOBS = Path(__file__).resolve().parents[2] / "examples" / "jobs"
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
    """PEP 723: a block of comments that is TOML, with requirements as pip writes them."""
    tomllib = pytest.importorskip("tomllib")
    text = (JOBS / name).read_text(encoding="utf-8")
    (block,) = re.findall(r"(?m)^# /// script\n((?:#(?: .*)?\n)+)# ///$", text)
    content = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    (requirement,) = map(Requirement, content["dependencies"])
    assert requirement.name == "modeling-svitt-ego" and requirement.url.endswith(".whl")
    assert content["requires-python"] == ">=3.10"


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
