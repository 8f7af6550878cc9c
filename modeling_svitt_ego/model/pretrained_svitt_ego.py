"""What every SViTT-Ego model shares: its configuration, initialisation and abilities in the library's terms."""

import copy

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_svitt_ego import SViTTEgoConfig
from .resampling import resize_frames

logger = logging.get_logger(__name__)


class SViTTEgoPreTrainedModel(PreTrainedModel):
    config: SViTTEgoConfig
    base_model_prefix = "svitt_ego"
    main_input_name = "pixel_values_videos"
    input_modalities: tuple[str, ...] = ("video", "text")
    supports_gradient_checkpointing = True
    custom_pipelines = {}  # tasks of `pipeline()` that the saved folder brings its own code for
    # The Trainer would otherwise divide the loss by a count of labels that a contrastive loss does not have.
    accepts_loss_kwargs = False
    _no_split_modules = ["VisionLayer", "TextLayer", "FusionLayer", "VisionEmbeddings", "TextEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal weights, as BERT and BEiT; a module with bare parameters says itself how they start."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif hasattr(module, "init_own_parameters"):
            module.init_own_parameters(std)

    def warn_without_attentions(self, kwargs: dict) -> None:
        """Only the eager implementation computes whole attention matrices; the library returns () for the others."""
        implementation = self.config._attn_implementation
        if kwargs.get("output_attentions") and implementation != "eager":
            logger.warning_once(
                f"output_attentions=True gives no attentions with attn_implementation='{implementation}': load the "
                "model with attn_implementation='eager'."
            )

    def save_pretrained(self, *args, **kwargs):
        # Of this class, not of the checkpoint it was loaded from: a classifier has no text tower for zero-shot tasks.
        self.config.__dict__.pop("custom_pipelines", None)
        if self.custom_pipelines:
            self.config.custom_pipelines = copy.deepcopy(self.custom_pipelines)
        return super().save_pretrained(*args, **kwargs)

    def resize_frames(self, num_frames: int, mode: str = "symmetric", keep_rate: float | None = None):
        """
        Re-base the model in place to clips of `num_frames` frames, and say so in its configuration.

        A model takes clips of any length as it is, by resampling its tables at every forward; this makes the new
        length its own, and the tables are trained at it. With `keep_rate` it is SViTT's temporal expansion: frames
        up, keep rate down. Call it before the optimizer is made: the tables are new parameters.

        Args:
            mode (`str`): how the tables are resampled in time, `"symmetric"` or `"released"`; see
                `resample_relative_position_bias`.
            keep_rate (`float`, *optional*): new q_v of the video tower.

        Returns:
            The model.
        """
        vision_model = getattr(self, "vision_model", self)
        if not hasattr(vision_model.config, "num_frames"):
            raise ValueError(f"{type(self).__name__} has no video tower whose frames could be resized.")
        resize_frames(vision_model, num_frames, mode, keep_rate)
        if vision_model is not self:
            self.config.vision_config = vision_model.config
        return self
