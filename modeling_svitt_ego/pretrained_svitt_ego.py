"""What every SViTT-Ego model shares: its configuration, initialisation and abilities in the library's terms."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_svitt_ego import SViTTEgoConfig


class SViTTEgoPreTrainedModel(PreTrainedModel):
    config: SViTTEgoConfig
    base_model_prefix = "svitt_ego"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    # The Trainer would otherwise divide the loss by a count of labels that a contrastive loss does not have.
    accepts_loss_kwargs = False
    _no_split_modules = ["VisionLayer", "TextLayer", "FusionLayer", "VisionEmbeddings", "TextEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False
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
