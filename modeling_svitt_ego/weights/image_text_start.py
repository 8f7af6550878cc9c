"""Start from CLIP (arXiv:2103.00020) or SigLIP and SigLIP 2 (arXiv:2303.15343, arXiv:2502.14786).

The image tower becomes the video tower: the same layers with sparse edges and pruning, bias tables at zero, the learnt
positions repeated over time. The text tower is the library's own, as it is. With one frame, all edges and no pruning
the model equals the image model.

* Keys have no bias in the video tower. An image model's adds the same number to all logits of a query, which softmax
  does not see.
* [CLS]: CLIP's, with its position added. SigLIP has none; the new one starts as the mean position, reads all patches
  and is itself read by none (its bias is -20 where patches look at it), so it changes nothing and can rank the patches
  for pruning.
* SigLIP's pooled vector is that of its attention pooling over the patches; its logit bias has no counterpart and is
  left out.
"""

from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel
from transformers.utils import logging

from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from .warm_start import TOWER_CONFIGS, load_encoder, split_fields

logger = logging.get_logger(__name__)

UNSEEN = -20.0  # a bias that leaves e^-20 of an attention weight, and a gradient
# ours <- theirs, within a layer of the image tower.
LAYER_NAMES = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj",
    "layernorm_before": "layer_norm1",
    "layernorm_after": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
ENCODERS = {"clip": CLIPModel, "siglip": SiglipModel}


