"""Edge-sparse and dense attention through FlexAttention (torch.nn.attention.flex_attention), for GPUs.

Each block of G tokens is padded to S slots, a size that the kernels take, which makes the BlockMask exact; the mask is
built from the block ids, not by evaluating every pair. Bias rows come from the tokens' codes in `score_mod`. [CLS] has
no block: its row is dense, and as a key it is merged afterwards via log-sum-exp, at the cost of one product per query.

Edges are offered in float32 only: torch 2.11 rejects every configuration of the half-precision backward for blocks of
64 slots on Hopper (`NoValidChoicesError`). The Triton kernels behind "sdpa" have no such limit.

Letters as in sparsity.py.
"""

import functools

import torch
from torch import nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .sparsity import RelativePositions, cls_row

_MIN_SLOTS = 64  # the smallest tile that the kernels for the backward take by default


# Each number of tokens and of clips compiles to another kernel, with gradients and without: pruning alone takes eight,
# torch's default limit.
_MAX_KERNELS = 256


@functools.cache
def _compiled():
    return torch.compile(flex_attention, dynamic=False)


def compiled_flex_attention(*arguments, **options):
    """FlexAttention's kernels, or an error: beyond the limit torch would run uncompiled, with all N x N scores."""
    with torch._dynamo.config.patch(recompile_limit=_MAX_KERNELS, fail_on_recompile_limit_hit=True):
        return _compiled()(*arguments, **options)


