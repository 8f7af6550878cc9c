"""Launches the kernels of edge_kernels.py, and makes them one operator for autograd and torch.compile.

Kept for the backward: q, k, v, the output, the table in the kernels' units and one log-sum-exp per query.
Letters as in edge_kernels.py.
"""

import functools
import math
import zlib
from dataclasses import dataclass

import torch

from .edge_gradient_kernels import cls_gradients, invert_pattern, key_gradients, query_gradients, table_gradient
from .edge_kernels import bias_tiles, cls_forward, cls_merge, patches_forward, scale_table, triton
from .kernel_launches import Launch, launch_of, on_its_device
from .second_derivatives import gradients_with_graph, plain_attention, wants_graph
from .sparsity import RelativePositions

LOG2E = math.log2(math.e)
# Device types whose attention and layers the kernels compute. ROCm's devices have the type "cuda", too.
KERNEL_DEVICES = {"cuda"}
MAX_HEAD_DIM = 128
DENSE_BLOCK = 64  # dense attention has no blocks, so they are as large as a tile
# Bias tiles are worth their memory only where several clips read them, and while they stay near a GPU's second cache.
MIN_CLIPS_FOR_TILES = 4
MAX_TILE_BYTES = 64 * 2**20
# Private copies of the table's gradient: fewer atomic adds to one address.
TABLE_COPIES = 8
# Clips whose gradient of a bias tile is summed before it leaves the program.
CLIPS_PER_TABLE_PROGRAM = 8
CLS_TOKENS, CLS_STEPS = 128, 4


def is_available() -> bool:
    return triton is not None


