"""Experiment 6's choices of tokens, on tensors that one can check by eye."""

import importlib

import pytest
import torch

from tests.helpers.tiny_model import RAGGED, tiny_clips, tiny_vision_model

pruning = importlib.import_module("experiment_parts.pruning")


def test_farthest_first_takes_one_of_each_group():
    directions = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0], [-1.0, 0.0], [-1.0, 0.01]])
    kept = pruning.farthest_first(directions[None], 3)[0].tolist()
    assert sorted(index // 2 for index in kept) == [0, 1, 2] and kept == sorted(kept)


def test_dropped_tokens_are_averaged_into_the_kept_one_that_is_most_like_them():
    states = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]]])
    merged = pruning.merge_dropped(states, torch.tensor([[0, 1]]))
    assert merged.tolist() == [[[9.0, 9.0], [2.0, 0.0], [0.0, 3.0]]]


def test_novelty_is_the_distance_to_the_most_similar_token_of_the_frames_before_and_after():
    """Catches a search in the token's own frame or two frames away, and one at its own place only."""
    values = torch.tensor([0.0, 10.0, 7.0, 1.0, 7.0, 30.0])  # two patches in each of three frames, as one number each
    assert pruning.novelty(values[None, :, None], torch.arange(6)[None], 2).tolist() == [
        [1.0, 3.0, 0.0, 1.0, 0.0, 23.0]
    ]
    gap = pruning.novelty(values[None, [0, 1, 4, 5], None], torch.tensor([[0, 1, 4, 5]]), 2)
    assert gap.isinf().all()


@pytest.mark.parametrize("name", [None, *pruning.PRUNE])
def test_every_pruner_keeps_as_many_tokens_and_trains(name):
    """Catches a pruner that is never called, or that returns tokens and ids which do not belong together."""
    torch.manual_seed(0)
    model, plain = (tiny_vision_model(num_random_blocks=None, **RAGGED) for _ in range(2))
    pruning.install_pruner(model, name)
    out = model(tiny_clips(2))
    assert [ids.shape for ids in out.token_ids] == [(2, 45), (2, 32)]
    assert all((ids.diff(dim=1) > 0).all() for ids in out.token_ids)
    out.pooler_output.sum().backward()
    assert model.embeddings.patch_projection.weight.grad.isfinite().all()
    if name == "motion":  # the model has it as a field too
        own = tiny_vision_model(num_random_blocks=None, **RAGGED | {"keep_strategy": "motion"})
        assert torch.equal(own(tiny_clips(2)).pooler_output, out.pooler_output)
    changed = not torch.equal(out.pooler_output, plain(tiny_clips(2)).pooler_output)
    assert changed is (name is not None)