def flex_edge_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    positions: RelativePositions,
    block_ids: torch.Tensor | None,
    block_size: int | None = None,
    attend_padding: bool = False,
    num_mirrored: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    As [`edge_attention`]; with `block_ids=None` all pairs. Unless `attend_padding`, the ids of a row must be distinct.

    Raises:
        NotImplementedError: on a CPU, whose FlexAttention lacks what is needed; for edges in half precision; for
            mirrored local blocks.
    """
    if num_mirrored:
        raise NotImplementedError(
            f"attn_implementation='flex_attention' cannot compute released_attention=True with {num_mirrored} local "
            "blocks: the released code takes a neighbour's keys and the opposite neighbour's values, which "
            "FlexAttention reads from one place. Use attn_implementation='sdpa'."
        )
    _refuse_cpu(q.device)
    if block_ids is not None and q.dtype in (torch.float16, torch.bfloat16):
        raise NotImplementedError(
            f"attn_implementation='flex_attention' computes sparse edges in float32 only, not in {q.dtype}: the "
            "backward of FlexAttention does not compile for blocks of 64 slots in half precision. Use "
            "attn_implementation='sdpa', which has kernels for it, or num_random_blocks=None for dense attention."
        )
    num_patches = q.shape[2] - 1
    cls_context, cls_attention = cls_row(q, k, v, table, positions)
    slots = None
    if block_ids is not None:
        slots = _Slots(block_ids, block_size, num_patches, attend_padding, table.dtype, q.shape[0])
    spread = (lambda x: x) if slots is None else slots.spread
    query, key, value = (spread(x[:, :, 1:]).contiguous() for x in (q, k, v))

    codes = spread(positions.codes[:, None, :, None])[:, 0, :, 0].int()
    if codes.shape[0] == 1:  # one compiled kernel then reads (b, token) in both cases
        codes = codes.expand(q.shape[0], -1)
    codes = codes.contiguous()
    bias_table, centre = table.t().contiguous(), positions.centre
    log_times = None if slots is None else slots.log_times

    def score_mod(score, b, h, query_slot, key_slot):
        score = score + bias_table[h, codes[b, query_slot] - codes[b, key_slot] + centre]
        if log_times is not None:  # blocks that the release lists twice count twice in the softmax
            score = score + log_times[b, query_slot // slots.size, key_slot // slots.size]
        return score

    flex = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention
    context, auxiliary = flex(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=None if slots is None else slots.block_mask(),
        kernel_options=None if slots is None else slots.kernel_options(q.dtype),
        scale=q.shape[-1] ** -0.5,
        return_aux=AuxRequest(lse=True),
    )
    logsumexp = auxiliary.lse
    if slots is not None:
        context, logsumexp = slots.collect(context), slots.collect(logsumexp[..., None])[..., 0]

    # [CLS] as a key
    statistics = torch.promote_types(q.dtype, torch.float32)
    to_cls = (q[:, :, 1:] @ k[:, :, :1].transpose(-1, -2)).squeeze(-1).to(statistics) * q.shape[-1] ** -0.5
    to_cls = to_cls + table[positions.patch_to_cls][:, None]
    logsumexp = logsumexp.to(statistics)
    total = torch.logaddexp(logsumexp, to_cls)
    if attend_padding and slots is not None:
        # Zero keys: logit 0 + table[patch_to_cls]; zero values: they only add to the softmax's denominator.
        sink = slots.padding_count.log().to(statistics) + table[positions.patch_to_cls][:, None]  # (B, H, n)
        total = torch.logaddexp(total, sink)
    from_patches, from_cls = ((x - total).exp()[..., None].to(v.dtype) for x in (logsumexp, to_cls))
    patch_context = from_patches * context.to(v.dtype) + from_cls * v[:, :, :1]
    return torch.cat([cls_context, patch_context], dim=2), cls_attention


def _refuse_cpu(device: torch.device) -> None:
    if device.type == "cpu":
        raise NotImplementedError(
            "attn_implementation='flex_attention' does not run on a CPU: FlexAttention's kernels there have neither a "
            "backward nor the logsumexp that [CLS] is joined by. Use attn_implementation='sdpa', or a GPU."
        )


class _Slots:
    """The layout of n patches in M blocks of G tokens, each in `size` slots, and which blocks see which."""

    def __init__(
        self, block_ids: torch.Tensor, block_size: int, num_patches: int, repeat: bool, dtype, batch_size: int
    ):
        self.num_blocks, self.block_size, self.num_patches = block_ids.shape[-2], block_size, num_patches
        self.size = max(_MIN_SLOTS, 1 << (block_size - 1).bit_length())
        # One kernel reads (b, block, block), whether the pattern is of each clip or of all.
        block_ids = block_ids.expand(batch_size, -1, -1)
        times = torch.zeros(batch_size, self.num_blocks, self.num_blocks, dtype=dtype, device=block_ids.device)
        times = times.scatter_add(2, block_ids.clamp(min=0), (block_ids >= 0).to(dtype))
        self.attended = times > 0  # (B, M, M)
        self.log_times = times.clamp(min=1).log() if repeat else None
        padding = self.num_blocks * block_size - num_patches
        count = (times[:, :, -1] * padding).repeat_interleave(block_size, 1)
        self.padding_count = count[:, None, :num_patches]  # (B, 1, n)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n, D) to (…, M * size, D), zeros between."""
        x = nn.functional.pad(x, (0, 0, 0, self.num_blocks * self.block_size - self.num_patches))
        x = x.unflatten(-2, (self.num_blocks, self.block_size))
        return nn.functional.pad(x, (0, 0, 0, self.size - self.block_size)).flatten(-3, -2)

    def collect(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `spread`."""
        x = x.unflatten(-2, (self.num_blocks, self.size))[..., : self.block_size, :]
        return x.flatten(-3, -2)[..., : self.num_patches, :]

    def kernel_options(self, dtype: torch.dtype) -> dict[str, int]:
        """
        Tiles of the kernels that divide a block's slots. torch 2.11's defaults (128 queries on A100, H100 and B200) do
        not, and are refused; torch 2.14 shrinks them. In float32 the backward's stay as small as its default.
        """
        forward = min(self.size, 64)
        backward = forward if dtype.itemsize == 2 else 16
        return {
            "BLOCK_M": forward,
            "BLOCK_N": forward if dtype.itemsize == 2 else 32,
            **{name: backward for name in ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")},
        }

    def block_mask(self) -> BlockMask:
        """From the ids alone: tensors of one shape for every pattern, so nothing is compiled again."""
        size, block_size, num_patches, attended = self.size, self.block_size, self.num_patches, self.attended
        count = attended.sum(2, dtype=torch.int32)
        ids = attended.int().argsort(dim=2, descending=True, stable=True).int()

        def mask_mod(b, h, query_slot, key_slot):
            block, place = key_slot // size, key_slot % size
            is_token = (place < block_size) & (block * block_size + place < num_patches)
            return is_token & attended[b, query_slot // size, block]

        return BlockMask.from_kv_blocks(count[:, None], ids[:, None], BLOCK_SIZE=(size, size), mask_mod=mask_mod)
