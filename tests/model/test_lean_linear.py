"""Linear layers that keep less: the same values and gradients as torch's own graph, and fewer bytes."""

import pytest
import torch
from torch import nn

from modeling_svitt_ego.model.lean_linear import linears_after
from modeling_svitt_ego.training.memory_plan import SavedBytes
from tests.helpers.tiny_model import RAGGED, assert_same_gradients, gradients, tiny_clips, tiny_vision_model

BEFORE = {"nothing": lambda: None, "layernorm": lambda: nn.LayerNorm(8), "gelu": nn.GELU}
FROZEN = {
    "all trained": (),
    "linear frozen": ("linears",),
    "bias alone": ("before", "linears.0.weight", "scale"),
    "scale alone": ("before", "linears"),
    "input alone": ("before", "linears", "scale"),
}


class Case(nn.Module):
    """`count` linear layers behind something cheap, with LayerScale or without."""

    def __init__(self, before="layernorm", count=1, scaled=False, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.before = BEFORE[before]()
        self.linears = nn.ModuleList(nn.Linear(8, 5, bias=bias and place != 1) for place in range(count))
        self.scale = nn.Parameter(torch.randn(5)) if scaled else None
        self.states = torch.randn(3, 7, 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def by_modules(self, states):
        states = states if self.before is None else self.before(states)
        outputs = [linear(states) for linear in self.linears]
        return outputs if self.scale is None else [self.scale * output for output in outputs]

    def lean(self, states):
        return linears_after(self.before, states, self.linears, self.scale)

    def run(self, forward, autocast=False):
        """The outputs, and the gradient of every trained parameter and of the input."""
        states = self.states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = forward(states)
        sum((output.square() * (1 + place)).sum() for place, output in enumerate(outputs)).backward()
        return outputs, gradients(self) | {"states": states.grad}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("before", BEFORE)
def test_values_are_equal_to_the_bit_and_every_gradient_to_rounding(before, scaled, frozen):
    """Catches a gradient that is lost or given to a frozen weight, and a LayerScale that is left out of one."""
    case = Case(before, 1, scaled).double()
    case.states = case.states.double()
    for name, parameter in case.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN[frozen]))
    expected, expected_gradients = case.run(case.by_modules)
    outputs, found = case.run(case.lean)
    assert torch.equal(outputs[0], expected[0])
    assert_same_gradients(expected_gradients, found, rtol=1e-12, atol=1e-12)


def test_several_layers_share_one_input():
    """Catches q, k and v mixed up, one without a bias among them."""
    case = Case("layernorm", 3).double()
    case.states = case.states.double()
    expected, expected_gradients = case.run(case.by_modules)
    outputs, found = case.run(case.lean)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected))
    assert "linears.1.bias" not in found and len(found) == 8
    assert_same_gradients(expected_gradients, found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("before", BEFORE)
def test_autocast_gives_the_values_of_the_modules_and_gradients_as_near_to_float32(before):
    """Catches products in another precision than autocast's, and gradients that its backward would not round so."""
    case = Case(before, 1, scaled=True)
    _, exact = case.run(case.by_modules)
    expected, expected_gradients = case.run(case.by_modules, autocast=True)
    outputs, found = case.run(case.lean, autocast=True)
    assert outputs[0].dtype == expected[0].dtype and torch.equal(outputs[0], expected[0])
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        error, usual = ((g[name] - exact[name]).norm() / exact[name].norm() for g in (found, expected_gradients))
        assert error <= 2 * usual + 1e-3, name


@pytest.mark.parametrize("before", ["layernorm", "gelu"])
def test_second_derivatives_are_torchs_own(before):
    """Catches a gradient penalty that is silently wrong: the loss is a sum, so no incoming gradient requires one."""
    found = []
    for name in ("by_modules", "lean"):
        case = Case(before, 1, scaled=True).double()
        states = case.states.double().requires_grad_()
        (outputs,) = getattr(case, name)(states)
        (gradient,) = torch.autograd.grad(outputs.sum(), states, create_graph=True)
        leaves = [states, case.scale, case.linears[0].weight]
        found.append(torch.autograd.grad(gradient.square().sum(), leaves))
    for expected, gradient in zip(*found):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_hooked_and_replaced_layers_are_called():
    """Catches adapters, quantised layers, recorders and offloading being passed by."""
    case = Case("layernorm", 2)
    called = []
    case.linears[1].register_forward_hook(lambda *_: called.append("hook"))
    case.lean(case.states)

    case = Case("layernorm")
    case.before.forward = lambda states: called.append("own forward") or states
    assert torch.equal(case.lean(case.states)[0], case.linears[0](case.states))

    class Linear(nn.Module):  # PEFT's has this name too, and is no nn.Linear
        weight, bias = case.linears[0].weight, None

        def forward(self, states):
            called.append("replaced")
            return states

    linears_after(None, case.states, [Linear()])
    assert called == ["hook", "own forward", "replaced"]


def test_a_layer_of_the_tower_keeps_ten_numbers_per_token_where_torch_keeps_eighteen():
    """Catches an input kept again. 4 layers of 65 tokens, MLP 4 times as wide: 10 of 18 shares."""
    saved = {}
    for name in ("lean", "torch's own"):
        model = tiny_vision_model(
            num_hidden_layers=4, hidden_size=64, intermediate_size=256, keep_rate=1.0, drop_path_rate=0.0
        )
        if name != "lean":
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(lambda *_: None)
        with SavedBytes(model.parameters()) as bytes_saved:
            model(tiny_clips(16))
        saved[name] = bytes_saved.total
    states = 16 * 65 * 64 * 4
    assert saved["torch's own"] - saved["lean"] == pytest.approx(4 * 8 * states, rel=0.05)
    assert saved["lean"] < 4 * 11.5 * states  # logsumexp, norms' statistics, the clip and its embeddings besides


def test_the_towers_gradients_are_those_of_torchs_own_graph():
    """Catches drop path, pruning or the fused attention in between changing what a layer's parts receive."""
    found = []
    for hooked in (False, True):
        model = tiny_vision_model(drop_path_rate=0.5, num_random_blocks=7, **RAGGED).double().train()
        if hooked:
            for module in model.modules():
                module.register_forward_hook(lambda *_: None)
        torch.manual_seed(3)
        out = model(tiny_clips(8).double())
        (out.pooler_output.square().sum() + out.last_hidden_state.square().mean()).backward()
        found.append(gradients(model))
    assert_same_gradients(*found, rtol=1e-10, atol=1e-12)
