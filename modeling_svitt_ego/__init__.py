"""SViTT-Ego (arXiv:2406.09462): a sparse video-text transformer for first-person video.

Importing the package costs milliseconds: a public name is loaded when it is first used. The classes are registered
with transformers' Auto classes as soon as transformers itself is imported, before or after this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register_when_imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.charades_ego import load_charades_ego
    from .data.clip_shards import ClipShardDataset
    from .data.clips import EgoClipDataset
    from .data.egoclip import load_egoclip
    from .data.egomcq import load_egomcq
    from .data.egonlq import load_egonlq
    from .data.egtea import load_egtea
    from .data.epic_kitchens import load_epic_kitchens
    from .data.layouts import VideoStore
    from .data.rephrasings import load_rephrased
    from .evaluation.egomcq import EgoMCQEvaluator
    from .features.search import VideoIndex
    from .hub.configs import hub_config, hub_config_names
    from .model.clip_reading import ClipReadError
    from .model.configuration_svitt_ego import (
        SViTTEgoConfig,
        SViTTEgoFusionConfig,
        SViTTEgoTextConfig,
        SViTTEgoVisionConfig,
    )
    from .model.modeling_svitt_ego import (
        SViTTEgoForMultipleChoice,
        SViTTEgoForPreTraining,
        SViTTEgoForVideoClassification,
        SViTTEgoForVideoTextRetrieval,
        SViTTEgoModel,
    )
    from .model.pipeline_svitt_ego import ZeroShotVideoClassificationPipeline
    from .model.pretrained_svitt_ego import SViTTEgoPreTrainedModel
    from .model.processing_svitt_ego import SViTTEgoProcessor
    from .model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding, SViTTEgoTemporalGroundingConfig
    from .model.text import SViTTEgoTextModel
    from .model.video_processing_svitt_ego import SViTTEgoVideoProcessor
    from .model.vision import SViTTEgoVisionModel
    from .training.arguments import SViTTEgoTrainingArguments
    from .training.trainer import SViTTEgoTrainer
    from .weights.lora import lora_target_modules
    from .weights.released_checkpoint import load_original_checkpoint

# Where each public name is defined. The imports above are for type checkers; a test compares the two lists.
_HOMES = {
    "data.charades_ego": ("load_charades_ego",),
    "data.clip_shards": ("ClipShardDataset",),
    "data.clips": ("EgoClipDataset",),
    "data.egoclip": ("load_egoclip",),
    "data.egomcq": ("load_egomcq",),
    "data.egonlq": ("load_egonlq",),
    "data.egtea": ("load_egtea",),
    "data.epic_kitchens": ("load_epic_kitchens",),
    "data.layouts": ("VideoStore",),
    "data.rephrasings": ("load_rephrased",),
    "evaluation.egomcq": ("EgoMCQEvaluator",),
    "features.search": ("VideoIndex",),
    "hub.configs": ("hub_config", "hub_config_names"),
    "model.clip_reading": ("ClipReadError",),
    "model.configuration_svitt_ego": (
        "SViTTEgoConfig",
        "SViTTEgoFusionConfig",
        "SViTTEgoTextConfig",
        "SViTTEgoVisionConfig",
    ),
    "model.modeling_svitt_ego": (
        "SViTTEgoForMultipleChoice",
        "SViTTEgoForPreTraining",
        "SViTTEgoForVideoClassification",
        "SViTTEgoForVideoTextRetrieval",
        "SViTTEgoModel",
    ),
    "model.pipeline_svitt_ego": ("ZeroShotVideoClassificationPipeline",),
    "model.pretrained_svitt_ego": ("SViTTEgoPreTrainedModel",),
    "model.processing_svitt_ego": ("SViTTEgoProcessor",),
    "model.temporal_grounding_svitt_ego": ("SViTTEgoForTemporalGrounding", "SViTTEgoTemporalGroundingConfig"),
    "model.text": ("SViTTEgoTextModel",),
    "model.video_processing_svitt_ego": ("SViTTEgoVideoProcessor",),
    "model.vision": ("SViTTEgoVisionModel",),
    "training.arguments": ("SViTTEgoTrainingArguments",),
    "training.trainer": ("SViTTEgoTrainer",),
    "weights.lora": ("lora_target_modules",),
    "weights.released_checkpoint": ("load_original_checkpoint",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_HOME_OF[name]}", __name__)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", __name__):
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package {missing!r}, which is not installed: pip install {missing}"
        ) from error
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register_when_imported()
