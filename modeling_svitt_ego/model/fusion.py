"""The cross-modal tower: BERT's last layers with cross-attention to video tokens, which it prunes by the text."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_svitt_ego import SViTTEgoFusionConfig, num_kept_tokens
from .input_checks import check_states
from .pretrained_svitt_ego import SViTTEgoPreTrainedModel
from .sparsity import select_tokens, take_tokens
from .text import BertAttention, BertFeedForward


@dataclass
class SViTTEgoFusionOutput(ModelOutput):
    """
    Output of the fusion tower.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`): text states that
            have seen the video.
        token_positions (`tuple[torch.LongTensor]`): per pruning layer, which of the video patch tokens that *entered*
            it (not original ids) later layers see, `(batch_size, num_kept)`, ascending.
        cross_attentions (`tuple`, with `attn_implementation="eager"`): `(batch_size, heads, sequence_length, N)` per
            layer with the N video tokens that it saw.
    """

    last_hidden_state: torch.FloatTensor | None = None
    token_positions: tuple[torch.LongTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


class FusionLayer(GradientCheckpointingLayer):
    """Self-attention over the text, cross-attention to the video, MLP; each a post-norm residual."""

    def __init__(self, config: SViTTEgoFusionConfig):
        super().__init__()
        self.config = config
        self.attention = BertAttention(config)
        self.cross_attention = BertAttention(config, key_value_size=config.encoder_hidden_size)
        self.feed_forward = BertFeedForward(config)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, L, C)
        video_states: torch.Tensor,  # (B, N, C_video), [CLS] first
        attention_mask: torch.Tensor | None,
        text_mask: torch.Tensor | None,  # (B, L), only for keep_strategy="avg_attn"
        num_kept: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text states, and the positions (B, num_kept) of the video tokens to keep where the layer prunes."""
        hidden_states, _ = self.attention(hidden_states, attention_mask)
        kept = None
        if num_kept is not None:
            # A ranking: no gradient flows through which tokens are kept. Detached, too, for torch's module trackers.
            with torch.no_grad():
                kept = select_tokens(self.score(hidden_states.detach(), video_states.detach(), text_mask), num_kept)
        hidden_states, _ = self.cross_attention(hidden_states, None, video_states)
        return self.feed_forward(hidden_states), kept

    def score(self, hidden_states, video_states, text_mask) -> torch.Tensor:
        """How much the text attends to each video patch (B, N - 1): by its [CLS], or by its tokens on average."""
        if self.config.keep_strategy == "cls_attn":
            return self.cross_attention.probabilities(hidden_states[:, :1], video_states).mean(1)[:, 0, 1:]
        rows = self.cross_attention.probabilities(hidden_states, video_states).mean(1)[:, :, 1:]
        return (rows if text_mask is None else rows * text_mask[:, :, None].to(rows.dtype)).sum(1)


class SViTTEgoFusionModel(SViTTEgoPreTrainedModel):
    """
    Text states of the text tower joined with video tokens.

    After the cross-attention of a layer in `prune_layers`, only the `keep_rate` video tokens that the text's [CLS]
    attends to most, and the video's [CLS], are seen by the *following* layers.
    """

    config: SViTTEgoFusionConfig
    base_model_prefix = "fusion_model"
    main_input_name = "text_states"
    _can_record_outputs = {
        "hidden_states": OutputRecorder(FusionLayer, index=0),
        "attentions": OutputRecorder(BertAttention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(BertAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: SViTTEgoFusionConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([FusionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        text_states: torch.FloatTensor,
        video_states: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoFusionOutput:
        r"""
        Args:
            text_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`): from the text
                tower.
            video_states (`torch.FloatTensor` of shape `(batch_size, 1 + num_tokens, encoder_hidden_size)`): the video
                tower's `last_hidden_state`.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): of the text.
        """
        config = self.config
        check_states(text_states, video_states)
        self.warn_without_attentions(kwargs)
        hidden_states = text_states
        mask = create_bidirectional_mask(config, inputs_embeds=hidden_states, attention_mask=attention_mask)
        token_positions = []
        for index, layer in enumerate(self.layers):
            prunes = index in config.prune_layers and config.keep_rate < 1.0
            num_kept = num_kept_tokens(video_states.shape[1] - 1, config.keep_rate) if prunes else None
            hidden_states, kept = layer(hidden_states, video_states, mask, attention_mask, num_kept)
            if kept is not None:
                token_positions.append(kept)
                video_states = take_tokens(video_states, kept)
        return SViTTEgoFusionOutput(last_hidden_state=hidden_states, token_positions=tuple(token_positions))


__all__ = ["SViTTEgoFusionModel", "SViTTEgoFusionOutput"]
