"""What a pushed repository has besides the model: each part is run, not only written."""

import base64
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.hub import collection
from modeling_svitt_ego.hub.extras import TEMPLATES, leaderboard_results, notebook
from modeling_svitt_ego.hub.space import write_space
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import NARRATIONS, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("model"), text={"max_position_embeddings": 32})


def load_template(name):
    spec = importlib.util.spec_from_file_location(name, TEMPLATES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_endpoint_handler_gives_the_models_embeddings(folder, tmp_path):
    """Catches a handler that the service starts and that fails at the first request."""
    handler = load_template("handler").EndpointHandler(str(folder))
    write_video(tmp_path / "a.mp4", 40)
    encoded = base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode()
    model, processor = SViTTEgoModel.from_pretrained(folder).eval(), SViTTEgoProcessor.from_pretrained(folder)
    clip = processor(videos=[{"path": str(tmp_path / "a.mp4"), "start": 1.0, "end": 2.0}], return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_video_features(**clip).pooler_output)
        logits = model(**clip, **processor(text=NARRATIONS, return_tensors="pt")).logits_per_video.softmax(-1)
    labels = [text.removeprefix("#C C ") for text in NARRATIONS]
    answer = handler(
        {"inputs": {"videos": [encoded], "start": 1.0, "end": 2.0}, "parameters": {"candidate_labels": labels}}
    )
    torch.testing.assert_close(torch.tensor(answer["video_embeddings"]), expected, rtol=1e-4, atol=1e-5)
    found = torch.tensor([[answer["labels"][0][label] for label in labels]])
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)
    assert len(handler({"inputs": {"text": NARRATIONS}})["text_embeddings"]) == 3
    json.dumps(answer)


@pytest.mark.parametrize(
    "inputs, message",
    [(None, "inputs must be"), ({"text": []}, "inputs must be"), ({"videos": ["?"]}, "is not base64"),
     ({"videos": [base64.b64encode(b"no video").decode()]}, "0.mp4")],
)  # fmt: skip
def test_the_endpoint_handler_answers_bad_requests_in_one_line(inputs, message, folder):
    """Catches a request that ends the endpoint with a traceback."""
    answer = load_template("handler").EndpointHandler(str(folder))({"inputs": inputs})
    assert list(answer) == ["error"] and message in answer["error"]


def test_the_notebook_runs_from_top_to_bottom(folder, tmp_path):
    """Catches a cell that fails for the first reader; run where the package cannot be imported."""
    content = json.loads(notebook("USER/MODEL"))
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    hidden = "import sys\nsys.modules['modeling_svitt_ego'] = None\n"
    script = hidden + "\n".join(code).replace("USER/MODEL", str(folder))
    clean = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "#C C picks up the cup" in done.stdout and content["nbformat"] == 4


def report(**changes):
    fields = {"metrics": {"inter": 50.0, "intra": 40.12346}, "num_frames": 4, "scoring_mode": "dual"}
    return EvaluationReport(
        **(fields | {"benchmark": "egomcq", "date": "2026-11-26", "checkpoint_sha256": "0" * 64} | changes)
    )


def test_leaderboard_results_are_what_the_hub_reads():
    """Catches entries that the Hub's schema refuses, and numbers of another set on a leaderboard."""
    files = leaderboard_results([report()], {"egomcq": "USER/egomcq"})
    entries = yaml.safe_load(files[".eval_results/egomcq.yaml"])
    assert [(e["dataset"]["id"], e["dataset"]["task_id"], e["value"]) for e in entries] == [
        ("USER/egomcq", "inter", 50.0),
        ("USER/egomcq", "intra", 40.1235),
    ]
    assert entries[0]["notes"] == "frames: 4, scoring: dual"
    assert leaderboard_results([report()], {}) == {}
    with pytest.raises(ValueError, match="does not belong on the leaderboard"):
        leaderboard_results([report(dataset="synthetic world")], {"egomcq": "USER/egomcq"})
    with pytest.raises(ValueError, match="does not record its weights"):
        leaderboard_results([report(checkpoint_sha256=None)], {"egomcq": "USER/egomcq"})
    with pytest.raises(ValueError, match="There is no evaluation on ek100"):
        leaderboard_results([report()], {"ek100": "USER/ek100"})


def test_a_collection_takes_the_variants(monkeypatch):
    """Catches a collection that is made twice, or items that are not models."""
    calls = []

    class Api:
        def __init__(self, token=None):
            pass

        def whoami(self):
            return {"name": "jane"}

        def __getattr__(self, name):
            def call(*arguments, **options):
                calls.append((name, arguments, options))
                return type("Found", (), {"slug": "jane/svitt-ego-1"})()

            return call

    monkeypatch.setattr(collection, "HfApi", Api)
    collection.collect_models("SViTT-Ego", ["jane/a", "jane/b"])
    assert [name for name, *_ in calls] == ["create_collection", *["add_collection_item"] * 2, "get_collection"]
    assert calls[0][2]["exists_ok"] and calls[1][2] == {"item_id": "jane/a", "item_type": "model", "exists_ok": True}
    with pytest.raises(ValueError, match="names of models"):
        collection.collect_models("SViTT-Ego", ["a"])


def test_the_space_folder_is_whole(tmp_path, capsys):
    """Catches a Space whose app names no model, or whose README the Hub does not read."""
    assert main(["space", "jane/svitt-ego", str(tmp_path / "space")]) == 0
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "space").iterdir()}
    assert sorted(files) == ["README.md", "app.py", "requirements.txt"]
    assert '"jane/svitt-ego"' in files["app.py"] and "USER/MODEL" not in files["app.py"]
    front = yaml.safe_load(files["README.md"].split("---\n")[1])
    assert front["sdk"] == "gradio" and front["models"] == ["jane/svitt-ego"] and front["app_file"] == "app.py"
    assert main(["space", "jane/svitt-ego", str(tmp_path / "space")]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="neither a folder nor the name"):
        write_space("svitt", tmp_path / "other")
