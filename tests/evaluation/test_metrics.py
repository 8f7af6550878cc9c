"""The metrics on matrices one can check by eye, and against slow independent implementations."""

import numpy as np
import pytest

from modeling_svitt_ego.data.frame_order import wrong_order
from modeling_svitt_ego.evaluation.bootstrap import bootstrap_intervals, cluster_weights, weighted_mean
from modeling_svitt_ego.evaluation.classification_metrics import classification_accuracy, classification_intervals
from modeling_svitt_ego.evaluation.egomcq_metrics import egomcq_accuracy, egomcq_intervals, is_intra_video
from modeling_svitt_ego.evaluation.egonlq_metrics import VARIANTS, egonlq_intervals, egonlq_recall, temporal_iou
from modeling_svitt_ego.evaluation.ek100_metrics import (
    average_precision,
    ek100_intervals,
    ek100_per_query,
    ek100_relevance,
    ek100_retrieval,
    normalised_dcg,
)

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


# ── EgoMCQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_egomcq_accuracy_by_hand():
    """Catches inter and intra swapped, as several published evaluators have them."""
    metrics = egomcq_accuracy(SCORES, ANSWERS, IS_INTRA)
    assert metrics["inter"] == pytest.approx(100 * 2 / 3)
    assert metrics["intra"] == 100.0
    assert (metrics["num_questions"], metrics["num_inter"], metrics["num_intra"]) == (4, 3, 1)
    assert metrics["num_ties"] == 0 and metrics["inter_ties_by_expectation"] == metrics["inter"]


def test_a_collapsed_model_gets_nothing_and_chance_by_expectation():
    """Catches ties that count as right when the answer happens to be the first choice."""
    metrics = egomcq_accuracy(np.ones((10, 5)), np.zeros(10, dtype=int), np.arange(10) % 2 == 0)
    assert metrics["inter"] == metrics["intra"] == 0.0 and metrics["num_ties"] == 10
    assert metrics["inter_ties_by_expectation"] == pytest.approx(20.0)
    assert metrics["intra_ties_by_expectation"] == pytest.approx(20.0)


def test_a_tie_between_two_counts_half_by_expectation_and_only_with_the_answer():
    scores = np.array([[1.0, 1, 0, 0, 0], [1, 1, 0, 0, 0]])
    metrics = egomcq_accuracy(scores, np.array([1, 2]), np.zeros(2, dtype=bool))
    assert metrics["inter"] == 0.0 and metrics["inter_ties_by_expectation"] == 25.0


def test_a_question_whose_clips_were_not_read_is_wrong_and_no_tie():
    scores = np.stack([np.full(5, -np.inf), SCORES[0]])
    metrics = egomcq_accuracy(scores, np.array([0, 0]), np.zeros(2, dtype=bool))
    assert metrics["inter"] == metrics["inter_ties_by_expectation"] == 50.0 and metrics["num_ties"] == 0


def test_no_question_of_a_kind_gives_none_not_zero():
    assert egomcq_accuracy(SCORES, ANSWERS, np.zeros(4, dtype=bool))["intra"] is None


def test_scores_that_are_not_numbers_are_refused():
    """Catches argmax of NaN, which is index 0 and would look like a score."""
    broken = SCORES.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 20 scores"):
        egomcq_accuracy(broken, ANSWERS, IS_INTRA)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"answers \(3,\) and is_intra \(4,\)"):
        egomcq_accuracy(SCORES, ANSWERS[:3], IS_INTRA)
    with pytest.raises(ValueError, match="there are 5 choices"):
        egomcq_accuracy(SCORES, ANSWERS + 1, IS_INTRA)


def test_kind_of_a_question_comes_from_its_videos_and_types_must_agree():
    videos = [["a"] * 5, ["a", "b", "c", "d", "e"], ["a", "a", "a", "a", "b"]]
    assert is_intra_video(videos).tolist() == [True, False, False]
    assert is_intra_video(videos, [2, 1, 1]).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="2 of 3 questions .* question 0: type 1, 1 video"):
        is_intra_video(videos, [1, 2, 1])
    with pytest.raises(ValueError, match=r"types holds \[0\]"):
        is_intra_video(videos, [2, 1, 0])


def test_wrong_order_is_a_permutation_and_never_the_right_one():
    for seed in range(200):
        order = wrong_order(4, seed)
        assert sorted(order) == [0, 1, 2, 3] and list(order) != [0, 1, 2, 3]
    assert list(wrong_order(4, 5)) == list(wrong_order(4, 5))
    assert list(wrong_order(1, 0)) == [0]


# ── EgoNLQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ANSWER_WINDOWS = [(0.0, 10.0), (20.0, 30.0), (5.0, 5.0), (50.0, 60.0)]
PREDICTIONS = [
    [(0.0, 4.0), (0.0, 9.0)],  # IoU 0.4, then 0.9
    [(20.0, 23.0)] + [(90.0, 95.0)] * 4 + [(20.0, 30.0)],  # 0.3 exactly is no hit; the perfect one is sixth
    [(5.0, 5.0)],  # an answer without length cannot be hit
    None,
]


def test_egonlq_recall_by_hand_in_all_denominators():
    """Catches >= for >, ranks beyond K, and missing queries that leave the denominator without the name saying so."""
    recall = egonlq_recall(PREDICTIONS, ANSWER_WINDOWS)
    assert [recall["num_queries" + v] for v in VARIANTS] == [4, 3, 3, 2]
    assert [recall["r1_iou0.3" + v] for v in VARIANTS] == pytest.approx([25, 100 / 3, 100 / 3, 50])
    assert [recall["r1_iou0.5" + v] for v in VARIANTS] == [0, 0, 0, 0]
    assert [recall["r5_iou0.5" + v] for v in VARIANTS] == pytest.approx([25, 100 / 3, 100 / 3, 50])
    assert recall["mean_r1"] == 12.5


def test_temporal_iou_by_hand():
    windows = [(0, 10), (5, 15), (10, 20), (3, 3), (0, 100)]
    assert temporal_iou(windows, (0, 10)) == pytest.approx([1, 1 / 3, 0, 0, 0.1])
    assert temporal_iou([(3, 3), (2, 4)], (3, 3)).tolist() == [0, 0]


def test_egonlq_without_any_prediction_is_zero_of_all_and_none_of_the_given():
    recall = egonlq_recall([None, []], ANSWER_WINDOWS[:2])
    assert recall["mean_r1"] == 0.0 and recall["mean_r1_given"] is None and recall["num_queries_given"] == 0


@pytest.mark.parametrize(
    "windows, message",
    [([(3.0, 1.0)], "ends before it starts"), ([(1.0, np.nan)], "finite"), ([1.0, 2.0], "not a list")],
)
def test_egonlq_refuses_windows_that_are_none(windows, message):
    with pytest.raises(ValueError, match=f"query 0.*{message}|{message}.*query 0"):
        egonlq_recall([windows], [(0.0, 1.0)])


# ── EPIC-KITCHENS-100 ──────────────────────────────────────────────────────────────────────────────────────────────


def test_ek100_relevance_by_hand():
    relevance = ek100_relevance([1, 2], [[5], [5, 6, 6]], [1, 2, 3], [[5], [6, 7], [8]])
    assert relevance == pytest.approx(np.array([[1.0, 0.0, 0.0], [0.25, 0.5 + 1 / 6, 0.0]]))


def test_ek100_metrics_by_hand():
    """One query; ranked by score its relevances are 0.5, 1, 0, 1."""
    scores, relevance = np.array([[0.9, 0.5, 0.7, 0.1]]), np.array([[0.5, 0.0, 1.0, 1.0]])
    assert average_precision(scores, relevance) == pytest.approx([(1.5 / 2 + 2.5 / 4) / 2])
    assert average_precision(scores, relevance, strict=True) == pytest.approx([(1 / 2 + 2 / 4) / 2])
    log = np.log2
    ideal = 1 + 1 / log(3) + 0.5 / log(4)  # three relevances above 0: the ranking is cut there too
    assert normalised_dcg(scores, relevance) == pytest.approx([(0.5 + 1 / log(3) + 0 / log(4)) / ideal])
    assert normalised_dcg(scores, relevance, strict=True) == pytest.approx([(1 / log(3)) / (1 + 1 / log(3))])


def test_ek100_average_and_directions():
    relevance = np.eye(3)
    metrics = ek100_retrieval(relevance, relevance)
    assert metrics["map"] == metrics["ndcg"] == metrics["map_strict"] == 100.0
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])  # every clip ranks the texts 0, 1, 2; texts tie over clips
    metrics = ek100_retrieval(scores, relevance)
    assert metrics["map_video_to_text"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)
    assert metrics["map_text_to_video"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)
    assert metrics["map"] == pytest.approx((metrics["map_video_to_text"] + metrics["map_text_to_video"]) / 2)


def test_ek100_query_with_nothing_to_find_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries .* row 1"):
        ek100_retrieval(np.ones((2, 2)), np.array([[1.0, 0.5], [0.5, 0.5]]))


