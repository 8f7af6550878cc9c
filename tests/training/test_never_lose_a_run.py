"""Kills, SIGTERM, full disks, NaN and dead workers: what is left, what is said, and that a resumed run is the same."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.evaluation.evaluator import Evaluator
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.training.checkpoints import UNFINISHED, CheckpointError
from modeling_svitt_ego.training.naming_clips import NonFiniteLoss, refuse_non_finite
from tests.helpers.tiny_pretraining import GENEROUS, in_a_child, losses, make_corpus, make_trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted():
    """Losses and final weights of the runs that nothing happened to, by name."""
    return {}


class SignalAt(TrainerCallback):
    """Sends this process and its workers a signal at the end of `step`."""

    def __init__(self, step, which=signal.SIGKILL):
        self.step, self.which = step, which

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            workers = multiprocessing.active_children()
            for pid in (*(worker.pid for worker in workers), os.getpid()):
                os.kill(pid, self.which)


RUNS = {
    "plain": {"max_steps": 6, "save_steps": 1},
    "cached": {"max_steps": 4, "save_steps": 1, "contrastive_batch_size": 8, "per_device_train_batch_size": 3},
    "cached-pretraining": {
        "cls": SViTTEgoForPreTraining,
        "max_steps": 3,
        "save_steps": 1,
        "contrastive_batch_size": 8,
        "per_device_train_batch_size": 3,
    },
    "stages": {"max_steps": 6, "save_steps": 2, "temporal_stages": "0:4:1.0:1,0.5:8:0.7:3"},
    "scaled": {"max_steps": 4, "save_steps": 1, "contrastive_batch_size": 8},
    "workers": {"max_steps": 4, "save_steps": 3, "dataloader_num_workers": 2},
}
# Steps after which the run is killed: also before the first checkpoint after a boundary, and between two checkpoints.
KILLED_AFTER = {
    "scaled": [3],
    "plain": [2, 5],
    "cached": [3],
    "cached-pretraining": [2],
    "stages": [4],
    "workers": [4],
}


def scaling(name, trainer):
    """With the GradScaler of an fp16 run, though in float32: accelerate has no fp16 on CPUs."""
    if name == "scaled":
        trainer.accelerator.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**127, backoff_factor=2.0**-20, growth_interval=2
        )
    return trainer


@pytest.mark.parametrize(("name", "step"), [(name, step) for name in RUNS for step in KILLED_AFTER[name]])
def test_a_killed_and_resumed_run_is_bit_equal(name, step, corpus, uninterrupted, tmp_path):
    """Catches data, patterns, drop path, schedule or optimizer state that a resumed run takes from elsewhere."""
    settings = {"save_strategy": "steps", "lr_scheduler_type": "cosine", **RUNS[name]}
    if name not in uninterrupted:
        whole = scaling(name, make_trainer(corpus, tmp_path / "whole", **settings))
        whole.train()
        uninterrupted[name] = losses(whole), whole.model.state_dict()
    expected_losses, expected = uninterrupted[name]

    def killed():
        trainer = scaling(name, make_trainer(corpus, tmp_path / "killed", **settings))
        trainer.add_callback(SignalAt(step))
        trainer.train()

    assert in_a_child(killed, tmp_path / "log") == -signal.SIGKILL, (tmp_path / "log").read_text()
    last = get_last_checkpoint(tmp_path / "killed")
    assert last is not None and int(last.rsplit("-", 1)[1]) < step
    resumed = scaling(name, make_trainer(corpus, tmp_path / "killed", **settings))
    resumed.train(resume_from_checkpoint=True)
    if name == "scaled":
        # Step 1 overflowed and was skipped; 2 and 3, on both sides of the kill, doubled what was left of the scale.
        assert resumed.accelerator.scaler.get_scale() == 2.0 ** (127 - 20 + 1)
        assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {3}
    assert losses(resumed) == expected_losses and len(set(expected_losses)) > 1
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(corpus, tmp_path):
    """Catches half a checkpoint under the name that resume takes for the newest."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}

    def killed():
        trainer = make_trainer(corpus, tmp_path / "run", **settings)
        save = trainer._save_rng_state

        def save_half(folder):
            if trainer.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            save(folder)

        trainer._save_rng_state = save_half
        trainer.train()

    assert in_a_child(killed, tmp_path / "log") == -signal.SIGKILL
    run = tmp_path / "run"
    assert (run / UNFINISHED / "checkpoint-2" / "model.safetensors").exists()
    assert get_last_checkpoint(run).endswith("checkpoint-1")
    resumed = make_trainer(corpus, run, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not (run / UNFINISHED).exists()


@pytest.mark.parametrize(
    ("which", "said", "exit_code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_signal_saves_says_so_and_exits_with_its_code(which, said, exit_code, corpus, tmp_path):
    """Catches a run that goes on, loses its steps, leaves as if it had finished, or with a traceback."""

    def stopped():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the process that forks this one may ignore it
        # Without save_strategy; with workers, because a terminal or Slurm sends the signal to them, too.
        trainer = make_trainer(corpus, tmp_path / "run", max_steps=6, dataloader_num_workers=2)
        trainer.add_callback(SignalAt(2, which))
        trainer.train()
        print("training went on")

    code, log = in_a_child(stopped, tmp_path / "log"), (tmp_path / "log").read_text()
    assert code == exit_code, log
    assert any(f"{said}: left after step {step} of 6, which is saved in" in log for step in (2, 3))
    assert "training went on" not in log and "Traceback" not in log
    resumed = make_trainer(corpus, tmp_path / "run", max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(corpus, tmp_path / "whole", max_steps=6)
    whole.train()
    assert losses(resumed) == losses(whole)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_leaves_at_once(corpus, tmp_path):
    """Catches a run that cannot be stopped while it saves."""
    trainer = make_trainer(corpus, tmp_path, max_steps=6)

    class Twice(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer.add_callback(Twice())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", "one process"])
def test_sigterm_to_one_of_two_processes_lets_both_leave_with_one_checkpoint(to, corpus, tmp_path):
    """Catches a process that waits for the other in vain, two checkpoints, and random state of one process only."""
    helpers = Path(__file__).parents[1] / "helpers"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def launch(record, max_steps, *more):
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        line += [helpers / "recorded_run.py", corpus, tmp_path / "run", tmp_path / record, f"max_steps={max_steps}"]
        return subprocess.Popen(
            [*map(str, line), 'ddp_backend="gloo"', *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )

    with launch("rest", 500) as run:
        printed, too_long = [], threading.Timer(GENEROUS, run.kill)
        too_long.start()
        for line in run.stdout:
            printed.append(line)
            if sum("'loss'" in line for line in printed) == 2:
                break
        processes = psutil.Process(run.pid).children()
        assert len(processes) == 2, "".join(printed)
        os.kill(run.pid if to == "launcher" else processes[1].pid, signal.SIGTERM)
        log = "".join(printed) + run.communicate(timeout=GENEROUS)[0]
        too_long.cancel()
    assert run.returncode != 0 and log.count("SIGTERM: left after step ") == 1, log
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert not (tmp_path / "run" / UNFINISHED).exists()
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"SIGTERM: left after step {step} of 500, which is saved in {checkpoint}." in log
    assert step >= 2 and not list(tmp_path.glob("rest-*")), "the run went on to its end"
    left = {path.name for path in checkpoint.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"} <= left
    if to == "launcher":
        with launch("more", step + 1, str(checkpoint)) as run:
            log = run.communicate(timeout=GENEROUS)[0]
        assert run.returncode == 0, log
        for rank in (0, 1):
            assert [entry[0] for entry in json.loads((tmp_path / f"more-{rank}.json").read_text())] == [step + 1]


def test_a_full_disk_is_said_and_the_old_checkpoint_is_whole(corpus, tmp_path):
    """Catches a disk that fills in the middle of a checkpoint: files may not grow past 64 KiB after step 1."""

    class Full(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))

    def filling():
        trainer = make_trainer(corpus, tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=3)
        trainer.add_callback(Full())
        trainer.train()

    code, log = in_a_child(filling, tmp_path / "log"), (tmp_path / "log").read_text()
    assert code == 1 and CheckpointError.__name__ in log
    message = log.splitlines()[-1]
    assert "checkpoint-2 could not be written" in message and "File too large" in message
    assert "MiB were free" in message and "checkpoint-1 is whole" in message
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint-1"]
    resumed = make_trainer(corpus, tmp_path / "run", max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("settings", [{}, {"contrastive_batch_size": 8}], ids=["plain", "cached"])
def test_nan_stops_before_the_update_and_names_the_clip(settings, corpus, tmp_path):
    """Catches a NaN that is averaged away in the log while the weights are already lost."""
    trainer = make_trainer(corpus, tmp_path, **settings)
    collate, made = trainer.data_collator, []

    def collate_with_nan(examples):
        batch = collate(examples)
        if len(made) == 5 - 3 * (not settings):  # a batch of the third step
            batch["pixel_values_videos"][1, 0, 0, 0, 0] = float("nan")
            made.append(examples[1])
        else:
            made.append(None)
        return batch

    trainer.data_collator = collate_with_nan
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train()
    clip = next(example for example in made if example is not None)
    message = str(error.value)
    assert "The loss of step 3 is nan" in message and "1 of its" in message
    assert f"row {clip['index']}: {clip['video_uid']} {clip['start']:.3f}" in message and clip["text"] in message
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_of_two_processes_the_one_with_the_nan_names_the_clip(monkeypatch):
    """Catches "no embedding is to blame" on the process that only gathered the NaN, and its own clips accused."""
    clips = [{"row": row, "video_uid": "a", "start": 0.0, "end": 1.0, "text": "#C C waits"} for row in (4, 5)]
    embeds = torch.zeros(2, 3)
    monkeypatch.setattr("modeling_svitt_ego.training.naming_clips.world_size", lambda: 2)
    with pytest.raises(NonFiniteLoss, match="another process's message names them"):
        refuse_non_finite(torch.tensor(float("nan")), 3, clips, embeds, embeds)
    embeds[1, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="1 of its 2 rows have an embedding .*\n  row 5: a") as error:
        refuse_non_finite(torch.tensor(float("nan")), 3, clips, embeds, embeds)
    assert "row 4" not in str(error.value)


def test_a_dead_worker_is_named(corpus, tmp_path):
    """Catches a run that hangs, or that ends without a word of which process died and when."""
    trainer = make_trainer(corpus, tmp_path, dataloader_num_workers=1)
    read = type(trainer.train_dataset).__getitem__

    class Deadly(type(trainer.train_dataset)):
        def __getitem__(self, index):
            if self.reads >= 6:
                os.kill(os.getpid(), signal.SIGKILL)
            self.reads += 1
            return read(self, index)

    trainer.train_dataset.__class__ = Deadly
    trainer.train_dataset.reads = 0
    with pytest.raises(RuntimeError, match=r"while step \d was being read: DataLoader worker \(pid.* \d+\)") as error:
        trainer.train()
    assert "Killed" in str(error.value) and "ran out of memory" in str(error.value)


def test_checkpoints_are_rotated_and_the_best_is_named_where_it_lies(corpus, tmp_path):
    """Catches a best checkpoint recorded in the folder of unfinished ones, and rotation switched off."""
    scores = iter([1.0, 3.0, 2.0, 0.0])

    class Scores(Evaluator):
        benchmark, primary_metric = "scores", "score"
        dataset = [0]  # the Trainer wants to see one

        def __call__(self, model):
            return EvaluationReport("scores", {"score": next(scores)}, num_items=1)

    trainer = make_trainer(
        corpus,
        tmp_path,
        evaluator=Scores(),
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="score",
        greater_is_better=True,
        save_total_limit=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_the_model_trained_is_random_enough_to_matter(corpus, tmp_path):
    """Catches a model in which nothing is drawn, with which the tests above would pass too easily."""
    model = make_trainer(corpus, tmp_path, cls=SViTTEgoModel).model.train()
    pixels = torch.randn(2, 4, 3, 64, 64)
    assert not torch.equal(*(model.get_video_features(pixels).pooler_output for _ in range(2)))
