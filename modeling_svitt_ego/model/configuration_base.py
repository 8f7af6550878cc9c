"""What the configurations share: unknown fields are refused, and a saved one names the classes that load it."""

import difflib
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keyword arguments that PreTrainedConfig itself understands although they are no dataclass fields of ours.
_LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "trust_remote_code",
}


def refuse_unknown_keys(config: PreTrainedConfig, kwargs: dict) -> None:
    """PreTrainedConfig stores any keyword it does not know; a misspelt sparsity field would be silently off."""
    for key in kwargs:
        if key in _LIBRARY_KEYS or key.startswith("_"):
            continue
        if key == "fusion_config":
            raise ValueError(
                "The fusion tower's configuration is cross_modal_config: fusion_config is transformers' own."
            )
        nearest = nearest_field(type(config), key, cutoff=0.0)
        raise ValueError(f"{type(config).__name__} has no field '{key}'; the nearest field is {nearest}.")


def nearest_field(config_class: type[PreTrainedConfig], key: str, cutoff: float) -> str | None:
    """The field of a configuration or of one of its towers that is spelt most like `key`, quoted, with its tower."""
    places = {name: f"'{name}'" for name in config_class.__dataclass_fields__ if not name.startswith("_")}
    for tower, tower_class in config_class.sub_configs.items():
        for name in tower_class.__dataclass_fields__:
            if not name.startswith("_"):
                places.setdefault(name, f"{tower}'s '{name}'")
    found = difflib.get_close_matches(key, places, n=1, cutoff=cutoff)
    return places[found[0]] if found else None


class SViTTEgoConfigBase(PreTrainedConfig):
    """What the configurations share: which classes a saved one loads as, and that no unknown field is accepted."""

    # Written to config.json whichever class was saved: transformers itself would list only that class.
    auto_classes: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        As in the library, which drops keywords that are no field. Here a keyword that is spelt like a field is an
        error, and any other one a warning, since it may be an argument of a model's loading that `pipeline` passes on.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        if return_unused_kwargs:
            return config, unused
        for key in unused:
            if key in _LIBRARY_KEYS or key.startswith("_"):
                continue
            nearest = nearest_field(cls, key, cutoff=0.8)
            if nearest is not None:
                raise ValueError(f"{cls.__name__} has no field '{key}'; the nearest field is {nearest}.")
            logger.warning(f"{cls.__name__} has no field '{key}': it is ignored.")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Fields and the library's own keys; any other attribute that a script has set would be refused at loading."""
        known = _LIBRARY_KEYS | type(self).__dataclass_fields__.keys()
        return {key: value for key, value in super().to_dict().items() if key in known or key.startswith("_")}

    def save_pretrained(self, save_directory, *args, **kwargs):
        self.auto_map = dict(self.auto_classes)
        super().save_pretrained(save_directory, *args, **kwargs)


def check_heads(hidden_size: int, num_attention_heads: int, key: str = "hidden_size") -> None:
    if num_attention_heads < 1 or hidden_size % num_attention_heads != 0:
        raise ValueError(f"{key} ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads}).")


def check_pruning(keep_rate: float, prune_layers, num_hidden_layers: int, keep_strategy: str, strategies) -> None:
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(f"keep_rate ({keep_rate}) must be in (0, 1]; 1.0 keeps every token.")
    layers = list(prune_layers)
    if layers != sorted(set(layers)) or any(layer < 0 for layer in layers):
        raise ValueError(f"prune_layers ({layers}) must be increasing zero-based layer numbers.")
    if layers and layers[-1] >= num_hidden_layers:
        raise ValueError(
            f"prune_layers names layer {layers[-1]}, but there are {num_hidden_layers} layers (0 to "
            f"{num_hidden_layers - 1})."
        )
    if keep_strategy not in strategies:
        raise ValueError(f"keep_strategy ('{keep_strategy}') must be one of {', '.join(strategies)}.")


__all__ = ["SViTTEgoConfigBase", "check_heads", "check_pruning", "refuse_unknown_keys"]
