"""Learning rates by tower and by layer, and towers that are not trained.

Layer-wise decay is that of BEiT's fine-tuning (arXiv:2106.08254): the last layer of a tower learns at the full rate,
the layer below at `layer_decay` times that, and so on down to the embeddings. Projections and heads learn at the full
rate.
"""

import re

from torch import nn

TOWERS = {"vision": "vision_model", "text": "text_model", "fusion": "fusion_model"}
_IN_TOWER = re.compile(rf"(?:^|\.)({'|'.join(TOWERS.values())})\.(layers\.(\d+)\.|embeddings\.)?")


def freeze_towers(core: nn.Module, names: str | None) -> None:
    """Takes `requires_grad` from all weights of the towers named, comma separated: vision, text, fusion."""
    for name in filter(None, (part.strip() for part in (names or "").split(","))):
        tower = getattr(core, TOWERS.get(name, ""), None)
        if tower is None:
            there = [known for known, part in TOWERS.items() if hasattr(core, part)]
            raise ValueError(f"frozen_towers: {type(core).__name__} has no tower {name!r}; it has {', '.join(there)}.")
        tower.requires_grad_(False)


def grouped(
    model: nn.Module,
    decayed: set[str],
    learning_rate: float,
    weight_decay: float,
    tower_rates: dict[str, float | None],
    layer_decay: float | None = None,
) -> list[dict]:
    """
    The trainable parameters in groups of one learning rate and one weight decay, the highest rate first.

    Args:
        decayed (`set[str]`): names of the parameters with weight decay.
        tower_rates (`dict[str, float | None]`): by tower (vision, text, fusion); None is `learning_rate`.
        layer_decay (`float`, *optional*): factor from each layer to the one below, in (0, 1].
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay ({layer_decay}) must be above 0 and at most 1.")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    places = {name: _place(name) for name in names}
    depths: dict[str, int] = {}
    for tower, layer in filter(None, map(_place, dict(model.named_parameters()))):
        depths[tower] = max(depths.get(tower, 0), layer or 0)
    rate_of = {TOWERS[tower]: rate for tower, rate in tower_rates.items() if rate is not None}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name in names:
        rate = learning_rate
        if places[name] is not None:
            tower, layer = places[name]
            rate = rate_of.get(tower, learning_rate)
            if layer_decay is not None and layer is not None:
                rate *= layer_decay ** (depths[tower] - layer)
        key = (rate, weight_decay if name in decayed else 0.0)
        groups.setdefault(key, []).append(model.get_parameter(name))
    ordered = sorted(groups, reverse=True)
    return [{"params": groups[rate, decay], "lr": rate, "weight_decay": decay} for rate, decay in ordered]


def _place(name: str) -> tuple[str, int | None] | None:
    """Tower and layer of a parameter: 0 for embeddings, from 1 for layers, None after the last layer."""
    match = _IN_TOWER.search(name)
    if match is None:
        return None
    tower, inside, layer = match.groups()
    if inside is None:
        return tower, None
    return tower, 0 if layer is None else int(layer) + 1
