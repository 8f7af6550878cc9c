"""Edge and node sparsity against their definitions."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from modeling_svitt_ego.model import block_attention, flex_blocks
from modeling_svitt_ego.model.block_attention import dense_attention, edge_attention
from modeling_svitt_ego.model.flex_blocks import flex_edge_attention
from modeling_svitt_ego.model.sparsity import (
    RelativePositions,
    cls_row,
    edge_attention_reference,
    hash_keys,
    local_blocks,
    motion_scores,
    random_blocks,
    select_tokens,
    take_tokens,
    temporal_blocks,
)
from modeling_svitt_ego.training.memory_plan import SavedBytes

SEED = torch.tensor(7)


def make_inputs(
    batch,
    window,
    kept,
    block_size,
    num_local,
    num_random,
    per_sample=False,
    num_temporal=0,
    dtype=torch.float64,
    dim=8,
):
    """q, k, v, table, positions and block ids of `kept` tokens of a clip with `window` = (T, H, W) patches."""
    torch.manual_seed(0)
    heads = 3
    total = math.prod(window)
    order = [torch.randperm(total)[:kept].sort().values for _ in range(batch if per_sample else 1)]
    positions = RelativePositions.from_token_ids(torch.stack(order), window)
    q, k, v = (torch.randn(batch, heads, kept + 1, dim, dtype=dtype, requires_grad=True) for _ in range(3))
    table = torch.randn(positions.num_offsets + 3, heads, dtype=dtype, requires_grad=True)
    num_blocks = math.ceil(kept / block_size)
    local = local_blocks(num_blocks, num_local)
    if num_temporal:
        frame = window[1] * window[2]
        temporal = temporal_blocks(torch.stack(order), frame, window[0], block_size, num_temporal, local)
        others = random_blocks(SEED, 0, num_blocks, num_local, num_random, temporal=temporal)
        ids = torch.cat([local.expand(len(others), -1, -1), others], dim=2)
    else:
        ids = torch.cat([local, random_blocks(SEED, 0, num_blocks, num_local, num_random)], dim=1)
    return q, k, v, table, positions, ids, block_size


def oracle(q, k, v, table, positions, block_ids, block_size, attend_padding=False):
    """Row by row, by python loops and float64: what the paper says, independent of the code under test."""
    batch, heads, tokens, dim = q.shape
    patches = tokens - 1
    width = 2 * positions.window[2] - 1
    height = 2 * positions.window[1] - 1
    out = []
    for b in range(batch):
        codes = positions.codes[b if positions.codes.shape[0] > 1 else 0].tolist()
        coords = [(c // width // height, c // width % height, c % width) for c in codes]
        rows = []
        for i in range(tokens):
            if i == 0:
                keys = list(range(tokens))
                bias_rows = [positions.cls_to_cls] + [positions.cls_to_patch] * patches
                real = [True] * tokens
            else:
                keys, bias_rows, real = [0], [positions.patch_to_cls], [True]
                pattern = block_ids[b] if block_ids.dim() == 3 else block_ids
                for block in pattern[(i - 1) // block_size].tolist():
                    for j in range(block * block_size, (block + 1) * block_size):
                        if j < patches:
                            dt, dy, dx = (a - c for a, c in zip(coords[i - 1], coords[j]))
                            t, h, w = positions.window
                            row = ((dt + t - 1) * (2 * h - 1) + dy + h - 1) * (2 * w - 1) + dx + w - 1
                            keys.append(j + 1), bias_rows.append(row), real.append(True)
                        elif attend_padding:
                            keys.append(0), bias_rows.append(positions.patch_to_cls), real.append(False)
            is_real = torch.tensor(real, dtype=q.dtype)
            scores = (k[b][:, keys] * q[b][:, i : i + 1]).sum(-1) * dim**-0.5 * is_real + table[bias_rows].T
            weights = scores.softmax(-1) * is_real
            rows.append((weights[..., None] * v[b][:, keys]).sum(1))
        out.append(torch.stack(rows, dim=1))
    return torch.stack(out)


CASES = [
    pytest.param(2, (2, 3, 4), 24, 6, 1, 2, False, id="B2-n24-block6-1+2-no-padding"),
    pytest.param(2, (2, 3, 5), 29, 6, 1, 2, True, id="B2-n29-block6-1+2-per-sample"),
    pytest.param(1, (3, 3, 4), 31, 4, 3, 2, True, id="B1-n31-block4-3+2-two-sided"),
    pytest.param(2, (1, 4, 4), 13, 5, 0, 2, False, id="B2-n13-block5-0+2-no-local"),
    pytest.param(3, (3, 3, 4), 29, 4, 1, 1, True, 2, id="B3-n29-block4-1+2+1-pattern-per-clip"),
]


def published_code(q, k, v, table, positions, random_ids, block_size, num_local):
    """
    The edge attention of the released SViTT code, neighbour by neighbour as its loops do: for the offset r it rolls
    the keys by -r and the values and the position ids by +r, and padding has zero keys and values and the id of [CLS].
    """
    batch, heads, tokens, dim = q.shape
    patches, (frames, height, width) = tokens - 1, positions.window
    num_blocks = math.ceil(patches / block_size)
    out = torch.zeros_like(q)
    for b in range(batch):
        codes = positions.codes[b if positions.codes.shape[0] > 1 else 0].tolist()

        def bias_row(i, j, codes=codes):
            if j >= patches:
                return positions.patch_to_cls
            query, key = ((c // (2 * width - 1), c % (2 * width - 1)) for c in (codes[i], codes[j]))
            query, key = ((yt // (2 * height - 1), yt % (2 * height - 1), x) for yt, x in (query, key))
            dt, dy, dx = (a - c for a, c in zip(query, key))
            return ((dt + frames - 1) * (2 * height - 1) + dy + height - 1) * (2 * width - 1) + dx + width - 1

        scores = torch.einsum("hd,hnd->hn", q[b, :, 0], k[b])
        bias = table[[positions.cls_to_cls] + [positions.cls_to_patch] * patches].T
        out[b, :, 0] = torch.einsum("hn,hnd->hd", (scores * dim**-0.5 + bias).softmax(-1), v[b])
        for i in range(patches):
            block = i // block_size
            logits = [(q[b, :, i + 1] * k[b, :, 0]).sum(-1) * dim**-0.5 + table[positions.patch_to_cls]]
            values = [v[b, :, 0]]
            offsets = range(-(num_local // 2), num_local // 2 + 1)
            pairs = [((block + r) % num_blocks, (block - r) % num_blocks) for r in offsets]
            for of_keys, of_values in pairs + [(j, j) for j in random_ids[block].tolist()]:
                for place in range(block_size):
                    key, value = of_keys * block_size + place, of_values * block_size + place
                    zero = torch.zeros(heads, dtype=q.dtype)
                    product = (q[b, :, i + 1] * k[b, :, key + 1]).sum(-1) if key < patches else zero
                    logits.append(product * dim**-0.5 + table[bias_row(i, value)])
                    values.append(v[b, :, value + 1] if value < patches else torch.zeros_like(v[b, :, 0]))
            weights = torch.stack(logits).softmax(0)
            out[b, :, i + 1] = (weights[..., None] * torch.stack(values)).sum(0)
    return out


@pytest.fixture
def flex_with_gradients(monkeypatch):
    """
    FlexAttention in plain operations. It refuses gradients on a CPU because its compiled kernels lack them; the plain
    form has them, so that what this package hands to it (score_mod, mask, layout) can be checked without a GPU.
    """
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *args: None)
    monkeypatch.setattr(flex_blocks, "_refuse_cpu", lambda device: None)
    monkeypatch.setattr(flex_blocks, "compiled_flex_attention", flex_attention)


def assert_equals_the_oracle(implementation, case, attend_padding):
    inputs = make_inputs(*case)
    leaves = inputs[:4]
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    expected = oracle(*inputs, attend_padding)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    out, _ = implementation(*inputs, attend_padding)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for name, grad, target in zip(("q", "k", "v", "table"), grads, expected_grads):
        torch.testing.assert_close(grad, target, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"grad {n}: {m}")


@pytest.mark.parametrize("attend_padding", [False, True], ids=["masked", "released"])
@pytest.mark.parametrize("case", [c.values for c in CASES], ids=[c.id for c in CASES])
@pytest.mark.parametrize("implementation", [edge_attention_reference, edge_attention], ids=["reference", "blocks"])
def test_output_and_every_gradient_equal_a_float64_oracle(implementation, case, attend_padding):
    """Catches a wrong edge, bias row, padding rule or gradient in either implementation."""
    assert_equals_the_oracle(implementation, case, attend_padding)


MIRRORED = [
    pytest.param(2, (3, 3, 4), 31, 4, 3, 2, True, id="B2-n31-block4-3+2-ragged"),
    pytest.param(1, (2, 4, 4), 30, 4, 5, 2, False, id="B1-n30-block4-5+2-ragged"),
    pytest.param(1, (2, 3, 4), 23, 6, 3, 2, False, id="B1-n23-block6-3+2-fewer-blocks-than-listed"),
]


@pytest.mark.parametrize("case", [c.values for c in MIRRORED], ids=[c.id for c in MIRRORED])
@pytest.mark.parametrize("implementation", [edge_attention_reference, edge_attention], ids=["reference", "blocks"])
def test_three_local_blocks_pair_keys_and_values_as_the_published_code(implementation, case):
    """Catches keys and values of one neighbour under `released_attention`, in the output and in every gradient."""
    q, k, v, table, positions, _, size = make_inputs(*case)
    num_local, num_random, num_blocks = case[4], case[5], math.ceil(case[2] / size)
    random_ids = random_blocks(SEED, 0, num_blocks, num_local, num_random, released=True)
    ids = torch.cat([local_blocks(num_blocks, num_local, released=True), random_ids], dim=1)
    weight = torch.randn(q.shape, dtype=torch.float64)
    expected = published_code(q, k, v, table, positions, random_ids, size, num_local)
    out, attention = implementation(q, k, v, table, positions, ids, size, True, num_local)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    if implementation is edge_attention_reference:
        torch.testing.assert_close(attention @ v, expected, rtol=1e-10, atol=1e-10)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v, table))
    for grad, target in zip(torch.autograd.grad((out * weight).sum(), (q, k, v, table)), expected_grads):
        torch.testing.assert_close(grad, target, rtol=1e-9, atol=1e-9)
    straight, _ = implementation(q, k, v, table, positions, ids, size, True)
    assert not torch.allclose(straight, expected, atol=1e-3)
    with pytest.raises(NotImplementedError, match=f"{num_local} local blocks.*attn_implementation='sdpa'"):
        flex_edge_attention(q, k, v, table, positions, ids, size, True, num_local)


def test_mirrored_local_blocks_differentiate_twice_and_in_chunks(monkeypatch):
    """Catches the mirrored keys left out of the second derivative, or of a chunk, or of a pattern of each clip."""
    q, k, v, table, positions, _, size = make_inputs(2, (3, 3, 4), 31, 4, 3, 2, True)
    local = local_blocks(8, 3, released=True)
    patterns = torch.stack([torch.cat([local, random_blocks(SEED + i, 0, 8, 3, 2, True)], dim=1) for i in range(2)])
    monkeypatch.setattr(block_attention, "CPU_CHUNK_ELEMENTS", 1)
    found = []
    for function in (edge_attention_reference, edge_attention):
        out, _ = function(q, k, v, table, positions, patterns, size, True, 3)
        grads = torch.autograd.grad(out.sum(), (q, k, v, table), create_graph=True)
        found.append([out, *grads, *torch.autograd.grad(sum(x.square().sum() for x in grads), (q, k, v, table))])
    for expected, value in zip(*found):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attend_padding", [False, True], ids=["masked", "released"])
@pytest.mark.parametrize("case", [CASES[i].values for i in (1, 4)], ids=[CASES[i].id for i in (1, 4)])
def test_flex_output_and_every_gradient_equal_a_float64_oracle(case, attend_padding, flex_with_gradients):
    """Catches a wrong slot, bias row, block or [CLS] weight in what is handed to FlexAttention."""
    assert_equals_the_oracle(flex_edge_attention, case, attend_padding)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared-ids", "ids-per-sample"])
def test_dense_output_and_every_gradient_equal_the_reference(per_sample, flex_with_gradients, monkeypatch):
    """Catches a query chunk lost or a bias misplaced where every pair is computed, at 29 tokens in chunks of 16."""
    q, k, v, table, positions, _, _ = make_inputs(2, (2, 3, 5), 29, 6, 1, 2, per_sample)
    weight = torch.randn(q.shape, dtype=torch.float64)
    one_block = torch.zeros(1, 1, dtype=torch.int64)
    expected, attention = edge_attention_reference(q, k, v, table, positions, one_block, 29)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v, table))
    monkeypatch.setattr(block_attention, "CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(block_attention, "CPU_DENSE_CHUNK_ELEMENTS", 1)
    for out, cls_attention in (
        dense_attention(q, k, v, table, positions),
        flex_edge_attention(q, k, v, table, positions, None),
    ):
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(cls_attention, attention[:, :, 0])
        for grad, target in zip(torch.autograd.grad((out * weight).sum(), (q, k, v, table)), expected_grads):
            torch.testing.assert_close(grad, target)


def test_a_pattern_without_blocks_leaves_cls_alone():
    """Catches a maximum over no key: num_local_blocks = num_random_blocks = 0 is a valid configuration."""
    q, k, v, table, positions, ids, size = make_inputs(2, (2, 3, 4), 24, 6, 0, 0)
    assert ids.shape == (4, 0)
    out, _ = edge_attention(q, k, v, table, positions, ids, size)
    torch.testing.assert_close(out, edge_attention_reference(q, k, v, table, positions, ids, size)[0])
    torch.testing.assert_close(out[:, :, 1:], v[:, :, :1].expand(-1, -1, 24, -1))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), (q, k, v, table)))


@pytest.mark.parametrize("block_ids", [True, False], ids=["edges", "dense"])
def test_second_derivatives_equal_the_references(block_ids):
    """Catches a second derivative that is silently a constant: here no incoming gradient requires one."""
    q, k, v, table, positions, ids, size = make_inputs(2, (2, 3, 5), 29, 6, 1, 2, True)
    pattern = (ids, size) if block_ids else (torch.zeros(1, 1, dtype=torch.int64), 29)
    found = []
    for function in (edge_attention_reference, edge_attention if block_ids else dense_attention):
        arguments = pattern if block_ids or function is edge_attention_reference else ()
        out, _ = function(q, k, v, table, positions, *arguments)
        grads = torch.autograd.grad(out.sum(), (q, k, v, table), create_graph=True)
        penalty = sum(x.square().sum() for x in grads)
        found.append(torch.autograd.grad(penalty, (q, k, v, table)))
    for expected, gradient in zip(*found):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_every_implementation_ranks_by_the_same_numbers_in_half_precision():
    """Catches a scale before the product in one and after it in another: 24^-0.5 is not a power of two."""
    q, k, v, table, positions, ids, size = make_inputs(2, (2, 7, 7), 98, 14, 1, 3, dtype=torch.bfloat16, dim=24)
    expected = cls_row(q, k, v, table, positions)[1]
    assert expected.dtype == torch.float32
    assert torch.equal(edge_attention(q, k, v, table, positions, ids, size)[1], expected)
    assert torch.equal(dense_attention(q, k, v, table, positions)[1], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(edge_attention(q, k, v, table, positions, ids, size)[1], expected)
        assert torch.equal(cls_row(q, k, v, table, positions)[1], expected)


def test_only_one_copy_of_each_input_is_kept_for_the_backward():
    """Catches gathered keys, an N x N index or a bias kept: beyond q, k, v and output only rows of one number are."""
    for per_sample in (False, True):
        q, k, v, table, positions, ids, size = make_inputs(2, (4, 14, 14), 549, 56, 1, 3, per_sample)
        with SavedBytes() as saved:
            out, _ = edge_attention(q, k, v, table, positions, ids, size)
        inputs = sum(x.untyped_storage().nbytes() for x in (q, k, v, table))
        per_query = 2 * 3 * 560 * 8 + 2 * 549 * 8 + 2 * 3 * 8  # logsumexp with padding, codes, [CLS]'s logsumexp
        assert inputs < saved.total <= inputs + out.numel() * 8 + per_query + ids.numel() * 8


def test_flex_attention_without_a_gpu_says_what_to_use():
    """Catches an error from deep inside the library, which does not name the way out."""
    inputs = make_inputs(1, (2, 3, 4), 24, 6, 1, 2, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="attn_implementation='sdpa'"):
        flex_edge_attention(*inputs)


@pytest.fixture
def counted_flex(monkeypatch):
    """FlexAttention on the CPU: its graphs are traced and counted, and run as plain operations."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(flex_attention, dynamic=False, backend="eager")
    monkeypatch.setattr(flex_blocks, "_refuse_cpu", lambda device: None)
    monkeypatch.setattr(flex_blocks, "_compiled", lambda: compiled)
    with torch.no_grad():
        yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def test_a_new_pattern_makes_no_new_flex_kernel(counted_flex):
    """Catches a BlockMask whose shape or code depends on the pattern."""
    outputs = []
    for seed in range(3):
        q, k, v, table, positions, ids, size = make_inputs(2, (2, 3, 4), 24, 4, 1, 2, dtype=torch.float32)
        ids = torch.cat([local_blocks(6, 1), random_blocks(torch.tensor(seed), 0, 6, 1, 2)], dim=1)
        out, _ = flex_edge_attention(q, k, v, table, positions, ids, size)
        torch.testing.assert_close(out, edge_attention_reference(q, k, v, table, positions, ids, size)[0])
        outputs.append(out)
    assert not torch.equal(outputs[0], outputs[1])
    assert counted_flex() == 1


