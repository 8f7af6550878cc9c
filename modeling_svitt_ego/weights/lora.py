"""LoRA (arXiv:2106.09685) by PEFT: its default target modules for our model types, and those of one tower.

Importing the package registers the default, so that `LoraConfig(task_type="FEATURE_EXTRACTION")` does what the paper
does: low-rank updates of the query and value projections, here of every tower the model has.
"""

import importlib.util
from collections.abc import Sequence

from transformers.utils import logging

from ..model.configuration_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoFusionConfig,
    SViTTEgoTextConfig,
    SViTTEgoVisionConfig,
)

logger = logging.get_logger(__name__)

LORA_TOWERS = {"vision": "vision_model", "text": "text_model", "fusion": "fusion_model"}
# Every linear layer inside a tower's layers, under the same name in all three.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
LORA_DEFAULT_MODULES = ("q_proj", "v_proj")


def lora_target_modules(*towers: str, modules: tuple[str, ...] | list[str] = LORA_DEFAULT_MODULES) -> str:
    """
    The `target_modules` of a `LoraConfig` that adapts some towers and leaves the others as they are.

    ```python
    config = LoraConfig(target_modules=lora_target_modules("vision"), modules_to_save=["classifier"])
    ```

    The heads are `modules_to_save`: `video_projection`, `text_projection`, `vtm_head`, `mlm_head`, `classifier`. The
    `temperature` is a parameter and no module, so PEFT always leaves it frozen.
    `PeftModel.from_pretrained` brings saved heads back; `model.load_adapter` does so from transformers 5.18 on.

    Args:
        towers (`str`): any of `"vision"`, `"text"` and `"fusion"`.
        modules (`list[str]`, defaults to `q_proj` and `v_proj`): any of `q_proj`, `k_proj`, `v_proj`, `o_proj`,
            `fc1` and `fc2`; in the fusion tower those of self- and of cross-attention.

    Returns:
        A regular expression over module names, for any of the models that hold whole towers.
    """
    for kind, given, known in (("tower", towers, LORA_TOWERS), ("module", modules, LORA_MODULES)):
        unknown = [name for name in given if name not in known]
        if unknown or not given or isinstance(given, str):
            raise ValueError(f"Name at least one {kind} of {', '.join(known)}; got {given!r}.")
    names = "|".join(LORA_TOWERS[tower] for tower in towers)
    return rf"(.*\.)?({names})\..*\.({'|'.join(modules)})"


def add_lora(
    model,
    *towers: str,
    rank: int = 8,
    modules: Sequence[str] = LORA_DEFAULT_MODULES,
    adapted: Sequence[str] = (),
    trained: Sequence[str] = (),
):
    """
    The model with low-rank updates of some towers (PEFT), everything else frozen.

    Args:
        towers (`str`), modules (list of `str`): as in [`lora_target_modules`].
        rank (`int`): of the updates; they are scaled by 2.
        adapted (list of `str`): further modules with updates, such as `video_projection`.
        trained (list of `str`): heads that are trained whole, such as a new `classifier`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="|".join([lora_target_modules(*towers, modules=tuple(modules)), *adapted]),
        modules_to_save=list(trained) or None,
    )
    return get_peft_model(model, config)


def register_lora_defaults() -> None:
    """Tells PEFT, if installed, what a `LoraConfig` without `target_modules` means for our model types."""
    if importlib.util.find_spec("peft") is None:
        return
    try:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as defaults
    except ImportError as error:
        logger.warning(f"PEFT does not know SViTT-Ego's default target_modules, name them in LoraConfig: {error}")
        return
    for config in (SViTTEgoConfig, SViTTEgoVisionConfig, SViTTEgoTextConfig, SViTTEgoFusionConfig):
        defaults.setdefault(config.model_type, list(LORA_DEFAULT_MODULES))
