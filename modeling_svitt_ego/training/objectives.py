"""Which objectives a run trains, and which parameters they reach."""

WEIGHTS = ("contrastive_weight", "vtm_weight", "mlm_weight")


def set_weights(model, **weights: float | None) -> None:
    """Sets the configuration's `contrastive_weight`, `vtm_weight` and `mlm_weight`; None leaves one as it is."""
    for name, weight in weights.items():
        if name not in WEIGHTS:
            raise ValueError(f"'{name}' must be one of {', '.join(WEIGHTS)}.")
        if weight is None:
            continue
        if weight < 0:
            raise ValueError(f"{name} ({weight}) must not be negative.")
        head = {"vtm_weight": "vtm_head", "mlm_weight": "mlm_head"}.get(name)
        if weight > 0 and head is not None and not hasattr(model, head):
            raise ValueError(
                f"{name} is {weight}, but {type(model).__name__} has no {head}: pretrain with SViTTEgoForPreTraining."
            )
        setattr(model.config, name, weight)


def freeze_unreached_parameters(model) -> list[str]:
    """
    Takes `requires_grad` from the parameters that no objective with a weight reaches, and names them.

    Without a gradient they would not train anyway; but DDP waits for the gradient of every parameter that has
    `requires_grad`, and looking for the missing ones at each step (`find_unused_parameters`) breaks checkpointing.
    """
    config = model.config
    contrastive = config.contrastive_weight > 0
    vtm = hasattr(model, "vtm_head") and config.vtm_weight > 0
    mlm = hasattr(model, "mlm_head") and config.mlm_weight > 0
    fusion = vtm or mlm
    reached = {
        "text_model": True,
        "vision_model": True,
        "vision_model.layernorm": fusion,  # of the token states, which only fusion sees
        "vision_model.pooler_layernorm": contrastive,
        "video_projection": contrastive,
        "text_projection": contrastive,
        "temperature": contrastive,
        "fusion_model": fusion,
        "vtm_head": vtm,
        "mlm_head": mlm,
    }

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