def epic_like_world(num_clips, seed=0):
    """
    Verbs and noun sets of clips, and for each sentence the clip that it is named by; one sentence per action.

    The classes follow Zipf's law, as those of EPIC-KITCHENS-100 do roughly: 97 verbs, 300 nouns, a tenth of the clips
    with two nouns. With 9,668 clips the exponents give about 3,500 sentences (the benchmark has 3,842).
    """
    rng = np.random.default_rng(seed)
    verb_law, noun_law = (np.arange(1, n + 1.0) ** -s for n, s in ((97, 1.4), (300, 1.0)))
    verbs = rng.choice(97, num_clips, p=verb_law / verb_law.sum())
    nouns = [
        sorted({int(x) for x in rng.choice(300, 1 + (rng.random() < 0.1), p=noun_law / noun_law.sum())})
        for _ in range(num_clips)
    ]
    named = list({(int(verb), *noun): i for i, (verb, noun) in enumerate(zip(verbs, nouns))}.values())
    return verbs, nouns, np.array(named), rng


def relevance_between(verbs, nouns, rows, columns):
    return ek100_relevance(verbs[rows], [nouns[i] for i in rows], verbs[columns], [nouns[i] for i in columns])


def slow_map_and_ndcg(scores, relevance):
    """One query at a time, in plain Python."""
    precisions, gains = [], []
    for row, truth in zip(scores.tolist(), relevance.tolist()):
        order = sorted(range(len(row)), key=lambda j: -row[j])
        above, total, hits = 0.0, 0.0, 0
        for rank, j in enumerate(order, start=1):
            above += truth[j]
            if truth[j] == 1:
                hits += 1
                total += above / rank
        precisions.append(total / hits)
        cut = sum(value > 0 for value in truth)
        dcg = sum(truth[j] / np.log2(rank + 1) for rank, j in enumerate(order[:cut], start=1))
        best = sorted(truth, reverse=True)[:cut]
        gains.append(dcg / sum(value / np.log2(rank + 1) for rank, value in enumerate(best, start=1)))
    return 100 * np.mean(precisions), 100 * np.mean(gains)


def test_ek100_metrics_equal_a_slow_implementation():
    verbs, nouns, named, rng = epic_like_world(150)
    relevance = relevance_between(verbs, nouns, np.arange(150), named)
    scores = rng.random(relevance.shape)
    metrics = ek100_retrieval(scores, relevance)
    slow = slow_map_and_ndcg(scores, relevance) + slow_map_and_ndcg(scores.T, relevance.T)
    ours = [metrics[f"{m}_{d}"] for d in ("video_to_text", "text_to_video") for m in ("map", "ndcg")]
    assert ours == pytest.approx(slow)


def expected_at_random(relevance):
    """
    Exact means over all rankings, in per cent: official mAP and nDCG.

    A hit at rank k has k - 1 random others above it, of mean relevance (sum - 1) / (n - 1); its rank is uniform. The
    DCG of a row is its mean relevance times the discounts within the cut.
    """
    n, total = relevance.shape[1], relevance.sum(axis=1)
    harmonic = (1 / np.arange(1, n + 1)).sum() / n
    precision = harmonic + (total - 1) / (n - 1) * (1 - harmonic)
    discounts = np.cumsum(1 / np.log2(np.arange(n) + 2))
    cut = (relevance > 0).sum(axis=1)
    ideal = (-np.sort(-relevance, axis=1) / np.log2(np.arange(n) + 2)).sum(axis=1)
    return 100 * precision.mean(), 100 * (total / n * discounts[cut - 1] / ideal).mean()


def test_random_scores_get_their_exact_expectation():
    """At the benchmark's size; catches the soft and the strict form mixed up, and a ranking that is not cut."""
    verbs, nouns, named, rng = epic_like_world(9668)
    clips, texts = rng.choice(9668, 300, replace=False), rng.choice(named, 300, replace=False)
    for rows, columns in ((clips, named), (texts, np.arange(9668))):
        relevance = relevance_between(verbs, nouns, rows, columns)
        scores = rng.random(relevance.shape, dtype=np.float32)
        found = [100 * f(scores, relevance).mean() for f in (average_precision, normalised_dcg)]
        assert found == pytest.approx(expected_at_random(relevance), rel=0.05)
        assert 100 * average_precision(scores, relevance, strict=True).mean() < 1


def test_known_random_row_is_what_such_classes_give():
    """
    The official evaluator gives random scores mAP 5.7 / 5.6 and nDCG 10.8 / 11.0 (clips to sentences / back).

    The real classes are not here: the two exponents of `epic_like_world` were fitted to this row. So this says only
    that one plausible law gives all four numbers at once, not that the real files do.
    """
    verbs, nouns, named, rng = epic_like_world(9668)
    clips, texts = rng.choice(9668, 1500, replace=False), rng.choice(named, 1500, replace=False)
    row = [
        *expected_at_random(relevance_between(verbs, nouns, clips, named)),
        *expected_at_random(relevance_between(verbs, nouns, texts, np.arange(9668))),
    ]
    assert row == pytest.approx([5.7, 10.8, 5.6, 11.0], rel=0.1)


