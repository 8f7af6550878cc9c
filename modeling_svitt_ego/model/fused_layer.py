"""A layer of the video tower on a GPU: matrix products, and between them kernels that touch every number once.

The values are those of lean_linear.py's path up to rounding, and as little is kept for the backward: the layer's
input, q, k, v, the context, the sum in the middle and what enters the activation. What differs is memory traffic.
Residual sum, LayerScale, drop path and LayerNorm are one pass that writes the precision of the next product; GELU's
backward recomputes its output and sums the bias gradient in the same pass; LayerNorm's backward adds the residual's
gradient. Weights are cast once per step, in the forward.

Each function has its definition in plain operations, which second derivatives are computed by.
"""

import functools

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers.activations import GELUActivation

from .edge_triton import KERNEL_DEVICES, is_available
from .layer_kernels import column_sums, gelu, gelu_backward, mask_and_cast, norm_backward, residual_norm
from .lean_linear import is_bare
from .second_derivatives import gradients_with_graph, wants_graph

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32)


def is_fusable(layer: nn.Module, hidden_states: torch.Tensor) -> bool:
    """
    Can the kernels compute this layer? Not under torch.compile, which fuses by itself, and not where a part is of
    another class (LoRA, quantised weights) or carries hooks.
    """
    if hidden_states.device.type not in KERNEL_DEVICES or not is_available() or torch.compiler.is_compiling():
        return False
    attention, mlp = layer.attention, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.fc1, mlp.fc2)
    norms = (layer.layernorm_before, layer.layernorm_after)
    dtype = linears[0].weight.dtype
    return (
        all(type(linear) is nn.Linear and is_bare(linear) and linear.weight.dtype == dtype for linear in linears)
        and all(type(norm) is nn.LayerNorm and is_bare(norm) and norm.bias is not None for norm in norms)
        and all(linear.bias is not None for linear in linears[3:])
        and is_bare(mlp)
        and type(mlp.activation) is GELUActivation
        and is_bare(mlp.activation)
        and dtype in _PRECISIONS
        and hidden_states.dtype in _PRECISIONS
        and (torch.is_autocast_enabled(hidden_states.device.type) or hidden_states.dtype == dtype)
    )


