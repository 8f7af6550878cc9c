"""Writes the configurations in this folder: `python hub_configs/regenerate.py [FOLDER]`. A test compares.

Every variant is SViTT-Ego at base size (BEiT-B/16 at 224 px, BERT-base as 9 text and 3 fusion layers, 4 frames) and
differs in its sparsity alone. `AutoModel.from_config(AutoConfig.from_pretrained("hub_configs/svitt-ego-base"))` makes
one with new weights. svitt-ego-tiny is the demo's.
"""

import json
import sys
from pathlib import Path

from modeling_svitt_ego.model.configuration_svitt_ego import SViTTEgoConfig
from modeling_svitt_ego.weights.released_config import RELEASES, release_config

EDGES = dict(num_local_blocks=1, num_random_blocks=3, block_size=56)
# As many blocks as above. 49 divides the 196 patches of a frame: the same place in the next frame is one whole block.
TEMPORAL = dict(num_local_blocks=1, num_temporal_blocks=2, num_random_blocks=1, block_size=49)
# Of our own design, so it keeps tokens by the rule that did best (benchmarks/README.md, "Which tokens to keep"). The
# published configurations keep theirs.
BY_MOTION = dict(keep_strategy="motion")
DENSE = dict(num_random_blocks=None)
PRUNE = dict(keep_rate=0.7, prune_layers=[3, 6, 9])
FUSION_PRUNE = dict(keep_rate=0.1, prune_layers=[0])
KEEP_ALL = dict(keep_rate=1.0, prune_layers=[])


# svitt-ego-tiny, made for training from scratch in minutes: BEiT's zero bias tables, small layer scale and initial
# weights of 0.02 suit a wide, pretrained tower. A block is a row of a frame, one of 16 in a clip of 4 frames: a token
# attends to its own row, the rows above and below, the same row one frame back and one ahead, and a random one.
TINY = {
    "vision_config": {
        "image_size": 64,
        "patch_size": 16,
        "num_frames": 4,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "num_local_blocks": 3,
        "num_temporal_blocks": 2,
        "num_random_blocks": 1,
        "block_size": 4,
        "keep_rate": 0.7,
        "prune_layers": [1, 2],
        "layer_scale_init_value": 1.0,
        "relative_position_init": "directional",
        "drop_path_rate": 0.0,
        "initializer_range": 0.08,
    },
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "cls_token_id": 2,
        "mask_token_id": 4,
        "initializer_range": 0.08,
    },
    "cross_modal_config": {
        "hidden_size": 128,
        "encoder_hidden_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.08,
    },
    "projection_dim": 128,
    "initializer_range": 0.08,
    # At this learning rate a free temperature runs away before there is anything to compare.
    "temperature_init": 0.07,
    "temperature_max": 0.08,
}


def variants() -> dict[str, SViTTEgoConfig]:
    """Name to configuration. base, -edge, -node and -dense are the four corners of the two sparsities."""
    return {
        "svitt-ego-base": SViTTEgoConfig(vision_config=EDGES | PRUNE, cross_modal_config=FUSION_PRUNE),
        "svitt-ego-base-temporal": SViTTEgoConfig(
            vision_config=TEMPORAL | PRUNE | BY_MOTION, cross_modal_config=FUSION_PRUNE
        ),
        "svitt-ego-base-edge": SViTTEgoConfig(vision_config=EDGES | KEEP_ALL, cross_modal_config=KEEP_ALL),
        "svitt-ego-base-node": SViTTEgoConfig(vision_config=DENSE | PRUNE, cross_modal_config=FUSION_PRUNE),
        "svitt-ego-base-dense": SViTTEgoConfig(vision_config=DENSE | KEEP_ALL, cross_modal_config=KEEP_ALL),
        # What `svitt-ego convert` makes of the released weights, with the released attention and processing.
        "svitt-ego-base-1-5-56": release_config(RELEASES["svitt-ego"]),
        "svitt-ego-tiny": SViTTEgoConfig(**TINY),
    }


def config_json(config) -> dict:
    """Our own fields, all of them, by tower; none of the library's, which change with its version."""
    own = {"model_type": config.model_type}
    for name in type(config).__annotations__:
        value = getattr(config, name)
        if not name.startswith("_") and name not in ("auto_classes", "sub_configs"):
            own[name] = config_json(value) if name in config.sub_configs else value
    return own


def processor_json(config: SViTTEgoConfig) -> dict:
    """Evaluation's processing; the release's resize does not average and its text has no punctuation."""
    vision = config.vision_config
    return {
        "processor_class": "SViTTEgoProcessor",
        "text_cleaning": "svitt" if vision.released_attention else "none",
        "video_processor": {
            "video_processor_type": "SViTTEgoVideoProcessor",
            "num_frames": vision.num_frames,
            "size": {"height": vision.image_size, "width": vision.image_size},
            "antialias": not vision.released_attention,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }


def main(folder: Path) -> None:
    for name, config in variants().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, content in (("config", config_json(config)), ("processor_config", processor_json(config))):
            (folder / name / f"{file}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