def from_image_text_encoder(model_class: type, encoder: str, num_frames: int = 4, **fields):
    """
    A model that continues a CLIP or a SigLIP model.

    ```python
    from_image_text_encoder(SViTTEgoModel, "openai/clip-vit-base-patch16", num_frames=4, num_random_blocks=5)
    ```

    What the encoder does not have (frames' positions, fusion tower, heads) starts from new values: it is logged, and
    listed by name in `model.new_parameters`.

    Args:
        model_class (`type`): [`SViTTEgoModel`] or a subclass.
        encoder (`str`): Hub name or folder of a CLIP model, or of a SigLIP or SigLIP 2 model of fixed resolution.
        num_frames (`int`): frames per clip.
        fields: other configuration fields, as in [`SViTTEgoModel.from_encoders`].

    Raises:
        ValueError: It is another kind of model, or its weights are not complete.
    """
    kind = AutoConfig.from_pretrained(encoder).model_type
    if kind not in ENCODERS:
        native = " (NaFlex, native resolutions); take one of fixed resolution, such as google/siglip2-base-patch16-224"
        remedy = native if kind == "siglip2" else ""
        raise ValueError(f"'{encoder}' is a '{kind}' model{remedy}; this needs one of {', '.join(ENCODERS)}.")
    source = load_encoder(ENCODERS[kind], encoder, kind, may_lack="$^")
    config = _config(source, kind, num_frames, split_fields(fields))
    model = model_class(config)
    own = dict(model.named_parameters())
    tensors = _vision_tensors(source, kind, config) | _projections(source, kind, config)
    tensors |= {f"text_model.{name}": tensor for name, tensor in source.text_model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in own:
                own[name].copy_(tensor)
    _check_complete(model, tensors)
    model.new_parameters = tuple(name for name in own if name not in tensors)
    logger.warning(
        f"Video and text tower from {encoder}. {len(model.new_parameters)} parameters are new and should be trained: "
        f"{', '.join(model.new_parameters)}."
    )
    return model


def image_text_processor(encoder: str, config: SViTTEgoConfig) -> SViTTEgoProcessor:
    """The processor of such a model: the encoder's picture statistics and tokenizer, frames of the model's size."""
    pictures = AutoImageProcessor.from_pretrained(encoder)
    vision, text = config.vision_config, config.text_config
    video_processor = SViTTEgoVideoProcessor(
        size={"height": vision.image_size, "width": vision.image_size},
        num_frames=vision.num_frames,
        image_mean=list(pictures.image_mean),
        image_std=list(pictures.image_std),
    )
    # SigLIP reads its vector from the last place, which is padding: its texts always have the full length.
    full = {} if config.use_text_mask else {"padding": "max_length", "max_length": text.max_position_embeddings}
    return SViTTEgoProcessor(video_processor, AutoTokenizer.from_pretrained(encoder, **full))


def _config(source, kind: str, num_frames: int, given: Mapping[str, Mapping]) -> SViTTEgoConfig:
    vision, text = source.config.vision_config, source.config.text_config
    shared = ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps")
    derived = {
        "vision": {key: getattr(vision, key) for key in (*shared, "image_size", "patch_size", "num_channels")}
        | {
            "num_hidden_layers": vision.num_hidden_layers,
            "num_frames": num_frames,
            "absolute_positions": True,
            "pre_layernorm": kind == "clip",
            "pooling": "cls" if kind == "clip" else "attention",
            "layer_scale_init_value": 1.0,
            "drop_path_rate": 0.0,
        },
        "text": text.to_dict(),
        "fusion": {key: getattr(text, key) for key in shared} | {"encoder_hidden_size": vision.hidden_size},
    }
    # With 12 layers the published ones: 3, 6 and 9.
    depth = vision.num_hidden_layers
    derived["vision"]["prune_layers"] = sorted({depth * part // 4 for part in (1, 2, 3)})
    if given["text"]:
        raise ValueError(f"The text tower is that of the encoder; {', '.join(given['text'])} cannot be set.")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        if given["vision"].get(key, derived["vision"][key]) != derived["vision"][key]:
            raise ValueError(f"vision_config.{key} is {derived['vision'][key]} in the encoder's weights.")
    temperature = min(max((-source.logit_scale.detach()).exp().item(), 0.001), 0.5)
    whole = {
        "projection_dim": source.config.projection_dim if kind == "clip" else vision.hidden_size,
        "temperature_init": temperature,
        "use_text_mask": kind == "clip",
    }
    towers = {TOWER_CONFIGS[tower]: values | dict(given[tower]) for tower, values in derived.items()}
    return SViTTEgoConfig(**towers, **(whole | dict(given[""])))


def _vision_tensors(source, kind: str, config: SViTTEgoConfig) -> dict[str, torch.Tensor]:
    """The image tower's tensors under our names."""
    theirs, vision = source.vision_model.state_dict(), config.vision_config
    positions = theirs["embeddings.position_embedding.weight"]
    tensors = {"embeddings.patch_projection.weight": theirs["embeddings.patch_embedding.weight"]}
    size = vision.hidden_size
    tensors["embeddings.patch_projection.bias"] = theirs.get("embeddings.patch_embedding.bias", torch.zeros(size))
    if kind == "clip":
        tensors["embeddings.cls_token"] = (theirs["embeddings.class_embedding"] + positions[0]).view(1, 1, -1)
        positions = positions[1:]
        for part in ("weight", "bias"):
            tensors[f"embeddings.pre_layernorm.{part}"] = theirs[f"pre_layrnorm.{part}"]
    else:
        tensors["embeddings.cls_token"] = positions.mean(0).view(1, 1, -1)
        tensors |= _pooler_tensors(theirs)
    tensors["embeddings.positions.patch_embedding"] = positions
    for norm in ("layernorm", "pooler_layernorm"):
        for part in ("weight", "bias"):
            tensors[f"{norm}.{part}"] = theirs[f"post_layernorm.{part}"]
    offsets = (2 * vision.num_frames - 1) * (2 * vision.image_size // vision.patch_size - 1) ** 2
    for layer in range(vision.num_hidden_layers):
        ours, their = f"layers.{layer}", f"encoder.layers.{layer}"
        for mine, name in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                tensors[f"{ours}.{mine}.{part}"] = theirs[f"{their}.{name}.{part}"]
        tensors[f"{ours}.attention.k_proj.weight"] = theirs[f"{their}.self_attn.k_proj.weight"]
        tensors |= {f"{ours}.lambda_{number}": torch.ones(size) for number in (1, 2)}
        table = torch.zeros(offsets + 3, vision.num_attention_heads)
        if kind == "siglip":
            table[PATCH_TO_CLS] = UNSEEN
        tensors[f"{ours}.attention.relative_position_bias_table"] = table
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}


PATCH_TO_CLS = -2  # row of a bias table: [CLS] to patch, patch to [CLS], [CLS] to itself are the last three


def _pooler_tensors(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {"pooler.query": theirs["head.probe"]}
    for part in ("weight", "bias"):
        parts = theirs[f"head.attention.in_proj_{part}"].chunk(3)
        tensors |= {f"pooler.{name}_proj.{part}": tensor for name, tensor in zip("qkv", parts)}
        tensors[f"pooler.o_proj.{part}"] = theirs[f"head.attention.out_proj.{part}"]
        tensors[f"pooler.layernorm.{part}"] = theirs[f"head.layernorm.{part}"]
        tensors |= {f"pooler.{name}.{part}": theirs[f"head.mlp.{name}.{part}"] for name in ("fc1", "fc2")}
    return tensors


def _projections(source, kind: str, config: SViTTEgoConfig) -> dict[str, torch.Tensor]:
    """Both projections; SigLIP has none, its vectors are compared as they are."""
    size = config.projection_dim
    temperature = {"temperature": torch.tensor([config.temperature_init])}
    if kind == "clip":
        weights = source.visual_projection.weight, source.text_projection.weight
    else:
        weights = torch.eye(size), torch.eye(size)
    names = ("video_projection", "text_projection")
    tensors = {f"{name}.weight": weight for name, weight in zip(names, weights)}
    return tensors | {f"{name}.bias": torch.zeros(size) for name in names} | temperature


def _check_complete(model, tensors: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the encoder has a place, and both towers are complete but for the frames' positions."""
    own = dict(model.state_dict())
    homeless = [name for name in tensors if name not in own]
    new = [name for name in own if name.startswith(("vision_model.", "text_model.")) and name not in tensors]
    new = [name for name in new if not name.endswith("frame_embedding")]
    if homeless or new:
        raise ValueError(f"The encoder's weights do not fit: {homeless[:4]} have no place, {new[:4]} have no source.")


__all__ = ["from_image_text_encoder", "image_text_processor"]
