"""Training, evaluation, saving and resuming call nothing that the newest libraries warn of."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.training.memory_plan import count_bytes
from tests.helpers.tiny_model import tiny_config
from tests.helpers.tiny_pretraining import CHECKPOINTING, GENEROUS, free_port, make_corpus, make_trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("cached", [None, 8], ids=["plain", "cached"])
def test_one_process(cached, corpus, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        for steps in (2, 3):
            trainer = make_trainer(
                corpus,
                tmp_path,
                cls=SViTTEgoForPreTraining,
                max_steps=steps,
                save_strategy="steps",
                save_steps=1,
                contrastive_batch_size=cached,
                eval_strategy="no",
                **{CHECKPOINTING: True},
            )
            trainer.train(resume_from_checkpoint=steps > 2)
        trainer.evaluate(EgoClipDataset(trainer.train_dataset.table, trainer.train_dataset.store))
        trainer.save_model(str(tmp_path / "model"))
        assert trainer.state.global_step == 3
        count_bytes(tiny_config(), 2, 4, 9, checkpointing=True)


@pytest.mark.slow
def test_two_processes(corpus, tmp_path):
    """Catches the deprecated collectives."""
    script = Path(__file__).parents[1] / "helpers" / "recorded_run.py"
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    line += [script, corpus, tmp_path / "run", tmp_path / "record", "max_steps=2", "contrastive_batch_size=8"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONWARNINGS"] = "error::FutureWarning"
    subprocess.run([str(part) for part in line], check=True, env=environment, timeout=GENEROUS)
