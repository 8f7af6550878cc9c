"""Temporal sparse expansion (SViTT, arXiv:2304.08809, section 3.4): more frames, fewer of their tokens, in stages.

A stage begins from a checkpoint, in an uninterrupted run as well as after a kill: at the boundary the Trainer saves
and stops, the bias tables are resampled to the new number of frames, and training resumes. Therefore a model wrapped
for several processes is wrapped again, and a run that is killed and resumed takes the same path.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..evaluation.evaluator import by_name

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Stage:
    """
    Args:
        start (`float`): share of the run's optimizer steps after which it begins, in [0, 1).
        num_frames (`int`): frames per clip.
        keep_rate (`float`): q_v of the video tower.
        num_random_blocks (`int` or `None`): K_r; None is dense.
        num_temporal_blocks (`int`, *optional*): K_t; None leaves the configuration's.
    """

    start: float
    num_frames: int
    keep_rate: float
    num_random_blocks: int | None
    num_temporal_blocks: int | None = None

    @property
    def sparsity(self) -> dict:
        """The fields of the video tower's configuration that the stage sets."""
        fields = {"num_frames": self.num_frames, "keep_rate": self.keep_rate}
        fields["num_random_blocks"] = self.num_random_blocks
        if self.num_temporal_blocks is not None:
            fields["num_temporal_blocks"] = self.num_temporal_blocks
        return fields

    def first_step(self, max_steps: int) -> int:
        """Number of optimizer steps before it."""
        return math.ceil(self.start * max_steps)


def parse_stages(text: str) -> list[Stage]:
    """
    `"0:4:0.7:3, 0.5:8:0.6:5"`, start:num_frames:keep_rate:num_random_blocks each ("dense" for no blocks), and where
    the number of temporal blocks changes too, a fifth number.
    """
    stages = []
    for part in text.split(","):
        try:
            start, frames, keep_rate, blocks, *temporal = part.strip().split(":")
            blocks = None if blocks == "dense" else int(blocks)
            (temporal,) = map(int, temporal) if temporal else (None,)
            stages.append(Stage(float(start), int(frames), float(keep_rate), blocks, temporal))
        except ValueError as error:
            raise ValueError(
                "A stage is start:num_frames:keep_rate:num_random_blocks, for instance 0.5:8:0.6:5, and may end in "
                f":num_temporal_blocks; got '{part}'."
            ) from error
    starts = [stage.start for stage in stages]
    if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
        raise ValueError(f"Stages must start at 0, each later than the one before, below 1; got {starts}.")
    return stages


def vision_config_with(model, sparsity: dict):
    """A copy of the video tower's configuration with other fields; raises an error if they are not compatible."""
    config = model.config.vision_config
    return type(config).from_dict(config.to_dict() | sparsity)


def apply_sparsity(model, sparsity: dict) -> None:
    """
    Changes the number of frames and the sparsity of a model, after a check that the settings are compatible.

    Args:
        sparsity (`dict`): fields of the video tower's configuration, as [`Stage.sparsity`] has them.
    """
    vision_config_with(model, sparsity)  # raises if the fields do not go together
    config = model.config.vision_config
    num_frames = sparsity.get("num_frames", config.num_frames)
    keep_rate = sparsity.get("keep_rate", config.keep_rate)
    before = config.num_random_blocks
    config.num_random_blocks = None  # any number of frames goes with dense attention
    try:
        if (num_frames, keep_rate) != (config.num_frames, config.keep_rate):
            model.resize_frames(num_frames, keep_rate=keep_rate)
    except ValueError:
        config.num_random_blocks = before
        raise
    config = model.config.vision_config
    config.num_random_blocks = before
    for name in ("num_temporal_blocks", "num_random_blocks"):
        if name in sparsity:
            setattr(config, name, sparsity[name])


class StopAtBoundary(TrainerCallback):
    """Saves and stops where a stage ends."""

    def __init__(self, stages: list[Stage]) -> None:
        self.stages = stages
        self.reached = False

    def on_step_end(self, args, state, control, **kwargs):
        self.reached = state.global_step in {stage.first_step(state.max_steps) for stage in self.stages[1:]}
        if self.reached:
            control.should_save = control.should_training_stop = True


class TrainsInStages:
    """For a `Trainer` with `core` (the bare model) and `stages` (a list, empty for none)."""

    stages: list[Stage] = ()

    def check_stages(self) -> None:
        if not self.stages:
            return
        if self.args.load_best_model_at_end or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("temporal_stages cannot be combined with load_best_model_at_end, FSDP or DeepSpeed.")
        if self.core is not self.model:
            raise ValueError("temporal_stages change the bias tables and cannot be combined with PEFT.")
        for stage in self.stages:  # a later stage that does not fit would only show when the ones before have trained
            try:
                vision_config_with(self.core, stage.sparsity)
            except Exception as error:
                reason = error.__cause__ or error  # without the words of the validation's wrapper
                raise ValueError(
                    f"temporal_stages: the stage from {stage.start:g} on does not fit: {reason}"
                ) from error
        self._boundary = StopAtBoundary(self.stages)
        self.add_callback(self._boundary)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if not self.stages:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        if not resume_from_checkpoint:
            self.enter_stage(self.stages[0])
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        while self._boundary.reached and self.state.global_step < self.state.max_steps:
            # Parameters are about to change: neither the old wrapping nor the old optimizer fits.
            self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.optimizer = self.lr_scheduler = None
            output = super().train(get_last_checkpoint(self.args.output_dir), *args, **kwargs)
        return output

    def enter_stage(self, stage: Stage) -> None:
        self.set_frames(stage.sparsity)
        rest = ", ".join(f"{name} {value}" for name, value in stage.sparsity.items() if name != "num_frames")
        logger.warning(f"Clips of {stage.num_frames} frames, {rest}.")

    def set_frames(self, sparsity: dict) -> None:
        """Sets the number of frames in the model and in the data sets and processors that make clips for it."""
        apply_sparsity(self.core, sparsity)
        evaluators = [] if self.evaluator is None else list(by_name(self.evaluator).values())
        datasets = [getattr(evaluator, "dataset", None) for evaluator in evaluators]
        for maker in [
            self.train_dataset,
            *evaluators,
            *datasets,
            getattr(self.processing_class, "video_processor", None),
        ]:
            if maker is not None:
                maker.num_frames = sparsity["num_frames"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self.stages:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
        names = ("num_frames", "keep_rate", "num_random_blocks", "num_temporal_blocks")
        self.set_frames({name: saved[name] for name in names})
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        begun = [stage for stage in self.stages if stage.first_step(state.max_steps) <= state.global_step]
        self.enter_stage(begun[-1])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.stages:
            return
        names = {id(parameter): name for name, parameter in self.core.named_parameters()}
        dropped = []
        states = self.optimizer.state
        for parameter in list(states):
            shapes = {value.shape for value in states[parameter].values() if getattr(value, "ndim", 0) > 0}
            if shapes - {parameter.shape}:
                dropped.append(names[id(parameter)])
                del states[parameter]
        if dropped:
            logger.warning(f"The optimizer state of {len(dropped)} resampled tables is reset: {', '.join(dropped)}.")