def test_many_lengths_stay_compiled_and_too_many_are_an_error(counted_flex, monkeypatch):
    """Catches torch's limit of 8 kernels, beyond which it goes on uncompiled with all N x N scores."""
    for kept in range(10, 22):
        flex_edge_attention(*make_inputs(1, (2, 3, 4), kept, 4, 1, 2, dtype=torch.float32))
    assert counted_flex() == 12
    monkeypatch.setattr(flex_blocks, "_MAX_KERNELS", 12)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        flex_edge_attention(*make_inputs(1, (2, 3, 4), 22, 4, 1, 2, dtype=torch.float32))


def test_flex_attention_refuses_edges_in_half_precision(flex_with_gradients):
    """Catches a name that is offered and fails at the first backward, as FlexAttention's 64-wide blocks in bf16 do."""
    inputs = make_inputs(1, (2, 3, 4), 24, 6, 1, 2, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="float32 only.*bfloat16.*attn_implementation='sdpa'"):
        flex_edge_attention(*inputs)


def test_a_pattern_of_each_clip_is_the_clips_pattern_alone():
    """Catches a pattern of another clip, or -1 counted as a block, in the reference."""
    q, k, v, table, positions, _, size = make_inputs(2, (2, 3, 5), 29, 6, 1, 2, True)
    patterns = torch.tensor([[[0, 2]] * 5, [[1, -1]] * 5])
    out, _ = edge_attention_reference(q, k, v, table, positions, patterns, size, True)
    for b, ids in enumerate((patterns[0], patterns[1][:, :1])):
        alone = RelativePositions(positions.window, positions.codes[b : b + 1])
        expected, _ = edge_attention_reference(q[b : b + 1], k[b : b + 1], v[b : b + 1], table, alone, ids, size, True)
        torch.testing.assert_close(out[b : b + 1], expected)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="FlexAttention's compiled kernels have a backward and a logsumexp on GPUs only",
)
@pytest.mark.parametrize("is_dense", [False, True], ids=["edges-fp32", "dense-bf16"])
def test_the_compiled_flex_kernels_gradients_equal_the_oracles_in_what_is_offered(is_dense):
    """Catches a compiled backward that is wrong or missing where the implementation may be chosen."""
    dtype = torch.bfloat16 if is_dense else torch.float32
    exact = make_inputs(2, (4, 14, 14), 549, 56, 1, 3, True, dim=64)
    leaves = [x.detach().to("cuda", dtype).requires_grad_() for x in exact[:3]]
    leaves.append(exact[3].detach().cuda().float().requires_grad_())
    pattern = (torch.zeros(1, 1, dtype=torch.int64), 549) if is_dense else exact[5:]
    rounded = [x.detach().double().cpu().requires_grad_() for x in leaves]
    expected, _ = edge_attention_reference(*rounded, exact[4], *pattern)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected_grads = torch.autograd.grad(expected, rounded, weight.double())
    positions = RelativePositions(exact[4].window, exact[4].codes.cuda())
    ids = (None,) if is_dense else (exact[5].cuda(), exact[6])
    out, _ = flex_edge_attention(*leaves, positions, *ids)
    for found, target in zip(torch.autograd.grad(out, leaves, weight.cuda()), expected_grads):
        assert (found.double().cpu() - target).norm() < (2e-2 if is_dense else 5e-3) * target.norm()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="FlexAttention's compiled kernels have a backward and a logsumexp on GPUs only",
)
@pytest.mark.parametrize("attend_padding", [False, True], ids=["masked", "released"])
def test_the_compiled_flex_kernels_gradients_equal_the_oracles(attend_padding):
    """Catches a wrong compiled backward, table included, at a length that is never round (549)."""
    exact = make_inputs(2, (4, 14, 14), 549, 56, 1, 3, True, dim=64)  # the kernels take no head narrower than 16
    weight = torch.randn(exact[0].shape, dtype=torch.float64)
    expected, _ = edge_attention_reference(*exact, attend_padding)
    expected_grads = torch.autograd.grad((expected * weight).sum(), exact[:4])
    leaves = [x.detach().cuda().float().requires_grad_() for x in exact[:4]]
    positions = RelativePositions(exact[4].window, exact[4].codes.cuda())
    out, _ = flex_edge_attention(*leaves, positions, exact[5].cuda(), exact[6], attend_padding)
    torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-3, atol=1e-3)
    grads = torch.autograd.grad((out * weight.cuda().float()).sum(), leaves)
    for grad, target in zip(grads, expected_grads):
        assert (grad.double().cpu() - target).norm() < 5e-3 * target.norm()


