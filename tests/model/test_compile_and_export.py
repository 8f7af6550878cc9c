"""torch.compile and torch.export of the video tower."""

import pytest
import torch

from tests.helpers.tiny_model import RAGGED, assert_same_gradients, gradients, tiny_clips, tiny_vision_model

# The graph is what is tested: "aot_eager" traces forward and backward as "inductor" does, without compiling kernels.
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("num_random", [None, 3], ids=["dense", "sparse"])
def test_the_tower_compiles_to_one_graph_in_evaluation(num_random):
    """Catches a graph break (data-dependent python, a generator, a class attribute of an autograd function)."""
    model, clips = tiny_vision_model(num_random_blocks=num_random), tiny_clips()
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True, backend=BACKEND)(clips)
        torch.testing.assert_close(out.last_hidden_state, model(clips).last_hidden_state)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_training_compiles_once_although_every_forward_has_another_pattern():
    """Catches a pattern that is baked into the graph, or one that makes a new graph at each step."""
    model, clips = tiny_vision_model(drop_path_rate=0.0, **RAGGED).train(), tiny_clips()
    compiled = torch.compile(model, fullgraph=True, backend=BACKEND)
    outputs = []
    for _ in range(4):
        out = compiled(clips)
        out.pooler_output.square().sum().backward()
        found = gradients(model)
        outputs.append(out.pooler_output.detach())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len({tuple(out.flatten().tolist()) for out in outputs}) == 4
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_compiled_training_has_the_same_gradients():
    """Catches the hand-written backward being traced wrongly."""
    model, clips = tiny_vision_model(drop_path_rate=0.0, **RAGGED).train(), tiny_clips()
    patterns = [
        model.block_ids(i, torch.arange(n)[None], 4, torch.tensor(3))[:, 1:] for i, n in enumerate((64, 45, 32))
    ]
    results = []
    for function in (model, torch.compile(model, fullgraph=True, backend=BACKEND)):
        out = function(clips, random_patterns=patterns)
        (out.pooler_output.square().sum() + out.last_hidden_state.square().sum()).backward()
        results.append(gradients(model))
    assert_same_gradients(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_tower_compiles_to_kernels():
    """Catches what only the real compiler refuses."""
    model, clips = tiny_vision_model(drop_path_rate=0.0).train(), tiny_clips()
    loss = torch.compile(model, fullgraph=True)(clips).pooler_output.square().sum()
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_random", [None, 3], ids=["dense", "sparse"])
def test_the_tower_exports_with_any_batch_size(num_random, implementation):
    """Catches a batch size or a pruning result baked into the exported program."""
    model = tiny_vision_model(implementation, num_random_blocks=num_random)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (tiny_clips(2),), dynamic_shapes=({0: batch},)).module()
    clips = tiny_clips(5, seed=8)
    with torch.no_grad():
        out, expected = program(clips), model(clips)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output)
    assert torch.equal(out.token_ids[0], expected.token_ids[0])
