"""The metrics as `evaluate` modules; each class passes its inputs to the function of the same benchmark.

`evaluate.load(module_path("egomcq"))` works without a network: the folders in `evaluate_modules/` are the modules.
"""

from pathlib import Path

import datasets
import evaluate
import numpy as np

from .classification_metrics import classification_accuracy
from .egomcq_metrics import egomcq_accuracy, is_intra_video
from .egonlq_metrics import egonlq_recall
from .ek100_metrics import ek100_retrieval

_SCORES = datasets.Sequence(datasets.Value("float64"))
_FOLDER = Path(__file__).parent / "evaluate_modules"
MODULES = ("egomcq", "egonlq", "ek100_retrieval", "top_k_accuracy")


def module_path(name: str) -> str:
    """The folder to give to `evaluate.load`."""
    if name not in MODULES:
        raise ValueError(f"There is no metric {name!r}; there are {', '.join(MODULES)}.")
    return str(_FOLDER / name)


class EgoMCQ(evaluate.Metric):
    """Accuracy of inter- and intra-video questions, see [`egomcq_accuracy`]."""

    def _info(self):
        needed = {
            "predictions": _SCORES,  # of a question's choices
            "references": datasets.Value("int64"),  # the right choice
            "video_ids": datasets.Sequence(datasets.Value("string")),  # of the choices: they tell inter from intra
        }
        return evaluate.MetricInfo(
            description=egomcq_accuracy.__doc__,
            citation="EgoVLP, arXiv:2206.01670",
            inputs_description="""
            predictions: scores of each question's choices; references: the right choice; video_ids: of the choices;
            types (optional): 1 inter, 2 intra, which the video ids must confirm.
            """,
            features=datasets.Features(needed),
        )

    def _compute(self, predictions, references, video_ids, types=None):
        return egomcq_accuracy(np.array(predictions), np.array(references), is_intra_video(video_ids, types))


class EgoNLQ(evaluate.Metric):
    """Recall of temporal windows in all denominators, see [`egonlq_recall`]."""

    def _info(self):
        window = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=egonlq_recall.__doc__,
            citation="Ego4D, arXiv:2110.07058",
            inputs_description="predictions: each query's windows (start, end), best first; references: (start, end)",
            features=datasets.Features({"predictions": datasets.Sequence(window), "references": window}),
        )

    def _compute(self, predictions, references):
        return egonlq_recall(predictions, references)


class EK100Retrieval(evaluate.Metric):
    """Multi-instance mAP and nDCG, see [`ek100_retrieval`]; a prediction and its reference are rows of a clip."""

    def _info(self):
        return evaluate.MetricInfo(
            description=ek100_retrieval.__doc__,
            citation="EPIC-KITCHENS-100, arXiv:2006.13256",
            inputs_description="predictions: a clip's scores of all sentences; references: its relevance to them",
            features=datasets.Features({"predictions": _SCORES, "references": _SCORES}),
        )

    def _compute(self, predictions, references):
        return ek100_retrieval(np.array(predictions), np.array(references))


class TopKAccuracy(evaluate.Metric):
    """Top-1, top-5 and mean class accuracy, see [`classification_accuracy`]."""

    def _info(self):
        return evaluate.MetricInfo(
            description=classification_accuracy.__doc__,
            citation="",
            inputs_description="predictions: scores of the classes; references: the right class",
            features=datasets.Features({"predictions": _SCORES, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return classification_accuracy(np.array(predictions), np.array(references))
