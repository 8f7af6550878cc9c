"""torch.compile of every class, and torch.export of the video tower."""

import pytest
import torch
from torch._inductor import config as inductor_config

from modeling_svitt_ego import (
    SViTTEgoForMultipleChoice,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
)
from tests.helpers.tiny_model import (
    RAGGED,
    STILL,
    assert_same_gradients,
    gradients,
    tiny_batch,
    tiny_clips,
    tiny_model,
    tiny_vision_model,
)

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


def inputs_with_loss(cls):
    batch = tiny_batch(4)
    if cls is SViTTEgoForVideoClassification:
        return {"pixel_values_videos": batch["pixel_values_videos"], "labels": torch.arange(4) % 2}
    if cls is SViTTEgoForMultipleChoice:
        choices = {key: batch[key].unflatten(0, (2, 2)) for key in ("input_ids", "attention_mask")}
        return choices | {"pixel_values_videos": tiny_clips(2), "labels": torch.tensor([0, 1])}
    return batch | {"return_loss": True}


def with_backends(*cases):
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        ("cls", "backend"),
        [pytest.param(cls, backend, marks=() if fast else slow) for cls, backend, fast in cases],
        ids=lambda value: value if isinstance(value, str) else value.__name__,
    )


@with_backends(
    (SViTTEgoModel, "aot_eager", True),
    (SViTTEgoForPreTraining, "aot_eager", True),
    (SViTTEgoForVideoTextRetrieval, "aot_eager", False),
    (SViTTEgoForMultipleChoice, "aot_eager", False),
    (SViTTEgoForVideoClassification, "aot_eager", False),
    (SViTTEgoModel, "eager", False),
    (SViTTEgoForPreTraining, "eager", False),
    (SViTTEgoModel, "inductor", False),
    (SViTTEgoForVideoTextRetrieval, "inductor", False),
    (SViTTEgoForPreTraining, "inductor", False),
    (SViTTEgoForMultipleChoice, "inductor", False),
    (SViTTEgoForVideoClassification, "inductor", False),
)
def test_every_class_trains_compiled_to_one_graph(cls, backend, monkeypatch):
    """Catches a loss without gradient (folded with its detached copy) and a temperature clamped after its use."""
    # No draw of negatives: from different graphs, rounding could make it another one.
    nearest = lambda logits, positives, *_: logits.masked_fill(positives, -torch.inf).argmax(-1)  # noqa: E731
    monkeypatch.setattr("modeling_svitt_ego.model.matching.sample_hard_negatives", nearest)
    model, inputs = tiny_model(cls, **STILL).train(), inputs_with_loss(cls)
    if hasattr(model, "temperature"):
        torch.nn.init.constant_(model.temperature, 0.9)  # is clamped to 0.5
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for compiled in (False, True):
        model.load_state_dict(start)
        if compiled:
            model.compile(backend=backend, fullgraph=True)
        torch.manual_seed(0)  # masked tokens
        with inductor_config.patch(fallback_random=True):  # inductor would draw other masked tokens
            loss = model(**inputs).loss
            loss.backward()
        results.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    expected, found = results[0][1], results[1][1]
    # A compiled graph gives zeros to what only outputs without loss depend on.
    assert not any(found.pop(name).any() for name in found.keys() - expected.keys())
    assert_same_gradients(expected, found, rtol=1e-3, atol=1e-4)
    if hasattr(model, "temperature"):
        assert model.temperature.item() == 0.5 and found["temperature"] != 0


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
