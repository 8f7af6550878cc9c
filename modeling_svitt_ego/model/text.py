"""The text tower: the first layers of BERT (arXiv:1810.04805). Its last three are the fusion tower (fusion.py)."""

import torch
from torch import nn
from transformers import CLIPTextModel, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .blocks import MLP, eager_attention
from .configuration_svitt_ego import SViTTEgoConfig, SViTTEgoTextConfig
from .input_checks import check_texts
from .pretrained_svitt_ego import SViTTEgoPreTrainedModel


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, config: SViTTEgoTextConfig):
        super().__init__()
        self.max_position_embeddings = config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        length = input_ids.shape[1]
        if length > self.max_position_embeddings:
            raise ValueError(
                f"The text has {length} tokens, but max_position_embeddings is {self.max_position_embeddings}."
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(length, device=input_ids.device)
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.layernorm(embeddings + self.position_embeddings(positions)))


class BertAttention(nn.Module):
    """
    BERT's post-norm attention block: self-attention, or cross-attention when `key_value_states` are given.

    Args:
        key_value_size (`int`, *optional*): width of the states attended to; the hidden size otherwise.
    """

    def __init__(self, config, key_value_size: int | None = None):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        key_value_size = key_value_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, L, C)
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,  # (B, N, key_value_size)
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Normalised residual sum (B, L, C) and, if eager, the probabilities (B, H, L, L or N)."""
        source = hidden_states if key_value_states is None else key_value_states
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, attention = attend(
            self,
            self.heads(self.q_proj(hidden_states)),
            self.heads(self.k_proj(source)),
            self.heads(self.v_proj(source)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            is_causal=False,
        )
        context = self.dropout(self.o_proj(context.reshape(hidden_states.shape)))
        return self.layernorm(hidden_states + context), attention

    def probabilities(self, hidden_states: torch.Tensor, key_value_states: torch.Tensor) -> torch.Tensor:
        """
        Attention probabilities (B, H, rows, N) of some text rows (B, rows, C), before dropout, in float32 or wider:
        tokens are ranked by them, and in half precision many would tie.
        """
        q, k = self.heads(self.q_proj(hidden_states)), self.heads(self.k_proj(key_value_states))
        statistics = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            return (q.to(statistics) @ k.to(statistics).transpose(-1, -2) * self.scaling).softmax(-1)


class BertFeedForward(nn.Module):
    """BERT's post-norm MLP block."""

    def __init__(self, config):
        super().__init__()
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layernorm(hidden_states + self.dropout(self.mlp(hidden_states)))


class TextLayer(GradientCheckpointingLayer):
    def __init__(self, config: SViTTEgoTextConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.feed_forward = BertFeedForward(config)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states, _ = self.attention(hidden_states, attention_mask)
        return self.feed_forward(hidden_states)


class SViTTEgoTextModel(SViTTEgoPreTrainedModel):
    """The text tower alone: narrations to token states; the pooled vector is the state of [CLS], as it is."""

    config: SViTTEgoTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(TextLayer, index=0),
        "attentions": OutputRecorder(BertAttention, index=1),
    }

    def __init__(self, config: SViTTEgoTextConfig):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList([TextLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module):
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`).
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding.
        """
        if input_ids is None:
            raise ValueError("The text tower needs input_ids.")
        check_texts(input_ids)
        self.warn_without_attentions(kwargs)
        hidden_states = self.embeddings(input_ids, token_type_ids)
        mask = create_bidirectional_mask(self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class MLMHead(nn.Module):
    """BERT's masked language modelling head; the decoder shares the word embeddings' weight."""

    def __init__(self, config: SViTTEgoConfig):
        super().__init__()
        hidden_size = config.cross_modal_config.hidden_size
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACT2FN[config.cross_modal_config.hidden_act]
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.cross_modal_config.layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, config.text_config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layernorm(self.activation(self.dense(hidden_states))))


def text_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """The tower of a configuration: ours, or one of the library that serves as it is."""
    others = {"clip_text_model": CLIPTextModel, "siglip_text_model": SiglipTextModel}
    return others.get(config.model_type, SViTTEgoTextModel)._from_config(config)


__all__ = ["MLMHead", "SViTTEgoTextModel", "text_tower"]
