"""Linear layers that keep less for the backward.

torch keeps the input of every linear layer. Where that input is cheap to recompute, as the output of a LayerNorm or of
an activation is, only what it was computed from is kept. Where LayerScale multiplies the output, the scale's gradient
is computed from the weight's, and the output is not kept either:

    out = y W^T + b,  G = grad^T y  =>  sum over tokens of grad * out = (W * G) summed over inputs + b * (grad summed)

A layer of the video tower then keeps 10 numbers of the hidden size per token (its input, q, k, v, the context, the sum
in the middle and 4 before the activation), where torch's own graph keeps 18.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .second_derivatives import gradients_with_graph, wants_graph


def linears_after(
    before: nn.Module | None,
    hidden_states: torch.Tensor,
    linears: Sequence[nn.Linear],
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """
    `scale * linear(before(hidden_states))` for each of `linears`, keeping `hidden_states` alone for the backward.

    The values equal those of the modules called one after the other, to the bit. The modules are called that way where
    there is no backward, under torch.compile (whose partitioner recomputes by itself), and where a linear layer is of
    another class (LoRA, quantised weights) or a module carries hooks.

    Args:
        before (`nn.Module`, *optional*): a LayerNorm or an activation; it is recomputed in the backward.
        hidden_states (`torch.Tensor` of shape `(..., in_features)`).
        scale (`torch.Tensor` of shape `(out_features,)`, *optional*): LayerScale, for a single linear layer.
    """
    are_plain = all(type(linear) is nn.Linear and is_bare(linear) for linear in linears)
    are_plain = are_plain and (before is None or is_bare(before))
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not are_plain:
        states = hidden_states if before is None else before(hidden_states)
        outputs = tuple(linear(states) for linear in linears)
        return outputs if scale is None else tuple(scale * output for output in outputs)
    norm = (before.weight, before.bias) if isinstance(before, nn.LayerNorm) else (None, None)
    weights = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    return _LinearsAfter.apply(before, hidden_states, *norm, scale, *weights)


def is_bare(module: nn.Module) -> bool:
    """Is a call no more than its class's forward: no hooks, no forward of its own (accelerate's offloading)?"""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)


class _LinearsAfter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, before, hidden_states, norm_weight, norm_bias, scale, *weights):
        device = hidden_states.device.type
        ctx.before = before
        ctx.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        ctx.save_for_backward(hidden_states, norm_weight, norm_bias, scale, *weights)
        states = _compute(before, hidden_states, norm_weight, norm_bias)
        with torch.autocast(device, enabled=False):  # its cache would keep a copy of each weight until it ends
            states = _cast(states, ctx.autocast)
            outputs = [
                nn.functional.linear(states, _cast(weight, ctx.autocast), _cast(bias, ctx.autocast))
                for weight, bias in zip(weights[::2], weights[1::2])
            ]
        return tuple(outputs) if scale is None else tuple(scale * output for output in outputs)

    @staticmethod
    def backward(ctx, *grad_outputs):
        if wants_graph():
            return None, *_gradients_with_graph(ctx, grad_outputs)
        *sources, scale, weights = _split(ctx.saved_tensors)
        *needs_sources, needs_scale, needs = _split(ctx.needs_input_grad[1:])
        device = sources[0].device.type
        with torch.autocast(device, ctx.autocast, enabled=ctx.autocast is not None), torch.enable_grad():
            sources = [
                source if source is None else source.detach().requires_grad_(need)
                for source, need in zip(sources, needs_sources)
            ]
            states = _compute(ctx.before, *sources)

        grad_scale = grad_states = None
        grad_weights = []
        with torch.autocast(device, enabled=False):
            inputs = _cast(states.detach(), ctx.autocast).flatten(0, -2)  # (tokens, in_features)
            for place, grad in zip(range(0, len(weights), 2), grad_outputs):
                weight, bias = weights[place : place + 2]
                grad = grad.to(inputs.dtype).flatten(0, -2)  # (tokens, out_features)
                grad_weight = grad_bias = None
                if needs[place] or needs_scale:
                    grad_weight = (grad.t() @ inputs).to(weight.dtype)
                if bias is not None and (needs[place + 1] or needs_scale):
                    grad_bias = grad.sum(0).to(bias.dtype)
                if needs_scale:
                    grad_scale = (weight * grad_weight).sum(1)
                    if bias is not None:
                        grad_scale += bias * grad_bias
                if scale is not None:
                    weight = scale[:, None] * weight
                    grad_weight = None if grad_weight is None else grad_weight.mul_(scale[:, None])
                    grad_bias = None if grad_bias is None else grad_bias.mul_(scale)
                grad_weights += [grad_weight if needs[place] else None, grad_bias if needs[place + 1] else None]
                if states.requires_grad:
                    weight = weight.to(inputs.dtype)
                    grad_states = grad @ weight if grad_states is None else torch.addmm(grad_states, grad, weight)

        wanted = [source for source in sources if source is not None and source.requires_grad]
        found = iter(())
        if wanted:
            found = iter(torch.autograd.grad(states, wanted, grad_states.view_as(states).to(states.dtype)))
        grad_sources = [None if x is None or not x.requires_grad else next(found) for x in sources]
        return None, *grad_sources, grad_scale, *grad_weights


def _gradients_with_graph(ctx, grad_outputs):
    """The backward in operations that autograd knows, for second derivatives."""
    device = ctx.saved_tensors[0].device.type

    def forward(*arguments):
        *sources, scale, weights = _split(arguments)
        with torch.autocast(device, ctx.autocast, enabled=ctx.autocast is not None):
            states = _compute(ctx.before, *sources)
            outputs = [nn.functional.linear(states, *pair) for pair in zip(weights[::2], weights[1::2])]
        return outputs if scale is None else [scale * output for output in outputs]

    return gradients_with_graph(forward, ctx.saved_tensors, ctx.needs_input_grad[1:], grad_outputs)


def _split(arguments: tuple) -> tuple:
    """hidden_states, norm_weight, norm_bias, scale, and the linear layers' weights and biases in turn."""
    return *arguments[:4], arguments[4:]


def _compute(before: nn.Module | None, hidden_states, norm_weight, norm_bias) -> torch.Tensor:
    if before is None:
        return hidden_states
    if isinstance(before, nn.LayerNorm):
        return nn.functional.layer_norm(hidden_states, before.normalized_shape, norm_weight, norm_bias, before.eps)
    return before.forward(hidden_states)  # torch's module hooks break when called inside backward


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype | None) -> torch.Tensor | None:
    """As autocast casts: float64 stays."""
    return tensor if dtype is None or tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
