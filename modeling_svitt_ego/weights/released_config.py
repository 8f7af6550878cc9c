"""The configuration of a SViTT checkpoint: what its shapes say, and the sparsity, which they do not."""

import re
from collections.abc import Mapping

from transformers.utils import logging

from ..model.configuration_svitt_ego import SViTTEgoConfig
from .warm_start import TOWER_CONFIGS, split_fields

logger = logging.get_logger(__name__)

# What the published runs set in addition to the shapes.
# SViTT-Ego: arXiv:2406.09462, (K_l, K_r, G) = (1, 5, 56), q_v = 0.7 after vision layers 4, 7, 10 (1-based), q_m = 0.1.
# SViTT: configs/pretrain_webvid.yaml; its q_m = 0.1 is under joint_encoder_args, which its code never reads, so its
# fusion tower keeps every token.
RELEASES = {
    "svitt-ego": dict(
        num_local_blocks=1,
        num_random_blocks=5,
        block_size=56,
        keep_rate=0.7,
        prune_layers=[3, 6, 9],
        fusion_keep_rate=0.1,
        fusion_prune_layers=[0],
        temperature_init=0.18,
        contrastive_loss="ego_nce",
    ),
    "svitt": dict(
        num_local_blocks=1,
        num_random_blocks=3,
        block_size=56,
        keep_rate=0.7,
        prune_layers=[3, 6, 9],
        fusion_keep_rate=1.0,
        fusion_prune_layers=[],
        temperature_init=0.07,
        contrastive_loss="info_nce",
    ),
}


# A model of another depth than the releases', where nothing is said: the SViTT code's own defaults.
_OFF = dict(num_random_blocks=None, keep_rate=1.0, prune_layers=[], fusion_keep_rate=1.0, fusion_prune_layers=[])
_DEPTHS = {"vision": 12, "text": 9, "fusion": 3}

_INDEX = "vision_encoder.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
_TABLE = "vision_encoder.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table"
_PATCHES = "vision_encoder.embeddings.patch_embeddings.projection.weight"
_TEXT = "text_encoder.embeddings.{}_embeddings.weight"
_FFN = "{}_encoder.encoder.layer.0.intermediate.dense.weight"
# Keys that every SViTT checkpoint has and the configuration is read from, with their number of dimensions.
_REQUIRED = {
    _PATCHES: 4,
    _TABLE: 2,
    _FFN.format("vision"): 2,
    _FFN.format("text"): 2,
    "vision_proj.weight": 2,
    **{_TEXT.format(kind): 2 for kind in ("word", "position", "token_type")},
}


