"""What a pushed repository has besides the model: an endpoint handler, a notebook, and results for leaderboards."""

import json
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..evaluation.report import EvaluationReport

TEMPLATES = Path(__file__).parent / "templates"


def is_dual_encoder(folder: Path) -> bool:
    """Whether AutoModel of a saved folder compares clips with texts: not a classifier, which has no text tower."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "SViTTEgoForVideoClassification" not in (config.get("architectures") or [])


def endpoint_handler() -> bytes:
    """`handler.py`, which Inference Endpoints call."""
    return (TEMPLATES / "handler.py").read_bytes()


def notebook(repo_id: str) -> bytes:
    """`notebook.ipynb`, which the Hub opens in Colab: a clip made on the spot, compared with narrations."""
    cells = [
        (
            "markdown",
            f"# {repo_id}\n\n"
            "A [SViTT-Ego](https://arxiv.org/abs/2406.09462) model: clips and narrations in one space.",
        ),
        ("code", "# %pip install -q transformers torchvision av  # in Colab, remove the first #"),
        (
            "code",
            "import torch\n"
            "from transformers import AutoModel, AutoProcessor\n\n"
            f"name = {repo_id!r}\n"
            "model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()\n"
            "processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)",
        ),
        ("markdown", "A clip of two seconds to try with. Upload your own and change `path`."),
        (
            "code",
            "import av\n"
            "import numpy as np\n\n"
            'path = "clip.mp4"\n'
            'with av.open(path, "w") as container:\n'
            '    stream = container.add_stream("libx264", rate=15)\n'
            '    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"\n'
            "    for i in range(30):\n"
            "        picture = np.full((96, 128, 3), 60, dtype=np.uint8)\n"
            "        picture[30:66, 3 * i : 3 * i + 36] = (220, 120, 40)  # a square that moves to the right\n"
            '        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))\n'
            "    container.mux(stream.encode(None))",
        ),
        (
            "code",
            'narrations = ["#C C picks up the cup", "#C C puts down the cup", "#C C opens the box"]\n'
            "inputs = processor(\n"
            '    videos=[{"path": path, "start": 0.0, "end": 2.0}], text=narrations, return_tensors="pt"\n'
            ")\n"
            "with torch.no_grad():\n"
            "    probabilities = model(**inputs).logits_per_video.softmax(-1)\n"
            "print(dict(zip(narrations, probabilities[0].tolist())))",
        ),
    ]
    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "cells": [_cell(number, kind, source) for number, (kind, source) in enumerate(cells)],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _cell(number: int, kind: str, source: str) -> dict:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def leaderboard_results(evaluations: Iterable[EvaluationReport], datasets: dict[str, str]) -> dict[str, bytes]:
    """
    `.eval_results/<benchmark>.yaml` for each evaluation whose benchmark has a data set on the Hub.

    Args:
        datasets (`dict[str, str]`): benchmark to the data set that has its leaderboard, such as
            `{"egomcq": "USER/egomcq"}`. A benchmark without one gets no file.

    Raises:
        ValueError: an evaluation that changed the input or used other data than the benchmark's, which must not be on
            a leaderboard.
    """
    files: dict[str, bytes] = {}
    for evaluation in evaluations:
        dataset = datasets.get(evaluation.benchmark)
        if dataset is None:
            continue
        if evaluation.condition or evaluation.dataset:
            raise ValueError(
                f"The evaluation on {evaluation.benchmark} is of {evaluation.dataset or 'the benchmark'} "
                f"({evaluation.condition or 'as it is'}): it does not belong on the leaderboard of {dataset}."
            )
        if not evaluation.checkpoint_sha256:
            raise ValueError(
                f"The evaluation on {evaluation.benchmark} does not record its weights (checkpoint_sha256), so it "
                "cannot be shown to be of this model. Evaluate the folder with `svitt-ego evaluate`."
            )
        notes = ", ".join(
            f"{name}: {value}"
            for name, value in (("frames", evaluation.num_frames), ("scoring", evaluation.scoring_mode))
            if value is not None
        )
        entries = [
            EvalResultEntry(dataset, metric, round(value, 4), date=evaluation.date, notes=notes)
            for metric, value in evaluation.shown().items()
        ]
        files[f".eval_results/{evaluation.benchmark}.yaml"] = yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False
        ).encode()
    missing = sorted(set(datasets) - {evaluation.benchmark for evaluation in evaluations})
    if missing:
        raise ValueError(f"There is no evaluation on {', '.join(missing)} for the leaderboard.")
    return files