def keep_factors(drop_path: StochasticDepth, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Drop path's factor of each clip (B,), 0 or 1 / (1 - rate); None where nothing is dropped."""
    if not drop_path.training or drop_path.p == 0.0:
        return None
    survival = 1.0 - drop_path.p
    keep = torch.empty(hidden_states.shape[0], device=hidden_states.device).bernoulli_(survival)
    return keep.div_(survival) if survival > 0 else keep


def norm_linears(norm: nn.LayerNorm, hidden_states: torch.Tensor, linears) -> tuple[torch.Tensor, ...]:
    """
    `hidden_states` as they are, for the residual stream, and each linear layer of their LayerNorm. The residual's
    gradient comes back through the first output, where it is added to the norm's without a pass over memory.
    """
    weights = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    dtype = _precision(hidden_states, linears[0])
    return _NormLinears.apply(hidden_states.contiguous(), norm.weight, norm.bias, norm, dtype, *weights)


def project_residual(
    linear: nn.Linear,
    states: torch.Tensor,
    scale: torch.Tensor,
    residual: torch.Tensor,
    keep: torch.Tensor | None,
    norm: nn.LayerNorm | None,
) -> tuple[torch.Tensor, tuple | None]:
    """
    `residual + keep * scale * linear(states)`; with `norm` also what [`mlp_residual`] needs of its LayerNorm, which is
    computed in the same pass. No gradient flows through that: `mlp_residual` differentiates the norm.
    """
    dtype = _precision(residual, linear)
    outputs = _ProjectResidual.apply(
        states.contiguous(), linear.weight, linear.bias, scale, residual.contiguous(), keep, norm, dtype
    )
    return outputs[0], outputs[1:] if norm is not None else None


def mlp_residual(
    mlp: nn.Module,
    norm: nn.LayerNorm,
    hidden_states: torch.Tensor,
    normed: tuple | None,
    scale: torch.Tensor,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    """`hidden_states + keep * scale * mlp(norm(hidden_states))`; `normed` is what [`project_residual`] returned."""
    dtype = _precision(hidden_states, mlp.fc1)
    weights = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    return _MLPResidual.apply(
        hidden_states.contiguous(), norm.weight, norm.bias, *weights, scale, keep, norm, normed, dtype
    )


def _precision(hidden_states: torch.Tensor, linear: nn.Linear) -> torch.dtype:
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else linear.weight.dtype


def _cast(parameters, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Copies in `dtype` by one launch; a parameter that has it is returned itself."""
    cast = [x if x is None or x.dtype == dtype else torch.empty_like(x, dtype=dtype) for x in parameters]
    pairs = [(new, old.detach()) for new, old in zip(cast, parameters) if new is not old]
    if pairs:
        torch._foreach_copy_(*(list(side) for side in zip(*pairs)))
    return cast


def _product(grad: torch.Tensor, states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Gradient (out, in) of a linear layer's weight."""
    return (grad.flatten(0, -2).t() @ states.flatten(0, -2)).to(dtype)


def _through_scale(weight, bias, scale, weight_grad, bias_grad):
    """
    Gradients of weight, bias and LayerScale from those of an unscaled layer (lean_linear.py): the scale's is read off
    the others, which are scaled in place.
    """
    scale_grad = (weight * weight_grad).sum(1) + bias * bias_grad
    return weight_grad.mul_(scale[:, None]), (bias_grad * scale).to(bias.dtype), scale_grad.to(scale.dtype)


def _layer_norm(states, norm, weight, bias):
    return nn.functional.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps)


def _add(residual, output, scale, keep):
    output = scale * output
    return residual + (output if keep is None else output * keep[:, None, None].to(output.dtype))


def _without_autocast(backward):
    """The precisions of a backward are those that the forward chose, also where it is called under autocast."""

    @functools.wraps(backward)
    def wrapped(ctx, grad, *grads):
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad, *grads)

    return wrapped


class _NormLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, norm_weight, norm_bias, norm, dtype, *weights):
        _, states, mean, rstd = residual_norm(hidden_states, norm=norm, dtype=dtype)
        cast = _cast(weights, dtype)
        with torch.autocast(states.device.type, enabled=False):
            outputs = [nn.functional.linear(states, *pair) for pair in zip(cast[::2], cast[1::2])]
        ctx.save_for_backward(hidden_states, norm_weight, norm_bias, mean, rstd, *weights, *cast[::2])
        ctx.norm, ctx.dtype = norm, dtype
        ctx.is_autocast = torch.is_autocast_enabled(hidden_states.device.type)
        return hidden_states, *outputs

    @staticmethod
    @_without_autocast
    def backward(ctx, grad_residual, *grads):
        hidden_states, norm_weight, norm_bias, mean, rstd, *weights = ctx.saved_tensors
        weights, cast = weights[: 2 * len(grads)], weights[2 * len(grads) :]
        needs = ctx.needs_input_grad
        if wants_graph():
            needs = (*needs[:3], *needs[5:])
            found = gradients_with_graph(
                _plainly(_plain_norm_linears, ctx),
                (hidden_states, norm_weight, norm_bias, *weights),
                needs,
                (grad_residual, *grads),
            )
            return *found[:3], None, None, *found[3:]
        grads = [grad.contiguous() for grad in grads]
        grad_states = grads[0].flatten(0, -2) @ cast[0]
        for grad, weight in zip(grads[1:], cast[1:]):
            grad_states = torch.addmm(grad_states, grad.flatten(0, -2), weight)
        found = norm_backward(
            grad_states.view_as(hidden_states),
            hidden_states,
            mean,
            rstd,
            norm_weight,
            norm_bias,
            grad_residual.contiguous(),
        )
        grad_hidden, states, *grad_norm = found
        grad_weights = []
        for place, grad in enumerate(grads):
            weight, bias = weights[2 * place : 2 * place + 2]
            grad_weights.append(_product(grad, states, weight.dtype) if needs[5 + 2 * place] else None)
            grad_weights.append(column_sums(grad).to(bias.dtype) if needs[6 + 2 * place] else None)
        return grad_hidden, *grad_norm, None, None, *grad_weights


