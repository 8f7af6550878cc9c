"""A saved model and its processor, ready to embed; nothing in it may be left at its random initial values."""

import torch
from transformers import AutoModel, AutoProcessor

from ..model.modeling_svitt_ego import SViTTEgoModel
from ..model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding


def load_dual_encoder(name: str, device: str | None = None):
    """
    Args:
        name (`str`): folder or Hub name of any SViTT-Ego model with both towers.
        device (`str`, *optional*): the accelerator if there is one, else the CPU.

    Returns:
        The [`SViTTEgoModel`], in evaluation mode, and its processor.

    Raises:
        ValueError: It is another kind of model, or the checkpoint lacks weights of a tower.
    """
    return _load(name, SViTTEgoModel, device), AutoProcessor.from_pretrained(name)


def load_grounding_head(name: str, device: str | None = None) -> SViTTEgoForTemporalGrounding:
    """As [`load_dual_encoder`], a grounding head."""
    return _load(name, SViTTEgoForTemporalGrounding, device)


def _load(name: str, cls: type, device: str | None):
    model, info = AutoModel.from_pretrained(name, output_loading_info=True)
    if not isinstance(model, cls):
        raise ValueError(f"{name!r} is a {type(model).__name__}; a {cls.__name__} is needed.")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{name!r} lacks {len(missing)} weights of {cls.__name__}, such as {missing[0]!r}.")
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval()
