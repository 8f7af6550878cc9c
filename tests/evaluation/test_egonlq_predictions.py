"""Prediction files of EgoNLQ in the forms that published models write."""

import json

import pytest

from modeling_svitt_ego.evaluation.egonlq_predictions import read_predictions

PLAIN = [{"clip_uid": "c", "annotation_uid": "a_1", "query_idx": 2, "predicted_times": [[1.0, 2.0], [0.0, 4.5]]}]
EXPECTED = {("c", "a_1", 2): [(1.0, 2.0), (0.0, 4.5)]}
SCORED = [PLAIN[0] | {"predicted_times": [[0.0, 4.5, 0.1], [1.0, 2.0, 0.9]]}]
DETR = [{"vid": "c", "qid": "a_1_2", "query": "…", "pred_relevant_windows": [[1.0, 2.0, 0.9], [0.0, 4.5, 0.1]]}]


def wrapped(results, **changes):
    return {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": results} | changes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vslnet.json", wrapped(PLAIN)),
        ("groundnlq.json", wrapped(SCORED)),
        ("ensemble.json", wrapped(SCORED, version="10_head_ensemble")),
        ("list.json", PLAIN),
        ("results.jsonl", SCORED),
        ("moment_detr.jsonl", DETR),
    ],
)
def test_every_form_gives_the_same_predictions(tmp_path, name, content):
    """Catches scores taken for times, windows in the file's order where the scores say another, and split names."""
    lines = "\n".join(json.dumps(item) for item in content) if name.endswith("jsonl") else json.dumps(content)
    (tmp_path / name).write_text(lines + "\n")
    assert read_predictions(tmp_path / name) == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrapped(PLAIN + PLAIN), "result 1.*twice"),
        (wrapped(PLAIN, challenge="other"), "challenge 'other'"),
        (wrapped([PLAIN[0] | {"predicted_times": [[1.0, 2.0], [0.0, 4.5, 0.1]]}]), "not all windows"),
        (wrapped([PLAIN[0] | {"predicted_times": [[1.0, 2.0, 3.0, 4.0]]}]), "not all windows"),
        (wrapped([{"vid": "c", "qid": "a1", "pred_relevant_windows": []}]), "joined by '_'"),
        (wrapped([{"clip_uid": "c", "annotation_uid": "a", "query_idx": 0}]), "pred_relevant_windows"),
        ({"version": "1.0"}, "results"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.json")


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match="JSON lines"):
        read_predictions(tmp_path / "p.jsonl")
