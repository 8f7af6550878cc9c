"""An exponential moving average of the weights (torch.optim.swa_utils), saved with every checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from .manifest import CheckpointError

AVERAGED_NAME = "averaged_weights.safetensors"


class AveragedWeights:
    """
    The moving average of a model's trainable weights; the others do not change.

    Args:
        model (`nn.Module`): the one that is trained.
        decay (`float`): in (0, 1); after each update, average = decay * average + (1 - decay) * weight.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.model = nn.ParameterList([model.get_parameter(name) for name in self.names])
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.is_in_place = False

    @property
    def num_updates(self) -> int:
        return int(self.average.n_averaged)

    def update(self) -> None:
        self.average.update_parameters(self.model)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swaps the model's weights with their average."""
        for weight, average in zip(self.model, self.average.module):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context, the model has the averaged weights, if there was an update. Contexts may be nested."""
        if not self.num_updates or self.is_in_place:
            yield
            return
        self.exchange()
        self.is_in_place = True
        try:
            yield
        finally:
            self.is_in_place = False
            self.exchange()

    def save(self, folder: str) -> None:
        tensors = {name: average.detach().cpu() for name, average in zip(self.names, self.average.module)}
        save_file(tensors, str(Path(folder) / AVERAGED_NAME), {"num_updates": str(self.num_updates)})

    @torch.no_grad()
    def load(self, folder: str) -> None:
        path = Path(folder) / AVERAGED_NAME
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {AVERAGED_NAME}: it was trained without ema_decay.")
        tensors = load_file(path)
        for name, average in zip(self.names, self.average.module):
            average.copy_(tensors[name])
        with safe_open(path, "pt") as file:
            self.average.n_averaged.fill_(int(file.metadata()["num_updates"]))


class UpdateAverage(TrainerCallback):
    """Updates the average after every optimizer step."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.averaged is not None:
            self.trainer.averaged.update()


class AveragesWeights:
    """
    For a `Trainer` with `core`: with `ema_decay`, evaluation during training uses the averaged weights, checkpoints
    hold both, and the model has the averaged ones when training ends.
    """

    averaged: AveragedWeights | None = None

    def check_averaging(self) -> None:
        decay = self.args.ema_decay
        if decay is None:
            return
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay ({decay}) must lie between 0 and 1, both excluded.")
        if self.args.temporal_stages or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("ema_decay goes neither with temporal_stages nor with FSDP or DeepSpeed.")
        self.add_callback(UpdateAverage(self))

    def train(self, *args, **kwargs):
        if self.args.ema_decay is None:
            return super().train(*args, **kwargs)
        self.averaged = AveragedWeights(self.core, self.args.ema_decay)
        output = super().train(*args, **kwargs)
        if self.averaged.num_updates:
            self.averaged.exchange()
        self.averaged = None
        return output

    def weights_to_evaluate(self):
        """A context in which the model has the averaged weights, if any."""
        return nullcontext() if self.averaged is None else self.averaged.in_place()

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.averaged is not None:
            self.averaged.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.averaged is not None:
            self.averaged.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.averaged is not None:
            self.averaged.load(self.state.best_model_checkpoint)
