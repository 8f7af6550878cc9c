"""Which objectives a run trains, which parameters they reach, and their losses over several processes."""

import torch
import torch.nn.functional as F

from ..model.losses import gather_rows, sample_hard_negatives
from .row_exchange import RowExchange, largest_of_processes, mean_over_processes, world_size

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


def losses_over_processes(core, inputs: dict):
    """
    What `core(**inputs, return_loss=True)` would return for the batches of all processes at once, as far as it
    concerns this process's rows: the mean over the processes of `loss` and of its gradients is that of one process
    with everyone's rows.

    The model by itself (`gather=True`) contrasts over the processes, but draws hard negatives from its own rows and
    averages over its own masked tokens.

    Args:
        core: the bare [`SViTTEgoModel`] or a subclass.
        inputs (`dict`): of its `forward`; every process has as many rows.

    Returns:
        [`SViTTEgoOutput`]
    """
    config = core.config
    tags = inputs.get("verb_tags"), inputs.get("noun_tags")
    input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    outputs = core.encode(inputs["pixel_values_videos"], input_ids, mask, inputs.get("token_type_ids"))
    generator = core.loss_generator(None, input_ids.device)
    outputs.loss, outputs.loss_info = 0.0, {}
    if config.contrastive_weight > 0:
        loss, positives = core.contrast(outputs.video_embeds, outputs.text_embeds, *tags, gather=True)
        outputs.loss = config.contrastive_weight * loss
        outputs.loss_info = core.contrastive_info(loss, positives)
    if hasattr(core, "vtm_head") and config.vtm_weight > 0:
        vtm, negatives = _match_over_processes(core, outputs, mask, tags, generator)
        outputs.loss = outputs.loss + config.vtm_weight * vtm
        outputs.loss_info |= {"vtm": vtm.detach(), "vtm_negatives_per_clip": negatives}
    if hasattr(core, "mlm_head") and config.mlm_weight > 0:
        ids, labels = inputs.get("mlm_input_ids"), inputs.get("mlm_labels")
        if ids is None:
            ids, labels = core.corrupt(input_ids, mask, generator)
        outputs.mlm_logits = core.predict_masked(ids, mask, outputs.vision_model_output.last_hidden_state)
        masked = mean_over_processes((labels != -100).sum()).clamp(min=1 / world_size())
        mlm = summed_cross_entropy(outputs.mlm_logits.flatten(0, 1), labels.flatten()) / masked
        outputs.loss = outputs.loss + config.mlm_weight * mlm
        outputs.loss_info["mlm"] = mlm.detach()
    return outputs


def _match_over_processes(core, outputs, mask, tags, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The matching loss of this process's 3 b pairs, hard negatives from all rows; and negatives per clip."""
    texts, videos = outputs.text_model_output.last_hidden_state, outputs.vision_model_output.last_hidden_state
    rows = len(texts)
    with torch.no_grad():
        units = core.compared(outputs.video_embeds, outputs.text_embeds)
        all_videos, all_texts = (gather_rows(x)[0] for x in units)
    positives, first = core.find_positives(rows, videos.device, *tags, gather=True)
    video_ids = sample_hard_negatives(units[1] @ all_videos.T, positives, generator)
    text_ids = sample_hard_negatives(units[0] @ all_texts.T, positives, generator)
    own = torch.arange(first, first + rows, device=videos.device)
    labels = torch.cat([torch.ones_like(own), negative_labels(video_ids), negative_labels(text_ids)])

    # The texts of all processes side by side.
    missing = largest_of_processes(texts.shape[1], texts.device) - texts.shape[1]
    texts, mask = F.pad(texts, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    of_texts = RowExchange(torch.where(text_ids < 0, own, text_ids), rows)
    of_videos = RowExchange(torch.where(video_ids < 0, own, video_ids), rows)
    outputs.vtm_logits = core.match(
        torch.cat([texts, texts, of_texts.fetch(texts)]),
        torch.cat([mask, mask, of_texts.send(mask[of_texts.rows])]),
        torch.cat([videos, of_videos.fetch(videos), videos]),
    )
    pairs = mean_over_processes((labels != -100).sum())
    return summed_cross_entropy(outputs.vtm_logits, labels) / pairs, (labels == 0).sum() / (2 * rows)


def negative_labels(ids: torch.Tensor) -> torch.Tensor:
    """Matching labels of drawn negatives: 0, and -100 (not counted) where there was none to draw."""
    return torch.where(ids < 0, -100, 0)


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Over the rows whose label is not -100, in float32 at least."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=-100, reduction="sum")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
