"""Atomic checkpoints: they are written to another folder, flushed to the disk and renamed.

The Trainer writes directly into `checkpoint-N`. If it is killed meanwhile, it leaves an incomplete checkpoint, from
which the next run would resume.
"""

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from ..files.writing import exchange_folder, flush_folder
from .manifest import CheckpointError, write_manifest

UNFINISHED = "unfinished"  # folder in the run's folder; nothing ever resumes from it


class CheckpointsWrittenAside:
    """
    For a `Trainer` with `run_facts()`: checkpoints are written to `unfinished/checkpoint-N` with a manifest, flushed
    to the disk and renamed.

    If a checkpoint cannot be written, [`CheckpointError`] names the free space and the newest undamaged checkpoint.
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
        self._run_dir, args.push_to_hub = str(run_dir / UNFINISHED), False  # pushed from its final place
        try:
            super()._save_checkpoint(model, trial)
            self._name_best_checkpoint(aside, run_dir)
            self.accelerator.wait_for_everyone()  # every process has written its random state
            if args.should_save:
                write_manifest(aside, self.run_facts())
                flush_folder(aside)
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
        if args.should_save:
            put_in_place(aside, final)
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
        """The Trainer looked for the best checkpoint in the folder being written to, among the unfinished."""
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


def put_in_place(aside: Path, final: Path) -> None:
    """
    Renames a finished checkpoint to its final name, and removes the one of the same step that it replaces.

    In between, the former checkpoint is called `checkpoint-0N`, which still reads as step N: at every moment one of
    the two is found.
    """
    step = final.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    exchange_folder(aside, final, final.with_name(f"{PREFIX_CHECKPOINT_DIR}-0{step}"))
    shutil.rmtree(aside.parent, ignore_errors=True)


def name_code_of_sharded(model) -> None:
    """
    FSDP 2 wraps the class of the model in a new class whose module is one of PyTorch, and `save_pretrained` would copy
    that module into the folder as the code of the model. This sets the module of the wrapper to that of the model.
    """
    wrapper = type(model)
    if wrapper.__name__.startswith("FSDP") and wrapper.__module__.startswith("torch."):
        wrapper.__module__ = next(cls for cls in wrapper.__mro__[1:] if issubclass(cls, PreTrainedModel)).__module__
