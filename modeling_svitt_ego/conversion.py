"""From the SViTT code's checkpoints (github.com/JerryYLi/svitt; SViTT-Ego's svitt-ego.pth) to ours and back.

The conversion is one table, strict both ways: every key of the file is used or known and dropped, every parameter of
ours is filled, or the error names it.
"""

import re
from collections.abc import Mapping

# ours <- theirs; {} is the layer number. Fusion layer i is their BERT layer fusion_layer + i.
_BERT_LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.layernorm": "attention.output.LayerNorm",
    "feed_forward.mlp.fc1": "intermediate.dense",
    "feed_forward.mlp.fc2": "output.dense",
    "feed_forward.layernorm": "output.LayerNorm",
}
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
        for ours, x in _BERT_LAYER.items()
    },
    **{
        f"fusion_model.layers.{{}}.{ours}": f"text_encoder.bert.encoder.layer.{{}}.{x}"
        for ours, x in (_BERT_LAYER | _CROSS_ATTENTION).items()
    },
    "video_projection": "vision_proj",
    "text_projection": "text_proj",
    "vtm_head": "itm_head",
    "mlm_head.dense": "text_encoder.cls.predictions.transform.dense",
    "mlm_head.layernorm": "text_encoder.cls.predictions.transform.LayerNorm",
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
    with_bert = any(key.startswith("text_encoder.bert.") for key in original)
    converted, used, missing, shapes = {}, set(), [], []
    for name, tensor in ours.items():
        source = original_name(name, fusion_layer)
        source = source if with_bert else source.replace("text_encoder.bert.", "text_encoder.")
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
        raise ValueError("Not a SViTT checkpoint of this configuration. " + "; ".join(problems))
    return converted
