"""What only a GPU shows of the kernels. `pytest -m gpu tests`."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoVisionConfig, SViTTEgoVisionModel
from modeling_svitt_ego.model.edge_triton import KERNEL_DEVICES, triton_attention
from modeling_svitt_ego.model.sparsity import RelativePositions, edge_attention_reference
from tests.helpers.tiny_model import assert_same_gradients, gradients, with_weights

from .test_edge_kernels import assert_close_in_norm, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled kernels need a GPU"),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def on_gpu(per_sample, dtype, batch=4, dim=64):
    q, k, v, table, positions, ids, size = make_inputs(batch, (4, 14, 14), 549, 56, 1, 3, per_sample, dim, heads=3)
    leaves = [x.to("cuda", dtype).requires_grad_() for x in (q, k, v)] + [table.cuda().requires_grad_()]
    return leaves, RelativePositions(positions.window, positions.codes.cuda()), ids.cuda(), size


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per-sample"])
@pytest.mark.parametrize("dim", [24, 64, 128])
def test_output_and_every_gradient_equal_the_float64_reference(per_sample, dtype, dim):
    """Catches what the interpreter does not show: a race, a layout, a launch that the card refuses."""
    leaves, positions, ids, size = on_gpu(per_sample, dtype, dim=dim)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected, _ = edge_attention_reference(*exact, positions, ids, size)
    grad = torch.randn_like(expected).to(dtype)
    out, _ = triton_attention(*leaves, positions, ids, size)
    assert_close_in_norm(out, expected, TOLERANCE[dtype], "output")
    targets = torch.autograd.grad(expected, exact, grad.double())
    for name, x, target in zip(("q", "k", "v", "table"), torch.autograd.grad(out, leaves, grad), targets):
        assert_close_in_norm(x, target, TOLERANCE[dtype], f"gradient of {name}")


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per-sample"])
def test_the_deterministic_table_gradient_repeats_to_the_bit(per_sample):
    """Catches sums whose order the scheduler decides."""
    leaves, positions, ids, size = on_gpu(per_sample, torch.bfloat16, batch=16)
    torch.use_deterministic_algorithms(True)
    try:
        out, _ = triton_attention(*leaves, positions, ids, size)
        grad = torch.randn_like(out)
        first, *others = (torch.autograd.grad(out, leaves, grad, retain_graph=True) for _ in range(4))
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))
    finally:
        torch.use_deterministic_algorithms(False)


def small_tower():
    torch.manual_seed(0)
    config = SViTTEgoVisionConfig(
        num_frames=4, hidden_size=128, num_attention_heads=2, intermediate_size=256, num_hidden_layers=3,
        prune_layers=[1], num_random_blocks=13, drop_path_rate=0.0, layer_scale_init_value=1.0,
    )  # fmt: skip
    return with_weights(SViTTEgoVisionModel._from_config(config, attn_implementation="sdpa")).train().cuda()


def train(model, function):
    clips = torch.randn(2, 4, 3, 224, 224, generator=torch.Generator().manual_seed(1)).cuda()
    out = function(clips)
    (out.pooler_output.square().sum() + out.last_hidden_state.square().mean()).backward()
    return gradients(model)


def test_the_tower_on_kernels_equals_the_tower_on_plain_operations():
    model = small_tower()
    found = train(model, model)
    KERNEL_DEVICES.discard("cuda")
    try:
        expected = train(model, model)
    finally:
        KERNEL_DEVICES.add("cuda")
    assert_same_gradients(expected, found, rtol=1e-2, atol=1e-3)


def test_the_tower_compiles_to_one_graph_and_trains():
    """Catches what inductor refuses: its index arithmetic asserted on the blocks of plain operations (torch 2.11)."""
    torch._dynamo.reset()
    model = small_tower()
    expected = train(model, model)
    found = train(model, torch.compile(model, fullgraph=True))
    assert_same_gradients(expected, found, rtol=1e-2, atol=1e-3)
