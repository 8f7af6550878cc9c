"""Published numbers: every row can be printed next to a report and says its condition and source."""

import numpy as np

from modeling_svitt_ego.evaluation.ek100_metrics import ek100_retrieval
from modeling_svitt_ego.evaluation.published import PUBLISHED
from modeling_svitt_ego.evaluation.report import EvaluationReport


def test_rows_are_complete_and_named_once():
    """Catches a row without its condition, a swapped pair and the same result twice."""
    keys = [(row.benchmark, row.model, row.protocol) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)
    for row in PUBLISHED:
        assert row.protocol and row.source and all(0 < value < 100 for value in row.metrics.values()), row
        if row.benchmark == "egomcq":
            assert row.metrics["inter"] > row.metrics["intra"], row
        if row.benchmark == "egonlq":
            assert row.metrics["r1_iou0.3"] > row.metrics["r1_iou0.5"], row


def test_a_printed_comparison_does_not_end_in_2023():
    """Catches rows that do not reach the table, and metrics under other names than this package's."""
    names = ek100_retrieval(np.eye(2), np.eye(2))
    text = EvaluationReport("ek100", {"map": 50.0, "ndcg": 60.0}, ["map", "ndcg"], 9, "dual").table()
    for row in PUBLISHED:
        if row.benchmark == "ek100":
            assert row.metrics.keys() <= names.keys() and row.protocol in text and row.source in text
    assert "TempRet" in text and "EVA02-AT-L + SMS" in text
