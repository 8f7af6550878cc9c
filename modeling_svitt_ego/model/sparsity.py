"""Edge and node sparsity (SViTT, arXiv:2304.08809, sections 3.2 and 3.3).

Edges: [CLS] attends to every token; a block of patch tokens attends to [CLS], its local blocks and a few random ones.
Nodes: after some layers only the keep_rate patch tokens that [CLS] attends to most stay.

Letters: B batch, H heads, N tokens with [CLS] first, n = N - 1 patch tokens, G tokens in a block, M = ceil(n / G)
blocks, K blocks that a block attends to, L = 1 + K * G keys of a patch query, D head dim, R rows of the bias table.

A patch token carries one integer, its id t * height * width + y * width + x in the clip. Which table row biases a pair
follows from the two ids by arithmetic (`RelativePositions`), so there is no N x N index, before pruning or after it.
"""

from dataclasses import dataclass

import torch
from torch import nn

# ----------------------------------------------------------------------------------------------------- random pattern


def hash_keys(seed: torch.Tensor, stream: int, *shape: int) -> torch.Tensor:
    """
    Pseudo-random int64 keys of `shape`, a pure function of (seed, stream): SplitMix64 over a counter.

    Why not a `torch.Generator`: the same pattern on every device, nothing to replay under gradient checkpointing, and
    plain tensor operations that torch.compile traces without a new graph for each seed.
    """
    count = 1
    for size in shape:
        count *= size
    x = (
        torch.arange(1, count + 1, device=seed.device)
        + (seed + stream * 0x632BE59BD9B4E019 % 2**62) * 0x9E3779B97F4A7C1
    )
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift_right(x, shift)) * factor
    return (x ^ _shift_right(x, 31)).view(shape)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def local_blocks(num_blocks: int, num_local_blocks: int, released: bool = False, device=None) -> torch.Tensor:
    """
    (M, K_l) ids of each block's neighbours, circular: b - K_l // 2, ..., b + K_l // 2. With fewer blocks than K_l each
    is listed once, unless `released` (`released_attention` in the configuration) repeats them.
    """
    count = num_local_blocks if released else min(num_local_blocks, num_blocks)
    offsets = torch.arange(count, device=device) - count // 2
    return (torch.arange(num_blocks, device=device)[:, None] + offsets) % num_blocks


def temporal_distances(num_frames: int, count: int) -> list[int]:
    """
    The first `count` distances in frames at which temporal blocks are taken: 1, 2, 4, 8, ... and then the others.

    By powers of two a clip of T frames is spanned by 2 log2(T) blocks, where steps of one frame need 2 (T - 1).
    """
    return sorted(range(1, num_frames), key=lambda frames: (frames & (frames - 1) != 0, frames))[:count]


def temporal_blocks(
    token_ids: torch.Tensor,
    patches_per_frame: int,
    num_frames: int,
    block_size: int,
    num_temporal_blocks: int,
    local: torch.Tensor,
) -> torch.Tensor:
    """
    (1 or B, M, K_t) ids of the blocks that hold the places of a block's tokens in the frames before and after;
    -1 where there is none. Half of them are of the frames before, half of the frames after.

    The places of a block's tokens one frame ahead are in one other block if G divides a frame's patches, and in two or
    more if not, or if pruning has left different places in each frame. Each token votes for the block that holds its
    place, or the next token in order if its place was pruned. The K_t / 2 blocks with most votes one frame ahead are
    listed, then those at the next of `temporal_distances`; of equal votes the nearer block. `local` blocks are not
    listed again. There is no frame before the first and none after the last: no wrap-around.

    Args:
        token_ids (`torch.LongTensor` of shape `(1 or B, n)`): ids in the clip, ascending.
        patches_per_frame (`int`): so token id i is of frame i // patches_per_frame.
        local (`torch.LongTensor` of shape `(M, K_l)`): from [`local_blocks`].
    """
    batch, num_tokens = token_ids.shape
    num_blocks, reach = local.shape[0], num_temporal_blocks // 2
    blocks = torch.arange(num_blocks, device=token_ids.device)
    query_block = torch.arange(num_tokens, device=token_ids.device) // block_size
    distance = (blocks[:, None] - blocks).abs()
    # How many tokens come before each place of the clip: searchsorted(token_ids, place), which ONNX does not have.
    num_places = num_frames * patches_per_frame
    present = token_ids.new_zeros(batch, num_places).scatter(1, token_ids, 1)
    tokens_before = present.cumsum(1) - present
    chosen = []
    for direction in (-1, 1):
        score = token_ids.new_zeros(batch, num_blocks, num_blocks)
        for rank, frames in enumerate(temporal_distances(num_frames, reach)):
            places = token_ids + direction * frames * patches_per_frame
            in_clip = (places >= 0) & (places < num_places)
            key = tokens_before.gather(1, places.clamp(0, num_places - 1))
            key_block = key.clamp(max=num_tokens - 1) // block_size
            votes = torch.zeros_like(score).flatten(1)
            votes = votes.scatter_add(1, query_block * num_blocks + key_block, in_clip.long()).view_as(score)
            score = torch.maximum(score, votes + (votes > 0) * (reach - 1 - rank) * (block_size + 1))
        score = score.scatter(2, local.expand(batch, -1, -1), 0)
        # One number that ranks by score, then by distance, on every device the same.
        ranked = torch.where(score > 0, score * num_blocks - distance, 0)
        best = ranked.topk(min(reach, num_blocks), dim=2)
        chosen.append(torch.where(best.values > 0, best.indices, -1))
    return torch.cat(chosen, dim=2)


