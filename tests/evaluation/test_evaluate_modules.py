"""`evaluate.load(folder)` in a process without a network gives what the pure functions give."""

import json
import os
import subprocess
import sys

import numpy as np

from modeling_svitt_ego.evaluation.classification_metrics import classification_accuracy
from modeling_svitt_ego.evaluation.egomcq_metrics import egomcq_accuracy
from modeling_svitt_ego.evaluation.egonlq_metrics import egonlq_recall
from modeling_svitt_ego.evaluation.ek100_metrics import ek100_retrieval

SCRIPT = """
import json, socket, sys
def refuse(*arguments, **settings): raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = refuse
import evaluate
from modeling_svitt_ego.evaluation.metric_modules import module_path
inputs = json.load(sys.stdin)
results = {name: evaluate.load(module_path(name)).compute(**inputs[name]) for name in inputs}
try:
    evaluate.load(module_path("egomcq")).compute(**inputs["egomcq"] | {"types": [2, 2, 1]})
except ValueError as error:
    results["refused"] = str(error)
print(json.dumps(results))
"""


def test_modules_equal_the_functions_and_load_offline(tmp_path):
    rng = np.random.default_rng(0)
    scores, relevance = rng.random((4, 3)).tolist(), [[1, 0, 0.5], [0, 1, 0.25], [0.5, 0, 1], [1, 0, 0]]
    mcq = {
        "predictions": rng.random((3, 5)).tolist(),
        "references": [0, 3, 4],
        "video_ids": [["a"] * 5, list("abcde"), list("abcdf")],
    }
    nlq = {"predictions": [[[0.0, 4.0], [0.0, 9.0]], []], "references": [[0.0, 10.0], [2.0, 2.0]]}
    inputs = {
        "egomcq": mcq,
        "egonlq": nlq,
        "ek100_retrieval": {"predictions": scores, "references": relevance},
        "top_k_accuracy": {"predictions": scores, "references": [0, 1, 2, 0]},
    }
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(inputs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "type 2, 5 video(s)" in found.pop("refused")
    expected = {
        "egomcq": egomcq_accuracy(mcq["predictions"], mcq["references"], [True, False, False]),
        "egonlq": egonlq_recall(nlq["predictions"], nlq["references"]),
        "ek100_retrieval": ek100_retrieval(np.array(scores), np.array(relevance)),
        "top_k_accuracy": classification_accuracy(np.array(scores), np.array([0, 1, 2, 0])),
    }
    assert found == json.loads(json.dumps(expected))
