"""The short examples, run as they are on a tiny model and a few seconds of video."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor
from tests.helpers.tiny_data import egomcq_item, write_json, write_video
from tests.helpers.tiny_folder import save_tiny_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    save_tiny_folder(root / "model", text={"max_position_embeddings": 32})
    for number, uid in enumerate("abcde"):
        write_video(root / "videos" / f"{uid}.mp4", 80, first=3 * number)
    items = [egomcq_item("abcde", answer=1, text="#C C opens the box"), egomcq_item(["a"] * 5, answer=2, text="#C C")]
    write_json(root / "egomcq.json", {str(number): item for number, item in enumerate(items)})
    return root


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"examples/{name}", *map(str, arguments)])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        assert end.code == 0


def test_retrieve_prints_the_best_clips_first(root, monkeypatch, capsys):
    """Catches a ranking that is not by the cosine of the model's embeddings."""
    sentence = "#C C opens the box"
    run("retrieve.py", monkeypatch, sentence, "--model", root / "model", "--videos", root / "videos", "--top-k", 3)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    model, processor = (
        SViTTEgoModel.from_pretrained(root / "model").eval(),
        SViTTEgoProcessor.from_pretrained(root / "model"),
    )
    paths = sorted((root / "videos").glob("*.mp4"))
    batch = processor(videos=[str(path) for path in paths], text=[sentence], return_tensors="pt")
    cosines = (model(**batch).logits_per_text[0] * model.temperature).tolist()
    expected = sorted(zip(cosines, paths), reverse=True)[:3]
    assert [row[1] for row in rows] == [str(path) for _, path in expected]
    assert [float(row[0]) for row in rows] == pytest.approx([cosine for cosine, _ in expected], abs=1e-3)


def test_retrieve_answers_an_empty_folder_in_one_line(root, tmp_path, monkeypatch, capsys):
    with pytest.raises(AssertionError):  # another exit status than 0
        run("retrieve.py", monkeypatch, "box", "--model", root / "model", "--videos", tmp_path)
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"There is no .mp4 file in {tmp_path}.")


def test_evaluate_egomcq_writes_a_report(root, tmp_path, monkeypatch, capsys):
    """Catches an example that no longer fits the evaluator, and shuffled numbers written as the result."""
    options = ["--model", root / "model", "--annotations", root / "egomcq.json", "--videos", root / "videos"]
    run("evaluate_egomcq.py", monkeypatch, *options, "--num-workers", 0, "--output", tmp_path / "result.json")
    assert capsys.readouterr().out.startswith("inter: ")
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["benchmark"] == "egomcq" and report["checkpoint_sha256"] and not report.get("condition")
    assert report["counts"]["num_inter"] == report["counts"]["num_intra"] == 1
