"""What the training log says of clips that could not be read: a count at each step, files and reasons at the end."""

import logging

import pytest

from modeling_svitt_ego.data.failures import TooManyClipFailures
from tests.helpers.tiny_pretraining import make_corpus, make_trainer


@pytest.fixture
def corpus(tmp_path):
    """Two of 16 clips lie past the end of their video."""
    root = make_corpus(tmp_path)
    lines = (root / "e.csv").read_text().splitlines()
    for number in (3, 8):
        cells = lines[number].split("\t")
        cells[6:8] = "70.0", "71.0"
        lines[number] = "\t".join(cells)
    (root / "e.csv").write_text("\n".join(lines) + "\n")
    return root


def skipping_trainer(corpus, max_failure_share, **arguments):
    trainer = make_trainer(corpus, corpus / "out", max_steps=8, **arguments)
    dataset = trainer.train_dataset
    dataset.on_error, dataset.failures.max_share = "skip", max_failure_share
    return trainer


def test_the_log_counts_and_the_end_lists_them(corpus, caplog):
    """Catches failures that only a worker's screen shows, and a run that ends without naming them."""
    trainer = skipping_trainer(corpus, 0.5)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    failures = trainer.train_dataset.failures
    assert failures.num_failures >= 2
    counts = [entry.get("unreadable_clips", 0) for entry in trainer.state.log_history if "loss" in entry]
    assert counts == sorted(counts) and counts[-1] >= 2
    (said,) = [record.getMessage() for record in caplog.records if "At the end of training" in record.getMessage()]
    for uid in ("video-a", "video-b"):
        assert f"{uid}/0.mp4: " in said
    assert "is outside the video of 20.000 s" in said and str(failures.path) in said
    # The stand-ins are of the same minute, so every partner counted by the sampler was one.
    assert failures.num_moved == 0 and trainer.batch_sampler.statistics.scene_partners > 0


def test_too_many_end_the_run_with_the_list(corpus):
    """Catches a run that goes on over a broken corpus, and an end that does not say why."""
    trainer = skipping_trainer(corpus, 0.0)
    with pytest.raises(TooManyClipFailures, match=r"(?s)max_failure_share=0 .*\n  1 x .*0.mp4: .*outside the video"):
        trainer.train()
    assert trainer.state.global_step < 8


def test_a_clean_run_says_nothing(tmp_path, caplog):
    trainer = make_trainer(make_corpus(tmp_path), tmp_path / "out", max_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "At the end of training" not in caplog.text
    assert not any("unreadable_clips" in entry for entry in trainer.state.log_history)
