"""A run resumes only from a whole checkpoint of its own, returns if it was finished, and is never started over."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.training import checkpoints
from modeling_svitt_ego.training.manifest import MANIFEST_NAME, CheckpointError
from tests.helpers.tiny_data import egoclip_row, write_egoclip
from tests.helpers.tiny_pretraining import in_a_child, losses, make_corpus, make_trainer

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of three steps with three checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_trainer(corpus, folder, **SAVING).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, without what a run writes at its end."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("optimizer.pt", os.remove, "optimizer.pt is missing"),
        ("scheduler.pt", os.remove, "scheduler.pt is missing"),
        ("rng_state.pth", os.remove, "rng_state.pth is missing"),
        ("model.safetensors", cut, r"model.safetensors has \d+ bytes and was saved with \d+"),
        ("optimizer.pt", flip, "optimizer.pt has changed since it was saved"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named_and_the_one_before_is_taken(name, harm, said, corpus, run, caplog):
    """Catches a run that silently restarts part of its state, and one that stops although a whole one is there."""
    harm(run / "checkpoint-3" / name)
    trainer = make_trainer(corpus, run, **SAVING)
    with pytest.raises(CheckpointError, match=rf"checkpoint-3: .*{said}(.|\n)*Resume from .*checkpoint-2, which"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    with caplog.at_level(logging.WARNING):
        assert trainer.checkpoint_to_resume(True) == run / "checkpoint-2"
    assert "checkpoint-3 is damaged" in caplog.text


def test_an_empty_newer_folder_does_not_stop_the_resume(corpus, run, tmp_path):
    """Catches checkpoint-99, made and never filled, taken for the newest checkpoint."""
    (run / "checkpoint-99").mkdir()
    shutil.rmtree(run / "checkpoint-3")
    resumed = make_trainer(corpus, run, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(corpus, tmp_path / "whole", max_steps=3)
    whole.train()
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 42 there, 1 now"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 4 there, 2 now"),
        ({"scene_aware_negatives": False}, "scene_aware_negatives: True there, False now"),
    ],
)
def test_another_run_is_not_resumed_unless_asked_for(changes, said, corpus, run):
    """Catches another order of clips under a checkpoint's optimizer state."""
    settings = SAVING | {"max_steps": 4} | changes
    with pytest.raises(CheckpointError, match=f"{said}.*resume_changed"):
        make_trainer(corpus, run, **settings).train(resume_from_checkpoint=True)
    trainer = make_trainer(corpus, run, **settings, resume_changed=True)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_other_clips_and_another_vocabulary_are_not_resumed(corpus, run, tmp_path):
    """Catches a changed csv under --resume, and words that change places under trained embeddings."""
    other = make_corpus(tmp_path / "other")
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", clip_start=1.25 + i) for i in range(16)]
    write_egoclip(other / "e.csv", rows)
    with pytest.raises(CheckpointError, match=r"data: 16 rows, \w+ there, 16 rows, \w+ now"):
        make_trainer(other, run, **SAVING).train(resume_from_checkpoint=True)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", clip_text=f"#C C opens box {i}") for i in range(16)]
    write_egoclip(other / "e.csv", rows)
    trainer = make_trainer(other, run, **SAVING, resume_changed=True)
    with pytest.raises(CheckpointError, match=r"another vocabulary .*AutoProcessor.from_pretrained"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_manifest_says_so_once_and_is_checked_as_far_as_possible(corpus, run, caplog):
    """Catches older checkpoints refused, and a truncated file of theirs that is not named."""
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / MANIFEST_NAME).unlink()
    cut(run / "checkpoint-3" / "optimizer.pt")
    shutil.rmtree(run / "checkpoint-1")
    trainer = make_trainer(corpus, run, **SAVING)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert "checkpoint-3 is damaged and is not used: optimizer.pt: cut short" in caplog.text
    assert caplog.text.count("without a manifest") == 1


