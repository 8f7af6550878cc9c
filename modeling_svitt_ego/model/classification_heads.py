"""Parts of the video classifier: attention pooling, and several heads at once (verb, noun, action).

The heads are one linear layer whose outputs are split by name: what holds for a classifier with one head (adapters,
saving, exporting) holds for several.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)


class AttentionPooler(nn.Module):
    """
    One learnt query attends to all tokens, then an MLP with a residual (SigLIP, arXiv:2303.15343; the attentive probe
    of V-JEPA, arXiv:2404.08471).

    Args:
        config ([`SViTTEgoVisionConfig`]): of the tower whose tokens are pooled.
    """

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Parameter(torch.empty(1, 1, size))
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.o_proj = nn.Linear(size, size)
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, size)

    def init_own_parameters(self, std: float):
        init.normal_(self.query, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(batch_size, num_tokens, hidden_size)` → `(batch_size, hidden_size)`."""

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

        query = self.q_proj(self.query).expand(len(tokens), -1, -1)
        context = F.scaled_dot_product_attention(heads(query), heads(self.k_proj(tokens)), heads(self.v_proj(tokens)))
        pooled = self.o_proj(context.transpose(1, 2).flatten(2))[:, 0]
        return pooled + self.fc2(self.activation(self.fc1(self.layernorm(pooled))))


def split_by_head(logits: torch.Tensor, heads: dict[str, int]) -> dict[str, torch.Tensor]:
    """Logits `(…, sum of the sizes)` of all heads by name, `(…, size)` each."""
    return dict(zip(heads, logits.split(list(heads.values()), dim=-1)))


def heads_loss(logits: torch.Tensor, labels: torch.Tensor, heads: dict[str, int]) -> torch.Tensor:
    """
    Sum over the heads of the mean cross-entropy.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, sum of the sizes)`).
        labels (`torch.LongTensor` of shape `(batch_size, num_heads)`): class of each head, -100 where a clip has none.
    """
    if labels.shape != (len(logits), len(heads)):
        raise ValueError(
            f"labels must have the shape {(len(logits), len(heads))}, a class for each clip and head "
            f"({', '.join(heads)}); got {tuple(labels.shape)}."
        )
    total = torch.zeros((), device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
    for part, column in zip(split_by_head(logits, heads).values(), labels.T):
        summed = F.cross_entropy(part.to(total.dtype), column, ignore_index=-100, reduction="sum")
        total = total + summed / (column != -100).sum().clamp(min=1)
    return total


def warn_of_frozen_head(classifier: nn.Module, tower: nn.Module) -> None:
    """Says once that a classifier in training is left as it was initialised."""
    if [any(p.requires_grad for p in part.parameters()) for part in (classifier, tower)] == [False, True]:
        logger.warning_once(
            "The video tower is trained, but the classifier is frozen: a new one stays random, and PEFT does not save "
            "it. With LoRA, give LoraConfig(modules_to_save=['classifier'])."
        )


__all__ = ["AttentionPooler", "heads_loss", "split_by_head", "warn_of_frozen_head"]
