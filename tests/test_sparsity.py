"""Edge and node sparsity against their definitions."""

import math

import pytest
import torch

from modeling_svitt_ego import sparsity
from modeling_svitt_ego.sparsity import (
    RelativePositions,
    cls_row,
    edge_attention,
    edge_attention_reference,
    hash_keys,
    local_blocks,
    random_blocks,
    select_tokens,
    take_tokens,
)

SEED = torch.tensor(7)


def make_inputs(batch, window, kept, block_size, num_local, num_random, per_sample=False, dtype=torch.float64):
    """q, k, v, table, positions and block ids of `kept` tokens of a clip with `window` = (T, H, W) patches."""
    torch.manual_seed(0)
    heads, dim = 3, 8
    total = math.prod(window)
    order = [torch.randperm(total)[:kept].sort().values for _ in range(batch if per_sample else 1)]
    positions = RelativePositions.from_token_ids(torch.stack(order), window)
    q, k, v = (torch.randn(batch, heads, kept + 1, dim, dtype=dtype, requires_grad=True) for _ in range(3))
    table = torch.randn(positions.num_offsets + 3, heads, dtype=dtype, requires_grad=True)
    num_blocks = math.ceil(kept / block_size)
    ids = torch.cat(
        [local_blocks(num_blocks, num_local), random_blocks(SEED, 0, num_blocks, num_local, num_random)], dim=1
    )
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
                for block in block_ids[(i - 1) // block_size].tolist():
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
]


@pytest.mark.parametrize("attend_padding", [False, True], ids=["masked", "released"])
@pytest.mark.parametrize("case", [c.values for c in CASES], ids=[c.id for c in CASES])
def test_output_and_every_gradient_equal_a_float64_oracle(case, attend_padding):
    """Catches a wrong edge, bias row, padding rule or gradient in either implementation."""
    batch, window, kept, size, num_local, num_random, per_sample = case
    inputs = make_inputs(batch, window, kept, size, num_local, num_random, per_sample)
    leaves = inputs[:4]
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    expected = oracle(*inputs, attend_padding)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    for implementation in (edge_attention_reference, edge_attention):
        out, _ = implementation(*inputs, attend_padding)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        grads = torch.autograd.grad((out * weight).sum(), leaves)
        for name, grad, target in zip(("q", "k", "v", "table"), grads, expected_grads):
            torch.testing.assert_close(grad, target, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"grad {n}: {m}")


def test_chunks_do_not_change_the_result(monkeypatch):
    """Catches a chunk boundary that drops or doubles a block, at a length that is never round (549)."""
    inputs = make_inputs(2, (4, 14, 14), 549, 56, 1, 3, per_sample=True)
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    whole, _ = edge_attention(*inputs)
    whole_grads = torch.autograd.grad((whole * weight).sum(), inputs[:4])
    monkeypatch.setattr(sparsity, "_CHUNK_ELEMENTS", 1)
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