def test_a_finished_run_is_loaded_and_not_trained_further(corpus, run, caplog):
    """Catches one more step with each resume, and a summary of 0 clips over the run's own."""
    summary = (run / "run_summary.json").read_bytes()
    expected = torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"][0]["step"]
    trainer = make_trainer(corpus, run, **SAVING)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    output = trainer.train(resume_from_checkpoint=True)
    assert (output.global_step, trainer.state.global_step, int(expected)) == (3, 3, 3)
    assert output.training_loss > 0 and len(losses(trainer)) == 3
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert (run / "run_summary.json").read_bytes() == summary
    from safetensors.torch import load_file

    for name, value in load_file(run / "checkpoint-3" / "model.safetensors").items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    by_epochs = make_trainer(corpus, run, **SAVING | {"max_steps": -1}, num_train_epochs=0.375)  # of 8 steps
    assert by_epochs.train(resume_from_checkpoint=True).global_step == 3


def test_a_run_is_not_started_over_its_checkpoints(corpus, run):
    """Catches checkpoints rotated away by a command that lacks --resume."""
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(CheckpointError, match="holds 3 checkpoint.*--resume.*overwrite_output_dir"):
        make_trainer(corpus, run, **SAVING).train()
    assert sorted(path.name for path in run.iterdir()) == before
    trainer = make_trainer(corpus, run, **SAVING | {"max_steps": 1}, overwrite_output_dir=True)
    trainer.train()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    trainer.train()  # the folder is its own by now


def test_the_same_step_saved_twice_never_leaves_none(corpus, tmp_path):
    """Catches a kill between the renames that loses both the former and the new checkpoint."""
    run = tmp_path / "run"

    def killed():
        trainer = make_trainer(corpus, run, **SAVING | {"max_steps": 1})
        trainer.train()
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
        trainer._save_checkpoint(trainer.model, None)
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
        rename = Path.rename

        def rename_and_die(path, target):
            if path.parent.name == checkpoints.UNFINISHED:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = rename_and_die
        trainer._save_checkpoint(trainer.model, None)

    assert in_a_child(killed, tmp_path / "log") == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert get_last_checkpoint(run) is not None
    resumed = make_trainer(corpus, run, **SAVING | {"max_steps": 2})
    resumed.train(resume_from_checkpoint=True)
    assert len(losses(resumed)) == 2


def test_the_manifest_lists_every_file_and_is_flushed_with_them(corpus, tmp_path, monkeypatch):
    """Catches a file that no resume would miss, and a rename before its data is on the disk."""
    flushed, synced = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.readlink(f"/proc/self/fd/{file}")), synced(file)))
    make_trainer(corpus, tmp_path, **SAVING | {"max_steps": 1}).train()
    checkpoint = tmp_path / "checkpoint-1"
    files = {path.name for path in checkpoint.iterdir()}
    assert set(json.loads((checkpoint / MANIFEST_NAME).read_text())["files"]) == files - {MANIFEST_NAME}
    assert {Path(path).name for path in flushed} >= files | {"checkpoint-1", tmp_path.name}


def test_no_worker_outlives_the_training(corpus, tmp_path):
    """Catches loaders left to the garbage collector, which costs 5 seconds for each worker."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    trainer = make_trainer(corpus, tmp_path, max_steps=2, dataloader_num_workers=4)
    started = []
    step = trainer.training_step

    def seeing(*args, **kwargs):
        started.extend(child.pid for child in psutil.Process().children(recursive=True) if child.pid not in before)
        return step(*args, **kwargs)

    trainer.training_step = seeing
    trainer.train()
    assert len(set(started)) >= 4
    assert not [child for child in psutil.Process().children(recursive=True) if child.pid in started]


def test_a_resume_says_nothing_of_tied_weights(corpus, tmp_path, caplog):
    """Catches the decoder of masked language modelling, which shares the word embeddings, reported as missing."""
    settings = SAVING | {"cls": SViTTEgoForPreTraining, "max_steps": 1}
    make_trainer(corpus, tmp_path, **settings).train()
    trainer = make_trainer(corpus, tmp_path, **settings | {"max_steps": 2})
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2 and "missing keys" not in caplog.text
