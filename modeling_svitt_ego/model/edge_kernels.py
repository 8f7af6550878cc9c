"""Triton kernels of edge-sparse and dense attention with a relative position bias: what all share, and the forward.

edge_gradient_kernels.py has the backward, edge_triton.py launches them.

Every program computes one tile of one block of one head of one clip. A tile holds up to BM queries (or BN keys) of a
block of G tokens; slots beyond the block or beyond the clip are masked. Keys are read through the pattern, so nothing
is gathered, padded or copied. All programs are on the x axis of the grid: the others end at 65,535.

The bias of a pair is `table[code_q - code_k + centre]`. Where all clips have the same tokens it can be read from tiles
instead, which `bias_tiles` fills once for the whole batch; a tile holds -inf where there is no key.

Logits are in units of log 2 inside the kernels: `scale` and `table` are multiplied by log2(e), and exp is exp2.

Letters: B clips, H heads, N tokens with [CLS] first, M blocks, S blocks that a block lists, D head dim, DP the power
of two that D is padded to, R rows of the table. Strides are in elements; `_n` is the stride of a token.
"""

import inspect

try:
    import triton
    import triton.language as tl
except ImportError:  # edge_triton.is_available() tells; without triton the functions below are never called
    triton = None

    class tl:
        constexpr = None


# Arguments by whose value no kernel is compiled again: pruning alone makes four lengths. Strides of q, k and v are not
# among them, because aligned loads need to know that 16 divides them.
_COUNTS = (
    "B H N M S R n centre patch_to_cls padding copies clips codes_b ids_b pattern_b parts key_parts query_parts "
    "stride_r stride_h length rows rows_per_clip rows_per_program"
).split()


def jit(function):
    """A Triton kernel, or the function itself where there is no triton."""
    if triton is None:
        return function
    return triton.jit(function, do_not_specialize=[x for x in inspect.signature(function).parameters if x in _COUNTS])


# ------------------------------------------------------------------------------------------------- shared by kernels