def random_blocks(
    seed: torch.Tensor,
    layer: int,
    num_blocks: int,
    num_local_blocks: int,
    num_random_blocks: int,
    released: bool = False,
    temporal: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    (M, K_r) ids of distinct random blocks, ascending, none of them local to its row.

    With fewer than K_l + K_r blocks all others are taken, so that every block is attended once; `released` fills up
    with local blocks instead, which then count twice in the softmax (as the released code does).

    Args:
        seed (`torch.LongTensor` of shape `()`): one draw for the whole forward.
        layer (`int`): zero-based layer number; each layer has its own pattern.
        temporal (`torch.LongTensor` of shape `(1 or B, M, K_t)`, *optional*): from [`temporal_blocks`]. These are then
            taken first, a missing one is replaced by a random block, and the result is (1 or B, M, K_t + K_r).
    """
    local = local_blocks(num_blocks, num_local_blocks, released, seed.device)
    # Bits are dropped so that "local" can be ranked below every random key, and "temporal" above, without overflow.
    keys = _shift_right(hash_keys(seed, layer, num_blocks, num_blocks), 2).scatter(1, local, -1)
    if temporal is not None:
        num_random_blocks += temporal.shape[2]
        keys = nn.functional.pad(keys.expand(temporal.shape[0], -1, -1), (1, 0))  # a column for what is missing
        keys = keys.scatter(2, temporal + 1, 2**62)[..., 1:]
    count = min(num_random_blocks, num_blocks if released else num_blocks - local.shape[1])
    return keys.topk(count, dim=-1).indices.sort(dim=-1).values


# -------------------------------------------------------------------------------------------------- relative positions


@dataclass
class RelativePositions:
    """
    Which row of the bias table belongs to a pair of tokens (BEiT's relative position bias in (t, y, x)).

    Rows 0 to P - 1 are the offsets (dt, dy, dx), P = (2T-1)(2H-1)(2W-1); row P is [CLS] to a patch, P + 1 a patch to
    [CLS], P + 2 [CLS] to itself. code(t, y, x) = (t (2H-1) + y)(2W-1) + x makes the row of a patch pair
    code(query) - code(key) + centre.
    """

    window: tuple[int, int, int]  # frames, height, width in patches
    codes: torch.Tensor  # (1 or B, n) int64

    @classmethod
    def from_token_ids(cls, token_ids: torch.Tensor, window: tuple[int, int, int]) -> "RelativePositions":
        _, height, width = window
        t, y, x = token_ids // (height * width), token_ids // width % height, token_ids % width
        return cls(window, (t * (2 * height - 1) + y) * (2 * width - 1) + x)

    @property
    def num_offsets(self) -> int:
        frames, height, width = self.window
        return (2 * frames - 1) * (2 * height - 1) * (2 * width - 1)

    @property
    def cls_to_patch(self) -> int:
        return self.num_offsets

    @property
    def patch_to_cls(self) -> int:
        return self.num_offsets + 1

    @property
    def cls_to_cls(self) -> int:
        return self.num_offsets + 2

    @property
    def centre(self) -> int:
        return (self.num_offsets - 1) // 2

    def rows(self) -> torch.Tensor:
        """(1 or B, N, N) table rows of all pairs: for dense attention and the reference."""
        patches = self.codes[:, :, None] - self.codes[:, None, :] + self.centre
        rows = nn.functional.pad(patches, (1, 0, 0, 0), value=self.patch_to_cls)
        rows = nn.functional.pad(rows, (0, 0, 1, 0), value=self.cls_to_patch)
        rows[:, 0, 0] = self.cls_to_cls
        return rows

    def dense_bias(self, table: torch.Tensor) -> torch.Tensor:
        """(1 or B, H, N, N) additive bias from a table of shape (R, H)."""
        return table[self.rows()].permute(0, 3, 1, 2)

    def cls_row_bias(self, table: torch.Tensor) -> torch.Tensor:
        """(H, N) bias of the [CLS] query."""
        patches = table[self.cls_to_patch][:, None].expand(-1, self.codes.shape[1])
        return torch.cat([table[self.cls_to_cls][:, None], patches], dim=1)


# ------------------------------------------------------------------------------------------------------ edge attention


def edge_attention_reference(
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
    Edge-sparse attention written as dense attention with a mask: slow, and plain enough to check by eye.

    An edge that the pattern lists c times gets log(c) added to its logit, which is softmax over c copies of it.

    Args:
        q, k, v (`torch.Tensor` of shape `(B, H, N, D)`): [CLS] first.
        table (`torch.Tensor` of shape `(R, H)`): relative position bias.
        block_ids (`torch.LongTensor` of shape `(M, K)` or `(B, M, K)`): the blocks that each block attends to; -1 is
            no block.
        attend_padding (`bool`): as `released_attention` in the configuration.
        num_mirrored (`int`): local blocks whose keys are those of the mirrored neighbour; see [`key_blocks`].

    Returns:
        The context (B, H, N, D) and the attention (B, H, N, N), in which a pair stands for the value's token.
    """
    if num_mirrored:
        return _mirrored_attention_reference(q, k, v, table, positions, block_ids, block_size, num_mirrored)
    num_patches, num_blocks = q.shape[2] - 1, block_ids.shape[-2]
    # Scaled before the product, as every implementation does: half precision rounds in between.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, N, N)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    scores = scores + positions.dense_bias(table)

    patterns = block_ids if block_ids.dim() == 3 else block_ids[None]  # (1 or B, M, K)
    times = torch.zeros(len(patterns), num_blocks, num_blocks, dtype=scores.dtype, device=q.device)
    times = times.scatter_add(2, patterns.clamp(min=0), (patterns >= 0).to(scores.dtype))  # (1 or B, M, M)
    edges = times.repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)[:, :num_patches, :num_patches]
    edges = nn.functional.pad(edges, (1, 0, 1, 0), value=1.0)  # [CLS] attends and is attended
    scores = scores + edges.log()[:, None]

    if attend_padding:
        # Zero keys: logit 0 + table[patch_to_cls]; zero values: they only add to the softmax's denominator.
        num_padding = num_blocks * block_size - num_patches
        count = (times[:, :, -1] * num_padding).repeat_interleave(block_size, 1)[:, :num_patches]
        count = nn.functional.pad(count, (1, 0))
        sink = count.log()[:, None] + table[positions.patch_to_cls][:, None]  # (1 or B, H, N)
        scores = torch.cat([scores, sink[..., None].expand(q.shape[0], -1, -1, -1)], dim=-1)
        attention = scores.softmax(-1)[..., :-1]
    else:
        attention = scores.softmax(-1)
    attention = attention.to(v.dtype)
    return attention @ v, attention


def key_blocks(block_ids: torch.Tensor, num_mirrored: int) -> torch.Tensor:
    """
    The blocks whose keys give the logits of the blocks `block_ids` (…, M, K), whose bias and values are taken.

    They are the same blocks, except in the released SViTT code: its logits of query block b and the neighbour b + r
    come from the keys of block b + r, but the bias and the values from block b - r. The `num_mirrored` local blocks
    come first, in the order of r, so theirs are read backwards.
    """
    if not num_mirrored:
        return block_ids
    return torch.cat([block_ids[..., :num_mirrored].flip(-1), block_ids[..., num_mirrored:]], dim=-1)


def _mirrored_attention_reference(q, k, v, table, positions, block_ids, block_size: int, num_mirrored: int):
    """[`edge_attention_reference`] with the released code's local blocks and its padding: every key is gathered."""
    batch, heads, num_tokens, _ = q.shape
    num_blocks = block_ids.shape[-2]
    padding = num_blocks * block_size - (num_tokens - 1)

    def blocks(x: torch.Tensor) -> torch.Tensor:  # (B, M, H, G, D)
        patches = nn.functional.pad(x[:, :, 1:], (0, 0, 0, padding))
        return patches.unflatten(2, (num_blocks, block_size)).transpose(1, 2)

    of_values = block_ids.expand(batch, -1, -1)
    of_keys, clip = key_blocks(of_values, num_mirrored), torch.arange(batch, device=q.device)[:, None, None]
    query = blocks(q * q.shape[-1] ** -0.5)
    key, value = blocks(k)[clip, of_keys], blocks(v)[clip, of_values]  # (B, M, K, H, G, D)
    key, value = (x.transpose(2, 3).flatten(3, 4) for x in (key, value))  # (B, M, H, K * G, D)
    scores = query @ key.transpose(-1, -2)  # (B, M, H, G, K * G)
    to_cls = query @ k[:, None, :, :1].transpose(-1, -2)
    scores = torch.cat([to_cls, scores], dim=-1)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores

    # Tokens of the values; those beyond the last one are padding, which has the bias of [CLS].
    token = (of_values[..., None] * block_size + torch.arange(1, block_size + 1, device=q.device)).flatten(2)
    token = nn.functional.pad(token, (1, 0))[:, :, None].expand(-1, -1, block_size, -1)  # (B, M, G, 1 + K * G)
    rows = nn.functional.pad(positions.rows()[:, 1:], (0, padding, 0, padding), value=positions.patch_to_cls)
    rows = rows.expand(batch, -1, -1).unflatten(1, (num_blocks, block_size)).gather(3, token)
    attention = (scores + table[rows].permute(0, 1, 4, 2, 3)).softmax(-1)

    weights = attention.to(v.dtype)
    context = weights[..., :1] * v[:, None, :, :1] + weights[..., 1:] @ value  # (B, M, H, G, D)
    cls_context, cls_attention = cls_row(q, k, v, table, positions)
    patches = context.transpose(1, 2).flatten(2, 3)[:, :, : num_tokens - 1]
    whole = weights.new_zeros(*weights.shape[:-1], num_tokens + padding)
    whole = whole.scatter_add(-1, token[:, :, None].expand(-1, -1, heads, -1, -1), weights)
    whole = whole.transpose(1, 2).flatten(2, 3)[:, :, : num_tokens - 1, :num_tokens]
    return (
        torch.cat([cls_context, patches], dim=2),
        torch.cat([cls_attention.to(v.dtype).unsqueeze(2), whole], dim=2),
    )


def cls_logits(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """
    (B, H, N) logits of the [CLS] query without bias, in float32 or wider also under autocast: every implementation
    ranks tokens by these numbers, and keeps the same ones when it prunes.
    """
    statistics = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        query = q[:, :, :1].to(statistics) * q.shape[-1] ** -0.5
        return (query @ k.to(statistics).transpose(-1, -2)).squeeze(2)


def cls_row(q, k, v, table, positions: RelativePositions) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention of the [CLS] query alone: context (B, H, 1, D) and attention (B, H, N) in float32 or wider."""
    scores = cls_logits(q, k) + positions.cls_row_bias(table)
    attention = (scores - scores.logsumexp(-1, keepdim=True)).exp()  # rounded as in block_attention.py
    return attention.to(v.dtype).unsqueeze(2) @ v, attention


# -------------------------------------------------------------------------------------------------------------- nodes


def motion_scores(
    states: torch.Tensor, token_ids: torch.Tensor, num_frames: int, patches_per_frame: int
) -> torch.Tensor:
    """
    How much each patch token differs from the same place one frame before or after, whichever is more alike.

    Args:
        states (`torch.Tensor` of shape `(B, n, C)`): of the patch tokens.
        token_ids (`torch.LongTensor` of shape `(1 or B, n)`): their places in the clip.

    Returns:
        `torch.Tensor` of shape `(B, n)`: distances in float32; infinite where neither neighbour is left, so that a
        place is never lost altogether.
    """
    states, token_ids = states.float(), token_ids.expand(states.shape[0], -1)
    # Where each place of the clip is among the tokens, -1 if it was pruned, with a frame of padding on both sides.
    index = torch.full((states.shape[0], (num_frames + 2) * patches_per_frame), -1, device=states.device)
    tokens = torch.arange(token_ids.shape[1], device=states.device).expand_as(token_ids)
    index = index.scatter(1, token_ids + patches_per_frame, tokens)
    nearest = torch.full(token_ids.shape, float("inf"), device=states.device)
    for wanted in (token_ids, token_ids + 2 * patches_per_frame):
        neighbour = index.gather(1, wanted)
        other = states.gather(1, neighbour.clamp(min=0)[..., None].expand_as(states))
        distance = (states - other).norm(dim=-1)
        nearest = torch.where(neighbour >= 0, torch.minimum(nearest, distance), nearest)
    return nearest


def select_tokens(scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    """
    Indices (B, num_kept) of the highest `scores` (B, n), in ascending order: the tokens that stay keep their order.

    Of equal scores the earlier token stays, on every device and in ONNX, which `topk` leaves open. Equal scores are
    the rule for motion: two tokens that are each other's nearest have one distance.
    """
    ranked = scores.sort(dim=-1, descending=True, stable=True).indices
    return ranked[:, :num_kept].sort(dim=-1).values


def take_tokens(hidden_states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[CLS] and the patch tokens `kept` (B, m) of `hidden_states` (B, 1 + n, C)."""
    kept = nn.functional.pad(kept + 1, (1, 0))
    return hidden_states.gather(1, kept[:, :, None].expand(-1, -1, hidden_states.shape[-1]))
