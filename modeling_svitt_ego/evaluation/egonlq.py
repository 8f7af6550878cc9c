"""EgoNLQ: recall of temporal windows over all queries of the annotations, with or without a prediction."""

import os
from collections.abc import Iterable

import numpy as np
from torch import nn

from ..data.egonlq import load_egonlq, query_flags
from ..data.frame_order import CONDITIONS
from ..features.egonlq_features import EgoNLQFeatures
from ..features.grounding import ground, sliding_window_spans
from .bootstrap import INTERVAL_RULE
from .egonlq_metrics import egonlq_intervals, egonlq_recall
from .egonlq_predictions import Predictions, read_predictions
from .evaluator import Evaluator
from .report import EvaluationReport

COUNTING_RULE = (
    "plain names: all queries of the file, one without a prediction is a miss; *_given: only those with a prediction, "
    "the challenge's denominator; *_with_length: answers of zero length dropped. A hit has an IoU above the threshold"
)


class EgoNLQEvaluator(Evaluator):
    """
    Scores the predictions of a grounding head on EgoNLQ: `evaluator(head)` returns an [`EvaluationReport`].

    Args:
        annotations: `nlq_val.json`.
        features ([`EgoNLQFeatures`] or a path): what `svitt-ego extract … --nlq` made for these queries. The order
            of the frames in their windows is the report's `frame_order`.
        sliding_window (`int`, *optional*): predict by the cosine of windows of this many cells with the query;
            `evaluator(None)` then needs no head.
        batch_size (`int`): queries at once.
    """

    benchmark = "egonlq"
    primary_metric = "mean_r1"

    def __init__(
        self,
        annotations: str | os.PathLike,
        features: EgoNLQFeatures | str | os.PathLike,
        sliding_window: int | None = None,
        batch_size: int = 32,
    ):
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"The sliding window must have at least 1 cell, not {sliding_window}.")
        self.annotations = annotations
        self.dataset = (
            features if isinstance(features, EgoNLQFeatures) else EgoNLQFeatures.from_json(annotations, features)
        )
        self.sliding_window = sliding_window
        self.batch_size = batch_size

    def __call__(self, model: nn.Module | None) -> EvaluationReport:
        # Every process predicts all queries: the head takes seconds, while the features take hours.
        data = self.dataset
        if self.sliding_window is not None:
            spans, mode = sliding_window_spans(data, self.sliding_window), "sliding window"
            rule = (
                f"cosine of the mean feature of {self.sliding_window} cells with the query, then non-maximum "
                "suppression"
            )
        elif model is None:
            raise ValueError("To predict from features, name a grounding head or a sliding window.")
        else:
            spans, mode = ground(model, data, self.batch_size), "grounding head"
            rule = "spans of the trained grounding head"
        settings = data.folder.settings
        return evaluate_egonlq(
            self.annotations,
            dict(zip(query_keys(data.rows), spans)),
            scoring_mode=mode,
            scoring_rule=rule,
            num_frames=settings.num_frames,
            window_rule=f"{settings.windows_per_second:g} windows per second of video",
            frame_order=settings.frame_order,
            condition=CONDITIONS[settings.frame_order],
        )


class PredictionFileEvaluator(Evaluator):
    """
    Scores a prediction file of the EgoNLQ challenge; `evaluator(None)` needs no model.

    Args:
        annotations: `nlq_val.json`.
        predictions: the challenge's prediction file, or one as VSLNet, GroundNLQ or OSGNet write it; see
            egonlq_predictions.py.
    """

    benchmark = "egonlq"
    primary_metric = "mean_r1"

    def __init__(self, annotations: str | os.PathLike, predictions: str | os.PathLike):
        self.annotations = annotations
        self.path = predictions
        self.predictions = read_predictions(predictions)

    def __call__(self, model: nn.Module | None = None) -> EvaluationReport:
        details = {"predictions": os.path.basename(self.path)}
        return evaluate_egonlq(self.annotations, self.predictions, details=details)


def evaluate_egonlq(
    annotations: str | os.PathLike,
    predictions: Predictions,
    scoring_mode: str = "prediction file",
    **protocol,
) -> EvaluationReport:
    """
    The report on predictions for `annotations` (`nlq_val.json`), without its origin.

    Args:
        predictions: windows by query, best first; a prediction for a query that does not exist is an error.
        scoring_mode, protocol: how the predictions were made; fields of [`EvaluationReport`].
    """
    table = load_egonlq(annotations)
    flags = query_flags(table)
    if not flags["has_answer"].all():
        raise ValueError(
            f"{str(annotations)!r}: {int((~flags['has_answer']).sum())} of {len(table)} queries have no answer, so "
            "this split cannot be scored here."
        )
    keys = query_keys(table)
    unknown = sorted(predictions.keys() - set(keys))
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for queries that {str(annotations)!r} does not have: {unknown[0]}."
        )
    answers = np.stack([table["answer_start"], table["answer_end"]], axis=1)
    windows = [predictions.get(key) for key in keys]
    videos = list(table["video_uid"])
    report = EvaluationReport.of_numbers(
        "egonlq",
        egonlq_recall(windows, answers),
        egonlq_intervals(windows, answers, videos),
        ["mean_r1", "r1_iou0.3", "r1_iou0.5", "r5_iou0.3", "r5_iou0.5"],
        interval_rule=INTERVAL_RULE.format(clusters="videos"),
        num_items=len(table),
        scoring_mode=scoring_mode,
        tie_rule=COUNTING_RULE,
        failures={
            "policy": "a query without a prediction is a miss",
            "num_failed": 0,
            "num_items_affected": sum(not window for window in windows),
            "first": [],
        },
        **protocol,
    )
    report.counts["num_queries_without_text"] = int((~flags["has_text"]).sum())
    return report


def query_keys(rows: Iterable[dict]) -> list[tuple[str, str, int]]:
    """(clip_uid, annotation_uid, query_idx) of each query: the prediction file's key."""
    return [(row["clip_uid"], row["annotation_uid"], row["query_idx"]) for row in rows]