@jit
def place(pid, B, M, TILES: tl.constexpr):
    """Tile, block, clip and head of a program: neighbours share a head's table, then a clip's keys."""
    tile = pid % TILES
    block = pid // TILES % M
    clip_and_head = pid // TILES // M
    return tile, block, (clip_and_head % B).to(tl.int64), (clip_and_head // B).to(tl.int64)


@jit
def slots(block, tile, n, G: tl.constexpr, SIZE: tl.constexpr):
    """Slots of a tile inside its block, the patches in them, and which of them exist. Block -1 has none."""
    slot = tile * SIZE + tl.arange(0, SIZE)
    patch = block * G + slot
    return slot, patch, (slot < G) & (patch < n) & (block >= 0)


@jit
def load_tile(X, patch, exists, stride, D: tl.constexpr, DP: tl.constexpr):
    """(SIZE, DP) rows of patches, zero where there is none."""
    d = tl.arange(0, DP)
    mask = exists[:, None]
    if D != DP:
        mask = mask & (d < D)[None, :]
    return tl.load(X + (patch[:, None] + 1) * stride + d[None, :], mask=mask, other=0.0)


@jit
def store_tile(X, x, patch, exists, stride, D: tl.constexpr, DP: tl.constexpr):
    d = tl.arange(0, DP)
    mask = exists[:, None]
    if D != DP:
        mask = mask & (d < D)[None, :]
    tl.store(X + (patch[:, None] + 1) * stride + d[None, :], x.to(X.dtype.element_ty), mask=mask)


@jit
def load_cls(X, D: tl.constexpr, DP: tl.constexpr):
    """(DP,) row of [CLS] in float32."""
    d = tl.arange(0, DP)
    return tl.load(X + d, mask=d < D, other=0.0).to(tl.float32)


@jit
def load_codes(CODES, patch, exists):
    """Codes of patches; empty slots get a valid one, which keeps lookups inside the table."""
    return tl.load(CODES + patch, mask=exists, other=0).to(tl.int32)


@jit
def count_sinks(IDS, S, M, padding):
    """How many padded keys a block attends to in the release: those of the last block, each time it is listed."""
    count = 0
    for s in range(S):
        count += tl.where(tl.load(IDS + s) == M - 1, padding, 0)
    return count


# -------------------------------------------------------------------------------------------------------- preparation


@jit
def scale_table(TABLE, OUT, R, stride_r, stride_h, factor, SIZE: tl.constexpr):
    """(R, H) table of any strides to (H, R) float32 rows times `factor`. Grid: (cdiv(R, SIZE) * H,)."""
    parts = tl.cdiv(R, SIZE)
    h = tl.program_id(0) // parts
    row = tl.program_id(0) % parts * SIZE + tl.arange(0, SIZE)
    values = tl.load(TABLE + row.to(tl.int64) * stride_r + h * stride_h, mask=row < R, other=0.0)
    tl.store(OUT + h * R + row, values.to(tl.float32) * factor, mask=row < R)


@jit
def bias_tiles(
    TABLE, CODES, IDS, TILES, n, M, S, R, centre,
    G: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """(H, M, S, ROWS, COLUMNS) bias of the listed block pairs, rows queries; keys if transposed. Grid: all tiles."""
    PER_PAIR: tl.constexpr = (ROWS // BM) * (COLUMNS // BN)
    part = tl.program_id(0) % PER_PAIR
    pair = (tl.program_id(0) // PER_PAIR).to(tl.int64)  # (h * M + i) * S + s
    h = pair // S // M
    i = (pair // S % M).to(tl.int32)
    j = tl.load(IDS + pair % (M * S)).to(tl.int32)
    row, row_patch, row_exists = slots(j if TRANSPOSED else i, part // (COLUMNS // BN), n, G, BM)
    column, column_patch, column_exists = slots(i if TRANSPOSED else j, part % (COLUMNS // BN), n, G, BN)
    difference = load_codes(CODES, row_patch, row_exists)[:, None] - load_codes(CODES, column_patch, column_exists)
    if TRANSPOSED:
        difference = -difference
    bias = tl.load(TABLE + h * R + (difference + centre))
    is_key = row_exists[:, None] if TRANSPOSED else column_exists[None, :]
    bias = tl.where(is_key, bias, float("-inf"))
    place = TILES + pair * (ROWS * COLUMNS) + row[:, None] * COLUMNS + column[None, :]
    tl.store(place, bias.to(TILES.dtype.element_ty))


# ------------------------------------------------------------------------------------------------------------ forward


@jit
def patches_forward(
    Q, K, V, TABLE, CODES, TILES, IDS, OUT, LSE,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, codes_b, ids_b,
    scale, B, H, N, M, S, R, centre, patch_to_cls, padding,
    D: tl.constexpr, DP: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DENSE: tl.constexpr, TILED: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    """Patch queries: online softmax over [CLS] and the listed blocks. OUT is (B, N, H, D), LSE (B, H, N) in log 2."""
    KEY_TILES: tl.constexpr = (G + BN - 1) // BN
    QUERY_TILES: tl.constexpr = (G + BM - 1) // BM
    tile, i, b, h = place(tl.program_id(0), B, M, QUERY_TILES)
    n = N - 1
    slot, query, is_query = slots(i, tile, n, G, BM)
    Q += b * q_b + h * q_h
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    TABLE += h * R
    CODES += b * codes_b
    IDS += b * ids_b + i * S
    q = load_tile(Q, query, is_query, q_n, D, DP)
    query_codes = load_codes(CODES, query, is_query) + centre

    # [CLS] is the first key, which makes the maximum finite from the start.
    to_cls = tl.load(TABLE + patch_to_cls)
    top = tl.sum(q.to(tl.float32) * load_cls(K, D, DP)[None, :], 1) * scale + to_cls  # (BM,)
    total = tl.full([BM], 1.0, tl.float32)
    acc = tl.zeros([BM, DP], tl.float32) + load_cls(V, D, DP)[None, :]
    if SINK:
        sinks = count_sinks(IDS, S, M, padding)
        best = tl.where(sinks > 0, tl.maximum(top, to_cls), top)
        total = tl.exp2(top - best) + sinks * tl.exp2(to_cls - best)
        acc = acc * tl.exp2(top - best)[:, None]
        top = best

    for step in range(S * KEY_TILES):
        s = step // KEY_TILES
        j = s if DENSE else tl.load(IDS + s).to(tl.int32)
        column, key, is_key = slots(j, step % KEY_TILES, n, G, BN)
        k = load_tile(K, key, is_key, k_n, D, DP)
        v = load_tile(V, key, is_key, v_n, D, DP)
        if TILED:
            at = ((h * M + i) * S + s) * (QUERY_TILES * BM * KEY_TILES * BN)
            bias = tl.load(TILES + at + slot[:, None] * (KEY_TILES * BN) + column[None, :]).to(tl.float32)
        else:
            bias = tl.load(TABLE + (query_codes[:, None] - load_codes(CODES, key, is_key)[None, :]))
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
        if not TILED:
            scores = tl.where(is_key[None, :], scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - best[:, None])
        shrink = tl.exp2(top - best)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = best
    store_tile(OUT + (b * N * H + h) * D, acc / total[:, None], query, is_query, H * D, D, DP)
    tl.store(LSE + (b * H + h) * N + query + 1, top + tl.log2(total), mask=is_query)


@jit
def cls_forward(
    Q, K, V, TABLE, SCORES, PARTS, q_b, q_h, k_b, k_h, k_n, v_b, v_h, v_n, scale, B, H, N, R, patch_to_cls,
    D: tl.constexpr, DP: tl.constexpr, SIZE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """
    The [CLS] query over SIZE * STEPS tokens: logits to SCORES (B, H, N); maximum, sum and weighted values to PARTS
    (B, H, parts, 2 + DP). Grid: (parts * B * H,).
    """
    parts = tl.cdiv(N, SIZE * STEPS)
    part = tl.program_id(0) % parts
    bh = (tl.program_id(0) // parts).to(tl.int64)
    b = bh // H
    h = bh % H
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    q = load_cls(Q + b * q_b + h * q_h, D, DP)
    to_patch = tl.load(TABLE + h * R + patch_to_cls - 1)
    to_cls = tl.load(TABLE + h * R + patch_to_cls + 1)
    top = -float("inf")
    total = 0.0
    acc = tl.zeros([DP], tl.float32)
    for step in range(STEPS):
        token = (part * STEPS + step) * SIZE + tl.arange(0, SIZE)
        exists = token < N
        k = load_tile(K, token - 1, exists, k_n, D, DP).to(tl.float32)
        v = load_tile(V, token - 1, exists, v_n, D, DP).to(tl.float32)
        scores = tl.sum(k * q[None, :], 1) * scale + tl.where(token == 0, to_cls, to_patch)
        scores = tl.where(exists, scores, float("-inf"))
        tl.store(SCORES + bh * N + token, scores, mask=exists)
        best = tl.maximum(top, tl.max(scores, 0))
        best_or_zero = tl.where(best == float("-inf"), 0.0, best)  # a step beyond the last token
        weights = tl.exp2(scores - best_or_zero)
        shrink = tl.exp2(top - best_or_zero)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * v, 0)
        top = best
    PARTS += tl.program_id(0).to(tl.int64) * (2 + DP)
    tl.store(PARTS, top)
    tl.store(PARTS + 1, total)
    tl.store(PARTS + 2 + tl.arange(0, DP), acc)


@jit
def cls_merge(
    PARTS, SCORES, OUT, LSE, H, N, parts,
    D: tl.constexpr, DP: tl.constexpr, SLOTS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Merges the parts of `cls_forward`; SCORES become probabilities. Grid: (B * H,)."""
    bh = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SLOTS)
    d = tl.arange(0, DP)
    PARTS += bh * parts * (2 + DP)
    tops = tl.load(PARTS + part * (2 + DP), mask=part < parts, other=float("-inf"))
    totals = tl.load(PARTS + part * (2 + DP) + 1, mask=part < parts, other=0.0)
    accs = tl.load(PARTS + part[:, None] * (2 + DP) + 2 + d[None, :], mask=(part < parts)[:, None], other=0.0)
    top = tl.max(tops, 0)
    shrink = tl.exp2(tops - top)
    total = tl.sum(totals * shrink, 0)
    acc = tl.sum(accs * shrink[:, None], 0) / total
    tl.store(OUT + (bh // H * N * H + bh % H) * D + d, acc.to(OUT.dtype.element_ty), mask=d < D)
    lse = top + tl.log2(total)
    tl.store(LSE + bh * N, lse)
    for start in range(0, N, SIZE):
        token = start + tl.arange(0, SIZE)
        place = SCORES + bh * N + token
        tl.store(place, tl.exp2(tl.load(place, mask=token < N, other=0.0) - lse), mask=token < N)
