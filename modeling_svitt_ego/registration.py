"""Makes the classes known to transformers (Auto classes, pipelines) and to PEFT, as soon as those are imported.

Registering needs the classes, the classes need transformers and torch, and `svitt-ego --help` needs none of them. So
registration waits until `transformers` (or `peft`) has been imported, by whomever, and then runs at once.
"""

import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_when_imported() -> None:
    """Registers everything now where the library is already imported, or right after its import."""
    _after_import("transformers", _register_with_transformers)
    _after_import("peft", _register_with_peft)


def _register_with_transformers() -> None:
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

    from .model import configuration_svitt_ego as configurations
    from .model import modeling_svitt_ego as models
    from .model.pipeline_svitt_ego import TASK, ZeroShotVideoClassificationPipeline
    from .model.pipeline_temporal_grounding import TASK as GROUNDING_TASK
    from .model.pipeline_temporal_grounding import TemporalGroundingPipeline
    from .model.processing_svitt_ego import SViTTEgoProcessor
    from .model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding, SViTTEgoTemporalGroundingConfig
    from .model.text import SViTTEgoTextModel
    from .model.video_processing_svitt_ego import SViTTEgoVideoProcessor
    from .model.vision import SViTTEgoVisionModel

    whole = configurations.SViTTEgoConfig
    for auto_class, config, model in (
        (AutoModel, whole, models.SViTTEgoModel),
        (AutoModel, configurations.SViTTEgoVisionConfig, SViTTEgoVisionModel),
        (AutoModel, configurations.SViTTEgoTextConfig, SViTTEgoTextModel),
        (AutoModel, SViTTEgoTemporalGroundingConfig, SViTTEgoForTemporalGrounding),
        (AutoModelForPreTraining, whole, models.SViTTEgoForPreTraining),
        (AutoModelForMultipleChoice, whole, models.SViTTEgoForMultipleChoice),
        (AutoModelForVideoClassification, whole, models.SViTTEgoForVideoClassification),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto_class.register(config, model, exist_ok=True)
    fusion = configurations.SViTTEgoFusionConfig
    AutoConfig.register(fusion.model_type, fusion, exist_ok=True)
    AutoVideoProcessor.register(whole, SViTTEgoVideoProcessor, exist_ok=True)
    AutoProcessor.register(whole, SViTTEgoProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        TASK, ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
    )
    PIPELINE_REGISTRY.register_pipeline(
        GROUNDING_TASK, TemporalGroundingPipeline, pt_model=AutoModel, type="multimodal"
    )
    # The warm start reads other libraries' checkpoints and does not ship to the Hub with the class.
    models.SViTTEgoModel.from_encoders = classmethod(_from_encoders)
    models.SViTTEgoModel.from_image_text_encoder = classmethod(_from_image_text_encoder)


def _register_with_peft() -> None:
    from .weights.lora import register_lora_defaults

    register_lora_defaults()


def _from_encoders(cls, vision_encoder: str, text_encoder: str, num_frames: int = 4, **fields):
    """
    A model that continues a BEiT and a BERT, as SViTT's pretraining does:

    ```python
    SViTTEgoForPreTraining.from_encoders(
        "microsoft/beit-base-patch16-224-pt22k-ft22k", "bert-base-uncased", num_frames=4, num_random_blocks=5
    )
    ```

    BEiT's bias tables are repeated over time. What neither encoder has (projections, cross-attention, heads of
    this class, temperature) is initialised: it is logged, and listed by name in `model.new_parameters`.

    Args:
        vision_encoder, text_encoder (`str`): Hub names or folders of a BEiT and of a BERT model.
        num_text_layers (`int`, *optional*): BERT layers before fusion; 9 of BERT-base's 12 (three quarters).
        fields: other configuration fields: those of the whole and of the video tower by their names (`keep_rate`
            is q_v; another `image_size` than BEiT's resizes its tables), those of the others with `text_` or
            `fusion_` in front (`fusion_keep_rate` is q_m).
    """
    from .weights.warm_start import from_encoders

    return from_encoders(cls, vision_encoder, text_encoder, num_frames, **fields)


def _from_image_text_encoder(cls, encoder: str, num_frames: int = 4, **fields):
    """
    A model that continues a CLIP, or a SigLIP or SigLIP 2 of fixed resolution:

    ```python
    SViTTEgoModel.from_image_text_encoder("openai/clip-vit-base-patch16", num_frames=4, num_random_blocks=5)
    ```

    See `weights.image_text_start.from_image_text_encoder`; `image_text_processor` there makes the processor.
    """
    from .weights.image_text_start import from_image_text_encoder

    return from_image_text_encoder(cls, encoder, num_frames, **fields)


def _after_import(name: str, action: Callable[[], None]) -> None:
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _ActAfterImport(name, action))


class _ActAfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module by the other finders, and calls `action` once that module has been executed."""

    def __init__(self, name: str, action: Callable[[], None]):
        self.name = name
        self.action = action

    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self.loader, spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Not earlier: a spec is often asked for without importing the module (is peft installed?).
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.action()
