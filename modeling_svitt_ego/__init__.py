"""SViTT-Ego (arXiv:2406.09462): a sparse video-text transformer for first-person video.

Importing the package registers its classes with transformers' Auto classes. What needs `datasets`, `evaluate` or a
video decoder lives in the sub-packages `data` and `evaluation` and is imported from there.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .clip_reading import ClipReadError
from .configuration_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoFusionConfig,
    SViTTEgoTextConfig,
    SViTTEgoVisionConfig,
)
from .lora import lora_target_modules, register_lora_defaults
from .modeling_svitt_ego import (
    SViTTEgoForMultipleChoice,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
    SViTTEgoPreTrainedModel,
    SViTTEgoTextModel,
    SViTTEgoVisionModel,
)
from .pipeline_svitt_ego import TASK as _ZERO_SHOT
from .pipeline_svitt_ego import ZeroShotVideoClassificationPipeline
from .processing_svitt_ego import SViTTEgoProcessor
from .temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding, SViTTEgoTemporalGroundingConfig
from .video_processing_svitt_ego import SViTTEgoVideoProcessor

__version__ = "0.1.0"

for _config in (SViTTEgoConfig, SViTTEgoVisionConfig, SViTTEgoTextConfig, SViTTEgoFusionConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
AutoModel.register(SViTTEgoConfig, SViTTEgoModel, exist_ok=True)
AutoModel.register(SViTTEgoVisionConfig, SViTTEgoVisionModel, exist_ok=True)
AutoModel.register(SViTTEgoTextConfig, SViTTEgoTextModel, exist_ok=True)
AutoConfig.register(SViTTEgoTemporalGroundingConfig.model_type, SViTTEgoTemporalGroundingConfig, exist_ok=True)
AutoModel.register(SViTTEgoTemporalGroundingConfig, SViTTEgoForTemporalGrounding, exist_ok=True)
AutoModelForPreTraining.register(SViTTEgoConfig, SViTTEgoForPreTraining, exist_ok=True)
AutoModelForMultipleChoice.register(SViTTEgoConfig, SViTTEgoForMultipleChoice, exist_ok=True)
AutoModelForVideoClassification.register(SViTTEgoConfig, SViTTEgoForVideoClassification, exist_ok=True)
AutoVideoProcessor.register(SViTTEgoConfig, SViTTEgoVideoProcessor, exist_ok=True)
AutoProcessor.register(SViTTEgoConfig, SViTTEgoProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    _ZERO_SHOT, ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
)
register_lora_defaults()

__all__ = [
    "ClipReadError",
    "SViTTEgoConfig",
    "SViTTEgoForMultipleChoice",
    "SViTTEgoForPreTraining",
    "SViTTEgoForTemporalGrounding",
    "SViTTEgoForVideoClassification",
    "SViTTEgoForVideoTextRetrieval",
    "SViTTEgoFusionConfig",
    "SViTTEgoModel",
    "SViTTEgoPreTrainedModel",
    "SViTTEgoProcessor",
    "SViTTEgoTemporalGroundingConfig",
    "SViTTEgoTextConfig",
    "SViTTEgoTextModel",
    "SViTTEgoVideoProcessor",
    "SViTTEgoVisionConfig",
    "SViTTEgoVisionModel",
    "ZeroShotVideoClassificationPipeline",
    "lora_target_modules",
]
