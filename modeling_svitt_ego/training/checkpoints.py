"""What transformers' Trainer lacks to never lose a run: whole checkpoints or none, and leaving well on SIGTERM.

The Trainer writes into `checkpoint-N` itself, so a kill in the middle leaves half a checkpoint that `resume` takes for
the newest. Its own just-in-time checkpoint (`enable_jit_checkpoint`) saves between a step's backward and its update,
from where a run does not continue bit for bit; here it is always after a step.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

UNFINISHED = "unfinished"  # folder beside the checkpoints; nothing ever resumes from it


class CheckpointError(OSError):
    """A checkpoint could not be written; those from before are intact."""


class CheckpointsWrittenAside:
    """
    For a `Trainer`: checkpoints are written to `unfinished/checkpoint-N`, flushed to the disk and renamed.

    Raises [`CheckpointError`] with the free space and the newest whole checkpoint if one cannot be written.
    """

    _run_dir: str | None = None

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._run_dir is None else self._run_dir

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside, final = run_dir / UNFINISHED / name, run_dir / name
        args, push_to_hub = self.args, self.args.push_to_hub
        if args.should_save:
            shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._run_dir, args.push_to_hub = str(run_dir / UNFINISHED), False  # the push is from the final place
        try:
            super()._save_checkpoint(model, trial)
            self._name_best_checkpoint(aside, run_dir)
            flush_to_disk(aside)
        except Exception as error:
            free = shutil.disk_usage(run_dir).free
            if args.should_save:
                shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)
            last = get_last_checkpoint(str(run_dir))
            raise CheckpointError(
                f"{final} could not be written: {error} ({free / 2**20:.0f} MiB were free). "
                + (f"{last} is whole; make space and resume from it." if last else "There is no earlier checkpoint.")
            ) from error
        finally:
            self._run_dir, args.push_to_hub = None, push_to_hub
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if args.should_save:
            replaced = run_dir / UNFINISHED / "replaced"
            if final.exists():  # the same step saved again
                final.rename(replaced)
            aside.rename(final)
            shutil.rmtree(run_dir / UNFINISHED)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if push_to_hub:
            self._push_from_checkpoint(str(final))

    def _name_best_checkpoint(self, aside: Path, run_dir: Path) -> None:
        """The Trainer looked for the best checkpoint beside the one being written, among the unfinished."""
        step = self.state.best_global_step
        if not step:
            return
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if best.exists() or best.name == aside.name:
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                state = TrainerState.load_from_json(str(aside / "trainer_state.json"))
                state.best_model_checkpoint = str(best)
                state.save_to_json(str(aside / "trainer_state.json"))


def name_code_of_sharded(model) -> None:
    """
    FSDP 2 puts a class of its own around the model's, made in a module of PyTorch; `save_pretrained` then lays that
    module into the folder as the model's code. The class is given the module of the one that it wraps.
    """
    wrapper = type(model)
    if wrapper.__name__.startswith("FSDP") and wrapper.__module__.startswith("torch."):
        wrapper.__module__ = next(cls for cls in wrapper.__mro__[1:] if issubclass(cls, PreTrainedModel)).__module__


def flush_to_disk(folder: Path) -> None:
    """A rename survives a power cut, the data only if it was flushed before."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


class LeaveOnSigterm(TrainerCallback):
    """
    On SIGTERM: finish the step, save a checkpoint, say so and exit with 143 (128 + SIGTERM), as schedulers expect.

    With several processes all leave after the same step, also if the signal reached only one.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.received = self.leaving = False
        self.previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.previous = signal.signal(signal.SIGTERM, self.note)

    def note(self, *_) -> None:
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        self.leaving = self.received
        if accelerator.num_processes > 1:
            anyone = accelerator.reduce(torch.tensor([float(self.received)], device=accelerator.device))
            self.leaving = bool(anyone.item())
        if self.leaving:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
        if self.leaving:
            if self.trainer.is_world_process_zero():
                print(
                    f"SIGTERM: step {state.global_step} of {state.max_steps} is saved in "
                    f"{Path(args.output_dir) / f'{PREFIX_CHECKPOINT_DIR}-{state.global_step}'}; leaving. "
                    "Resume to continue with the next step.",
                    file=sys.stderr,
                    flush=True,
                )
            raise SystemExit(128 + signal.SIGTERM)

    def restore(self) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            self.previous = None
