"""The demo's parts on the smallest world: what it writes, and that the folder loads where the package is not."""

import filecmp
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.commands.demo import INSTRUCTION_SET
from modeling_svitt_ego.demo.demo import DemoSettings, run_demo
from modeling_svitt_ego.evaluation.kept_patches import surviving_patches
from modeling_svitt_ego.hub.configs import hub_config

SMALLEST = DemoSettings(train_videos=1, test_videos=6, seconds_per_video=25.0, epochs=1.0, batch_size=8)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    return output, run_demo(output, SMALLEST)


def test_metrics_file_has_the_three_evaluations_in_per_cent(demo):
    output, results = demo
    written = json.loads((output / "demo_metrics.json").read_text())
    assert written == json.loads(json.dumps(results))
    for name in ("trained", "untrained", "shuffled_frames"):
        entry = written[name]
        assert entry["num_questions"] == entry["num_inter"] + entry["num_intra"] > 20
        assert 0 <= entry["inter"] <= 100 and 0 <= entry["intra"] <= 100


def test_the_same_seed_gives_the_same_bits(demo, tmp_path):
    """Catches a draw outside the seed, or an order of sums that depends on which process is first."""
    output, results = demo
    torch.set_num_threads(2)  # the demo's own number counts, not the one that it finds
    assert run_demo(tmp_path, SMALLEST) == results
    for name in ("training_clips.npy", "model/model.safetensors"):
        assert filecmp.cmp(output / name, tmp_path / name, shallow=False), name
    assert not list((output / "world" / "train" / "videos").iterdir())


def test_saved_folder_loads_where_the_package_cannot_be_imported(demo, tmp_path):
    """Catches a file missing from the folder, or a shipped file that imports the package."""
    output, _ = demo
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, json, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'modeling_svitt_ego':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from transformers import AutoModel, AutoProcessor\n"
        "folder = sys.argv[1]\n"
        "model = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        "clip = {'path': sys.argv[2], 'start': 1.0, 'end': 2.0}\n"
        "inputs = processor(videos=[clip], text=['#C C picks up the cup'], return_tensors='pt')\n"
        "print(model(**inputs).logits_per_video.item())\n"
    )
    video = next((output / "world" / "test" / "videos").rglob("*.mp4"))
    command = [sys.executable, str(script), str(output / "model"), str(video)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.isfinite(float(done.stdout.split()[-1]))


def test_picture_has_a_row_per_stage_and_a_column_per_frame(demo):
    output, _ = demo
    width, height = Image.open(output / "pruning.png").size
    assert width > 4 * 192 and height > 3 * 192


def test_surviving_patches_are_those_the_tower_kept(tiny_tower):
    stages = surviving_patches(tiny_tower, torch.randn(4, 3, 64, 64))
    assert [int(stage.sum()) for stage in stages] == [64, 45, 32]
    assert all((later <= earlier).all() for earlier, later in zip(stages, stages[1:]))


@pytest.fixture
def tiny_tower():
    return SViTTEgoModel(hub_config("svitt-ego-tiny"))


def test_cli_answers_bad_input_with_one_line_and_code_2(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "no.csv"), str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert "no.csv" in error and len(error.splitlines()) == 1


def test_the_command_fixes_the_instruction_set_before_torch_is_loaded():
    """Catches an import that loads torch first: the choice would come too late and the bits depend on the machine."""
    script = """
import os, sys, types
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.commands.demo import INSTRUCTION_SET
assert "torch" not in sys.modules
class Settings:
    pass
fake = types.ModuleType("modeling_svitt_ego.demo.demo")
fake.DemoSettings = Settings
fake.run_demo = lambda output, settings, seed: print(seed, *(os.environ[name] for name in INSTRUCTION_SET))
sys.modules["modeling_svitt_ego.demo.demo"] = fake
import modeling_svitt_ego.commands.demo as command
command.replace = lambda settings, **fields: settings
raise SystemExit(main(["demo", "--seed", "3"]))
"""
    environment = {name: value for name, value in os.environ.items() if name not in INSTRUCTION_SET}
    environment["MKL_CBWR"] = "COMPATIBLE"  # a value that is set stays
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3", "avx2", "AVX2", "COMPATIBLE"]
