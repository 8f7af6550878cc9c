"""Start from BEiT (arXiv:2106.08254) and BERT (arXiv:1810.04805): names, 2-D to 3-D bias tables, what is new.

BERT's first layers become the text tower, its last ones the fusion tower, whose cross-attention is new (SViTT,
arXiv:2304.08809, section 3.1).
"""

import difflib
import re
from collections.abc import Mapping

import torch
from transformers import AutoConfig, BeitModel, BertForMaskedLM
from transformers.utils import logging

from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.resampling import resample_relative_position_bias, resize_relative_position_bias

logger = logging.get_logger(__name__)

# ours <- BERT's, within a layer and in the masked language modelling head.
BERT_LAYER_NAMES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.layernorm": "attention.output.LayerNorm",
    "feed_forward.mlp.fc1": "intermediate.dense",
    "feed_forward.mlp.fc2": "output.dense",
    "feed_forward.layernorm": "output.LayerNorm",
}
BERT_HEAD_NAMES = {
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.layernorm": "cls.predictions.transform.LayerNorm",
}

TOWER_CONFIGS = {"vision": "vision_config", "text": "text_config", "fusion": "cross_modal_config"}

# Fields that the weights decide; another value cannot be asked for.
_DECIDED = {
    "vision": ("patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
               "intermediate_size"),
    "text": ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
             "type_vocab_size"),
    "fusion": ("hidden_size", "encoder_hidden_size", "num_attention_heads", "intermediate_size"),
}  # fmt: skip


def split_fields(fields: Mapping) -> dict[str, dict]:
    """
    Configuration fields by the tower they belong to: keys `"vision"`, `"text"`, `"fusion"`, and `""` for the whole.

    A bare name is a field of the whole configuration or of the video tower (`keep_rate` is q_v); `text_` and `fusion_`
    in front name the other towers (`fusion_keep_rate` is q_m). `vision_config={…}` and its like are taken too.
    """
    sub_configs = SViTTEgoConfig.sub_configs
    known = {name: ("", name) for name in SViTTEgoConfig.__dataclass_fields__}
    for tower, key in TOWER_CONFIGS.items():
        for name in sub_configs[key].__dataclass_fields__:
            known.setdefault(f"{tower}_{name}", (tower, name))
            if tower == "vision":
                known.setdefault(name, (tower, name))
    result = {tower: {} for tower in ("", *TOWER_CONFIGS)}
    for key, value in fields.items():
        if key in sub_configs:
            tower = next(tower for tower, name in TOWER_CONFIGS.items() if name == key)
            result[tower].update(value if isinstance(value, Mapping) else value.to_diff_dict())
        elif key in known:
            tower, name = known[key]
            result[tower][name] = value
        else:
            nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
            raise ValueError(f"There is no configuration field '{key}'; the nearest is '{nearest}'.")
    return result


def from_encoders(
    model_class: type,
    vision_encoder: str,
    text_encoder: str,
    num_frames: int = 4,
    num_text_layers: int | None = None,
    **fields,
):
    """See [`SViTTEgoModel.from_encoders`]."""
    given = split_fields(fields)
    beit = load_encoder(BeitModel, vision_encoder, "beit", may_lack=r"pooler\..*")
    bert = load_encoder(BertForMaskedLM, text_encoder, "bert", may_lack=r"cls\..*")
    config = _config(beit.config, bert.config, num_frames, num_text_layers, given)
    model = model_class(config)

    sources = _beit_tensors(beit, config.vision_config) | _bert_tensors(bert, config)
    new = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in sources:
                new.append(name)
                continue
            if sources[name].shape != parameter.shape:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}, but the encoder's is {tuple(sources[name].shape)}."
                )
            parameter.copy_(sources[name])
    model.new_parameters = tuple(new)
    logger.warning(
        f"Video tower from {vision_encoder}, text from {text_encoder}. {len(new)} parameters are new and should be "
        f"trained: {', '.join(new)}."
    )
    return model


def load_encoder(encoder_class: type, source: str, model_type: str, may_lack: str):
    """The library's own model, complete but for the names `may_lack`, whose random values are taken out."""
    found = AutoConfig.from_pretrained(source).model_type
    if found != model_type:
        raise ValueError(f"'{source}' is a '{found}' model; this needs a '{model_type}' one.")
    encoder, info = encoder_class.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    missing = set(info["missing_keys"])
    lost = sorted(name for name in missing if not re.fullmatch(may_lack, name))
    if lost or info["mismatched_keys"]:
        raise ValueError(
            f"The weights in '{source}' are not complete: {', '.join(lost[:8])}{' …' if len(lost) > 8 else ''} "
            f"missing, {len(info['mismatched_keys'])} of another shape."
        )
    encoder.tensors = {name: x for name, x in encoder.state_dict().items() if name not in missing}
    return encoder


