"""Gradients that can be differentiated again, for autograd functions whose backward is written by hand.

A hand-written backward computes numbers, not a graph. torch's `once_differentiable` raises only if the gradients that
come in require a gradient; where they do not (the loss is a sum), it returns constants, and a second derivative is
silently wrong. So under `create_graph=True` the functions of this package compute the forward again in plain
operations and let autograd differentiate it.
"""

from collections.abc import Callable, Sequence

import torch

from .sparsity import RelativePositions, edge_attention_reference


def wants_graph() -> bool:
    """Is this backward to be differentiated again (`create_graph=True`)?"""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients_with_graph(
    function: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor | None],
    needs_gradient: Sequence[bool],
    grad_outputs: Sequence[torch.Tensor],
) -> list[torch.Tensor | None]:
    """
    Gradients of `function(*inputs)`, as functions of `inputs` and `grad_outputs`.

    Args:
        function (`Callable`): the forward in operations that autograd knows.
        inputs (`Sequence[torch.Tensor]`): as saved for the backward; each stays connected to what it came from.
        needs_gradient (`Sequence[bool]`): for which inputs a gradient is wanted; the others get None.
        grad_outputs (`Sequence[torch.Tensor]`): one for each output.
    """
    # Views: where one tensor is given twice, each place gets the gradient of that place alone.
    inputs = [x.view_as(x) if needed else x for x, needed in zip(inputs, needs_gradient)]
    outputs = function(*inputs)
    wanted = [x for x, needed in zip(inputs, needs_gradient) if needed]
    found = iter(torch.autograd.grad(outputs, wanted, grad_outputs, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs_gradient]


def plain_attention(codes, block_ids, block_size, patch_to_cls: int, attend_padding: bool, num_mirrored: int = 0):
    """`edge_attention_reference` as a function of q, k, v and the table alone; without block ids over all pairs."""
    # A window with as many offsets as the table has rows for: the reference needs no more of it.
    positions = RelativePositions((patch_to_cls // 2, 1, 1), codes)

    def attend(q, k, v, table):
        ids, size = (block_ids, block_size) if block_ids is not None else (codes.new_zeros(1, 1), q.shape[2] - 1)
        return edge_attention_reference(q, k, v, table, positions, ids, size, attend_padding, num_mirrored)[:1]

    return attend
