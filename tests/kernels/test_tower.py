"""The video tower on the kernels, in triton's interpreter on a CPU. Run by .ci/run."""

import pytest
import torch

from modeling_svitt_ego.model.sparsity import random_blocks
from tests.helpers.tiny_model import assert_same_gradients, gradients, tiny_clips, tiny_vision_model

from .conftest import kernels_on_cpu, only_interpreted

pytestmark = only_interpreted
# Two layers of 32 and 23 tokens in blocks of 8.
SMALL = {"num_attention_heads": 2, "num_frames": 2, "drop_path_rate": 0.0, "prune_layers": [0]}


def patterns_of(model):
    """The same blocks in every run, though the forward is a training one."""
    numbers = model.config.tokens_per_layer(2)
    return [random_blocks(torch.tensor(3), layer, -(-n // 8), 1, 1) for layer, n in enumerate(numbers)]


def train(model, function, **options):
    out = function(tiny_clips(2, 2), **options)
    (out.pooler_output.square().sum() + out.last_hidden_state.square().mean()).backward()
    return out, gradients(model)


@pytest.mark.parametrize("num_random", [1, None], ids=["edges", "dense"])
def test_the_tower_on_kernels_equals_the_tower_on_blocks(num_random):
    """Catches a kernel path of a layer that drops a bias, a residual, a scale or a pruned token."""
    model = tiny_vision_model(num_random_blocks=num_random, **SMALL).train()
    options = {} if num_random is None else {"random_patterns": patterns_of(model)}
    with kernels_on_cpu():
        out, found = train(model, model, **options)
    expected, expected_gradients = train(model, model, **options)
    assert torch.equal(out.token_ids[0], expected.token_ids[0])
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert_same_gradients(expected_gradients, found, rtol=1e-3, atol=1e-4)


def test_patterns_of_each_clip_after_pruning_are_followed():
    """Catches temporal edges, which differ between clips after pruning, read from the first clip's pattern."""
    model = tiny_vision_model(num_random_blocks=1, num_temporal_blocks=2, **SMALL)
    with kernels_on_cpu():
        _, found = train(model, model)
    _, expected = train(model, model)
    assert_same_gradients(expected, found, rtol=1e-3, atol=1e-4)


def test_attention_on_kernels_compiles_to_one_graph():
    """Catches an operator without a fake kernel or a backward that torch.compile cannot trace."""
    torch._dynamo.reset()
    model = tiny_vision_model(num_random_blocks=1, **SMALL | {"num_hidden_layers": 1, "prune_layers": []}).train()
    options = {"random_patterns": patterns_of(model)}
    _, expected = train(model, model, **options)
    with kernels_on_cpu():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        _, found = train(model, compiled, **options)
    assert_same_gradients(expected, found, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()
