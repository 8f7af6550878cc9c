"""Losses with relevance against slow implementations of their definitions, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from modeling_svitt_ego.evaluation.ek100_metrics import ek100_relevance
from modeling_svitt_ego.model.losses import info_nce
from modeling_svitt_ego.training.relevance_losses import (
    adaptive_max_margin,
    soft_info_nce,
    symmetric_multi_similarity,
    tag_relevance,
)
from modeling_svitt_ego.training.schedules import parse_schedule


def batch(rows=7, seed=0):
    """Cosines and relevances of `rows` pairs whose texts were drawn among the relevant ones: not symmetric."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, rows, generator=generator, dtype=torch.float64) * 2 - 1
    relevance = torch.randint(0, 5, (rows, rows), generator=generator).double() / 4
    relevance.fill_diagonal_(0.75)
    relevance[0, 0] = 1.0
    return scores.requires_grad_(), relevance


def slow_mean(scores, relevance, cost):
    """Mean over both directions and all i != j of cost(own score, other score, own relevance, other relevance)."""
    total, count = 0.0, 0
    for matrix, weights in ((scores, relevance), (scores.T, relevance.T)):
        for i in range(len(matrix)):
            for j in range(len(matrix)):
                if i != j:
                    total = total + cost(matrix[i, i], matrix[i, j], float(weights[i, i]), float(weights[i, j]))
                    count += 1
    return total / count


def assert_same_loss_and_gradient(loss, scores, slow):
    (fast_gradient,) = torch.autograd.grad(loss, scores)
    (slow_gradient,) = torch.autograd.grad(slow, scores)
    assert_close(loss, slow)
    assert_close(fast_gradient, slow_gradient)


@pytest.mark.parametrize("scaled_by", ["negative", "positive"])
def test_adaptive_max_margin_equals_its_definition(scaled_by):
    """Catches a margin scaled by the wrong text's relevance, and a direction that is transposed."""
    scores, relevance = batch()

    def cost(own, other, own_relevance, other_relevance):
        margin = 0.3 * (1 - other_relevance if scaled_by == "negative" else own_relevance)
        return torch.clamp(margin - own + other, min=0)

    loss = adaptive_max_margin(scores, scores.T, relevance, relevance.T, 0.3, scaled_by)
    assert_same_loss_and_gradient(loss, scores, slow_mean(scores, relevance, cost))


def test_symmetric_multi_similarity_equals_its_definition():
    """Catches a missing case of the three, and a threshold that is applied to all of them."""
    scores, relevance = batch()
    cases = set()

    def cost(own, other, own_relevance, other_relevance):
        r, d = own_relevance - other_relevance, own - other
        cases.add((r > 0) - (r < 0))
        if r > 0:
            return torch.clamp(0.6 * r - d, min=0)
        if r < 0:
            return torch.clamp(d - 0.6 * r, min=0)
        return torch.clamp(abs(d) - 0.1, min=0)

    slow = slow_mean(scores, relevance, cost)
    assert cases == {-1, 0, 1}
    loss = symmetric_multi_similarity(scores, scores.T, relevance, relevance.T)
    assert_same_loss_and_gradient(loss, scores, slow)


def test_soft_info_nce_equals_its_definition():
    """Catches weights that are not a distribution, and texts below the threshold that are targets all the same."""
    scores, relevance = batch()

    def one(matrix, weights):
        total = 0.0
        for i, row in enumerate(matrix):
            kept = [float(w) if w > 0.3 else 0.0 for w in weights[i]]
            log_z = torch.log(torch.exp(row).sum())
            total = total - sum(w / sum(kept) * (s - log_z) for w, s in zip(kept, row))
        return total / len(matrix)

    loss = soft_info_nce(scores, scores.T, relevance, relevance.T, threshold=0.3)
    slow = one(scores, relevance) + one(scores.T, relevance.T)
    assert_same_loss_and_gradient(loss, scores, slow)


def test_soft_info_nce_equals_info_nce_without_shared_classes():
    scores, _ = batch()
    own, nothing = torch.eye(7).double(), torch.zeros(7, 7).double()
    for relevance in (own, nothing):  # also pairs that have no classes at all
        assert_close(soft_info_nce(scores, scores.T, relevance, relevance), info_nce(scores, scores.T))


@pytest.mark.parametrize("loss", [adaptive_max_margin, symmetric_multi_similarity, soft_info_nce])
def test_slices_of_the_rows_average_to_the_loss(loss):
    """Catches a mean over columns or a wrong own column in a slice, as gradient caching and processes take them."""
    scores, relevance = batch(8)
    whole = loss(scores, scores.T, relevance, relevance.T)
    halves = [
        loss(scores[r], scores.T[r], relevance[r], relevance.T[r], first=r.start) for r in (slice(0, 4), slice(4, 8))
    ]
    assert_close(sum(halves) / 2, whole)
    assert torch.isfinite(loss(scores.bfloat16(), scores.T.bfloat16(), relevance, relevance.T))


def test_relevance_of_tags_equals_relevance_of_the_csv_files():
    """Catches another IoU in training than in the evaluation; rows without nouns, and several nouns, included."""
    verbs, nouns = [0, 1, 1, 2], [[0, 3], [3], [], [0, 1, 2]]
    text_verbs, text_nouns = [1, 0, 2], [[3], [], [0, 3]]

    def hot(sets, size):
        table = torch.zeros(len(sets), size)
        for row, numbers in enumerate(sets):
            table[row, numbers] = 1
        return table

    found = tag_relevance(
        hot([[v] for v in verbs], 3), hot(nouns, 4), hot([[v] for v in text_verbs], 3), hot(text_nouns, 4)
    )
    np.testing.assert_allclose(found, ek100_relevance(verbs, nouns, text_verbs, text_nouns))
    assert_close(tag_relevance(hot([[0]], 3), hot([[]], 4)), torch.tensor([[0.5]]))


def test_margin_losses_refuse_a_batch_of_one_and_unknown_scales():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="at least 2"):
        symmetric_multi_similarity(one, one, one, one)
    two = torch.ones(2, 2)
    with pytest.raises(ValueError, match="scaled_by"):
        adaptive_max_margin(two, two, two, two, scaled_by="both")


def test_schedules():
    """Catches a period counted twice and a cosine that starts at its lower end."""
    assert parse_schedule(0.2)(0.7) == 0.2
    assert parse_schedule("linear:0.2:0.4")(0.5) == pytest.approx(0.3)
    cosine = parse_schedule("cosine:0.4:0.8:5")
    found = [cosine(progress) for progress in (0, 0.05, 0.1, 0.2, 1)]
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.8, 0.8])
    assert cosine(0.03) == pytest.approx(0.6 + 0.2 * math.cos(0.3 * math.pi))
    for wrong in ("cosine:0.8:0.4:5", "cosine:0.4:0.8", "sine:1:2", "a", "linear:0:inf", "cosine:0:1:0"):
        with pytest.raises(ValueError, match="schedule"):
            parse_schedule(wrong)
    with pytest.raises(ValueError, match="progress"):
        cosine(1.5)
