"""ONNX files and torch.export archives: equal to PyTorch, searchable, refused where they are not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel, SViTTEgoTextModel, SViTTEgoVisionModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.export import onnx as onnx_export
from modeling_svitt_ego.export.archive import export_archive
from modeling_svitt_ego.export.engine import OnnxDualEncoder
from modeling_svitt_ego.export.onnx import export_onnx
from modeling_svitt_ego.export.towers import TextTower, example_texts
from modeling_svitt_ego.features.search import VideoIndex
from modeling_svitt_ego.weights.loading import load_dual_encoder
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import NARRATIONS, save_tiny_folder
from tests.helpers.tiny_model import RAGGED

REPO = Path(__file__).resolve().parents[2]
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """
    A pretraining model: its folder has more than the two towers. Its text tower takes the processor's 32 tokens, its
    video tower has every kind of edge, also where tokens were pruned.
    """
    return save_tiny_folder(
        tmp_path_factory.mktemp("saved"),
        SViTTEgoForPreTraining,
        text={"max_position_embeddings": 32},
        vision=RAGGED | {"num_temporal_blocks": 2, "num_random_blocks": 1},
    )


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(saved), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    # With noise: equal patches would tie in pruning, and rounding would decide which of them stay.
    write_video(root / "a.mp4", 40, noise=16)
    write_video(root / "b.mp4", 27, first=3, noise=16)
    return root


def test_the_files_equal_pytorch_for_any_batch_and_text_length(saved, exported):
    """Catches a batch or length that was baked in, dropout that stayed on, and padding that counts."""
    model, processor = load_dual_encoder(saved, "cpu")
    engine = OnnxDualEncoder(exported)
    clips = torch.randn(5, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = processor(text=["#C C opens the box", "#C C picks up the cup again and again"], return_tensors="pt")
    with torch.no_grad():
        videos = model.get_video_features(clips).pooler_output
        narrations = model.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output
    torch.testing.assert_close(engine.get_video_features(clips).pooler_output, videos, rtol=1e-4, atol=1e-4)
    found = engine.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output
    torch.testing.assert_close(found, narrations, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="takes 4 frames, not 2"):
        engine.get_video_features(clips[:, :2])


def test_tokens_kept_by_motion_are_exported(tmp_path):
    """Catches a rule that tracing bakes in: export itself compares the file with PyTorch on clips of its own."""
    vision = RAGGED | {"num_temporal_blocks": 2, "num_random_blocks": 1, "keep_strategy": "motion"}
    folder = save_tiny_folder(tmp_path / "model", text={"max_position_embeddings": 32}, vision=vision)
    model, processor = load_dual_encoder(folder, "cpu")
    export_onnx(model, processor, tmp_path / "onnx")
    clips = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.get_video_features(clips).pooler_output
    found = OnnxDualEncoder(tmp_path / "onnx").get_video_features(clips).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert export_archive(model, tmp_path / "model.pt2") < 1e-5


def test_a_search_by_the_engine_finds_what_pytorch_finds(saved, exported, videos, tmp_path, capsys, monkeypatch):
    """Catches an engine that search cannot use, and features of one engine taken from the cache for the other."""
    monkeypatch.chdir(tmp_path)
    options = [str(videos), NARRATIONS[0], "--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert main(["search", *options, "--model", str(saved)]) == 0
    by_torch = capsys.readouterr().out
    assert main(["search", *options, "--model", str(exported), "--engine", "onnx"]) == 0
    assert capsys.readouterr().out == by_torch and len(list((tmp_path / "cache").iterdir())) == 4


def test_int8_is_compared_with_pytorch(saved, exported, videos, tmp_path, monkeypatch, capsys):
    """Catches an int8 file that nobody compared, and calibration clips of another size than the tower takes."""
    out = tmp_path / "int8"
    options = ["--int8-text", "--int8-video", str(videos), "--calibration-clips", "4"]
    assert main(["export", str(saved), str(out), *options]) == 0
    assert capsys.readouterr().out.count(" int8, ") == 2
    manifest = json.loads((out / "export.json").read_text())
    assert all(0.99 <= tower["min_cosine"] < 1 and tower["max_error"] > 1e-4 for tower in manifest["towers"])
    assert OnnxDualEncoder(out).fingerprint == manifest["fingerprint"] + "-int8-int8"

    model, _ = load_dual_encoder(saved, "cpu")
    copy = tmp_path / "text.onnx"
    copy.write_bytes((exported / "text.onnx").read_bytes())
    monkeypatch.setattr(onnx_export, "LOWEST_COSINE", 1.1)
    with pytest.raises(ValueError, match="text.onnx in int8 has a cosine of"):
        texts = [example_texts(model.config, 3, 7)]
        onnx_export._quantise(TextTower(model), copy, onnx_export._dynamic, texts)


def test_a_file_that_differs_from_pytorch_is_refused(saved, tmp_path, monkeypatch):
    """Catches a comparison that passes everything."""
    monkeypatch.setattr(onnx_export, "TOLERANCE", 1e-12)
    with pytest.raises(ValueError, match="video.onnx differs from PyTorch by"):
        export_onnx(*load_dual_encoder(saved, "cpu"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_replaced(saved, exported, capsys):
    assert main(["export", str(saved), str(exported)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_folder_that_is_no_export_is_named(saved):
    with pytest.raises(ValueError, match="has no export.json"):
        OnnxDualEncoder(saved)


def test_the_archive_runs_without_the_package(saved, tmp_path):
    """Catches an archive whose sizes are fixed, or that needs our classes to load."""
    model, processor = load_dual_encoder(saved, "cpu")
    assert export_archive(model, tmp_path / "model.pt2") < 1e-5
    whole = torch.export.load(str(tmp_path / "model.pt2")).module()
    clips = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = processor(text=NARRATIONS[:2], return_tensors="pt")
    with torch.no_grad():
        logits, *_ = whole(clips, texts["input_ids"], texts["attention_mask"])
        expected = model(clips, texts["input_ids"], texts["attention_mask"]).logits_per_video
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="exists already"):
        export_archive(model, tmp_path / "model.pt2")


def test_the_engine_indexes_as_pytorch_does(saved, exported, videos):
    """Catches features that differ beyond rounding."""
    model, processor = load_dual_encoder(saved, "cpu")
    ours = VideoIndex.build(OnnxDualEncoder(exported), processor, videos, cache_dir=None)
    theirs = VideoIndex.build(model, processor, videos, cache_dir=None)
    np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=1e-5)


def test_the_files_find_the_same_moments_where_torch_is_not_installed(saved, exported, tmp_path):
    """Catches files, or an example, that need PyTorch or transformers, and other frames than the package's."""
    video, sentence = write_video(tmp_path / "v.mp4", 60, noise=16, size=(64, 96)), NARRATIONS[0]
    script = f"import sys, runpy; sys.path.insert(0, {str(REPO)!r}); from tests.helpers.block_modules import block; "
    script += (
        "block({'torch', 'transformers', 'modeling_svitt_ego'}); sys.argv.pop(0); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    example = REPO / "examples" / "onnx_without_torch.py"
    command = [sys.executable, "-c", script, str(example), "--model", str(exported), "--top-k", "6"]
    done = subprocess.run([*command, str(video), sentence], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {float(row.split()[1]): float(row.split()[0]) for row in done.stdout.splitlines()}
    model, processor = load_dual_encoder(saved, "cpu")
    windows = [(str(video), float(start), float(start + 1)) for start in range(6)]
    with torch.no_grad():
        outputs = model(**processor(videos=windows, text=[sentence], return_tensors="pt"))
    cosines = (outputs.logits_per_text[0] * model.temperature).detach()
    assert [found[start] for _, start, _ in windows] == pytest.approx(cosines.tolist(), abs=0.02)
    assert max(found.values()) - min(found.values()) > 0.05  # the windows differ by more than the tolerance


def test_the_engine_makes_no_tower_of_pytorch(exported, videos, tmp_path, monkeypatch, capsys):
    """Catches a search by onnxruntime that makes the PyTorch model or reads its weights."""

    def refuse(self, *arguments, **options):
        raise AssertionError(f"{type(self).__name__} is made")

    for cls in (SViTTEgoModel, SViTTEgoVisionModel, SViTTEgoTextModel):
        monkeypatch.setattr(cls, "__init__", refuse)
    options = ["--model", str(exported), "--engine", "onnx", "--no-cache", "--html", str(tmp_path / "found.html")]
    assert main(["search", str(videos), NARRATIONS[0], *options]) == 0
    assert capsys.readouterr().out.startswith("1. ") and not list(exported.glob("*.safetensors"))
