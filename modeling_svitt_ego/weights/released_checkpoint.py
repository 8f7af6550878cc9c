"""From the SViTT code's checkpoints (github.com/JerryYLi/svitt; SViTT-Ego's svitt-ego.pth) to ours and back.

The conversion is one table, strict both ways: every key of the file is used or known and dropped, every parameter of
ours is filled, or the error names it. released_files.py reads the files, released_config.py their shapes and settings.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..model.modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoTextRetrieval
from ..model.sparsity import RelativePositions
from .released_config import original_config
from .released_files import Checkpoint, read_checkpoint, read_state_dict
from .warm_start import BERT_HEAD_NAMES, BERT_LAYER_NAMES

# ours <- theirs; {} is the layer number. Fusion layer i is their BERT layer fusion_layer + i.
_CROSS_ATTENTION = {
    "cross_attention.q_proj": "crossattention.self.query",
    "cross_attention.k_proj": "crossattention.self.key",
    "cross_attention.v_proj": "crossattention.self.value",
    "cross_attention.o_proj": "crossattention.output.dense",
    "cross_attention.layernorm": "crossattention.output.LayerNorm",
}
_VISION_LAYER = {
    "layernorm_before": "layernorm_before",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "layernorm_after": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_MODULES = {
    "vision_model.embeddings.patch_projection": "vision_encoder.embeddings.patch_embeddings.projection",
    **{
        f"vision_model.layers.{{}}.{ours}": f"vision_encoder.encoder.layer.{{}}.{x}"
        for ours, x in _VISION_LAYER.items()
    },
    "vision_model.layernorm": "vision_layernorm",
    "vision_model.pooler_layernorm": "vision_encoder.pooler.layernorm",
    "text_model.embeddings.layernorm": "text_encoder.bert.embeddings.LayerNorm",
    **{
        f"text_model.layers.{{}}.{ours}": f"text_encoder.bert.encoder.layer.{{}}.{x}"
        for ours, x in BERT_LAYER_NAMES.items()
    },
    **{
        f"fusion_model.layers.{{}}.{ours}": f"text_encoder.bert.encoder.layer.{{}}.{x}"
        for ours, x in (BERT_LAYER_NAMES | _CROSS_ATTENTION).items()
    },
    "video_projection": "vision_proj",
    "text_projection": "text_proj",
    "vtm_head": "itm_head",
    **{ours: f"text_encoder.{x}" for ours, x in BERT_HEAD_NAMES.items()},
}
_BIAS = "relative_position_bias.relative_position_bias"
KEY_TABLE = {
    "temperature": "temp",
    "vision_model.embeddings.cls_token": "vision_encoder.embeddings.cls_token",
    "vision_model.layers.{}.lambda_1": "vision_encoder.encoder.layer.{}.lambda_1",
    "vision_model.layers.{}.lambda_2": "vision_encoder.encoder.layer.{}.lambda_2",
    "vision_model.layers.{}.attention.relative_position_bias_table": (
        f"vision_encoder.encoder.layer.{{}}.attention.attention.{_BIAS}_table"
    ),
    **{
        f"text_model.embeddings.{name}_embeddings.weight": f"text_encoder.bert.embeddings.{name}_embeddings.weight"
        for name in ("word", "position", "token_type")
    },
    "mlm_head.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",  # tied
    "mlm_head.decoder.bias": "text_encoder.cls.predictions.bias",
    **{f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in _MODULES.items() for part in ("weight", "bias")},
}

# In the file, known, and not ours: buffers and second names of tied tensors.
DROPPED_KEYS = (
    r"vision_encoder\.encoder\.layer\.\d+\.attention\.attention\.relative_position_bias\.relative_position_index",
    r"text_encoder\.bert\.embeddings\.position_ids",
    r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)",
)


_BERT = "text_encoder.bert."
_INDEX = "vision_encoder.encoder.layer.{}.attention.attention.relative_position_bias.relative_position_index"
_POSITIONS = "text_encoder.bert.embeddings.position_ids"


def original_name(name: str, fusion_layer: int) -> str:
    """The SViTT code's name of our parameter `name`."""
    layer = re.search(r"\.(\d+)\.", name)
    theirs = KEY_TABLE[name if layer is None else name.replace(layer[0], ".{}.", 1)]
    if layer is None:
        return theirs
    return theirs.format(int(layer[1]) + (fusion_layer if name.startswith("fusion_model.") else 0))


