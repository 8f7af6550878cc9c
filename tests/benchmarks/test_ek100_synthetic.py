"""The table of the EK-100 benchmark from runs whose numbers are known."""

import importlib

import pytest

benchmark = importlib.import_module("ek100_synthetic")


def run_of(method, objective, seed, mean_ap):
    scored = {"map": mean_ap, "ndcg": mean_ap / 2}
    metrics = {"zero_shot": scored, "dual": scored, "rerank": {"map": mean_ap + 1, "ndcg": 0.0}}
    options = {"relevance_threshold": 0.1}
    counts = {"num_train_clips": 9, "num_test_clips": 5, "trainable_share": 2.5}
    return {"method": method, "objective": objective, "seed": seed, "metrics": metrics, "options": options, **counts}


def test_means_and_deviations_over_the_seeds():
    """Catches seeds of different methods in one mean, and the deviation of a population in place of a sample's."""
    runs = [run_of("lora", "sms", seed, value) for seed, value in enumerate((70.0, 72.0, 77.0))]
    scored = {scoring: {"map": 60.04, "ndcg": 61.0} for scoring in benchmark.SCORINGS}
    results = benchmark.results_of([*runs, run_of("full", "sms", 0, 80.0)], {"#C C {}": scored})
    full, lora = results["fine_tuned"]
    assert lora["seeds"] == [0, 1, 2] and lora["map_dual"]["mean"] == 73.0
    assert lora["map_dual"]["deviation"] == pytest.approx(13**0.5) and full["map_dual"]["deviation"] is None
    table = benchmark.table_of(results).splitlines()
    assert table[2] == '| zero-shot, "#C C open box" | | | 60.0 | 61.0 | 60.0 | 61.0 |'
    assert table[4].startswith("| lora, 2.5 % | sms | above 0.1 | 73.0 ± 3.6 | 36.5 ± 1.8 | 74.0 ± 3.6 |")


def test_every_run_is_planned_once():
    plan = benchmark.planned([0, 1])
    assert len(set(plan)) == len(plan) == 2 * (len(benchmark.METHODS) * len(benchmark.OBJECTIVES) + 1)
    assert (1, "full", "sms", 0.1) in plan and (1, "full", "sms", 0.99) in plan
