"""Checks before a run starts or resumes, so that no checkpoint is lost and no setting changes silently."""

import shutil
from pathlib import Path

from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .manifest import (
    CheckpointError,
    checkpoint_number,
    checkpoints_of,
    damage,
    data_fingerprint,
    read_manifest,
    vocabulary_fingerprint,
)

logger = logging.get_logger(__name__)

# Arguments that decide which clips a step reads and which random numbers are drawn for them.
_ARGUMENTS = (
    "seed",
    "data_seed",
    "gradient_accumulation_steps",
    "contrastive_batch_size",
    "scene_aware_negatives",
    "scene_seconds",
    "shared_noun_share",
    "temporal_stages",
    "frozen_towers",
    "ema_decay",
)


class ChecksBeforeTraining:
    """
    For a `Trainer`: a run resumes only from an undamaged checkpoint of the same run, returns at once if it was
    finished, and does not start in a folder with the checkpoints of another run.

    Attributes:
        resume_hint (`str`, *optional*): Says how an interrupted run is continued. The caller sets `None` if it cannot
            be, and then no checkpoint is saved after a signal.
    """

    resume_hint: str | None = "Trainer.train(resume_from_checkpoint=True) continues with the next step."
    _data: str | None = None

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if not resume_from_checkpoint:
            self._refuse_to_overwrite()
            self._own_folder = True
            return super().train(None, *args, **kwargs)
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self._own_folder = True
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= self._total_steps():
            return self._load_finished(checkpoint, state)
        return super().train(str(checkpoint), *args, **kwargs)

    _own_folder = False  # after the first call of `train`, the checkpoints belong to this trainer

    def _refuse_to_overwrite(self) -> None:
        args = self.args
        if self._own_folder or args.save_strategy == "no":
            return
        there = checkpoints_of(Path(args.output_dir))
        if not there:
            return
        if not args.overwrite_output_dir:
            raise CheckpointError(
                f"{args.output_dir} holds {len(there)} checkpoint(s) of another run, the newest of which is "
                f"{there[0].name}. This run would overwrite or delete them. Resume that run (--resume), choose "
                "another output_dir, or set overwrite_output_dir (--overwrite_output_dir true) to delete them."
            )
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            logger.warning(f"Deleting {len(there)} checkpoint(s) in {args.output_dir}: overwrite_output_dir is set.")
            for checkpoint in there:
                shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()

    def run_facts(self) -> dict:
        """The settings that a resumed run must share with the interrupted one."""
        args, dataset = self.args, self.train_dataset
        if self._data is None:
            self._data = data_fingerprint(dataset)
        facts = {name: getattr(args, name) for name in _ARGUMENTS}
        return facts | {
            "num_processes": args.world_size,
            "per_device_train_batch_size": self._train_batch_size,
            "dataset_seed": getattr(dataset, "seed", None),
            "num_views": getattr(dataset, "num_views", None),
            "data": self._data,
            "vocabulary": vocabulary_fingerprint(self.processing_class),
        }

    @property
    def unchangeable(self) -> set[str]:
        """Names of the facts that `resume_changed` does not allow to differ: the weights would not fit."""
        return {"vocabulary"}

    def _issue_warnings_after_load(self, load_result) -> None:
        """Warns of missing weights, except for tied ones, which are saved under one of their names only."""
        tied = set(self.core._tied_weights_keys or {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    # ------------------------------------------------------------------------------------------------ the checkpoint

    def checkpoint_to_resume(self, asked: str | bool) -> Path:
        """
        The checkpoint to resume from: the given one, or with `True` the newest undamaged one in the output folder.

        Raises:
            CheckpointError: All checkpoints are damaged, or the checkpoint belongs to a run with other data,
                vocabulary, seed, batch size or number of processes; the message names the files or the values, and
                the remedy.
        """
        outcome: list = [None, None]
        if self.is_world_process_zero():  # hashing takes seconds, and all processes must agree
            try:
                outcome[0] = str(self._find_checkpoint(asked))
            except CheckpointError as error:
                outcome[1] = str(error)
        if self.args.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise CheckpointError(outcome[1])
        return Path(outcome[0])

    def _find_checkpoint(self, asked: str | bool) -> Path:
        run_dir = Path(self.args.output_dir) if asked is True else Path(asked)
        named = checkpoint_number(run_dir) is not None or (run_dir / "trainer_state.json").exists()
        candidates = [run_dir] if named else checkpoints_of(run_dir)
        if not candidates:
            raise CheckpointError(f"There is no checkpoint to resume from in {run_dir}; start without resuming.")
        broken = {}
        for checkpoint in candidates:
            broken[checkpoint] = damage(checkpoint, self.args.world_size)
            if not broken[checkpoint]:
                for other, reasons in broken.items():
                    if reasons:
                        logger.warning(f"{other} is damaged and is not used: {'; '.join(reasons)}.")
                self._compare_runs(checkpoint)
                return checkpoint
        reasons = "\n".join(f"  {path}: {'; '.join(found)}" for path, found in broken.items())
        others = [path for path in checkpoints_of(run_dir.parent) if path != run_dir] if named else []
        whole = next((path for path in others if not damage(path, self.args.world_size)), None)
        raise CheckpointError(
            f"All checkpoints are damaged:\n{reasons}\n"
            + (f"Resume from {whole}, which is not." if whole else "Restore the files, or start without resuming.")
        )

    def _compare_runs(self, checkpoint: Path) -> None:
        manifest = read_manifest(checkpoint)
        if manifest is None:
            logger.warning(
                f"{checkpoint} was saved by an earlier version without a manifest: its files can be read, but it was "
                "not checked whether data, vocabulary, seed and batch size are those of that run."
            )
            return
        there, here = manifest["run"], self.run_facts()
        different = [name for name in here if name in there and there[name] != here[name]]
        if "vocabulary" in different:
            raise CheckpointError(
                f"{checkpoint} was trained with another vocabulary ({there['vocabulary']}; now {here['vocabulary']}), "
                "so its embeddings belong to other words. Use the processor of the checkpoint: "
                f"AutoProcessor.from_pretrained({str(checkpoint)!r})."
            )
        if not different:
            return
        listed = "; ".join(f"{name}: {there[name]} there, {here[name]} now" for name in different)
        fixed = self.unchangeable.intersection(different)
        if fixed or not self.args.resume_changed:
            otherwise = (
                "choose another output_dir for the new ones"
                if fixed
                else "set resume_changed (--resume_changed true) to continue with the new ones as a different run"
            )
            raise CheckpointError(
                f"{checkpoint} belongs to a run with other settings ({listed}). Use the settings of that run, or "
                f"{otherwise}."
            )
        logger.warning(f"Resuming {checkpoint} with other settings: {listed}.")

    # ---------------------------------------------------------------------------------------------- a finished run

    def _total_steps(self) -> int:
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        return self.set_initial_training_values(args, self.get_train_dataloader())[-1]

    def _load_finished(self, checkpoint: Path, state: TrainerState) -> TrainOutput:
        """Loads the weights of a run that has nothing left to train."""
        if self.is_deepspeed_enabled:
            raise CheckpointError(f"{checkpoint} is the end of the run: load its model instead of resuming it.")
        if self.is_fsdp_enabled:  # the model is not sharded yet, and the checkpoint also has the full weights
            self._issue_warnings_after_load(
                self.model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
            )
        else:
            self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        logged = [entry["train_loss"] for entry in state.log_history if "train_loss" in entry]
        logged = logged or [entry["loss"] for entry in state.log_history if "loss" in entry]
        if self.is_world_process_zero():
            logger.warning(
                f"{checkpoint} has all {state.global_step} steps: its weights are loaded and nothing is trained."
            )
        return TrainOutput(state.global_step, logged[-1] if logged else float("nan"), {})