@pytest.mark.parametrize("num_temporal", [0, 2], ids=["pattern-shared", "pattern-per-clip"])
def test_chunks_do_not_change_the_result(num_temporal, monkeypatch):
    """Catches a chunk boundary that drops or doubles a block, at a length that is never round (549)."""
    inputs = make_inputs(2, (4, 14, 14), 549, 56, 1, 3 - num_temporal, True, num_temporal)
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    whole, _ = edge_attention(*inputs)
    whole_grads = torch.autograd.grad((whole * weight).sum(), inputs[:4])
    monkeypatch.setattr(block_attention, "CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(block_attention, "CPU_DENSE_CHUNK_ELEMENTS", 1)
    parts, _ = edge_attention(*inputs)
    torch.testing.assert_close(parts, whole)
    for a, b in zip(torch.autograd.grad((parts * weight).sum(), inputs[:4]), whole_grads):
        torch.testing.assert_close(a, b)


def test_sparse_equals_dense_when_every_block_is_kept():
    """Catches edges lost or counted twice when the pattern covers all blocks."""
    q, k, v, table, positions, _, size = make_inputs(2, (2, 3, 5), 29, 6, 1, 2, per_sample=True)
    num_blocks = 5
    every = torch.cat([local_blocks(num_blocks, 1), random_blocks(SEED, 0, num_blocks, 1, 9)], dim=1)
    assert every.shape == (5, 5)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=positions.dense_bias(table))
    sparse, cls_attention = edge_attention(q, k, v, table, positions, every, size)
    torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cls_attention, cls_row(q, k, v, table, positions)[1])