def convert_state_dict(original: Mapping, ours: Mapping, fusion_layer: int) -> dict:
    """
    The tensors of `original` (SViTT's names) under our names.

    Args:
        original (`Mapping[str, torch.Tensor]`): a SViTT state dict; retrieval files lack the `bert.` component.
        ours (`Mapping[str, torch.Tensor]`): the state dict of the model to fill, for names and shapes.
        fusion_layer (`int`): number of BERT layers before fusion (9 in BERT-base).

    Raises:
        ValueError: a parameter of ours is not in the file, a key of the file is unknown, or a shape differs.
    """
    with_bert = any(key.startswith(_BERT) for key in original)
    converted, used, missing, shapes = {}, set(), [], []
    for name, tensor in ours.items():
        source = original_name(name, fusion_layer)
        source = source if with_bert else source.replace(_BERT, "text_encoder.")
        if source not in original:
            missing.append(f"{name} (from {source})")
            continue
        used.add(source)
        value = original[source].reshape(tensor.shape) if source == "temp" else original[source]
        if value.shape != tensor.shape:
            shapes.append(f"{source} {tuple(value.shape)} for {name} {tuple(tensor.shape)}")
        converted[name] = value
    dropped = re.compile("|".join(DROPPED_KEYS if with_bert else [p.replace(r"\.bert", "") for p in DROPPED_KEYS]))
    unknown = [key for key in original if key not in used and not dropped.fullmatch(key)]
    problems = [
        f"{title}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for title, names in (
            ("parameters the file does not have", missing),
            ("keys of the file that are not known", unknown),
            ("shapes that differ", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError("Not a SViTT checkpoint of this configuration. " + "; ".join(problems) + ".")
    return converted


def to_original_state_dict(model: SViTTEgoForVideoTextRetrieval, buffers: bool = True) -> dict[str, torch.Tensor]:
    """
    The model's tensors under SViTT's names and in its shapes, for the old code's `load_state_dict`.

    Args:
        model: a [`SViTTEgoForPreTraining`] gives SViTT's pretraining file, a [`SViTTEgoForVideoTextRetrieval`] its
            retrieval file (without `bert.` in the names).
        buffers (`bool`): also the buffers and the second names of tied tensors that the old code saves; the position
            index alone is (196 T + 1)² int64 numbers per vision layer.
    """
    config = model.config
    pretraining = isinstance(model, SViTTEgoForPreTraining)
    result = {}
    for name, tensor in model.state_dict().items():
        theirs = original_name(name, config.text_config.num_hidden_layers)
        result[theirs] = tensor.reshape(()) if theirs == "temp" else tensor
    if buffers:
        vision, text = config.vision_config, config.text_config
        device = result["temp"].device
        side = vision.image_size // vision.patch_size
        ids = torch.arange(vision.num_frames * side**2, device=device)[None]
        index = RelativePositions.from_token_ids(ids, (vision.num_frames, side, side)).rows()[0]
        result |= {_INDEX.format(layer): index for layer in range(vision.num_hidden_layers)}
        result[_POSITIONS] = torch.arange(text.max_position_embeddings, device=device)[None]
        if pretraining:
            result["text_encoder.cls.predictions.decoder.weight"] = result[f"{_BERT}embeddings.word_embeddings.weight"]
            result["text_encoder.cls.predictions.decoder.bias"] = result["text_encoder.cls.predictions.bias"]
    return result if pretraining else {key.replace(_BERT, "text_encoder."): x for key, x in result.items()}


def load_original_checkpoint(
    source: str | Path | Mapping,
    num_frames: int | None = None,
    *,
    release: str = "svitt-ego",
    settings: Mapping | None = None,
    dtype: torch.dtype = torch.float32,
    **fields,
) -> SViTTEgoForPreTraining | SViTTEgoForVideoTextRetrieval:
    """
    A model with the weights of a SViTT or SViTT-Ego checkpoint, in eval mode; it computes what the SViTT code does.

    ```python
    model = load_original_checkpoint("svitt-ego.pth")  # the published settings
    model = load_original_checkpoint("mine.pth", num_frames=4, num_random_blocks=3, fusion_keep_rate=1.0)
    ```

    Args:
        source (`str`, `Path` or `Mapping`): a `.pth`, `.pt` or `.safetensors` file, or its content: a state dict, or a
            training checkpoint with one under `model` or `state_dict`.
        num_frames (`int`, *optional*): only checked: the file decides. See `resize_frames` for another number.
        release (`str`): `"svitt-ego"` or `"svitt"`, whose published settings hold where nothing else is said.
        settings (`Mapping`, *optional*): a run configuration of the SViTT code (`read_settings` reads its YAML) in
            place of the release's; by default the one that a training checkpoint itself holds, if any.
        fields: configuration fields, named as in `from_encoders`: `keep_rate`, `prune_layers`, `num_local_blocks`,
            `num_random_blocks`, `block_size`, `fusion_keep_rate`, … Those that the weights decide are checked.

    Returns:
        [`SViTTEgoForPreTraining`], or [`SViTTEgoForVideoTextRetrieval`] for a file without a masked language
        modelling head (SViTT's retrieval checkpoints): every parameter comes from the file.
    """
    checkpoint = read_state_dict(source) if isinstance(source, Mapping) else read_checkpoint(source)
    return model_from_checkpoint(checkpoint, num_frames, release, settings, dtype, **fields)


def model_from_checkpoint(
    checkpoint: Checkpoint,
    num_frames: int | None = None,
    release: str = "svitt-ego",
    settings: Mapping | None = None,
    dtype: torch.dtype = torch.float32,
    **fields,
) -> SViTTEgoForPreTraining | SViTTEgoForVideoTextRetrieval:
    """See [`load_original_checkpoint`]."""
    original = checkpoint.state_dict
    settings = checkpoint.settings if settings is None else settings
    config = original_config(original, num_frames, release, settings, **fields)
    with_mlm = any(key.startswith("text_encoder.cls.") for key in original)
    model_class = SViTTEgoForPreTraining if with_mlm else SViTTEgoForVideoTextRetrieval
    with torch.device("meta"):
        model = model_class(config)
    converted = convert_state_dict(original, model.state_dict(), config.text_config.num_hidden_layers)
    # Copies: the model must not share memory with the caller's tensors or with the file.
    model.load_state_dict({name: x.to(dtype, copy=True) for name, x in converted.items()}, assign=True)
    model.tie_weights()
    return model.eval()


__all__ = [
    "KEY_TABLE",
    "convert_state_dict",
    "load_original_checkpoint",
    "original_name",
    "to_original_state_dict",
]
