"""The variants in hub_configs/: they load, they are what regenerate.py says, and they have the sizes we publish."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

import modeling_svitt_ego  # noqa: F401  (registers the Auto classes)
from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.released_checkpoint import load_original_checkpoint

REPO = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (REPO / "hub_configs").glob("*/config.json"))
# (AutoModel: both towers; AutoModelForPreTraining), as in README's table. Sparsity costs no parameters.
PARAMETERS = {
    "svitt-ego-base": (174_415_137, 203_394_653),
    "svitt-ego-base-1-5-56": (174_415_137, 203_394_653),
    "svitt-ego-base-dense": (174_415_137, 203_394_653),
    "svitt-ego-base-edge": (174_415_137, 203_394_653),
    "svitt-ego-base-node": (174_415_137, 203_394_653),
    "svitt-ego-base-temporal": (174_415_137, 203_394_653),
}


@pytest.fixture(scope="module")
def regenerate():
    spec = importlib.util.spec_from_file_location("regenerate", REPO / "hub_configs" / "regenerate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_writes(regenerate, tmp_path):
    """Against edits by hand, and against a changed default that a file does not follow."""
    regenerate.main(tmp_path)
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.json")}
    assert {path.parent.name for path in written} == {*PARAMETERS, "svitt-ego-tiny"}
    for path, text in written.items():
        assert (REPO / "hub_configs" / path).read_text() == text, f"{path}: run hub_configs/regenerate.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_variant_builds_with_the_published_size(folder):
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        sizes = tuple(auto.from_config(config).num_parameters() for auto in (AutoModel, AutoModelForPreTraining))
    assert sizes == PARAMETERS.get(folder.name, sizes)
    pattern = rf"^\|\s*{folder.name}(?: \([^|]*\))?\s*\|(.*)$"
    row = re.search(pattern, (REPO / "README.md").read_text(), re.MULTILINE)
    assert row is not None, f"README's table has no row for {folder.name}"
    assert all(f"{size:,}" in row[1] for size in sizes), row[0]


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_variants_sparsity_is_what_its_name_says(name):
    config = AutoConfig.from_pretrained(REPO / "hub_configs" / name)
    vision, fusion = config.vision_config, config.cross_modal_config
    edges = (vision.num_local_blocks, vision.num_temporal_blocks, vision.num_random_blocks, vision.block_size)
    nodes = (vision.keep_rate, vision.prune_layers, fusion.keep_rate, fusion.prune_layers)
    pruned, whole = (0.7, [3, 6, 9], 0.1, [0]), (1.0, [], 1.0, [])
    kind = name.removeprefix("svitt-ego-base").removeprefix("-")
    assert nodes == (whole if kind in ("dense", "edge") else pruned)
    if kind in ("dense", "node"):
        assert vision.num_random_blocks is None
    else:
        assert edges == {"1-5-56": (1, 0, 5, 56), "temporal": (1, 2, 1, 49)}.get(kind, (1, 0, 3, 56))
    assert vision.released_attention is (kind == "1-5-56")
    assert vision.keep_strategy == ("motion" if kind == "temporal" else "cls_attn")


def test_1_5_56_is_what_converting_the_release_gives(shared_dir, regenerate):
    """Key by key: a model trained from this configuration and the released one differ in nothing but weights."""
    spec = json.loads((shared_dir / "golden" / "state_dict_full_pretrain.json").read_text())
    original = {k: torch.empty(x["shape"], dtype=getattr(torch, x["dtype"]), device="meta") for k, x in spec.items()}
    converted = regenerate.config_json(load_original_checkpoint(original).config)
    assert converted == json.loads((REPO / "hub_configs" / "svitt-ego-base-1-5-56" / "config.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_variants_video_processor_loads(name):
    folder = REPO / "hub_configs" / name
    processor = SViTTEgoVideoProcessor.from_pretrained(folder)
    vision = AutoConfig.from_pretrained(folder).vision_config
    assert processor.num_frames == vision.num_frames
    assert dict(processor.size) == {"height": vision.image_size, "width": vision.image_size}
    assert processor.antialias is not vision.released_attention