class _ProjectResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, scale, residual, keep, norm, dtype):
        cast = _cast((weight, bias), dtype)
        with torch.autocast(states.device.type, enabled=False):
            output = nn.functional.linear(states, *cast)
        total, *normed = residual_norm(residual, output, scale, keep, norm, dtype)
        ctx.save_for_backward(states, weight, bias, scale, keep)
        ctx.dtype, ctx.is_autocast = dtype, torch.is_autocast_enabled(states.device.type)
        if norm is None:
            return (total,)
        ctx.mark_non_differentiable(*normed)
        return total, *normed

    @staticmethod
    @_without_autocast
    def backward(ctx, grad_total, *_):
        states, weight, bias, scale, keep = ctx.saved_tensors
        if wants_graph():
            found = gradients_with_graph(
                _plainly(_plain_projection, ctx),
                (states, weight, bias, scale, keep),
                (*ctx.needs_input_grad[:4], False),
                [grad_total],
            )
            return *found[:4], grad_total, None, None, None
        grad, bias_grad = mask_and_cast(grad_total.contiguous(), keep, ctx.dtype)
        grad_states = (grad.flatten(0, -2) @ (scale[:, None] * weight).to(ctx.dtype)).view_as(states)
        weight_grad = _product(grad, states, weight.dtype)
        grads = _through_scale(weight, bias, scale, weight_grad, bias_grad)
        return grad_states, *grads, grad_total, None, None, None


class _MLPResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, norm_weight, norm_bias, w1, b1, w2, b2, scale, keep, norm, normed, dtype):
        states, mean, rstd = normed or residual_norm(hidden_states, norm=norm, dtype=dtype)[1:]
        cast = _cast((w1, b1, w2, b2), dtype)
        with torch.autocast(states.device.type, enabled=False):
            inner = nn.functional.linear(states, *cast[:2])
            output = nn.functional.linear(gelu(inner), *cast[2:])
        total = residual_norm(hidden_states, output, scale, keep)[0]
        ctx.save_for_backward(
            hidden_states, norm_weight, norm_bias, w1, b1, w2, b2, scale, keep, mean, rstd, inner, cast[0]
        )
        ctx.norm, ctx.dtype = norm, dtype
        ctx.is_autocast = torch.is_autocast_enabled(hidden_states.device.type)
        return total

    @staticmethod
    @_without_autocast
    def backward(ctx, grad_total):
        *arguments, mean, rstd, inner, w1_cast = ctx.saved_tensors
        hidden_states, norm_weight, norm_bias, w1, b1, w2, b2, scale, keep = arguments
        if wants_graph():
            needs = (*ctx.needs_input_grad[:8], False)
            found = gradients_with_graph(_plainly(_plain_mlp, ctx), arguments, needs, [grad_total])
            return *found, None, None, None
        grad_total = grad_total.contiguous()
        grad, b2_grad = mask_and_cast(grad_total, keep, ctx.dtype)
        grad_inner = (grad.flatten(0, -2) @ (scale[:, None] * w2).to(ctx.dtype)).view_as(inner)
        grad_inner, activated, b1_grad = gelu_backward(grad_inner, inner)
        w2_grad, b2_grad, scale_grad = _through_scale(w2, b2, scale, _product(grad, activated, w2.dtype), b2_grad)
        del activated, grad
        grad_states = (grad_inner.flatten(0, -2) @ w1_cast).view_as(hidden_states)
        grad_hidden, states, *grad_norm = norm_backward(
            grad_states, hidden_states, mean, rstd, norm_weight, norm_bias, grad_total
        )
        w1_grad = _product(grad_inner, states, w1.dtype)
        grads = (w1_grad, b1_grad.to(b1.dtype), w2_grad, b2_grad, scale_grad)
        return grad_hidden, *grad_norm, *grads, None, None, None, None


# -------------------------------------------------------------------------------------------------------- definitions


def _plainly(function, ctx):
    """`function(ctx, ...)` in the precision that the forward had."""

    def compute(*arguments):
        device = arguments[0].device.type
        with torch.autocast(device, ctx.dtype, enabled=ctx.is_autocast):
            return function(ctx, *arguments)

    return compute


def _plain_norm_linears(ctx, hidden_states, norm_weight, norm_bias, *weights):
    states = _layer_norm(hidden_states, ctx.norm, norm_weight, norm_bias)
    return hidden_states, *(nn.functional.linear(states, *pair) for pair in zip(weights[::2], weights[1::2]))


def _plain_projection(ctx, states, weight, bias, scale, keep):
    """The residual, which is only added, is left out."""
    return [_add(0.0, nn.functional.linear(states, weight, bias), scale, keep)]


def _plain_mlp(ctx, hidden_states, norm_weight, norm_bias, w1, b1, w2, b2, scale, keep):
    states = nn.functional.linear(_layer_norm(hidden_states, ctx.norm, norm_weight, norm_bias), w1, b1)
    return [_add(hidden_states, nn.functional.linear(nn.functional.gelu(states), w2, b2), scale, keep)]