def config_from_shapes(original: Mapping, num_frames: int | None = None, image_size: int | None = None) -> dict:
    """
    Configuration fields that a SViTT state dict decides, by tower; see `split_fields` for the keys.

    Args:
        num_frames, image_size (`int`, *optional*): the known values. Needed only where a file
            without position index leaves a choice and its frames are not 224 pixels wide.
    """
    shapes = {key.replace("text_encoder.bert.", "text_encoder."): tuple(x.shape) for key, x in original.items()}
    for key, dimensions in _REQUIRED.items():
        if len(shapes.get(key, ())) != dimensions:
            raise ValueError(
                f"Not a SViTT checkpoint: among its {len(shapes)} keys ({', '.join(list(original)[:3])}, …) there is "
                f"no {key} of {dimensions} dimensions."
            )
    cross = [int(found[1]) for key in shapes if (found := re.match(r"text_encoder.*\.(\d+)\.crossattention\.", key))]
    if not cross:
        raise ValueError("Not a SViTT checkpoint: no layer of its text encoder has cross-attention.")
    hidden_size, channels, patch_size, _ = shapes[_PATCHES]
    rows, heads = shapes[_TABLE]
    num_frames, side = _frames_and_side(rows, shapes.get(_INDEX), num_frames, image_size, patch_size)
    vocab_size, text_size = shapes[_TEXT.format("word")]
    text_layer = {
        "hidden_size": text_size,
        "intermediate_size": shapes[_FFN.format("text")][0],
        # Shapes do not tell BERT's heads: as many as the video tower's at the same width, else 64 wide as in BERT.
        "num_attention_heads": heads if text_size == hidden_size else max(1, text_size // 64),
    }
    fusion_layer = min(cross)
    return {
        "vision": {
            "image_size": side * patch_size,
            "patch_size": patch_size,
            "num_channels": channels,
            "num_frames": num_frames,
            "hidden_size": hidden_size,
            "num_hidden_layers": _depth(shapes, "vision"),
            "num_attention_heads": heads,
            "intermediate_size": shapes[_FFN.format("vision")][0],
        },
        "text": text_layer
        | {
            "vocab_size": vocab_size,
            "num_hidden_layers": fusion_layer,
            "max_position_embeddings": shapes[_TEXT.format("position")][0],
            "type_vocab_size": shapes[_TEXT.format("token_type")][0],
        },
        "fusion": text_layer
        | {"encoder_hidden_size": hidden_size, "num_hidden_layers": _depth(shapes, "text") - fusion_layer},
        "": {"projection_dim": shapes["vision_proj.weight"][0]},
    }


def _depth(shapes: Mapping, tower: str) -> int:
    found = (re.match(rf"{tower}_encoder\.encoder\.layer\.(\d+)\.", key) for key in shapes)
    return 1 + max(int(layer[1]) for layer in found if layer)


def _frames_and_side(
    rows: int, index: tuple | None, num_frames: int | None, image_size: int | None, patch_size: int
) -> tuple[int, int]:
    """T and S from the R = (2T-1)(2S-1)² + 3 rows of a bias table and, where the file has it, the index's T S² + 1."""
    fits = []
    for side in range(1, 129):
        offsets, rest = divmod(rows - 3, (2 * side - 1) ** 2)
        frames = (offsets + 1) // 2
        if offsets > 0 and offsets % 2 == 1 and rest == 0 and index in (None, (frames * side**2 + 1,) * 2):
            fits.append((frames, side))
    if not fits:
        also = "" if index is None else f" and its index the shape {index}"
        raise ValueError(f"The relative position bias table has {rows} rows{also}: no number of square frames fits.")
    usual = [fit for fit in fits if fit[1] * patch_size == 224]
    chosen = usual or fits
    if image_size is not None:
        chosen = [fit for fit in fits if fit[1] * patch_size == image_size]
    if num_frames is not None and len(chosen) > 1:
        chosen = [fit for fit in chosen if fit[0] == num_frames]
    said = " or ".join(f"{frames} frames of {side * patch_size} px" for frames, side in (usual or fits)[:6])
    if not chosen or num_frames not in (None, chosen[0][0]):
        asked = [] if num_frames is None else [f"num_frames={num_frames}"]
        asked += [] if image_size is None else [f"image_size={image_size}"]
        raise ValueError(
            f"The checkpoint is made for {said}, not for {', '.join(asked)}. Load it as it is; resize_frames (and "
            "--num-frames of `svitt-ego convert`) then changes the number of frames."
        )
    if len(chosen) > 1:
        raise ValueError(f"The relative position bias table fits {said}: say which by image_size (--image-size).")
    return chosen[0]


def fields_from_settings(settings: Mapping, fusion_layer: int) -> dict:
    """
    Our configuration fields from a run configuration of the SViTT code: what its code *does* with it.

    What is not set has the code's own default. Fusion pruning is read by the code from `text_encoder_args`; the
    published files put it under `joint_encoder_args`, which nothing reads: their fusion tower keeps every token.
    """
    vision, text = dict(settings["vision_encoder_args"] or {}), dict(settings.get("text_encoder_args") or {})
    if settings.get("vit_type", "beit") != "beit":
        raise ValueError(f"vit_type is '{settings['vit_type']}'; only 'beit' can be converted.")
    for key, only in (("token_3d_order", "none"), ("num_cls_tokens", 1)):
        if vision.pop(key, only) != only:
            raise ValueError(f"vision_encoder_args.{key} can only be {only!r} here.")
    if "joint_encoder_args" in settings and "token_keep_rate" not in text:
        logger.warning(
            "joint_encoder_args is not read by the SViTT code, so its fusion tower keeps every token; "
            "fusion_keep_rate (--fusion-keep-rate) says otherwise."
        )
    local_blocks = vision.pop("sparse_local_attn", 1)
    fields = {
        "num_local_blocks": 0 if local_blocks is None else local_blocks,
        "num_random_blocks": vision.pop("sparse_random_attn", None),
        "block_size": vision.pop("attn_block_size", 1),
        "keep_rate": vision.pop("token_keep_rate", 1.0),
        "keep_strategy": vision.pop("token_keep_strategy", "cls_attn"),
        "prune_layers": list(vision.pop("token_drop_loc", (3, 6, 9))),
        "fusion_keep_rate": text.pop("token_keep_rate", 1.0),
        "fusion_keep_strategy": text.pop("token_keep_strategy", "cls_attn"),
        "fusion_prune_layers": [layer - fusion_layer for layer in text.pop("token_drop_loc", (9,))],
    }
    for tower in ("", "fusion_"):
        if fields[f"{tower}keep_rate"] == 1:  # their layers may then be beyond the last
            fields[f"{tower}prune_layers"] = []
    unread = [f"{name}_encoder_args.{key}" for name, rest in (("vision", vision), ("text", text)) for key in rest]
    if unread:
        raise ValueError(f"The configuration has settings that are not known: {', '.join(unread)}.")
    weights = settings.get("loss_weight") or {}
    others = {
        "image_size": settings.get("image_res"),
        "num_frames": (settings.get("video_input") or {}).get("num_frames"),
        "projection_dim": settings.get("embed_dim"),
        "temperature_init": settings.get("temp"),
        "mlm_probability": settings.get("mlm_prob"),
        "contrastive_weight": weights.get("itc"),
        "vtm_weight": weights.get("itm"),
        "mlm_weight": weights.get("mlm"),
    }
    return fields | {key: value for key, value in others.items() if value is not None}


def original_config(
    original: Mapping,
    num_frames: int | None = None,
    release: str = "svitt-ego",
    settings: Mapping | None = None,
    **fields,
) -> SViTTEgoConfig:
    """
    The configuration of a SViTT state dict: its shapes, and what they leave open.

    That comes, in this order, from `fields`, from `settings` (a run configuration of the SViTT code), and from
    `release`, whose values are for a model of its depth: for any other, what is left open is off, as in the SViTT code
    without arguments, and logged.
    """
    if release not in RELEASES:
        raise ValueError(f"release ('{release}') must be one of {', '.join(RELEASES)}.")
    if num_frames is not None:
        fields = fields | {"num_frames": num_frames}
    given = split_fields(fields)
    shapes = config_from_shapes(original, given["vision"].get("num_frames"), given["vision"].get("image_size"))
    _check(given, shapes, "not")
    if settings is not None:
        published = {key: RELEASES[release][key] for key in ("temperature_init", "contrastive_loss")}
        rest = split_fields(published | fields_from_settings(settings, shapes["text"]["num_hidden_layers"]))
        _check(rest, shapes, "but the run configuration says")
    elif all(values["num_hidden_layers"] == _DEPTHS[tower] for tower, values in shapes.items() if tower):
        rest = split_fields(RELEASES[release])
    else:
        rest = split_fields(_OFF)
        silent = [f"{TOWER_CONFIGS[t]}.{key}" for t in TOWER_CONFIGS for key in rest[t] if key not in given[t]]
        if silent:
            logger.warning(
                f"The checkpoint does not have the layers of the release '{release}' and no record of its "
                f"sparsity. These fields were not given and are off: {', '.join(silent)}."
            )
    if "num_attention_heads" in given["text"]:
        shapes["fusion"]["num_attention_heads"] = given["text"]["num_attention_heads"]
    return _assemble({tower: rest[tower] | shapes[tower] | given[tower] for tower in shapes})


def release_config(fields: Mapping) -> SViTTEgoConfig:
    """The configuration of a release of base size, from its entry in `RELEASES`."""
    return _assemble(split_fields(fields))


def _assemble(towers: Mapping[str, dict]) -> SViTTEgoConfig:
    """Trained with the SViTT code, weights expect its padding and repeated blocks, unless one says otherwise."""
    vision = {"released_attention": True} | towers["vision"]
    configs = {TOWER_CONFIGS[tower]: values for tower, values in towers.items() if tower}
    return SViTTEgoConfig(**configs | {"vision_config": vision}, **towers[""])


def _check(said: Mapping, shapes: Mapping, but: str) -> None:
    """What is said must agree with the shapes; only BERT's number of heads is not in them."""
    for tower, values in said.items():
        for key, value in values.items():
            found = shapes[tower].get(key, value)
            if found != value and not (key == "num_attention_heads" and tower != "vision"):
                name = f"{TOWER_CONFIGS[tower]}.{key}" if tower else key
                raise ValueError(f"{name} is {found} in the checkpoint's weights, {but} {value}.")


__all__ = ["RELEASES", "config_from_shapes", "fields_from_settings", "original_config", "release_config"]
