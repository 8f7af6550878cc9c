"""The list of objectives. objective_base.py says how to add one."""

import torch
from torch import nn

from .contrastive import Contrastive
from .masked_language import MaskedLanguageModeling
from .matching import VideoTextMatching
from .objective_base import Batch, Objective

# Each model trains those that have a weight in its configuration and whose heads it has.
OBJECTIVES: tuple[Objective, ...] = (Contrastive(), VideoTextMatching(), MaskedLanguageModeling())


def trained_objectives(model: nn.Module) -> list[tuple[Objective, float]]:
    """The model's objectives that have a weight, and their weights."""
    fitting = [objective for objective in model.objectives if objective.fits(model)]
    weights = [(objective, objective.weight_in(model.config)) for objective in fitting]
    trained = [(objective, weight) for objective, weight in weights if weight > 0]
    if not trained:
        names = ", ".join(f"{objective.name}_weight" for objective in fitting) or "none"
        raise ValueError(
            f"Every objective of {type(model).__name__} has weight 0 ({names}); it has no other objective."
        )
    return trained


def sum_of_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum over the objectives that have a weight, and each part before weighting, detached."""
    weighted, info = [], {}
    for objective, weight in trained_objectives(model):
        loss, further = objective.loss(model, batch)
        weighted.append(weight * loss)
        info |= {objective.name: loss.detach()} | further
    # Stacked, because the inductor makes one tensor of `1.0 * loss` and `loss.detach()`, which then has no gradient.
    return torch.stack(weighted).sum(), info


def loss_generator(
    model: nn.Module, generator: torch.Generator | None, device: torch.device
) -> torch.Generator | None:
    """For negatives and masked tokens; in evaluation always the same draws, which makes a loss there repeatable."""
    if model.training or generator is not None:
        return generator
    return torch.Generator(device).manual_seed(model.config.vision_config.pattern_seed)
