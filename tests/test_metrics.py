"""The metrics on matrices one can check by eye."""

import numpy as np
import pytest

from modeling_svitt_ego.evaluation.egomcq import wrong_order
from modeling_svitt_ego.evaluation.metrics import egomcq_accuracy

SCORES = np.array(
    [
        [0.9, 0.1, 0.1, 0.1, 0.1],  # right
        [0.1, 0.9, 0.1, 0.1, 0.1],  # wrong
        [0.1, 0.1, 0.1, 0.1, 0.8],  # right
        [0.2, 0.1, 0.7, 0.1, 0.1],  # right
    ]
)
ANSWERS = np.array([0, 0, 4, 2])
IS_INTRA = np.array([False, False, True, False])


def test_egomcq_accuracy_by_hand():
    """Catches inter and intra swapped, as several published evaluators have them."""
    metrics = egomcq_accuracy(SCORES, ANSWERS, IS_INTRA)
    assert metrics["inter"] == pytest.approx(100 * 2 / 3)
    assert metrics["intra"] == 100.0
    assert (metrics["num_questions"], metrics["num_inter"], metrics["num_intra"]) == (4, 3, 1)


def test_a_collapsed_model_gets_exactly_chance():
    """Catches ties that count as right when the answer happens to be the first choice."""
    metrics = egomcq_accuracy(np.ones((10, 5)), np.zeros(10, dtype=int), np.arange(10) % 2 == 0)
    assert metrics["inter"] == pytest.approx(20.0) and metrics["intra"] == pytest.approx(20.0)


def test_no_question_of_a_kind_gives_none_not_zero():
    assert egomcq_accuracy(SCORES, ANSWERS, np.zeros(4, dtype=bool))["intra"] is None


def test_scores_that_are_not_numbers_are_refused():
    """Catches argmax of NaN, which is index 0 and would look like a score."""
    broken = SCORES.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 20 scores"):
        egomcq_accuracy(broken, ANSWERS, IS_INTRA)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\), answers \(3,\)"):
        egomcq_accuracy(SCORES, ANSWERS[:3], IS_INTRA)


def test_wrong_order_is_a_permutation_and_never_the_right_one():
    for seed in range(200):
        order = wrong_order(4, seed)
        assert sorted(order) == [0, 1, 2, 3] and list(order) != [0, 1, 2, 3]
    assert list(wrong_order(4, 5)) == list(wrong_order(4, 5))
    assert list(wrong_order(1, 0)) == [0]
