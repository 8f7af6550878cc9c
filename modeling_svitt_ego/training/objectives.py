"""Which objectives a run trains, and which parameters they reach."""

from torch import nn

from ..model.objectives import OBJECTIVES


def set_weights(model: nn.Module, **weights: float | None) -> None:
    """Sets the configuration's `contrastive_weight`, `vtm_weight` and `mlm_weight`; None leaves one as it is."""
    known = {f"{objective.name}_weight": objective for objective in OBJECTIVES}
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(f"'{name}' must be one of {', '.join(known)}.")
        if weight is None:
            continue
        if weight < 0:
            raise ValueError(f"{name} ({weight}) must not be negative.")
        if weight > 0 and not known[name].fits(model):
            raise ValueError(
                f"{name} is {weight}, but {type(model).__name__} has no {', '.join(known[name].needs)}: pretrain with "
                "SViTTEgoForPreTraining."
            )
        setattr(model.config, name, weight)


def freeze_unreached_parameters(model: nn.Module) -> list[str]:
    """
    Takes `requires_grad` from the parameters that no objective with a weight reaches, and names them.

    Without a gradient they would not train anyway; but DDP waits for the gradient of every parameter that has
    `requires_grad`, and looking for the missing ones at each step (`find_unused_parameters`) breaks checkpointing.
    """
    reached: dict[str, bool] = {}
    for objective in {*OBJECTIVES, *model.objectives}:
        trained = objective in model.objectives and objective.fits(model) and objective.weight_in(model.config) > 0
        for part in objective.reaches:
            reached[part] = reached.get(part, False) or trained

    def is_reached(name: str) -> bool:
        parts = [part for part in reached if name == part or name.startswith(f"{part}.")]
        return reached[max(parts, key=len)] if parts else True

    # By identity: the MLM head's decoder shares the word embeddings' weight.
    named = list(model.named_parameters(remove_duplicate=False))
    kept = {id(parameter) for name, parameter in named if is_reached(name)}
    frozen = [name for name, parameter in named if id(parameter) not in kept and parameter.requires_grad]
    for _, parameter in named:
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    return frozen
