"""Dual softmax and re-ranking on matrices small enough to check by eye."""

import numpy as np
import pytest

from modeling_svitt_ego.evaluation.ek100_metrics import ek100_per_query
from modeling_svitt_ego.evaluation.rescoring import dual_softmax, rerank, top_pairs

SCORES = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.2, 0.7, 0.1], [0.5, 0.4, 0.3, 0.2]])


def test_dual_softmax_equals_the_product_of_both_softmaxes():
    e = np.exp(SCORES / 0.1)
    expected = np.log(e / e.sum(1, keepdims=True) * e / e.sum(0, keepdims=True))
    np.testing.assert_allclose(dual_softmax(SCORES, 0.1), expected)


def test_dual_softmax_does_not_let_one_text_win_every_clip():
    """Clip 1 likes text 0 best, but so does clip 0; only text 2 prefers clip 1 to all others."""
    scores = np.array([[0.9, 0.1, 0.1], [0.8, 0.1, 0.75], [0.1, 0.9, 0.1]])
    assert scores.argmax(1).tolist() == [0, 0, 1]
    assert dual_softmax(scores).argmax(1).tolist() == [0, 2, 1]


def test_an_unread_clip_takes_no_part_in_the_dual_softmax():
    with_unread = np.vstack([SCORES, np.full((1, 4), -np.inf)])
    found = dual_softmax(with_unread)
    np.testing.assert_allclose(found[:3], dual_softmax(SCORES))
    assert np.isneginf(found[3]).all() and not np.isnan(found).any()


def test_top_pairs_are_those_of_both_directions():
    found = top_pairs(SCORES, 1)
    assert found.tolist() == [[0, 0], [0, 1], [1, 0], [1, 2], [2, 0], [2, 3]]
    assert len(top_pairs(SCORES, 9)) == 12  # more than there are: all
    with pytest.raises(ValueError, match="top_k"):
        top_pairs(SCORES, 0)


def test_rerank_orders_the_best_and_leaves_the_rest_behind_them():
    """Catches a second score that lifts a column from outside the best few."""
    second = np.array([[1.0, 2.0, 99.0, 99.0], [2.0, 99.0, 1.0, 99.0], [1.0, 2.0, 99.0, 99.0]])
    found = rerank(SCORES, second, 2)
    assert np.argsort(-found, axis=1).tolist() == [[1, 0, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]]
    np.testing.assert_array_equal(np.argsort(-rerank(SCORES, second, 4)), np.argsort(-second, kind="stable"))


def test_rerank_needs_a_score_for_each_of_the_best():
    second = np.full(SCORES.shape, np.nan)
    second[:, 0] = 1.0
    assert rerank(SCORES, second, 1).argmax(1).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="no finite second score"):
        rerank(SCORES, second, 2)
    unread = np.vstack([SCORES, np.full((1, 4), -np.inf)])
    assert np.isneginf(rerank(unread, np.vstack([second, second[:1] * np.nan]), 1)[3]).all()


def test_each_direction_is_ranked_by_its_own_scores():
    """Catches a text-to-video ranking that is read off the re-ranked video-to-text scores."""
    relevance = np.array([[1.0, 0.0], [0.0, 1.0]])
    right, wrong = relevance.copy(), 1 - relevance
    per_query = ek100_per_query(wrong, relevance, scores_per_text=right.T)
    assert per_query["map_strict"][0].tolist() == [50.0, 50.0]
    assert per_query["map_strict"][1].tolist() == [100.0, 100.0]