def supports(q: torch.Tensor) -> bool:
    return q.dtype in (torch.float16, torch.bfloat16, torch.float32) and q.shape[-1] <= MAX_HEAD_DIM


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@dataclass
class _Call:
    """One attention: its shapes, strides, pattern and what follows from them."""

    q: torch.Tensor  # (B, H, N, D), any strides but the last
    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor  # (H, R) float32, times log2(e)
    codes: torch.Tensor  # (1 or B, n) int64
    block_ids: torch.Tensor | None  # (M, S) or (B, M, S); -1 is no block
    block_size: int
    patch_to_cls: int
    attend_padding: bool

    def __post_init__(self):
        self.B, self.H, self.N, self.D = self.q.shape
        self.is_dense = self.block_ids is None
        self.G = DENSE_BLOCK if self.is_dense else self.block_size
        self.M = -(-(self.N - 1) // self.G)
        self.S = self.M if self.is_dense else self.block_ids.shape[-1]
        self.R = self.table.shape[1]
        self.DP = max(16, 1 << (self.D - 1).bit_length())
        self.centre = (self.patch_to_cls - 2) // 2
        self.padding = self.M * self.G - (self.N - 1)
        self.has_sinks = self.attend_padding and not self.is_dense and self.padding > 0
        self.codes = self.codes.contiguous()
        self.codes_b = self.codes.stride(0) if self.codes.shape[0] > 1 else 0
        # Dense attention reads no ids; a pointer is passed all the same.
        self.ids = self.codes if self.is_dense else self.block_ids.contiguous()
        self.ids_b = 0 if self.is_dense or self.ids.dim() == 2 or self.ids.shape[0] == 1 else self.M * self.S
        self.scale = self.D**-0.5 * LOG2E
        self.shares_tokens = self.codes_b == 0 and self.ids_b == 0

    def launch(self, kernel: str) -> Launch:
        return launch_of(kernel, self.q.dtype == torch.float32, self.DP, _is_hopper(self.q.device))

    def tiles(self, size: int) -> int:
        """How many tiles of `size` a block makes."""
        return -(-self.G // size)

    def strides(self, *tensors: torch.Tensor) -> list[int]:
        return [stride for x in tensors for stride in x.stride()[:3]]

    def bias_tiles(self, rows: int, columns: int, transposed: bool = False) -> torch.Tensor | None:
        """Bias of the listed pairs in tiles of `rows` x `columns`; None where looking it up is better."""
        if self.is_dense or not self.shares_tokens or self.B < MIN_CLIPS_FOR_TILES or self.S == 0:
            return None
        height, width = self.tiles(rows) * rows, self.tiles(columns) * columns
        dtype = torch.float32 if self.q.dtype == torch.float32 else torch.float16
        if self.H * self.M * self.S * height * width * dtype.itemsize > MAX_TILE_BYTES:
            return None
        tiles = torch.empty(self.H, self.M, self.S, height, width, dtype=dtype, device=self.q.device)
        grid = self.H * self.M * self.S * (height // rows) * (width // columns)
        bias_tiles[(grid,)](
            self.table, self.codes, self.ids, tiles, self.N - 1, self.M, self.S, self.R, self.centre,
            G=self.G, ROWS=height, COLUMNS=width, BM=rows, BN=columns, TRANSPOSED=transposed,
        )  # fmt: skip
        return tiles

    def inverse_pattern(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Per key block the number of entries that list it and these entries, and the stride of a clip's pattern."""
        if self.is_dense or self.S == 0:
            return self.ids.new_zeros(self.M, dtype=torch.int32), self.ids, 0
        patterns = self.B if self.ids_b else 1
        counts = torch.empty(patterns, self.M, dtype=torch.int32, device=self.q.device)
        lists = torch.empty(patterns, self.M, self.M * self.S, dtype=torch.int32, device=self.q.device)
        size = 1 << (self.M * self.S - 1).bit_length()
        invert_pattern[(patterns * self.M,)](self.ids, counts, lists, self.M, self.S, SIZE=size)
        return counts, lists, self.M if self.ids_b else 0


def _with_unit_stride(x: torch.Tensor) -> torch.Tensor:
    """`x` as it is unless its heads are not contiguous or a clip's offsets do not fit into 32 bits."""
    fits = x.stride(-1) == 1 and x.shape[2] * x.stride(2) < 2**31
    return x if fits else x.transpose(1, 2).contiguous().transpose(1, 2)


@on_its_device
def forward(q, k, v, table, codes, block_ids, block_size, patch_to_cls, attend_padding):
    """Context (B, N, H, D), attention of [CLS] (B, H, N), log-sum-exp (B, H, N) and the scaled table (H, R)."""
    q, k, v = (_with_unit_stride(x) for x in (q, k, v))
    scaled = torch.empty(table.shape[1], table.shape[0], dtype=torch.float32, device=q.device)
    rows = 1024
    scale_table[(-(-table.shape[0] // rows) * table.shape[1],)](
        table, scaled, table.shape[0], *table.stride(), LOG2E, SIZE=rows
    )
    call = _Call(q, k, v, scaled, codes, block_ids, block_size, patch_to_cls, attend_padding)
    B, H, N, D = q.shape
    context = torch.empty(B, N, H, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    launch = call.launch("patches_forward")
    tiles = call.bias_tiles(launch.BM, launch.BN)
    patches_forward[(call.M * call.tiles(launch.BM) * B * H,)](
        q, k, v, scaled, call.codes, scaled if tiles is None else tiles, call.ids, context, lse,
        *call.strides(q, k, v), call.codes_b, call.ids_b,
        call.scale, B, H, N, call.M, call.S, call.R, call.centre, patch_to_cls, call.padding,
        D=D, DP=call.DP, G=call.G, BM=launch.BM, BN=launch.BN,
        DENSE=call.is_dense, TILED=tiles is not None, SINK=call.has_sinks, **launch.options,
    )  # fmt: skip
    attention = torch.empty_like(lse)
    parts = -(-N // (CLS_TOKENS * CLS_STEPS))
    partial = torch.empty(B, H, parts, 2 + call.DP, dtype=torch.float32, device=q.device)
    cls_forward[(parts * B * H,)](
        q, k, v, scaled, attention, partial, *q.stride()[:2], *call.strides(k, v),
        call.scale, B, H, N, call.R, patch_to_cls, D=D, DP=call.DP, SIZE=CLS_TOKENS, STEPS=CLS_STEPS,
    )  # fmt: skip
    cls_merge[(B * H,)](
        partial, attention, context, lse, H, N, parts,
        D=D, DP=call.DP, SLOTS=max(2, 1 << (parts - 1).bit_length()), SIZE=1024,
    )  # fmt: skip
    return context, attention, lse, scaled


@on_its_device
def backward(
    grad, q, k, v, scaled, codes, block_ids, context, lse, block_size, patch_to_cls, attend_padding, table_dtype
):
    """Gradients of q, k, v, each (B, N, H, D), and of the table (R, H)."""
    q, k, v, grad = (_with_unit_stride(x) for x in (q, k, v, grad))
    call = _Call(q, k, v, scaled, codes, block_ids, block_size, patch_to_cls, attend_padding)
    B, H, N, D = q.shape
    dq, dk, dv = (torch.empty(B, N, H, D, dtype=q.dtype, device=q.device) for _ in range(3))
    delta = torch.empty_like(lse)
    is_fixed = torch.are_deterministic_algorithms_enabled()
    copies = 1 if is_fixed else TABLE_COPIES
    table_grad = torch.zeros(copies, H, call.R, dtype=torch.int64 if is_fixed else torch.float32, device=q.device)
    factor = _fixed_point_factor(call, grad, v) if is_fixed else scaled
    strides = call.strides(q, k, v, grad)
    shapes = (B, H, N, call.M, call.S, call.R, call.centre)

    # Summed over clips in a kernel of its own where all clips have the same tokens; else by `query_gradients`.
    by_tile = call.shares_tokens and B > 1
    launch = call.launch("query_gradients")
    tiles = call.bias_tiles(launch.BM, launch.BN)
    key_parts = call.M * call.tiles(launch.BM)
    from_queries = torch.empty(H * B * key_parts, 2 * call.DP + 1, dtype=torch.float32, device=q.device)
    query_gradients[(key_parts * B * H,)](
        q, k, v, grad, context, scaled, call.codes, scaled if tiles is None else tiles, call.ids, lse, delta, dq,
        table_grad, factor, from_queries, *strides, call.codes_b, call.ids_b,
        call.scale, D**-0.5, *shapes, patch_to_cls, call.padding, copies,
        D=D, DP=call.DP, G=call.G, BM=launch.BM, BN=launch.BN, DENSE=call.is_dense, TILED=tiles is not None,
        SINK=call.has_sinks, WITH_TABLE=not by_tile, FIXED=is_fixed, **launch.options,
    )  # fmt: skip
    if by_tile and call.S:
        launch = call.launch("table_gradient")
        pairs = H * call.M * call.S * call.tiles(launch.BM) * call.tiles(launch.BN)
        table_gradient[(pairs * -(-B // CLIPS_PER_TABLE_PROGRAM),)](
            q, k, v, grad, scaled, call.codes, call.ids, lse, delta, table_grad, factor, *strides,
            call.scale, *shapes, copies, CLIPS_PER_TABLE_PROGRAM,
            D=D, DP=call.DP, G=call.G, BM=launch.BM, BN=launch.BN, DENSE=call.is_dense, FIXED=is_fixed,
            **launch.options,
        )  # fmt: skip
    counts, lists, pattern_b = call.inverse_pattern()
    launch = call.launch("key_gradients")
    tiles = call.bias_tiles(launch.BN, launch.BM, transposed=True)
    query_parts = call.M * call.tiles(launch.BN)
    from_keys = torch.empty(H * B * query_parts, call.DP + 1, dtype=torch.float32, device=q.device)
    key_gradients[(query_parts * B * H,)](
        q, k, v, grad, context, scaled, call.codes, scaled if tiles is None else tiles, counts, lists, lse, delta,
        dk, dv, from_keys, *strides, call.codes_b, pattern_b, call.scale, D**-0.5, *shapes, patch_to_cls,
        D=D, DP=call.DP, G=call.G, BM=launch.BM, BN=launch.BN, DENSE=call.is_dense, TILED=tiles is not None,
        **launch.options,
    )  # fmt: skip
    cls_bias = torch.empty(H, B, 3, dtype=torch.float32, device=q.device)
    outer = [stride for x in (q, k, v, grad) for stride in x.stride()[:2]]
    cls_gradients[(H * B,)](
        q, k, v, grad, context, scaled, lse, from_queries, from_keys, dq, dk, dv, cls_bias, *outer,
        call.scale, D**-0.5, B, H, N, call.R, patch_to_cls, key_parts, query_parts, D=D, DP=call.DP, SIZE=32,
    )  # fmt: skip
    table_grad = (table_grad[0].double() / factor).float() if is_fixed else table_grad.sum(0)
    table_grad[:, patch_to_cls - 1 :] += cls_bias.sum(1)
    return dq, dk, dv, table_grad.t().to(table_dtype, memory_format=torch.contiguous_format)


def _fixed_point_factor(call: _Call, grad: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """
    What a score's gradient is multiplied by before it is rounded to an integer: the largest for which no sum over all
    pairs of a table row can leave 63 bits. A gradient that is not finite makes the whole table's not finite.
    """
    terms = call.B * call.N * max(1, call.S)
    bound = 2 * call.D * grad.abs().amax().float() * v.abs().amax().float()  # |dP| + |delta|
    return (2.0 ** (62 - terms.bit_length()) / bound).clamp(max=1e30)


# ----------------------------------------------------------------------------------------------------- the operator

# A file that travels with weights is imported under another name than the installed package's; each has its operator.
_NAMESPACE = f"svitt_ego_{zlib.crc32(__name__.encode()):08x}"


@torch.library.custom_op(f"{_NAMESPACE}::attention", mutates_args=())
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    codes: torch.Tensor,
    block_ids: torch.Tensor | None,
    block_size: int,
    patch_to_cls: int,
    attend_padding: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return forward(q, k, v, table, codes, block_ids, block_size, patch_to_cls, attend_padding)


@_attention.register_fake
def _(q, k, v, table, codes, block_ids, block_size, patch_to_cls, attend_padding):
    B, H, N, D = q.shape
    statistics = q.new_empty(B, H, N, dtype=torch.float32)
    scaled = table.new_empty(table.shape[1], table.shape[0], dtype=torch.float32)
    return q.new_empty(B, N, H, D), statistics, torch.empty_like(statistics), scaled


@torch.library.custom_op(f"{_NAMESPACE}::attention_backward", mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaled: torch.Tensor,
    codes: torch.Tensor,
    block_ids: torch.Tensor | None,
    context: torch.Tensor,
    lse: torch.Tensor,
    block_size: int,
    patch_to_cls: int,
    attend_padding: bool,
    table_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return backward(
        grad, q, k, v, scaled, codes, block_ids, context, lse, block_size, patch_to_cls, attend_padding, table_dtype
    )


@_attention_backward.register_fake
def _(grad, q, k, v, scaled, *arguments):
    B, H, N, D = q.shape
    of_tokens = [q.new_empty(B, N, H, D) for _ in range(3)]
    return *of_tokens, scaled.new_empty(scaled.shape[1], scaled.shape[0], dtype=arguments[-1])


def _save(ctx, inputs, output):
    q, k, v, table, codes, block_ids, *constants = inputs
    context, attention, lse, scaled = output
    ctx.save_for_backward(q, k, v, table, codes, block_ids, context, lse, scaled)
    ctx.constants = constants
    ctx.mark_non_differentiable(attention, lse, scaled)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_context, *_):
    q, k, v, table, codes, block_ids, context, lse, scaled = ctx.saved_tensors
    if grad_context is None:
        return (None,) * 9
    if wants_graph():
        attend = plain_attention(codes, block_ids, *ctx.constants)
        grad_outputs = [grad_context.transpose(1, 2)]
        grads = gradients_with_graph(attend, (q, k, v, table), ctx.needs_input_grad[:4], grad_outputs)
        return *grads, *[None] * 5
    grad = grad_context.transpose(1, 2)
    dq, dk, dv, grad_table = _attention_backward(
        grad, q, k, v, scaled, codes, block_ids, context, lse, *ctx.constants, table.dtype
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), grad_table, *[None] * 5


_attention.register_autograd(_differentiate, setup_context=_save)


def triton_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    positions: RelativePositions,
    block_ids: torch.Tensor | None,
    block_size: int | None = None,
    attend_padding: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    As [`block_attention.edge_attention`]; with `block_ids=None` all pairs.

    Args:
        block_ids (`torch.LongTensor` of shape `(M, K)` or `(B, M, K)`, *optional*): the blocks that each block attends
            to, the same for all clips or each clip's own. A block that is listed twice counts twice in the softmax; -1
            is no block.
    """
    context, attention, _, _ = _attention(
        q, k, v, table, positions.codes, block_ids, block_size or 0, positions.patch_to_cls, attend_padding
    )
    return context.transpose(1, 2), attention
