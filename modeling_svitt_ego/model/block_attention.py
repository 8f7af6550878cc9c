"""Edge-sparse and dense attention: Triton kernels on a GPU, blocks of plain operations elsewhere.

The blocks have a hand-written backward that recomputes the scores. Kept for the backward: q, k, v, the output and one
log-sum-exp per query. Keys and values are gathered block by block, not token by token, in the forward and again in the
backward; bias rows come from the tokens' codes by arithmetic. So neither an N x N bias nor K copies of the keys are in
memory, only one chunk of scores at a time, small enough for a CPU's cache.

Letters as in sparsity.py. In the blocks the heads come first, (H, B, M, G, D), because the bias table is looked up and
its gradient is summed per head: the scores of a chunk start as the bias, to which q k is added in place.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import logging

from .edge_triton import KERNEL_DEVICES, is_available, supports, triton_attention
from .second_derivatives import gradients_with_graph, plain_attention, wants_graph
from .sparsity import RelativePositions, cls_logits, key_blocks

logger = logging.get_logger(__name__)

# One chunk of scores has about this many elements. On a CPU 2 MiB of float32 stay in the cache; dense attention needs
# larger chunks, because its products would have few queries. On other devices, and in a compiled graph, which unrolls
# the chunks, larger chunks cost less.
CPU_CHUNK_ELEMENTS = 2**19
CPU_DENSE_CHUNK_ELEMENTS = 2**21
CHUNK_ELEMENTS = 2**25


def edge_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    positions: RelativePositions,
    block_ids: torch.Tensor,
    block_size: int,
    attend_padding: bool = False,
    num_mirrored: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The same as [`edge_attention_reference`]: cost and memory grow with L, not with N.

    Args:
        q, k, v (`torch.Tensor` of shape `(B, H, N, D)`): [CLS] first; any strides.
        table (`torch.Tensor` of shape `(R, H)`): relative position bias.
        block_ids (`torch.LongTensor` of shape `(M, K)` or `(B, M, K)`): the blocks that each block attends to.
        attend_padding (`bool`): as `released_attention` in the configuration.
        num_mirrored (`int`): local blocks whose keys are those of the mirrored neighbour; see [`key_blocks`]. The
            Triton kernels cannot compute them, so the plain operations do on every device.

    Returns:
        The context (B, H, N, D), laid out as (B, N, H, D), and the [CLS] row of the attention (B, H, N) in float32 or
        wider, which node pruning scores by and through which no gradient flows.
    """
    if uses_kernels(q):
        if not num_mirrored:
            return triton_attention(q, k, v, table, positions, block_ids, block_size, attend_padding)
        if not torch.compiler.is_compiling():
            logger.warning_once(
                f"released_attention=True with {num_mirrored} local blocks is computed by plain operations, several "
                "times slower than by the kernels of this model, which cannot mirror blocks."
            )
    return _BlockAttention.apply(
        q, k, v, table, positions.codes, block_ids, block_size, positions.patch_to_cls, attend_padding, num_mirrored
    )


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, positions: RelativePositions
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs, computed the same way: what edge sparsity is measured against. As [`edge_attention`]."""
    if uses_kernels(q):
        return triton_attention(q, k, v, table, positions, None)
    return _BlockAttention.apply(q, k, v, table, positions.codes, None, None, positions.patch_to_cls, False, 0)


def uses_kernels(q: torch.Tensor) -> bool:
    """Is attention of these queries computed by the Triton kernels? An exported program must run without them."""
    if q.device.type not in KERNEL_DEVICES or torch.compiler.is_exporting():
        return False
    if not is_available() and not torch.compiler.is_compiling():
        logger.warning_once(
            f"triton is not installed, so attention on {q.device.type} is computed by plain operations, several times "
            "slower than by the kernels of this model. `pip install triton` installs it."
        )
    return is_available() and supports(q)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, table, codes, block_ids, block_size, patch_to_cls, attend_padding, num_mirrored):
        batch, heads, num_tokens, head_dim = q.shape
        statistics = torch.promote_types(q.dtype, torch.float32)
        plan = _Plan(q, codes, block_ids, block_size, patch_to_cls, attend_padding, num_mirrored)
        query, key, value = plan.query_blocks(q * head_dim**-0.5), plan.key_blocks(k), plan.key_blocks(v)
        bias_table = plan.bias_table(table, statistics)
        cls_key, cls_value = _cls(k), _cls(v)

        context = q.new_empty(batch, num_tokens, heads, head_dim).transpose(1, 2)
        patch_context = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:-1], dtype=statistics)
        cls_scores = plan.cls_scores(query, cls_key, bias_table)
        for chunk in plan.chunks():
            bias, _ = plan.bias(chunk, bias_table)
            # The bias of a clip of its own is a fresh tensor; one for all clips is copied once per clip.
            scores = bias if bias.shape[1] == chunk.batch_size else bias.expand(-1, chunk.batch_size, *bias.shape[2:])
            scores = _add_product(scores.contiguous(), chunk.of(query), plan.gather(chunk, key, plan.key_ids))
            to_cls = chunk.of(cls_scores)
            top = torch.maximum(scores.amax(-1), to_cls) if scores.shape[-1] else to_cls
            weights = scores.sub_(top[..., None]).exp_()  # (H, b, m, G, K * G)
            cls_weight = (to_cls - top).exp_()
            total = weights.sum(-1).add_(cls_weight)
            mixed = weights.to(v.dtype) @ plan.gather(chunk, value, plan.block_ids)
            mixed = mixed + cls_weight[..., None].to(v.dtype) * cls_value[:, chunk.clips]
            chunk.of(patch_context).copy_(mixed.div_(total[..., None]))
            chunk.of(logsumexp).copy_(top.add_(total.log_()))
        context[:, :, 1:] = plan.tokens(patch_context)

        cls_attention, cls_logsumexp = _cls_row(q, k, bias_table, patch_to_cls)
        context[:, :, 0] = (cls_attention.to(v.dtype).unsqueeze(2) @ v).squeeze(2)
        ctx.save_for_backward(q, k, v, table, codes, block_ids, context, logsumexp, cls_logsumexp)
        ctx.constants = (block_size, patch_to_cls, attend_padding, num_mirrored)
        ctx.mark_non_differentiable(cls_attention)
        return context, cls_attention

    @staticmethod
    def backward(ctx, grad_context, _):
        q, k, v, table, codes, block_ids, context, logsumexp, cls_logsumexp = ctx.saved_tensors
        block_size, patch_to_cls, attend_padding, num_mirrored = ctx.constants
        if wants_graph():
            attend = plain_attention(codes, block_ids, *ctx.constants)
            grads = gradients_with_graph(attend, (q, k, v, table), ctx.needs_input_grad[:4], [grad_context])
            return *grads, *[None] * 6
        statistics, scale = logsumexp.dtype, q.shape[-1] ** -0.5
        plan = _Plan(q, codes, block_ids, block_size, patch_to_cls, attend_padding, num_mirrored)
        query, key, value = plan.query_blocks(q * scale), plan.key_blocks(k), plan.key_blocks(v)
        grad_blocks = plan.query_blocks(grad_context)
        # The usual shortcut: sum_j P_ij dP_ij = dO_i . O_i
        delta = (grad_context.to(statistics) * context.to(statistics)).sum(-1)  # (B, H, N)
        patch_delta = plan.query_blocks(delta[..., None]).squeeze(-1)
        bias_table = plan.bias_table(table, statistics)
        grad_table = torch.zeros_like(bias_table)  # (H, R + 1)
        cls_key, cls_value = _cls(k), _cls(v)

        # Every patch to [CLS]
        weights = (plan.cls_scores(query, cls_key, bias_table) - logsumexp).exp_()  # (H, B, M, G)
        grad_scores = (_times_vector(grad_blocks, cls_value) - patch_delta).mul_(weights)
        grad_table[:, patch_to_cls] += grad_scores.sum((1, 2, 3))
        weights, grad_scores = weights.to(q.dtype)[..., None], grad_scores.to(q.dtype)[..., None]
        grad_cls_value = (weights * grad_blocks).sum((2, 3))  # (H, B, D)
        grad_cls_key = (grad_scores * query).sum((2, 3))
        grad_query = grad_scores * cls_key

        # Patches to patches
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for chunk in plan.chunks():
            bias, rows = plan.bias(chunk, bias_table)
            scores = bias - chunk.of(logsumexp)[..., None]
            key_chunk = plan.gather(chunk, key, plan.key_ids)
            query_chunk, grad_chunk = chunk.of(query), chunk.of(grad_blocks)
            weights = _add_product(scores, query_chunk, key_chunk).exp_()
            grad_scores = (grad_chunk @ plan.gather(chunk, value, plan.block_ids).transpose(-1, -2)).to(statistics)
            grad_scores = grad_scores.sub_(chunk.of(patch_delta)[..., None]).mul_(weights)
            by_row = grad_scores if rows.shape[0] > 1 else grad_scores.sum(1)
            # int64: the CPU has a sixfold faster path for it
            grad_table.index_add_(1, rows.flatten().long(), by_row.flatten(1))
            weights, grad_scores = weights.to(q.dtype), grad_scores.to(q.dtype)
            plan.scatter(chunk, grad_value, plan.block_ids, weights, grad_chunk)
            plan.scatter(chunk, grad_key, plan.key_ids, grad_scores, query_chunk)
            chunk.of(grad_query).add_(grad_scores @ key_chunk)

        # [CLS] to every token: one row, so the products are outer ones.
        attention, _ = _cls_row(q, k, bias_table, patch_to_cls, cls_logsumexp)  # (B, H, N)
        grad_cls = grad_context[:, :, :1]
        grad_row = (grad_cls @ v.transpose(-1, -2)).squeeze(2).to(statistics).sub_(delta[:, :, :1]).mul_(attention)
        grad_table[:, patch_to_cls - 1] += grad_row[:, :, 1:].sum((0, 2))
        grad_table[:, patch_to_cls + 1] += grad_row[:, :, 0].sum(0)
        attention, grad_row = attention.to(q.dtype)[..., None], grad_row.to(q.dtype)[..., None]

        grads = [torch.empty_like(context) for _ in range(3)]
        grads[0][:, :, 1:] = plan.tokens(grad_query.mul_(scale))
        grads[0][:, :, :1] = (grad_row.transpose(-1, -2) @ k).mul_(scale)
        grads[1][:, :, 1:] = plan.tokens(grad_key)
        grads[1][:, :, 0] = grad_cls_key.transpose(0, 1)
        grads[1].add_(grad_row * (q[:, :, :1] * scale))
        grads[2][:, :, 1:] = plan.tokens(grad_value)
        grads[2][:, :, 0] = grad_cls_value.transpose(0, 1)
        grads[2].add_(attention * grad_cls)
        return *grads, grad_table[:, :-1].t().to(table.dtype), *[None] * 6


def _cls(x: torch.Tensor) -> torch.Tensor:
    """[CLS] of (B, H, N, D) as (H, B, 1, 1, D)."""
    return x[:, :, 0].transpose(0, 1)[:, :, None, None].contiguous()


def _times_vector(blocks: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """(H, B, M, G, D) times (H, B, 1, 1, D) summed over D: (H, B, M, G)."""
    product = blocks.flatten(2, 3) @ vector.flatten(2, 3).transpose(-1, -2)
    return product.view(blocks.shape[:-1])


def _add_product(scores: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """scores += query @ key^T; in half precision the product is rounded, as everywhere, but the sum is not."""
    if query.dtype != scores.dtype:
        return scores.add_(query @ key.transpose(-1, -2))
    scores.flatten(0, 2).baddbmm_(query.flatten(0, 2), key.flatten(0, 2).transpose(-1, -2))
    return scores


def _cls_row(q, k, bias_table, patch_to_cls: int, logsumexp: torch.Tensor | None = None):
    """Attention (B, H, N) of the [CLS] query and its logsumexp (B, H, 1), which the backward has already."""
    scores = cls_logits(q, k)
    scores[:, :, 0] += bias_table[:, patch_to_cls + 1]
    scores[:, :, 1:] += bias_table[:, patch_to_cls - 1, None]
    if logsumexp is None:
        logsumexp = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(logsumexp).exp_(), logsumexp


@dataclass
class _Chunk:
    """Some query blocks of some clips."""

    clips: slice
    blocks: slice

    @property
    def batch_size(self) -> int:
        return self.clips.stop - self.clips.start

    def of(self, blocks: torch.Tensor) -> torch.Tensor:
        return blocks[:, self.clips, self.blocks]


class _Plan:
    """
    Which keys and which bias rows each query block sees.

    Dense attention is the case of one key block of all n patches, which every query block attends to. Query blocks are
    then as large as a chunk may be.
    """

    def __init__(self, q, codes, block_ids, block_size, patch_to_cls, attend_padding, num_mirrored):
        self.batch, self.heads, num_tokens, self.head_dim = q.shape
        self.num_patches = num_tokens - 1
        self.codes, self.block_ids = codes, block_ids
        self.key_ids = None if block_ids is None else key_blocks(block_ids, num_mirrored)
        self.patch_to_cls, self.attend_padding = patch_to_cls, attend_padding
        self.centre = (patch_to_cls - 2) // 2  # patch_to_cls = number of offsets + 1
        self.one_graph = torch.compiler.is_exporting()  # for every batch size
        cpu = q.device.type == "cpu" and not torch.compiler.is_compiling()
        on_cpu = CPU_DENSE_CHUNK_ELEMENTS if block_ids is None else CPU_CHUNK_ELEMENTS
        self.limit = on_cpu if cpu else CHUNK_ELEMENTS
        if block_ids is None:
            self.key_size, self.num_attended = self.num_patches, 1
            rows = self.num_patches if self.one_graph else self.limit // (self.heads * self.num_patches)
            self.query_size = min(max(rows, 16), self.num_patches)
            self.num_key_blocks = 1
        else:
            self.query_size = self.key_size = block_size
            self.num_key_blocks, self.num_attended = block_ids.shape[-2:]
        self.num_query_blocks = -(-self.num_patches // self.query_size)
        self.has_padded_keys = self.num_key_blocks * self.key_size > self.num_patches

    def chunks(self) -> list[_Chunk]:
        if self.one_graph:
            return [_Chunk(slice(0, self.batch), slice(0, self.num_query_blocks))]
        per_block = self.heads * self.query_size * max(1, self.num_attended) * self.key_size
        clips = min(max(1, self.limit // per_block), self.batch)
        blocks = 1 if self.block_ids is None else max(1, self.limit // (per_block * clips))
        return [
            _Chunk(slice(c, min(c + clips, self.batch)), slice(b, min(b + blocks, self.num_query_blocks)))
            for b in range(0, self.num_query_blocks, blocks)
            for c in range(0, self.batch, clips)
        ]

    def query_blocks(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks(x, self.num_query_blocks, self.query_size)

    def key_blocks(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks(x, self.num_key_blocks, self.key_size)

    @staticmethod
    def _blocks(x: torch.Tensor, num_blocks: int, size: int) -> torch.Tensor:
        """Patches of (B, H, N, D) as (H, B, blocks, size, D), the last block filled up with zeros."""
        patches = x[:, :, 1:].transpose(0, 1)
        padding = num_blocks * size - patches.shape[2]
        patches = nn.functional.pad(patches, (0, 0, 0, padding)) if padding else patches
        return patches.contiguous().unflatten(2, (num_blocks, size))

    def tokens(self, blocks: torch.Tensor) -> torch.Tensor:
        """(H, B, M, G, D) back to (B, H, n, D)."""
        return blocks.flatten(2, 3)[:, :, : self.num_patches].transpose(0, 1)

    def bias_table(self, table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(H, R + 1): one contiguous row per head; the last entry is the bias of padding that takes no part."""
        return nn.functional.pad(table.t().to(dtype), (0, 1), value=float("-inf"))

    def cls_scores(self, query: torch.Tensor, cls_key: torch.Tensor, bias_table: torch.Tensor) -> torch.Tensor:
        """(H, B, M, G) logits of the patch queries to [CLS]."""
        scores = _times_vector(query, cls_key).to(bias_table.dtype)
        return scores + bias_table[:, self.patch_to_cls, None, None, None]

    def bias(self, chunk: _Chunk, bias_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bias (H, 1 or b, m, G, K * G) and the rows of the table it is read from, the same without H."""
        clips = chunk.clips if self.codes.shape[0] > 1 else slice(0, 1)
        codes = self.codes[clips].int()  # half the memory traffic of int64; a table has far fewer rows
        query_padding = self.num_query_blocks * self.query_size - self.num_patches
        all_blocks = nn.functional.pad(codes, (0, query_padding)) if query_padding else codes
        all_blocks = all_blocks.unflatten(1, (self.num_query_blocks, self.query_size))
        queries = all_blocks[:, chunk.blocks]
        if self.block_ids is None:
            rows = queries[..., None] - codes[:, None, None, :] + self.centre
        else:
            ids = self.ids(chunk, self.block_ids)
            if ids.dim() == 2:
                keys = all_blocks[:, ids].flatten(2)  # (1 or b, m, K * G)
            else:
                clip = torch.arange(ids.shape[0], device=ids.device)[:, None, None]
                keys = all_blocks.expand(ids.shape[0], -1, -1)[clip, ids].flatten(2)
            rows = queries[..., None] - keys[:, :, None, :] + self.centre
            if self.has_padded_keys:
                # A padded key is zero, so its logit is its bias: -inf, or the release's sink.
                place = torch.arange(self.key_size, device=ids.device)
                padded = (ids[..., None] * self.key_size + place >= self.num_patches).flatten(-2)  # (…, m, K * G)
                sink = self.patch_to_cls if self.attend_padding else bias_table.shape[1] - 1
                rows = rows.masked_fill(padded[..., None, :], sink)
        return bias_table.index_select(1, rows.flatten()).view(self.heads, *rows.shape), rows

    def gather(self, chunk: _Chunk, blocks: torch.Tensor, block_ids: torch.Tensor | None) -> torch.Tensor:
        """The keys or values (H, b, m, K * G, D) of the blocks that the chunk's query blocks list in `block_ids`."""
        of_clips = blocks[:, chunk.clips]
        if self.block_ids is None:
            return of_clips.expand(-1, -1, chunk.blocks.stop - chunk.blocks.start, -1, -1)
        ids = self.ids(chunk, block_ids)
        if ids.dim() == 3:
            gathered = blocks.flatten(1, 2).index_select(1, self.places(chunk, ids))
            return gathered.unflatten(1, ids.shape).flatten(3, 4)
        gathered = of_clips.index_select(2, ids.flatten())
        return gathered.unflatten(2, ids.shape).flatten(3, 4)

    def scatter(self, chunk: _Chunk, total, block_ids, weights: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds weights^T @ rows, a gradient of what `gather` returned, to `total` (H, B, blocks, size, D)."""
        product = weights.transpose(-1, -2) @ rows  # (H, b, m, K * G, D)
        of_clips = total[:, chunk.clips]
        if self.block_ids is None:
            of_clips.add_(product.sum(2, keepdim=True) if product.shape[2] > 1 else product)
            return
        ids = self.ids(chunk, block_ids)
        product = product.unflatten(3, (ids.shape[-1], self.key_size))
        if ids.dim() == 3:
            total.view(self.heads, -1, *total.shape[3:]).index_add_(1, self.places(chunk, ids), product.flatten(1, 3))
        else:
            of_clips.index_add_(2, ids.flatten(), product.flatten(2, 3))

    def ids(self, chunk: _Chunk, block_ids: torch.Tensor) -> torch.Tensor:
        """(m, K), or (b, m, K) where each clip has a pattern."""
        return block_ids[chunk.blocks] if block_ids.dim() == 2 else block_ids[chunk.clips, chunk.blocks]

    def places(self, chunk: _Chunk, ids: torch.Tensor) -> torch.Tensor:
        """The ids (b, m, K) of patterns of each clip, flat, counted over the blocks of all clips."""
        clips = torch.arange(chunk.clips.start, chunk.clips.stop, device=ids.device)
        return (clips[:, None, None] * self.num_key_blocks + ids).flatten()