# ── classification ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_classification_accuracy_by_hand():
    """Catches top-1 reported as mean class accuracy: class 0 is frequent and always right."""
    scores = np.eye(7)[[0, 0, 0, 1, 0]] * 2 + np.linspace(0.5, 0, 7)
    labels = np.array([0, 0, 0, 1, 6])  # the last is wrong, and its class is the last of seven
    metrics = classification_accuracy(scores, labels)
    assert metrics["top1"] == 80.0 and metrics["top5"] == 80.0
    assert metrics["mean_class"] == pytest.approx(100 * 2 / 3)
    assert metrics["num_classes"] == 7 and metrics["num_classes_seen"] == 3


def test_classification_ties_and_unread_clips_are_wrong():
    scores = np.array([[1.0, 1.0, 0.0], [-np.inf] * 3, [0.0, 1.0, 0.0]])
    metrics = classification_accuracy(scores, np.array([0, 0, 1]))
    assert metrics["top1"] == pytest.approx(100 / 3) and metrics["top5"] == pytest.approx(200 / 3)


# ── intervals ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bootstrap_draws_whole_videos():
    """Catches resampling of items: the items of a video always have the same weight."""
    weights = cluster_weights(["a", "b", "a", "c", "b"], num_draws=50)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert ((weights[:, 0] + weights[:, 1] + weights[:, 3]) == 3).all() and weights.std() > 0


def test_interval_covers_the_mean_and_knows_that_items_of_a_video_are_alike():
    rng = np.random.default_rng(0)
    per_video = rng.normal(size=40)
    values, videos = np.repeat(per_video, 25), np.repeat(np.arange(40), 25)
    low, high = bootstrap_intervals({"mean": weighted_mean(values)}, videos)["mean"]
    assert low < values.mean() < high
    # The standard error is that of 40 videos, not of 1,000 items.
    assert (high - low) / 2 == pytest.approx(1.96 * per_video.std() / np.sqrt(40), rel=0.2)
    again = bootstrap_intervals({"mean": weighted_mean(values)}, videos)["mean"]
    assert again == [low, high]


def test_interval_is_as_wide_as_its_confidence_says():
    """Catches intervals of 90 % under the name of 95 %: the mean of 1000 coins has a standard error of 0.0158."""
    mean = {"mean": weighted_mean(np.arange(1000) % 2)}
    for confidence, deviations in ((0.95, 1.960), (0.9, 1.645), (0.5, 0.674)):
        low, high = bootstrap_intervals(mean, range(1000), num_draws=4000, confidence=confidence)["mean"]
        assert abs((high - low) / 2 - deviations * 0.5 / 1000**0.5) < 0.002


def test_interval_of_one_video_is_none():
    assert bootstrap_intervals({"mean": weighted_mean(np.arange(3))}, ["a"] * 3) == {"mean": None}


def test_intervals_of_each_benchmark_hold_the_metric():
    """Catches an interval of another quantity, or on another scale, than the number it belongs to."""
    rng = np.random.default_rng(1)
    videos = [f"v{i % 12}" for i in range(240)]

    def check(intervals, metrics):
        assert intervals
        for name, (low, high) in intervals.items():
            assert low < metrics[name] < high and high - low < 40, name

    scores, answers = rng.random((240, 5)), np.arange(240) % 5
    scores[np.arange(240), answers] += 0.3
    intra = np.arange(240) % 3 == 0
    check(egomcq_intervals(scores, answers, intra, videos, num_draws=200), egomcq_accuracy(scores, answers, intra))

    starts = rng.random((240, 1)) * 10
    truth = np.hstack([starts, starts + 10])
    guesses = [[(s - 4, s + 4)] if i % 9 else None for i, s in enumerate(truth.mean(axis=1) + rng.normal(0, 4, 240))]
    check(egonlq_intervals(guesses, truth, videos, num_draws=200), egonlq_recall(guesses, truth))

    labels = rng.integers(0, 8, 240)
    scores = rng.random((240, 8)) + np.eye(8)[labels] * 0.3
    check(classification_intervals(scores, labels, videos, num_draws=200), classification_accuracy(scores, labels))

    verbs, nouns, named, _ = epic_like_world(240, seed=2)
    relevance = relevance_between(verbs, nouns, np.arange(240), named)
    scores = rng.random(relevance.shape) + relevance
    text_videos = [f"v{i % 12}" for i in range(relevance.shape[1])]
    per_query = ek100_per_query(scores, relevance)
    check(ek100_intervals(per_query, videos, text_videos, num_draws=200), ek100_retrieval(scores, relevance))
