"""EgoNLQ from the challenge's prediction file: every query of the annotations is looked at, predicted or not."""

import os
from collections.abc import Iterable

import numpy as np

from ..data.egonlq import load_egonlq, query_flags
from ..files.json_records import array, integer, read_json, record, seconds, text
from .bootstrap import INTERVAL_RULE
from .egonlq_metrics import egonlq_intervals, egonlq_recall
from .report import EvaluationReport

CHALLENGE = "ego4d_nlq_challenge"
COUNTING_RULE = (
    "plain names: all queries of the file, one without a prediction is a miss; *_given: only those with a prediction, "
    "the challenge's denominator; *_with_length: answers of zero length dropped. A hit has an IoU above the threshold"
)


def read_predictions(path: str | os.PathLike) -> dict[tuple[str, str, int], list[tuple[float, float]]]:
    """The challenge's file → windows in seconds, best first, by (clip_uid, annotation_uid, query_idx)."""
    path = os.fspath(path)
    content = record(read_json(path), f"{path!r}")
    if content.get("challenge", CHALLENGE) != CHALLENGE:
        raise ValueError(f"{path!r} is of the challenge {content['challenge']!r}, expected {CHALLENGE!r}.")
    result: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for number, item in enumerate(array(content.get("results"), f"{path!r}, results")):
        where = f"{path!r}, result {number}"
        item = record(item, where)
        key = (
            text(item.get("clip_uid"), f"{where}, clip_uid"),
            text(item.get("annotation_uid"), f"{where}, annotation_uid"),
            integer(item.get("query_idx"), f"{where}, query_idx"),
        )
        if key in result:
            raise ValueError(f"{where}: query {key} is predicted twice.")
        windows = []
        for window in array(item.get("predicted_times"), f"{where}, predicted_times"):
            if len(array(window, f"{where}, predicted_times")) != 2:
                raise ValueError(f"{where}: {window!r:.100} is not a start and an end.")
            windows.append((seconds(window[0], f"{where}, start"), seconds(window[1], f"{where}, end")))
        result[key] = windows
    return result


def evaluate_egonlq(
    annotations: str | os.PathLike,
    predictions: dict[tuple[str, str, int], list[tuple[float, float]]],
    scoring_mode: str = "prediction file",
    num_frames: int | None = None,
    dataset: str | None = None,
    **protocol,
) -> EvaluationReport:
    """
    The record of predictions for `annotations` (`nlq_val.json`), without its origin.

    Args:
        predictions: from [`read_predictions`], or made on the spot; one for a query that is not there is an error.
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
            f"{len(unknown)} predictions are for queries that {str(annotations)!r} has not: {unknown[0]}."
        )
    answers = np.stack([table["answer_start"], table["answer_end"]], axis=1)
    windows = [predictions.get(key) for key in keys]
    videos = list(table["video_uid"])
    report = EvaluationReport.of_numbers(
        "egonlq",
        egonlq_recall(windows, answers),
        ["mean_r1", "r1_iou0.3", "r1_iou0.5", "r5_iou0.3", "r5_iou0.5"],
        egonlq_intervals(windows, answers, videos),
        interval_rule=INTERVAL_RULE.format(clusters="videos"),
        num_items=len(table),
        num_frames=num_frames,
        scoring_mode=scoring_mode,
        tie_rule=COUNTING_RULE,
        failures={
            "policy": "a query without a prediction is a miss",
            "num_failed": 0,
            "num_items_affected": sum(not window for window in windows),
            "first": [],
        },
        dataset=dataset,
        **protocol,
    )
    report.counts["num_queries_without_text"] = int((~flags["has_text"]).sum())
    return report


def query_keys(rows: Iterable[dict]) -> list[tuple[str, str, int]]:
    """(clip_uid, annotation_uid, query_idx) of each query: the prediction file's key."""
    return [(row["clip_uid"], row["annotation_uid"], row["query_idx"]) for row in rows]


def predict_from_features(
    annotations: str | os.PathLike,
    features: str | os.PathLike,
    head: str | os.PathLike | None = None,
    sliding_window: int | None = None,
) -> tuple[dict[tuple[str, str, int], list[tuple[float, float]]], dict]:
    """
    Predictions, and the protocol for [`evaluate_egonlq`].

    Args:
        features: folder that `svitt-ego extract … --nlq` made for these queries.
        head (*optional*): folder of a [`SViTTEgoForTemporalGrounding`].
        sliding_window (`int`, *optional*): without a head: windows of this many cells, by their cosine with the query.
    """
    # Imported here: grounding needs features, a prediction file does not.
    from ..features.egonlq_features import EgoNLQFeatures
    from ..features.grounding import ground, sliding_window_spans
    from ..model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding

    data = EgoNLQFeatures.from_json(annotations, features)
    if sliding_window is not None:
        if sliding_window < 1:
            raise ValueError(f"The sliding window must have at least 1 cell, not {sliding_window}.")
        spans, mode = sliding_window_spans(data, sliding_window), "sliding window"
        rule = f"cosine of the mean feature of {sliding_window} cells with the query, then non-maximum suppression"
    elif head is not None:
        model, info = SViTTEgoForTemporalGrounding.from_pretrained(head, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(
                f"{str(head)!r} lacks weights of the grounding head: {sorted(info['missing_keys'])[0]!r} …"
            )
        spans, mode, rule = ground(model.eval(), data), "grounding head", "spans of the trained grounding head"
    else:
        raise ValueError("To predict from features, name a grounding head or a sliding window.")
    settings = data.folder.settings
    protocol = {
        "scoring_mode": mode,
        "scoring_rule": rule,
        "num_frames": settings.num_frames,
        "window_rule": f"{settings.windows_per_second:g} windows per second of video",
    }
    return dict(zip(query_keys(data.rows), spans)), protocol
