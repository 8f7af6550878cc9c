"""Triton kernels of what a layer does between its matrix products; each reads and writes every number once.

They are bound by memory bandwidth, so what matters is bytes per number of the hidden state. In bf16 autocast with a
float32 residual stream: LayerNorm 6, residual sum with LayerNorm 12, its backward 16, GELU 4, its backward with the
bias gradient 8.

Letters: `rows` tokens of all clips, C hidden size, P programs whose partial column sums are added afterwards. KEEP
(B,) is drop path's factor of each clip, 0 or 1 / (1 - rate). Everything is computed in float32.
"""

import torch

from .edge_kernels import jit, tl
from .kernel_launches import on_its_device


@jit
def residual_norm_kernel(
    X, Y, SCALE, KEEP, WEIGHT, BIAS, SUM, OUT, MEAN, RSTD, rows, rows_per_clip, eps,
    C: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, RESIDUAL: tl.constexpr, DROP: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """SUM = X + KEEP * SCALE * Y if RESIDUAL, OUT = LayerNorm(SUM or X) if NORM. Grid: (cdiv(rows, ROWS),)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    exists = row < rows
    mask = exists[:, None] & (column < C)[None, :]
    place = row[:, None] * C + column[None, :]
    x = tl.load(X + place, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        y = tl.load(Y + place, mask=mask, other=0.0).to(tl.float32)
        y *= tl.load(SCALE + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
        if DROP:
            y *= tl.load(KEEP + row // rows_per_clip, mask=exists, other=0.0)[:, None]
        x += y
        tl.store(SUM + place, x.to(SUM.dtype.element_ty), mask=mask)
    if NORM:
        if RESIDUAL:
            x = x.to(SUM.dtype.element_ty).to(tl.float32)  # the statistics of what the backward reads
        mean = tl.sum(x, 1) / C
        centred = tl.where(mask, x - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / C + eps)
        weight = tl.load(WEIGHT + column, mask=column < C, other=0.0).to(tl.float32)
        bias = tl.load(BIAS + column, mask=column < C, other=0.0).to(tl.float32)
        out = centred * rstd[:, None] * weight[None, :] + bias[None, :]
        tl.store(OUT + place, out.to(OUT.dtype.element_ty), mask=mask)
        tl.store(MEAN + row, mean, mask=exists)
        tl.store(RSTD + row, rstd, mask=exists)


@jit
def norm_backward_kernel(
    GRAD, X, MEAN, RSTD, WEIGHT, BIAS, OTHER, DX, OUT, WEIGHT_GRAD, BIAS_GRAD, rows, rows_per_program,
    C: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """
    DX = OTHER + gradient of LayerNorm's input, OUT = LayerNorm(X) recomputed for the weights' gradients, and the
    partial gradients (P, C) of its weight and bias. Grid: (P,).
    """
    column = tl.arange(0, SIZE)
    inside = column < C
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(BIAS + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    weight_grad = tl.zeros([SIZE], tl.float32)
    bias_grad = tl.zeros([SIZE], tl.float32)
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    for start in range(0, rows_per_program, ROWS):
        offset = start + tl.arange(0, ROWS)
        row = first + offset
        exists = (offset < rows_per_program) & (row < rows)
        mask = exists[:, None] & inside[None, :]
        place = row[:, None] * C + column[None, :]
        grad = tl.load(GRAD + place, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(X + place, mask=mask, other=0.0).to(tl.float32)
        other = tl.load(OTHER + place, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row, mask=exists, other=0.0)[:, None]
        mean = tl.load(MEAN + row, mask=exists, other=0.0)[:, None]
        normalised = tl.where(mask, (x - mean) * rstd, 0.0)
        tl.store(OUT + place, (normalised * weight + bias).to(OUT.dtype.element_ty), mask=mask)
        weight_grad += tl.sum(grad * normalised, 0)
        bias_grad += tl.sum(grad, 0)
        grad *= weight
        along = tl.sum(grad * normalised, 1)[:, None] / C
        grad = (grad - tl.sum(grad, 1)[:, None] / C - normalised * along) * rstd
        tl.store(DX + place, (other + grad).to(DX.dtype.element_ty), mask=mask)
    place = tl.program_id(0).to(tl.int64) * C + column
    tl.store(WEIGHT_GRAD + place, weight_grad, mask=inside)
    tl.store(BIAS_GRAD + place, bias_grad, mask=inside)


@jit
def gelu_kernel(X, OUT, length, SIZE: tl.constexpr):
    """OUT = GELU(X), the exact one. Grid: (cdiv(length, SIZE),)."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x = tl.load(X + place, mask=place < length, other=0.0).to(tl.float32)
    out = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(OUT + place, out.to(OUT.dtype.element_ty), mask=place < length)


@jit
def columns_kernel(
    GRAD, X, KEEP, DX, OUT, SUMS, rows, rows_per_clip, rows_per_program,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WRITE: tl.constexpr, DROP: tl.constexpr,
    GELU: tl.constexpr,
):  # fmt: skip
    """
    DX = KEEP * GRAD * GELU'(X) if WRITE, OUT = GELU(X) if GELU, and the partial sums (P, C) over rows of DX: the bias
    gradient of the linear layer that came before. Without GELU, GRAD passes. Grid: (P * cdiv(C, COLUMNS),).
    """
    blocks = tl.cdiv(C, COLUMNS)
    program = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < C
    sums = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, rows_per_program, ROWS):
        offset = start + tl.arange(0, ROWS)
        row = program * rows_per_program + offset
        exists = (offset < rows_per_program) & (row < rows)
        mask = exists[:, None] & inside[None, :]
        place = row[:, None] * C + column[None, :]
        grad = tl.load(GRAD + place, mask=mask, other=0.0).to(tl.float32)
        if DROP:
            grad *= tl.load(KEEP + row // rows_per_clip, mask=exists, other=0.0)[:, None]
        if GELU:
            x = tl.load(X + place, mask=mask, other=0.0).to(tl.float32)
            below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
            tl.store(OUT + place, (x * below).to(OUT.dtype.element_ty), mask=mask)
            # exp(-x^2 / 2) / sqrt(2 pi)
            grad *= below + x * 0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817)
        sums += tl.sum(grad, 0)
        if WRITE:
            tl.store(DX + place, grad.to(DX.dtype.element_ty), mask=mask)
    tl.store(SUMS + program * C + column, sums, mask=inside)


