"""The attention kernels in triton's interpreter, on a CPU, against the float64 reference. Run by .ci/run."""

import math

import pytest
import torch

from modeling_svitt_ego.model import edge_triton
from modeling_svitt_ego.model.edge_triton import backward, forward, triton_attention
from modeling_svitt_ego.model.sparsity import RelativePositions, edge_attention_reference, local_blocks, random_blocks

from .conftest import only_interpreted

pytestmark = only_interpreted
SEED = torch.tensor(7)


@pytest.fixture(autouse=True)
def few_clips_are_enough(monkeypatch):
    """Three clips are read from tiles, and two programs sum their gradients."""
    monkeypatch.setattr(edge_triton, "MIN_CLIPS_FOR_TILES", 3)
    monkeypatch.setattr(edge_triton, "CLIPS_PER_TABLE_PROGRAM", 2)


# Rounding of the result and of the weights before the second product.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def make_inputs(batch, window, kept, size, num_local, num_random, per_sample=False, dim=16, repeat=False, heads=2):
    """q, k, v, table, positions, block ids, block size of `kept` tokens of clips with `window` = (T, H, W) patches."""
    torch.manual_seed(0)
    total = math.prod(window)
    order = [torch.randperm(total)[:kept].sort().values for _ in range(batch if per_sample else 1)]
    positions = RelativePositions.from_token_ids(torch.stack(order), window)
    q, k, v = (torch.randn(batch, heads, kept + 1, dim) for _ in range(3))
    table = torch.randn(positions.num_offsets + 3, heads)
    num_blocks = math.ceil(kept / size)
    local = local_blocks(num_blocks, num_local, repeat)
    ids = torch.cat([local, random_blocks(SEED, 0, num_blocks, num_local, num_random, repeat)], dim=1)
    return q, k, v, table, positions, ids, size


def assert_close_in_norm(found, expected, tolerance, name):
    assert found.isfinite().all(), name
    error = ((found.double() - expected).norm() / expected.norm()).item()
    assert error < tolerance, f"{name}: relative error {error:.1e}"


def assert_equals_the_reference(inputs, dtype=torch.float32, attend_padding=False, is_dense=False):
    """Output, [CLS] row and every gradient."""
    q, k, v, table, positions, ids, size = inputs
    q, k, v = (x.to(dtype) for x in (q, k, v))
    leaves = [x.double().requires_grad_() for x in (q, k, v, table)]
    pattern = (torch.zeros(1, 1, dtype=torch.int64), q.shape[2] - 1) if is_dense else (ids, size)
    expected, attention = edge_attention_reference(*leaves, positions, *pattern, attend_padding)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())

    found = [x.requires_grad_() for x in (q, k, v, table)]
    out, cls_attention = triton_attention(*found, positions, None if is_dense else ids, size, attend_padding)
    assert out.dtype == dtype and not cls_attention.requires_grad
    assert_close_in_norm(out, expected, TOLERANCE[dtype], "output")
    assert_close_in_norm(cls_attention, attention[:, :, 0], 1e-5, "[CLS] row")
    for name, x, target in zip(("q", "k", "v", "table"), torch.autograd.grad(out, found, grad), expected_grads):
        assert_close_in_norm(x, target, TOLERANCE[dtype], f"gradient of {name}")


# batch, window, kept tokens, block size, local, random; ids per sample; then make_inputs' options
CASES = {
    "n23-block6-1+2-per-sample-dim24": (2, (2, 3, 5), 23, 6, 1, 2, True, 24),
    "n31-block7-3+1-per-sample": (1, (3, 3, 4), 31, 7, 3, 1, True, 16, False, 1),
    "n13-block5-1+2-all-blocks-one-clip": (1, (1, 4, 4), 13, 5, 1, 3),
    "n17-block6-1+1-shared-tiles": (3, (1, 4, 5), 17, 6, 1, 1, False, 16, False, 1),
    "n75-block40-blocks-wider-than-tiles": (1, (2, 7, 7), 75, 40, 1, 1, True, 16, False, 1),
}


