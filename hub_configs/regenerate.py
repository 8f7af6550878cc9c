"""Writes the configurations in this folder: `python hub_configs/regenerate.py [FOLDER]`. A test compares.

Every variant is SViTT-Ego at base size (BEiT-B/16 at 224 px, BERT-base as 9 text and 3 fusion layers, 4 frames) and
differs in its sparsity alone. `AutoModel.from_config(AutoConfig.from_pretrained("hub_configs/svitt-ego-base"))` makes
one with new weights. svitt-ego-tiny is the demo's.
"""

import json
import sys
from pathlib import Path

from modeling_svitt_ego.demo.demo import TINY_CONFIG
from modeling_svitt_ego.model.configuration_svitt_ego import SViTTEgoConfig
from modeling_svitt_ego.weights.released_config import RELEASES, release_config

EDGES = dict(num_local_blocks=1, num_random_blocks=3, block_size=56)
DENSE = dict(num_random_blocks=None)
PRUNE = dict(keep_rate=0.7, prune_layers=[3, 6, 9])
FUSION_PRUNE = dict(keep_rate=0.1, prune_layers=[0])
KEEP_ALL = dict(keep_rate=1.0, prune_layers=[])


def variants() -> dict[str, SViTTEgoConfig]:
    """Name to configuration. base, -edge, -node and -dense are the four corners of the two sparsities."""
    return {
        "svitt-ego-base": SViTTEgoConfig(vision_config=EDGES | PRUNE, cross_modal_config=FUSION_PRUNE),
        "svitt-ego-base-edge": SViTTEgoConfig(vision_config=EDGES | KEEP_ALL, cross_modal_config=KEEP_ALL),
        "svitt-ego-base-node": SViTTEgoConfig(vision_config=DENSE | PRUNE, cross_modal_config=FUSION_PRUNE),
        "svitt-ego-base-dense": SViTTEgoConfig(vision_config=DENSE | KEEP_ALL, cross_modal_config=KEEP_ALL),
        # What `svitt-ego convert` makes of the released weights, with the released attention and processing.
        "svitt-ego-base-1-5-56": release_config(RELEASES["svitt-ego"]),
        "svitt-ego-tiny": SViTTEgoConfig(**TINY_CONFIG),
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
