"""The attention kernels by themselves: errors against float64, and milliseconds of one layer."""

import functools
import math

import torch
import torch.nn.functional as F

from modeling_svitt_ego.model.edge_triton import triton_attention
from modeling_svitt_ego.model.sparsity import RelativePositions, edge_attention_reference, local_blocks, random_blocks

from .bench import Bench


def make_inputs(batch, window, kept, size, heads, dim, dtype, per_sample, device):
    """q, k, v, table, positions, block ids, block size; 1 local and 3 random blocks."""
    generator = torch.Generator().manual_seed(0)
    total = math.prod(window)
    order = [
        torch.randperm(total, generator=generator)[:kept].sort().values for _ in range(batch if per_sample else 1)
    ]
    positions = RelativePositions.from_token_ids(torch.stack(order).to(device), window)
    q, k, v = (torch.randn(batch, kept + 1, heads, dim, generator=generator) for _ in range(3))
    q, k, v = (x.to(device, dtype).transpose(1, 2).requires_grad_() for x in (q, k, v))
    table = torch.randn(positions.num_offsets + 3, heads, generator=generator).to(device).requires_grad_()
    num_blocks = math.ceil(kept / size)
    seed = torch.tensor(7, device=device)
    ids = torch.cat([local_blocks(num_blocks, 1, device=device), random_blocks(seed, 0, num_blocks, 1, 3)], dim=1)
    return q, k, v, table, positions, ids, size


def correctness(bench: Bench):
    """Relative errors of the output and of every gradient against the float64 reference."""
    shape = (3, (1, 4, 4), 13, 5, 1, 16) if bench.is_dry else (4, (4, 14, 14), 549, 56, 12, 64)
    for dtype in (torch.bfloat16, torch.float32):
        for per_sample in (False, True):
            q, k, v, table, positions, ids, size = make_inputs(*shape, dtype, per_sample, bench.device)
            leaves = [x.detach().double().requires_grad_() for x in (q, k, v, table)]
            expected, _ = edge_attention_reference(*leaves, positions, ids, size)
            grad = torch.randn_like(expected).to(dtype)
            expected_grads = torch.autograd.grad(expected, leaves, grad.double())
            out, _ = triton_attention(q, k, v, table, positions, ids, size)
            grads = torch.autograd.grad(out, (q, k, v, table), grad)
            errors = [
                f"{((a.double() - b).norm() / b.norm()).item():.1e}"
                for a, b in zip((out, *grads), (expected, *expected_grads))
            ]
            key = f"{str(dtype)[6:]}, ids {'per clip' if per_sample else 'shared'}"
            yield key, dict(zip(("output", "q", "k", "v", "table"), errors))
        bench.release()


def attention_alone(bench: Bench):
    """One layer's attention, forward and backward, next to FlashAttention over all pairs without bias."""
    if bench.is_dry:
        cases = {"n=13": (2, (1, 4, 4), 13, 5, 1, 16, torch.float32, True)}
    else:
        base = (56, 12, 64, torch.bfloat16)
        cases = {
            "n=1568, B=32": (32, (8, 14, 14), 1568, *base, False),
            "n=1097 after pruning, B=32": (32, (8, 14, 14), 1097, *base, True),
            "n=784, B=32": (32, (4, 14, 14), 784, *base, False),
            "n=6272, B=8": (8, (32, 14, 14), 6272, *base, False),
        }
    for name, case in cases.items():
        bench.needs(15)
        q, k, v, table, positions, ids, size = make_inputs(*case, bench.device)
        grad = torch.randn_like(q)
        edge = functools.partial(triton_attention, q, k, v, table, positions, ids, size)
        found = _times(bench, "edge", lambda edge=edge: edge()[0], (q, k, v, table), grad)
        flash = functools.partial(F.scaled_dot_product_attention, q, k, v)
        found |= _times(bench, "flash", flash, (q, k, v), grad)
        del edge, flash
        yield name, found
        bench.release()


def _times(bench: Bench, name: str, function, leaves, grad) -> dict[str, float | None]:
    with torch.no_grad():
        forward = bench.milliseconds(function, rounds=10)
    out = function()
    backward = bench.milliseconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True), rounds=10)
    return {f"{name} forward ms": forward, f"{name} backward ms": backward}