def test_bfloat16_error_is_at_most_twice_that_of_naive_bfloat16():
    """Catches a softmax or a logsumexp taken in half precision."""
    exact = make_inputs(1, (2, 7, 7), 98, 14, 1, 3)
    target, _ = edge_attention_reference(*exact)
    half = [x.detach().bfloat16() for x in exact[:4]] + list(exact[4:])
    ours, _ = edge_attention(*half)
    naive, _ = edge_attention_reference(*half)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - target).abs().max() <= 2 * (naive.double() - target).abs().max()


def test_local_blocks_are_as_many_before_as_after_and_circular():
    """Catches neighbours on one side only."""
    assert local_blocks(5, 3).tolist() == [[4, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]]
    assert local_blocks(7, 5)[0].tolist() == [5, 6, 0, 1, 2]
    assert local_blocks(2, 3).tolist() == [[1, 0], [0, 1]]  # each once
    assert local_blocks(2, 3, released=True).tolist() == [[1, 0, 1], [0, 1, 0]]  # as the released code does


def test_random_blocks_are_distinct_sorted_and_never_local():
    for num_blocks, num_local, num_random in ((14, 1, 3), (10, 3, 4), (5, 1, 5), (3, 1, 3), (2, 3, 2), (7, 0, 7)):
        for layer in range(20):
            ids = random_blocks(SEED, layer, num_blocks, num_local, num_random)
            local = local_blocks(num_blocks, num_local)
            assert ids.shape[1] == min(num_random, num_blocks - min(num_local, num_blocks))
            for b, row in enumerate(torch.cat([local, ids], dim=1).tolist()):
                assert len(set(row)) == len(row), (num_blocks, b, row)
            assert (ids.diff(dim=1) > 0).all()