# ----------------------------------------------------------------------------------------------------------- launches

NORM_ROWS, NORM_PROGRAMS = 2, 2048
COLUMN_TILE, COLUMN_ROWS, ROWS_PER_PROGRAM = 256, 16, 128
GELU_SIZE = 2048


@on_its_device
def residual_norm(x, y=None, scale=None, keep=None, norm=None, dtype=None):
    """
    `x + keep * scale * y` (without `y`: `x`) and its LayerNorm.

    Args:
        x (`torch.Tensor` of shape `(B, N, C)`), y (the same, *optional*): contiguous.
        scale (`torch.Tensor` of shape `(C,)`, *optional*): LayerScale.
        keep (`torch.Tensor` of shape `(B,)`, *optional*): drop path's factors.
        norm (`nn.LayerNorm`, *optional*), dtype (`torch.dtype`): the norm, and the precision of its output.

    Returns:
        The sum, the norm's output, its means and reciprocal standard deviations (B * N,); None for what was not asked.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    total = x if y is None else torch.empty_like(x)
    out = mean = rstd = None
    if norm is not None:
        out = torch.empty_like(x, dtype=dtype)
        mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    weight, bias = (x, x) if norm is None else (norm.weight, norm.bias)
    residual_norm_kernel[(-(-rows // NORM_ROWS),)](
        x, *(x if argument is None else argument for argument in (y, scale, keep)), weight, bias,
        *(x if argument is None else argument for argument in (total, out, mean, rstd)),
        rows, x.shape[1], 0.0 if norm is None else norm.eps,
        C=channels, SIZE=_power_of_two(channels), ROWS=NORM_ROWS, RESIDUAL=y is not None, DROP=keep is not None,
        NORM=norm is not None,
    )  # fmt: skip
    return total, out, mean, rstd


@on_its_device
def norm_backward(grad, x, mean, rstd, weight, bias, other):
    """
    Backward of a LayerNorm whose input `x` also went on as the residual stream.

    Args:
        grad, x, other (`torch.Tensor` of shape `(B, N, C)`): gradient of the norm's output, its input, and the
            gradient that `x` gets from elsewhere.

    Returns:
        Gradient of `x`, the norm's output recomputed in the precision of `grad`, gradients of weight and bias.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    per_program = -(-rows // min(NORM_PROGRAMS, rows))
    programs = -(-rows // per_program)
    grad_x, out = torch.empty_like(x), torch.empty_like(x, dtype=grad.dtype)
    partial = torch.empty(2, programs, channels, dtype=torch.float32, device=x.device)
    norm_backward_kernel[(programs,)](
        grad, x, mean, rstd, weight, bias, other, grad_x, out, partial[0], partial[1], rows, per_program,
        C=channels, SIZE=_power_of_two(channels), ROWS=NORM_ROWS,
    )  # fmt: skip
    weight_grad, bias_grad = partial.sum(1)
    return grad_x, out, weight_grad.to(weight.dtype), bias_grad.to(bias.dtype)


@on_its_device
def gelu(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    gelu_kernel[(-(-x.numel() // GELU_SIZE),)](x, out, x.numel(), SIZE=GELU_SIZE)
    return out


def gelu_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of GELU's input, written over `grad`; GELU(x) recomputed; column sums (C,) of the first in float32."""
    return _columns(grad, x=x, out=grad)


def mask_and_cast(grad: torch.Tensor, keep: torch.Tensor | None, dtype: torch.dtype):
    """`keep * grad` in `dtype`, and its column sums (C,) in float32."""
    out, _, sums = _columns(grad, keep=keep, out=torch.empty_like(grad, dtype=dtype))
    return out, sums


def column_sums(grad: torch.Tensor) -> torch.Tensor:
    """Sums (C,) over all rows in float32."""
    return _columns(grad)[2]


@on_its_device
def _columns(grad, x=None, keep=None, out=None):
    channels = grad.shape[-1]
    rows = grad.numel() // channels
    programs = -(-rows // ROWS_PER_PROGRAM)
    activated = None if x is None else torch.empty_like(x)
    partial = torch.empty(programs, channels, dtype=torch.float32, device=grad.device)
    columns_kernel[(programs * -(-channels // COLUMN_TILE),)](
        grad, *(grad if argument is None else argument for argument in (x, keep, out, activated)), partial,
        rows, grad.shape[1], ROWS_PER_PROGRAM,
        C=channels, ROWS=COLUMN_ROWS, COLUMNS=COLUMN_TILE,
        WRITE=out is not None, DROP=keep is not None, GELU=x is not None,
    )  # fmt: skip
    return out, activated, partial.sum(0)


def _power_of_two(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())
