"""The kernels between a layer's products, in triton's interpreter on a CPU. Run by .ci/run."""

import pytest
import torch

from modeling_svitt_ego.model.fused_layer import is_fusable
from modeling_svitt_ego.training.memory_plan import SavedBytes
from tests.helpers.tiny_model import assert_same_gradients, gradients, tiny_vision_model

from .conftest import kernels_on_cpu, only_interpreted

pytestmark = only_interpreted


class Case:
    """One layer of 2 clips of 13 patches whose attention is on blocks, so that the rest alone is under test."""

    def __init__(self, prunes=False, autocast=False, **fields):
        model = tiny_vision_model("eager", num_hidden_layers=2, num_random_blocks=None, **fields)
        self.layer = model.layers[1].train()
        self.num_kept = 9 if prunes else None
        self.autocast = autocast
        generator = torch.Generator().manual_seed(1)
        self.states = torch.randn(2, 14, 32, generator=generator)
        self.weight = torch.randn(2, 14 if not prunes else 10, 32, generator=generator)

    def run(self, create_graph=False):
        """The output, and the gradients of the input and of every weight."""
        states = self.states.clone().requires_grad_()
        torch.manual_seed(3)  # drop path
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out, _ = self.layer(states, torch.arange(13)[None], 1, None, self.num_kept, torch.tensor(5))
        if create_graph:
            (gradient,) = torch.autograd.grad((out * self.weight).sum(), states, create_graph=True)
            gradient.square().sum().backward()
        else:
            (out * self.weight).sum().backward()
        return out.detach(), gradients(self.layer) | {"states": states.grad}

    def on_kernels(self, **options):
        with kernels_on_cpu():
            assert is_fusable(self.layer, self.states) or self.autocast
            return self.run(**options)


@pytest.mark.parametrize("drop", [0.0, 0.5], ids=["no-drop", "drop-path"])
@pytest.mark.parametrize("prunes", [False, True], ids=["all-tokens", "pruning"])
def test_a_layer_on_kernels_equals_the_layer_on_modules(prunes, drop):
    """Catches a residual, LayerScale, drop path factor, bias or norm that a kernel or its backward loses."""
    case = Case(prunes, drop_path_rate=drop)
    expected, expected_gradients = case.run()
    out, found = case.on_kernels()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(expected_gradients, found, rtol=1e-4, atol=1e-5)


def test_autocast_is_as_near_to_float32_as_the_modules_are():
    """Catches products in another precision than autocast's, and sums that are rounded in between."""
    _, exact = Case().run()
    out, usual = Case(autocast=True).run()
    found_out, found = Case(autocast=True).on_kernels()
    assert found_out.dtype == out.dtype == torch.float32
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        error, of_modules = ((g[name] - exact[name]).norm() / exact[name].norm() for g in (found, usual))
        assert error <= 2 * of_modules + 1e-3, name


def test_second_derivatives_are_those_of_the_modules():
    """Catches a gradient penalty through the kernels that is silently wrong."""
    case = Case()
    _, expected = case.run(create_graph=True)
    _, found = case.on_kernels(create_graph=True)
    assert_same_gradients(expected, found, rtol=1e-3, atol=1e-4)


def test_frozen_weights_get_no_gradient():
    case = Case()
    for name, parameter in case.layer.named_parameters():
        parameter.requires_grad_("layernorm" in name or "fc1.bias" in name)
    _, expected = case.run()
    _, found = case.on_kernels()
    assert_same_gradients(expected, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["attention.q_proj", "mlp", "mlp.fc2", "layernorm_after"])
def test_hooked_layers_are_called_as_modules(part):
    """Catches offloading and recorders being passed by."""
    case, called = Case(), []
    case.layer.get_submodule(part).register_forward_hook(lambda *_: called.append(part))
    with kernels_on_cpu():
        assert not is_fusable(case.layer, case.states)
        case.run()
    assert called == [part]


def test_no_more_is_kept_for_the_backward_than_without_kernels():
    """Catches a normalised or activated state that is kept: beyond the cast weights and two statistics per norm."""
    totals = []
    for fused in (False, True):
        case = Case(autocast=True)
        with SavedBytes(case.layer.parameters()) as saved:
            case.on_kernels() if fused else case.run()
        totals.append(saved.total)
    cast = sum(p.numel() * 2 for name, p in case.layer.named_parameters() if "proj.weight" in name or "fc1" in name)
    statistics = 2 * 2 * 2 * 14 * 4
    assert totals[1] <= totals[0] + cast + statistics