def test_every_pair_of_blocks_is_drawn_about_equally_often():
    """Catches a biased hash: 3,000 draws of 3 of 13 blocks, each expected 692 times, five standard deviations."""
    counts = torch.zeros(14, 14)
    for seed in range(3000):
        ids = random_blocks(torch.tensor(seed), 2, 14, 1, 3)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
    assert counts.diagonal().sum() == 0
    others = counts[~torch.eye(14, dtype=torch.bool)]
    expected, deviation = 3000 * 3 / 13, math.sqrt(3000 * 3 / 13 * 10 / 13)
    assert (others - expected).abs().max() < 5 * deviation


@pytest.mark.parametrize("frames", [1, 2, 4, 16])
@pytest.mark.parametrize("num_temporal", [2, 4, 6, 8])
def test_temporal_blocks_are_the_same_place_in_other_frames_where_blocks_divide_a_frame(frames, num_temporal):
    """Catches an offset that is off by a block, a wrap-around at either end, and a frame taken out of turn."""
    per_frame, num_blocks = 4, 4 * frames  # frames of 12 patches in blocks of 3
    local = local_blocks(num_blocks, 1)
    found = temporal_blocks(torch.arange(12 * frames)[None], 12, frames, 3, num_temporal, local)[0]
    for block, row in enumerate(found.tolist()):
        distances = {1: [], 2: [1], 4: [1, 2, 3], 16: [1, 2, 4, 8]}[frames][: num_temporal // 2]
        steps = [sign * distance for distance in distances for sign in (-1, 1)]
        expected = {block + step * per_frame for step in steps if 0 <= block // per_frame + step < frames}
        assert {other for other in row if other >= 0} == expected
        assert len(row) == num_temporal


def test_temporal_blocks_that_straddle_are_the_fullest_and_of_equal_ones_the_nearer():
    """56 of 196 patches: a block's place one frame on is half in block b + 3 and half in b + 4."""
    ids, local = torch.arange(784)[None], local_blocks(14, 1)
    assert temporal_blocks(ids, 196, 4, 56, 2, local)[0, 5].tolist() == [2, 8]
    assert sorted(temporal_blocks(ids, 196, 4, 56, 4, local)[0, 5].tolist()) == [1, 2, 8, 9]
    # 64 of 196: the 64 places from 4 * 64 + 196 = 452 on are 60 of block 7 and 4 of block 8.
    local = local_blocks(13, 1)
    assert temporal_blocks(ids, 196, 4, 64, 2, local)[0, 4].tolist() == [1, 7]
    # What is local already is not listed again: the next frame's places are in the own block and the next.
    ids, local = torch.arange(24)[None], local_blocks(3, 3)
    assert temporal_blocks(ids, 6, 4, 8, 2, local).eq(-1).all()


def test_temporal_blocks_follow_each_clips_kept_tokens():
    """Catches a mean distance: clips of 4 frames of 4 patches, of which each frame keeps another number."""
    ids = torch.tensor([[0, 1, 2, 3, 4, 8, 9, 10, 11, 12], [0, 4, 5, 6, 7, 8, 9, 10, 11, 15]])
    local = local_blocks(5, 1)
    found = temporal_blocks(ids, 4, 4, 2, 2, local)
    # Of the first clip, block 1 holds 2 and 3: 6 and 7 are pruned, the next token in order is 8, in block 2. Block 2
    # holds 4 and 8, each other's place one frame on: its neighbours are those of the other token.
    assert found.tolist() == [
        [[-1, 2], [-1, 2], [0, 4], [2, 4], [2, -1]],
        [[-1, 2], [0, 3], [0, 4], [1, 4], [2, -1]],
    ]
    for clip in range(2):
        alone = temporal_blocks(ids[clip : clip + 1], 4, 4, 2, 2, local)
        assert torch.equal(alone[0], found[clip])


@pytest.mark.parametrize("case", [(784, 49, 1, 2, 1), (549, 49, 3, 2, 1), (270, 56, 1, 4, 1), (100, 49, 1, 2, 3)])
def test_local_temporal_and_random_blocks_are_distinct_and_as_many_as_asked_for(case):
    """Catches a block that counts twice, a missing temporal block left open, and a temporal block not taken."""
    kept, size, num_local, num_temporal, num_random = case
    torch.manual_seed(0)
    ids = torch.stack([torch.randperm(784)[:kept].sort().values for _ in range(3)])
    num_blocks = math.ceil(kept / size)
    local = local_blocks(num_blocks, num_local)
    temporal = temporal_blocks(ids, 196, 4, size, num_temporal, local)
    others = random_blocks(SEED, 2, num_blocks, num_local, num_random, temporal=temporal)
    expected = min(num_temporal + num_random, num_blocks - num_local)
    assert others.shape == (3, num_blocks, expected)
    for clip in range(3):
        for block in range(num_blocks):
            listed = others[clip, block].tolist()
            assert len({*listed, *local[block].tolist()}) == expected + num_local
            if expected >= num_temporal:
                assert {x for x in temporal[clip, block].tolist() if x >= 0} <= set(listed)


def test_without_temporal_blocks_the_random_ones_stay_as_published():
    """Catches a pattern that changes for every model there is: the ids of one draw, written down before."""
    assert random_blocks(SEED, 0, 6, 1, 2).tolist() == [[4, 5], [0, 3], [0, 5], [1, 5], [1, 2], [2, 3]]


def test_patterns_differ_between_layers_and_seeds_and_repeat_for_the_same():
    draw = [random_blocks(torch.tensor(s), layer, 14, 1, 3) for s, layer in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert not torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert torch.equal(draw[0], draw[3])


def test_hash_keys_do_not_depend_on_how_many_are_asked_for():
    assert torch.equal(hash_keys(SEED, 3, 10), hash_keys(SEED, 3, 20)[:10])


def test_relative_positions_equal_the_published_index(shared_dir):
    """Catches a wrong bias row: the release's own index matrix for a window of (3, 2, 3) patches."""
    import json

    example = json.loads((shared_dir / "golden" / "H_bias_inflation.json").read_text())["index_example"]
    window = tuple(example["window"])
    positions = RelativePositions.from_token_ids(torch.arange(math.prod(window))[None], window)
    assert positions.rows()[0].tolist() == example["relative_position_index"]


def test_kept_tokens_are_the_highest_in_their_old_order_behind_cls():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.7, 0.2, 0.6, 0.1]])
    kept = select_tokens(scores, 2)
    assert kept.tolist() == [[1, 3], [0, 2]]
    states = torch.arange(10.0).view(1, 5, 2).expand(2, -1, -1)
    assert take_tokens(states, kept)[:, :, 0].tolist() == [[0, 4, 8], [0, 2, 6]]


