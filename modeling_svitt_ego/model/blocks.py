"""What the layers of the three towers share: the readable reference attention and the MLP."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .lean_linear import is_bare, linears_after


def eager_attention(module, q, k, v, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Attention as written in the papers; returns the context (B, N, H, D) and the probabilities (B, H, N, N)."""
    scores = (q * scaling) @ k.transpose(-1, -2)  # scaled first, as in sparsity.py
    if attention_mask is not None:
        scores = scores + attention_mask
    statistics = torch.promote_types(scores.dtype, torch.float32)
    attention = scores.softmax(-1, dtype=statistics).to(v.dtype)
    attention = nn.functional.dropout(attention, p=dropout, training=module.training)
    return (attention @ v).transpose(1, 2), attention


class MLP(nn.Module):
    """Two linear layers with an activation between: the same in all three towers."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        (inner,) = linears_after(None, hidden_states, [self.fc1])
        return linears_after(self.activation, inner, [self.fc2])[0]


def mlp_after(layernorm: nn.LayerNorm, hidden_states: torch.Tensor, mlp: MLP, scale: torch.Tensor) -> torch.Tensor:
    """`scale * mlp(layernorm(hidden_states))`, keeping little for the backward (lean_linear.py)."""
    if not is_bare(mlp):
        return scale * mlp(layernorm(hidden_states))
    (inner,) = linears_after(layernorm, hidden_states, [mlp.fc1])
    return linears_after(mlp.activation, inner, [mlp.fc2], scale)[0]


__all__ = ["MLP", "eager_attention", "mlp_after"]