@pytest.mark.parametrize("attend_padding", [False, True], ids=["masked", "released"])
@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient_equal_the_float64_reference(case, attend_padding):
    """Catches a wrong edge, bias row, padding rule or gradient, with looked-up bias and with streamed tiles."""
    assert_equals_the_reference(make_inputs(*CASES[case]), attend_padding=attend_padding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", ["n23-block6-1+2-per-sample-dim24", "n17-block6-1+1-shared-tiles"])
def test_half_precision_loses_no_more_than_its_rounding(case, dtype):
    """Catches a softmax, a sum or a bias in half precision."""
    assert_equals_the_reference(make_inputs(*CASES[case]), dtype)


def test_blocks_that_the_release_lists_twice_count_twice():
    """Catches a repeated block that is attended once, its sinks or its gradients counted once."""
    inputs = make_inputs(1, (1, 3, 4), 11, 4, 3, 2, True, repeat=True)
    assert len(set(inputs[5][0].tolist())) < inputs[5].shape[1]
    assert_equals_the_reference(inputs, attend_padding=True)


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per-sample"])
def test_dense_attention_equals_the_reference(per_sample):
    """Catches a pair lost where every block is attended, at 75 tokens in blocks of 64."""
    assert_equals_the_reference(make_inputs(2, (2, 7, 7), 75, 8, 1, 1, per_sample, heads=1), is_dense=True)


def test_each_clip_may_have_its_own_pattern_with_absent_blocks():
    """Catches a pattern read from another clip, and -1 taken for a block."""
    q, k, v, table, positions, _, size = make_inputs(2, (2, 3, 4), 23, 6, 1, 2, True)
    ids = torch.tensor([[[0, 2], [1, -1], [-1, 3], [3, 0]], [[0, -1], [-1, -1], [2, 1], [3, 2]]])
    assert_equals_the_reference((q, k, v, table, positions, ids, size), attend_padding=True)


def test_a_pattern_without_blocks_leaves_cls_alone():
    inputs = make_inputs(2, (2, 3, 4), 23, 6, 0, 0)
    assert inputs[5].shape == (4, 0)
    assert_equals_the_reference(inputs)


def test_any_strides_are_read_as_they_are():
    """Catches a stride that is taken for granted: q, k, v and the gradient are views of wider tensors."""
    q, k, v, table, positions, ids, size = make_inputs(2, (1, 3, 4), 11, 4, 1, 1, True)
    fused = torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2)  # (B, N, 3, H, D)
    views = [x.transpose(1, 2) for x in fused.unbind(2)]
    odd = torch.randn(2, 2, 12, 32)[..., ::2]
    outs, grads = [], []
    for tensors, grad in (((q, k, v), odd.contiguous()), (views, odd)):
        out, attention, lse, scaled = forward(
            *tensors, table, positions.codes, ids, size, positions.patch_to_cls, False
        )
        outs.append(out)
        arguments = (scaled, positions.codes, ids, out, lse, size, positions.patch_to_cls, False, torch.float32)
        grads.append(backward(grad, *tensors, *arguments))
    assert torch.equal(*outs)
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_offsets_beyond_32_bits():
    """Catches clips that are 2^31 elements apart being read from elsewhere; untouched memory is never committed."""
    q, k, v, table, positions, ids, size = make_inputs(2, (1, 2, 3), 5, 3, 1, 1, heads=1)
    q, k, v = (x.half() for x in (q, k, v))
    apart = torch.empty(2**31 + 128, dtype=torch.float16).as_strided(q.shape, (2**31, *q.stride()[1:]))
    apart.copy_(q)
    results = []
    for query in (q, apart):
        out, _, lse, scaled = forward(query, k, v, table, positions.codes, ids, size, positions.patch_to_cls, False)
        arguments = (scaled, positions.codes, ids, out, lse, size, positions.patch_to_cls, False, torch.float32)
        results.append([out, *backward(torch.ones_like(q), query, k, v, *arguments)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("case", ["n31-block7-3+1-per-sample", "n17-block6-1+1-shared-tiles"])
def test_the_deterministic_table_gradient_is_as_exact(case):
    """Catches an overflow or a coarse grid of the fixed-point sums, and a gradient that is not finite being hidden."""
    inputs = make_inputs(*CASES[case])
    torch.use_deterministic_algorithms(True)
    try:
        assert_equals_the_reference(inputs)
        q, k, v, table, positions, ids, size = inputs
        leaves = [x.requires_grad_() for x in (q, k, v, table)]
        out, _ = triton_attention(*leaves, positions, ids, size)
        grad = torch.full_like(out, float("inf"))
        assert not torch.autograd.grad(out, table, grad)[0].isfinite().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_second_derivatives_are_those_of_the_reference():
    """Catches a gradient penalty whose second derivative is silently wrong."""
    q, k, v, table, positions, ids, size = make_inputs(1, (1, 3, 4), 11, 4, 1, 1, True, heads=1)
    found = []
    for function in (triton_attention, edge_attention_reference):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, table)]
        out = function(*leaves, positions, ids, size)[0]
        grads = torch.autograd.grad(out.sum(), leaves, create_graph=True)  # no incoming gradient requires one
        penalty = sum(x.square().sum() for x in grads)
        found.append(torch.autograd.grad(penalty, leaves))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
