"""Prediction files of EgoNLQ as the challenge takes them and as VSLNet, GroundNLQ, OSGNet and Moment-DETR write them.

    challenge    {"version", "challenge", "results": [{clip_uid, annotation_uid, query_idx, predicted_times}, …]}
    VSLNet       the same; windows are [start, end], best first
    GroundNLQ    the same; windows are [start, end, score]
    OSGNet       both forms, with scores and (`…_noscore.json`) without
    a list       the results alone, without the object around them
    JSON lines   a result per line; also with the names of Moment-DETR: vid, qid (annotation_uid and query_idx, joined
                 by "_") and pred_relevant_windows

Times are seconds from the start of the clip. Where windows have scores, they are ranked by them.
"""

import json
import os

from ..files.json_records import array, integer, read_json, record, seconds, text

Predictions = dict[tuple[str, str, int], list[tuple[float, float]]]

CHALLENGE = "ego4d_nlq_challenge"


def read_predictions(path: str | os.PathLike) -> Predictions:
    """
    Windows in seconds, best first, by (clip_uid, annotation_uid, query_idx).

    Raises:
        ValueError: The file is of no known form, a query is predicted twice, or a window is malformed; the result is
            named by its number.
    """
    path = os.fspath(path)
    result: Predictions = {}
    for number, item in enumerate(_results(path)):
        where = f"{path!r}, result {number}"
        item = record(item, where)
        key = _key(item, where)
        if key in result:
            raise ValueError(f"{where}: query {key} is predicted twice.")
        name = "predicted_times" if "predicted_times" in item else "pred_relevant_windows"
        result[key] = _windows(array(item.get(name), f"{where}, {name}"), where)
    return result


def _results(path: str) -> list:
    if path.lower().endswith(".jsonl"):
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file if line.strip()]
        try:
            return [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path!r} is not a file of JSON lines: {error}") from None
    content = read_json(path)
    if isinstance(content, list):
        return content
    content = record(content, f"{path!r}")
    if content.get("challenge", CHALLENGE) != CHALLENGE:
        raise ValueError(f"{path!r} is of the challenge {content['challenge']!r}, expected {CHALLENGE!r}.")
    return array(content.get("results"), f"{path!r}, results")


def _key(item: dict, where: str) -> tuple[str, str, int]:
    clip = text(item.get("clip_uid", item.get("vid")), f"{where}, clip_uid")
    if "annotation_uid" in item:
        annotation, index = item["annotation_uid"], item.get("query_idx")
    else:  # "<annotation_uid>_<query_idx>"
        joined = text(item.get("qid", item.get("query_id")), f"{where}, annotation_uid or qid")
        annotation, _, number = joined.rpartition("_")
        if not annotation or not (number.isascii() and number.isdigit()):
            raise ValueError(f"{where}: {joined!r:.80} is not an annotation_uid and a query_idx joined by '_'.")
        index = int(number)
    return clip, text(annotation, f"{where}, annotation_uid"), integer(index, f"{where}, query_idx")


def _windows(windows: list, where: str) -> list[tuple[float, float]]:
    lengths = {len(array(window, f"{where}, predicted_times")) for window in windows}
    if not lengths <= {2} and not lengths <= {3}:
        raise ValueError(f"{where}: {windows!r:.100} are not all windows of a start and an end, or all with a score.")
    rows = [[seconds(value, f"{where}, start, end or score") for value in window] for window in windows]
    if lengths == {3}:
        rows.sort(key=lambda row: -row[2])  # stable: equal scores keep their order
    return [(row[0], row[1]) for row in rows]


__all__ = ["CHALLENGE", "Predictions", "read_predictions"]
