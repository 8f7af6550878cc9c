"""examples/finetune_classification.py with minimal settings, on each of the three benchmarks' synthetic files."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.demo.synthetic_benchmarks import write_charades_ego, write_egtea, write_epic_kitchens
from modeling_svitt_ego.demo.synthetic_world import build_world
from modeling_svitt_ego.hub.configs import hub_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_classification.py"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune_classification")
    world = build_world(folder / "world", {"train": 1, "test": 1}, 20.0, height=48, num_workers=1)
    write_epic_kitchens(world, folder / "epic"), write_egtea(world, folder / "egtea")
    write_charades_ego(world, folder / "charades")
    torch.manual_seed(0)
    SViTTEgoModel(hub_config("svitt-ego-tiny")).save_pretrained(folder / "model")
    build_processor([*load_egoclip(world["train"].egoclip)["clip_text"]]).save_pretrained(folder / "model")
    spec = importlib.util.spec_from_file_location("finetune_classification", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example, folder


@pytest.mark.parametrize(
    ("benchmark", "files", "videos", "method", "metric"),
    [
        ("epic", "EPIC_100_train.csv EPIC_100_validation.csv", "videos", "lora", "action_top1"),
        ("egtea", "train_split1.txt test_split1.txt", "cropped_clips", "attentive", "action_mean_class"),
        ("charades", "CharadesEgo_v1_train_only1st.csv CharadesEgo_v1_test_only1st.csv", "videos", "linear", "map"),
        ("epic", "EPIC_100_train.csv EPIC_100_validation.csv", "videos", "full", "verb_top1"),
        ("epic", "EPIC_100_train.csv EPIC_100_validation.csv", "videos", "full --joint-action", "action_top1"),
        ("egtea", "train_split1.txt test_split1.txt", "cropped_clips", "full --mixup-alpha 0.8", "noun_top1"),
    ],
)
def test_every_method_saves_what_it_measured(start, benchmark, files, videos, method, metric, capsys):
    """Catches a saved model without its heads or its merged adapters: the command scores it the same."""
    from modeling_svitt_ego.cli import main

    example, folder = start
    train, test = (str(folder / benchmark / name) for name in files.split())
    layout = {"epic": ["--layout", "epic"], "egtea": ["--layout", "egtea"], "charades": []}[benchmark]
    method, *options = method.split()
    output = folder / "-".join([benchmark, method, *options])
    common = ["--videos", str(folder / benchmark / videos), *layout, "--num-workers", "0"]
    settings = ["--epochs", "1", "--batch-size", "4", "--method", method, "--output", str(output), *options]
    results = example.main(["--model", str(folder / "model"), "--train", train, "--test", test, *common, *settings])
    assert json.loads((output / "results.json").read_text()) == results
    again = ["evaluate", "video-classification", str(output / "model"), "--annotations", test, *common]
    assert main([*again, "--output", str(output / "evaluation.json")]) == 0
    found = json.loads((output / "evaluation.json").read_text())["metrics"]
    assert found[metric] == pytest.approx(results["metrics"][metric])
    assert ("action_of_pair_top1" in found) == ("--joint-action" in options)


def test_options_that_do_not_fit_are_refused(start):
    example, folder = start
    for benchmark, option in (("epic", ["--mixup-alpha", "0.5"]), ("egtea", ["--joint-action"])):
        names = ("EPIC_100_train.csv", "train_split1.txt")[benchmark == "egtea"]
        files = [part for kind in ("--train", "--test") for part in (kind, str(folder / benchmark / names))]
        with pytest.raises(ValueError, match=option[0]):
            example.main(["--model", str(folder / "model"), *files, "--videos", str(folder), *option])
