"""ONNX files and torch.export archives: equal to PyTorch, searchable, refused where they are not."""

import json

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoForPreTraining
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