def _config(beit, bert, num_frames: int, num_text_layers: int | None, given: dict) -> SViTTEgoConfig:
    if beit.use_absolute_position_embeddings:
        raise ValueError("The BEiT model uses absolute position embeddings, which the video tower does not have.")
    if not beit.layer_scale_init_value > 0:
        raise ValueError("The BEiT model has no layer scale (layer_scale_init_value 0); the video tower needs it.")
    if not isinstance(beit.image_size, int) or not isinstance(beit.patch_size, int):
        raise ValueError(f"BEiT's pictures and patches must be square, not {beit.image_size} and {beit.patch_size}.")
    depth = bert.num_hidden_layers
    num_text_layers = depth * 3 // 4 if num_text_layers is None else num_text_layers
    if not 0 < num_text_layers <= depth:
        raise ValueError(f"num_text_layers ({num_text_layers}) must be from 1 to {depth}, the layers of the BERT.")

    shared = ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
              "initializer_range")  # fmt: skip
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    own_vision = ("image_size", "patch_size", "num_channels", "num_hidden_layers", "layer_scale_init_value",
                  "drop_path_rate")  # fmt: skip
    own_text = ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
    derived = {
        "vision": {key: getattr(beit, key) for key in shared + own_vision} | {"num_frames": num_frames},
        "text": {key: getattr(bert, key) for key in shared + dropout + own_text}
        | {"num_hidden_layers": num_text_layers},
        "fusion": {key: getattr(bert, key) for key in shared + dropout}
        | {"num_hidden_layers": depth - num_text_layers, "encoder_hidden_size": beit.hidden_size},
    }
    for tower, decided in _DECIDED.items():
        for key in decided:
            asked, found = given[tower].get(key, derived[tower][key]), derived[tower][key]
            if asked != found:
                raise ValueError(f"{TOWER_CONFIGS[tower]}.{key} is {found} in the encoder's weights, not {asked}.")
    towers = {TOWER_CONFIGS[tower]: values | given[tower] for tower, values in derived.items()}
    return SViTTEgoConfig(**towers, **given[""])


def _beit_tensors(beit: BeitModel, config) -> dict[str, torch.Tensor]:
    """BEiT's tensors under our names, its bias tables resized to the picture and repeated over time."""
    size, new_size = beit.config.image_size // beit.config.patch_size, config.image_size // config.patch_size

    def in_3d(table: torch.Tensor) -> torch.Tensor:
        return resample_relative_position_bias(
            resize_relative_position_bias(table, 1, size, new_size), 1, config.num_frames, new_size
        )

    renamed = {}
    for name, tensor in beit.tensors.items():
        if name.endswith("relative_position_bias_table"):
            # A table without a layer number is shared by all layers.
            for layer in re.findall(r"layers\.(\d+)\.", name) or range(config.num_hidden_layers):
                renamed[f"vision_model.layers.{layer}.attention.relative_position_bias_table"] = in_3d(tensor)
            continue
        for theirs, ours in (("patch_embeddings.projection", "patch_projection"), ("pooler.", "pooler_")):
            name = name.replace(theirs, ours)
        renamed[f"vision_model.{name}"] = tensor
    return renamed


def _bert_tensors(bert: BertForMaskedLM, config: SViTTEgoConfig) -> dict[str, torch.Tensor]:
    """BERT's tensors under our names: embeddings, the text layers, the fusion layers, the MLM head."""
    split, depth = config.text_config.num_hidden_layers, config.cross_modal_config.num_hidden_layers
    modules = dict(BERT_HEAD_NAMES)
    modules["text_model.embeddings.layernorm"] = "bert.embeddings.LayerNorm"
    for layer in range(split + depth):
        tower = f"text_model.layers.{layer}" if layer < split else f"fusion_model.layers.{layer - split}"
        for ours, theirs in BERT_LAYER_NAMES.items():
            modules[f"{tower}.{ours}"] = f"bert.encoder.layer.{layer}.{theirs}"
    names = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in modules.items() for part in ("weight", "bias")}
    names["mlm_head.decoder.bias"] = "cls.predictions.bias"
    names["mlm_head.decoder.weight"] = "cls.predictions.decoder.weight"
    for kind in ("word", "position", "token_type"):
        names[f"text_model.embeddings.{kind}_embeddings.weight"] = f"bert.embeddings.{kind}_embeddings.weight"
    return {ours: bert.tensors[theirs] for ours, theirs in names.items() if theirs in bert.tensors}


__all__ = ["BERT_HEAD_NAMES", "BERT_LAYER_NAMES", "TOWER_CONFIGS", "from_encoders", "load_encoder", "split_fields"]
