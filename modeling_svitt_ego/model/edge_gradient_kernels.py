"""Triton kernels of the backward of edge-sparse and dense attention; letters and layout as in edge_kernels.py."""

from .edge_kernels import count_sinks, jit, load_cls, load_codes, load_tile, place, slots, store_tile, tl


@jit
def invert_pattern(IDS, COUNTS, LISTS, M, S, SIZE: tl.constexpr):
    """
    For each key block j the entries i * S + s of the pattern (M, S) that list it, ascending, and their number.
    Grid: (patterns * M,).
    """
    j = tl.program_id(0) % M
    pattern = (tl.program_id(0) // M).to(tl.int64)
    length = M * S
    entry = tl.arange(0, SIZE)
    found = tl.load(IDS + pattern * length + entry, mask=entry < length, other=-1) == j
    place = tl.cumsum(found.to(tl.int32), 0) - 1
    row = pattern * M + j
    tl.store(LISTS + row * length + place, entry, mask=found)
    tl.store(COUNTS + row, tl.sum(found.to(tl.int32), 0))


@jit
def add_to_table(GRAD, rows, values, mask, FACTOR, FIXED: tl.constexpr):
    """Atomic adds; if FIXED in fixed point, where the order of a sum does not change it."""
    if FIXED:
        tl.atomic_add(GRAD + rows, tl.floor(values * tl.load(FACTOR) + 0.5).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(GRAD + rows, values, mask=mask, sem="relaxed")


@jit
def query_gradients(
    Q, K, V, GRAD, OUT, TABLE, CODES, TILES, IDS, LSE, DELTA, DQ, TABLE_GRAD, FACTOR, PARTS,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, codes_b, ids_b,
    scale, natural_scale, B, H, N, M, S, R, centre, patch_to_cls, padding, copies,
    D: tl.constexpr, DP: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DENSE: tl.constexpr, TILED: tl.constexpr, SINK: tl.constexpr, WITH_TABLE: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """
    Gradient of the patch queries, DELTA = sum(OUT * GRAD) for `key_gradients`, the table's gradient if WITH_TABLE, and
    per program the share of [CLS] as a key, PARTS (programs, 2 * DP + 1): of its key, of its value, of its bias.
    """
    KEY_TILES: tl.constexpr = (G + BN - 1) // BN
    QUERY_TILES: tl.constexpr = (G + BM - 1) // BM
    tile, i, b, h = place(tl.program_id(0), B, M, QUERY_TILES)
    n = N - 1
    slot, query, is_query = slots(i, tile, n, G, BM)
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    TABLE += h * R
    TABLE_GRAD += (tl.program_id(0) % copies * H + h) * R
    CODES += b * codes_b
    IDS += b * ids_b + i * S
    q = load_tile(Q + b * q_b + h * q_h, query, is_query, q_n, D, DP)
    grad = load_tile(GRAD + b * g_b + h * g_h, query, is_query, g_n, D, DP)
    out = load_tile(OUT + (b * N * H + h) * D, query, is_query, H * D, D, DP)
    grad32 = grad.to(tl.float32)
    delta = tl.sum(out.to(tl.float32) * grad32, 1)
    row = (b * H + h) * N + query + 1
    tl.store(DELTA + row, delta, mask=is_query)
    lse = tl.load(LSE + row, mask=is_query, other=float("inf"))  # an empty slot gives no weight to anything
    query_codes = load_codes(CODES, query, is_query) + centre

    cls_key = load_cls(K, D, DP)
    to_cls = tl.load(TABLE + patch_to_cls)
    q32 = q.to(tl.float32)
    to_cls_weights = tl.exp2(tl.sum(q32 * cls_key[None, :], 1) * scale + to_cls - lse)
    grad_to_cls = to_cls_weights * (tl.sum(grad32 * load_cls(V, D, DP)[None, :], 1) - delta)
    acc = grad_to_cls[:, None] * cls_key[None, :]  # (BM, DP)
    d = tl.arange(0, DP)
    PARTS += tl.program_id(0).to(tl.int64) * (2 * DP + 1)
    tl.store(PARTS + d, tl.sum(grad_to_cls[:, None] * q32, 0) * natural_scale)
    tl.store(PARTS + DP + d, tl.sum(to_cls_weights[:, None] * grad32, 0))
    if SINK:
        grad_to_cls -= count_sinks(IDS, S, M, padding) * tl.exp2(to_cls - lse) * delta
    tl.store(PARTS + 2 * DP, tl.sum(grad_to_cls, 0))

    for step in range(S * KEY_TILES):
        s = step // KEY_TILES
        j = s if DENSE else tl.load(IDS + s).to(tl.int32)
        column, key, is_key = slots(j, step % KEY_TILES, n, G, BN)
        k = load_tile(K, key, is_key, k_n, D, DP)
        v = load_tile(V, key, is_key, v_n, D, DP)
        rows = query_codes[:, None] - load_codes(CODES, key, is_key)[None, :]
        if TILED:
            at = ((h * M + i) * S + s) * (QUERY_TILES * BM * KEY_TILES * BN)
            bias = tl.load(TILES + at + slot[:, None] * (KEY_TILES * BN) + column[None, :]).to(tl.float32)
        else:
            bias = tl.load(TABLE + rows)
        weights = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + (bias - lse[:, None]))
        if not TILED:
            weights = tl.where(is_key[None, :], weights, 0.0)
        grad_scores = weights * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        acc = tl.dot(grad_scores.to(k.dtype), k, acc, input_precision="ieee")
        if WITH_TABLE:
            add_to_table(TABLE_GRAD, rows, grad_scores, is_query[:, None] & is_key[None, :], FACTOR, FIXED)
    store_tile(DQ + (b * N * H + h) * D, acc * natural_scale, query, is_query, H * D, D, DP)


@jit
def key_gradients(
    Q, K, V, GRAD, OUT, TABLE, CODES, TILES, COUNTS, LISTS, LSE, DELTA, DK, DV, PARTS,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, codes_b, pattern_b,
    scale, natural_scale, B, H, N, M, S, R, centre, patch_to_cls,
    D: tl.constexpr, DP: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DENSE: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    """
    Gradients of the patch keys and values over the query blocks that list their block, and over the [CLS] query. Per
    program the share of the [CLS] query's gradient, PARTS (programs, DP + 1): of the query, of its bias to patches.
    """
    KEY_TILES: tl.constexpr = (G + BN - 1) // BN
    QUERY_TILES: tl.constexpr = (G + BM - 1) // BM
    tile, j, b, h = place(tl.program_id(0), B, M, KEY_TILES)
    n = N - 1
    slot, key, is_key = slots(j, tile, n, G, BN)
    Q += b * q_b + h * q_h
    GRAD += b * g_b + h * g_h
    OUT += (b * N * H + h) * D
    TABLE += h * R
    CODES += b * codes_b
    row = (b * H + h) * N
    LSE += row
    DELTA += row
    k = load_tile(K + b * k_b + h * k_h, key, is_key, k_n, D, DP)
    v = load_tile(V + b * v_b + h * v_h, key, is_key, v_n, D, DP)
    key_codes = load_codes(CODES, key, is_key) - centre

    cls_query = load_cls(Q, D, DP)
    cls_grad = load_cls(GRAD, D, DP)
    cls_delta = tl.sum(cls_grad * load_cls(OUT, D, DP), 0)
    k32 = k.to(tl.float32)
    cls_scores = tl.sum(k32 * cls_query[None, :], 1) * scale + tl.load(TABLE + patch_to_cls - 1) - tl.load(LSE)
    cls_weights = tl.where(is_key, tl.exp2(cls_scores), 0.0)
    cls_grad_scores = cls_weights * (tl.sum(v.to(tl.float32) * cls_grad[None, :], 1) - cls_delta)
    grad_key = cls_grad_scores[:, None] * cls_query[None, :]
    grad_value = cls_weights[:, None] * cls_grad[None, :]
    PARTS += tl.program_id(0).to(tl.int64) * (DP + 1)
    tl.store(PARTS + tl.arange(0, DP), tl.sum(cls_grad_scores[:, None] * k32, 0) * natural_scale)
    tl.store(PARTS + DP, tl.sum(cls_grad_scores, 0))

    if DENSE:
        count = M
    else:
        count = tl.load(COUNTS + b * pattern_b + j)
        LISTS += (b * pattern_b + j) * M * S
    for step in range(count * QUERY_TILES):
        entry = step // QUERY_TILES
        if not DENSE:
            entry = tl.load(LISTS + entry)
        i = entry if DENSE else entry // S
        column, query, is_query = slots(i, step % QUERY_TILES, n, G, BM)
        q = load_tile(Q, query, is_query, q_n, D, DP)
        grad = load_tile(GRAD, query, is_query, g_n, D, DP)
        lse = tl.load(LSE + query + 1, mask=is_query, other=float("inf"))
        delta = tl.load(DELTA + query + 1, mask=is_query, other=0.0)
        if TILED:
            at = (h * M * S + entry) * (QUERY_TILES * BM * KEY_TILES * BN)
            bias = tl.load(TILES + at + slot[:, None] * (QUERY_TILES * BM) + column[None, :]).to(tl.float32)
        else:
            bias = tl.load(TABLE + (load_codes(CODES, query, is_query)[None, :] - key_codes[:, None]))
        # (BN, BM): keys are rows
        weights = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * scale + (bias - lse[None, :]))
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision="ieee")
        grad_scores = weights * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
        grad_key = tl.dot(grad_scores.to(q.dtype), q, grad_key, input_precision="ieee")
    at = (b * N * H + h) * D
    store_tile(DK + at, grad_key * natural_scale, key, is_key, H * D, D, DP)
    store_tile(DV + at, grad_value, key, is_key, H * D, D, DP)


@jit
def table_gradient(
    Q, K, V, GRAD, TABLE, CODES, IDS, LSE, DELTA, TABLE_GRAD, FACTOR,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n,
    scale, B, H, N, M, S, R, centre, copies, clips,
    D: tl.constexpr, DP: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DENSE: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """
    The table's gradient where all clips have the same tokens: a program sums one tile of one block pair over `clips`
    clips before anything leaves it. Grid: (H * M * S * tiles of a pair * cdiv(B, clips),), after `query_gradients`.
    """
    KEY_TILES: tl.constexpr = (G + BN - 1) // BN
    QUERY_TILES: tl.constexpr = (G + BM - 1) // BM
    pid = tl.program_id(0)
    key_tile = pid % KEY_TILES
    query_tile = pid // KEY_TILES % QUERY_TILES
    pair = pid // KEY_TILES // QUERY_TILES
    s = pair % S
    i = pair // S % M
    h = (pair // S // M % H).to(tl.int64)
    first = pair // S // M // H * clips
    n = N - 1
    j = s if DENSE else tl.load(IDS + i * S + s).to(tl.int32)
    _, query, is_query = slots(i, query_tile, n, G, BM)
    _, key, is_key = slots(j, key_tile, n, G, BN)
    rows = load_codes(CODES, query, is_query)[:, None] - load_codes(CODES, key, is_key)[None, :] + centre
    bias = tl.where(is_key[None, :], tl.load(TABLE + h * R + rows), float("-inf"))
    acc = tl.zeros([BM, BN], tl.float32)
    for step in range(tl.minimum(clips, B - first)):
        b = first.to(tl.int64) + step
        q = load_tile(Q + b * q_b + h * q_h, query, is_query, q_n, D, DP)
        k = load_tile(K + b * k_b + h * k_h, key, is_key, k_n, D, DP)
        v = load_tile(V + b * v_b + h * v_h, key, is_key, v_n, D, DP)
        grad = load_tile(GRAD + b * g_b + h * g_h, query, is_query, g_n, D, DP)
        row = (b * H + h) * N + query + 1
        lse = tl.load(LSE + row, mask=is_query, other=float("inf"))
        delta = tl.load(DELTA + row, mask=is_query, other=0.0)
        weights = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + (bias - lse[:, None]))
        acc += weights * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
    TABLE_GRAD += (pid % copies * H + h) * R
    add_to_table(TABLE_GRAD, rows, acc, is_query[:, None] & is_key[None, :], FACTOR, FIXED)


@jit
def cls_gradients(
    Q, K, V, GRAD, OUT, TABLE, LSE, KEY_PARTS, QUERY_PARTS, DQ, DK, DV, BIAS,
    q_b, q_h, k_b, k_h, v_b, v_h, g_b, g_h, scale, natural_scale, B, H, N, R, patch_to_cls, key_parts, query_parts,
    D: tl.constexpr, DP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """
    Sums the shares of [CLS] (as a key from `query_gradients`, as a query from `key_gradients`) and adds the pair
    ([CLS], [CLS]). BIAS (H, B, 3): gradients of the rows [CLS] to patch, patch to [CLS], [CLS] to itself.
    Grid: (H * B,), as the programs that wrote the shares are ordered.
    """
    hb = tl.program_id(0).to(tl.int64)
    h = hb // B
    b = hb % B
    part = tl.arange(0, SIZE)
    d = tl.arange(0, DP)
    grad_key = tl.zeros([DP], tl.float32)
    grad_value = tl.zeros([DP], tl.float32)
    grad_query = tl.zeros([DP], tl.float32)
    from_patches = tl.zeros([SIZE], tl.float32)
    to_patches = tl.zeros([SIZE], tl.float32)
    for start in range(0, key_parts, SIZE):
        exists = start + part < key_parts
        X = KEY_PARTS + (hb * key_parts + start + part) * (2 * DP + 1)
        grad_key += tl.sum(tl.load(X[:, None] + d[None, :], mask=exists[:, None], other=0.0), 0)
        grad_value += tl.sum(tl.load(X[:, None] + DP + d[None, :], mask=exists[:, None], other=0.0), 0)
        from_patches += tl.load(X + 2 * DP, mask=exists, other=0.0)
    for start in range(0, query_parts, SIZE):
        exists = start + part < query_parts
        X = QUERY_PARTS + (hb * query_parts + start + part) * (DP + 1)
        grad_query += tl.sum(tl.load(X[:, None] + d[None, :], mask=exists[:, None], other=0.0), 0)
        to_patches += tl.load(X + DP, mask=exists, other=0.0)

    q = load_cls(Q + b * q_b + h * q_h, D, DP)
    k = load_cls(K + b * k_b + h * k_h, D, DP)
    v = load_cls(V + b * v_b + h * v_h, D, DP)
    grad = load_cls(GRAD + b * g_b + h * g_h, D, DP)
    at = (b * N * H + h) * D
    delta = tl.sum(grad * load_cls(OUT + at, D, DP), 0)
    to_cls = tl.load(TABLE + h * R + patch_to_cls + 1)
    weight = tl.exp2(tl.sum(q * k, 0) * scale + to_cls - tl.load(LSE + (b * H + h) * N))
    grad_score = weight * (tl.sum(v * grad, 0) - delta)
    grad_query += grad_score * natural_scale * k
    grad_key += grad_score * natural_scale * q
    grad_value += weight * grad
    tl.store(DQ + at + d, grad_query.to(DQ.dtype.element_ty), mask=d < D)
    tl.store(DK + at + d, grad_key.to(DK.dtype.element_ty), mask=d < D)
    tl.store(DV + at + d, grad_value.to(DV.dtype.element_ty), mask=d < D)
    tl.store(BIAS + hb * 3, tl.sum(to_patches, 0))
    tl.store(BIAS + hb * 3 + 1, tl.sum(from_patches, 0))
    tl.store(BIAS + hb * 3 + 2, grad_score)