def test_of_equal_scores_the_earlier_token_stays():
    """Catches a choice that differs between devices and exported files: motion has equal scores in pairs."""
    scores = torch.tensor([[0.0] * 50 + [1.0] * 50, [float("inf"), 2.0] * 50])
    assert select_tokens(scores, 60)[0].tolist() == [*range(10), *range(50, 100)]
    assert select_tokens(scores, 52)[1].tolist() == sorted([*range(0, 100, 2), 1, 3])
    still = torch.randn(1, 4, 3).repeat(1, 2, 1)  # two equal frames of four patches
    assert motion_scores(still, torch.arange(8)[None], 2, 4).tolist() == [[0.0] * 8]


def test_motion_is_the_distance_to_the_same_place_in_the_nearest_frame():
    """Two patches a frame, three frames, the last place of the second frame is pruned; the ids are shared."""
    ids = torch.tensor([[0, 1, 2, 4, 5]])
    states = torch.tensor([[[0.0], [7.0], [1.0], [5.0], [9.0]]]).repeat(2, 1, 1)
    # 0 and 2: 1 apart; 2 and 4: 4; place 1 has neither neighbour in frames 0 and 2.
    assert motion_scores(states, ids, 3, 2).tolist() == [[1.0, float("inf"), 1.0, 4.0, float("inf")]] * 2
