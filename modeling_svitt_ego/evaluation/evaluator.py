"""The interface of every benchmark: `evaluator(model)` returns an [`EvaluationReport`].

`SViTTEgoTrainer(evaluator=…)` and `svitt-ego evaluate` take any evaluator.
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import datasets
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from ..data.clips import EgoClipDataset
from ..data.frame_order import CONDITIONS
from ..data.layouts import VideoStore
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .encoding import Encoder, EncoderSettings
from .protocol import describe_crop, describe_failures, describe_window
from .report import EvaluationReport


class Evaluator(ABC):
    """
    Scores a model on one benchmark.

    Attributes:
        benchmark (`str`): Name of the benchmark in the report, such as `egomcq`.
        primary_metric (`str`): The metric that checkpoints are compared by. With the Trainer:
            `metric_for_best_model=f"eval_{evaluator.primary_metric}"`.
        name (`str`): Prefix of the metrics in a Trainer with several evaluators, as in `eval_egomcq_intra`.
        dataset (`torch.utils.data.Dataset`): The data that the model is evaluated on.
        accelerator (`Accelerator`, *optional*): Divides the work over its processes; each item counts once.
    """

    benchmark: str
    primary_metric: str
    dataset: Dataset
    accelerator: Accelerator | None = None
    _name: str | None = None

    @property
    def name(self) -> str:
        return self._name or self.benchmark

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @abstractmethod
    def __call__(self, model: nn.Module) -> EvaluationReport:
        """The report on `model`, without its origin (see [`EvaluationReport.with_origin`])."""


class ClipEvaluator(Evaluator):
    """
    An evaluator that embeds clips of videos.

    Args:
        clips (`datasets.Dataset`): One row per clip with `video_uid`, and `clip_start` and `clip_end` in seconds.
        video_root: Folder of the videos, in any known layout.
        processor ([`SViTTEgoProcessor`]): Processor of the model.
        num_frames (`int`): Frames per clip, which are the middle frames of equally long segments.
        settings ([`EncoderSettings`], *optional*): Settings for reading and embedding clips.
        accelerator (`Accelerator`, *optional*): Divides the clips over its processes; each clip counts once.
        fields: Single fields of the settings, such as `batch_size=8`.
    """

    def __init__(
        self,
        clips: datasets.Dataset,
        video_root: str | os.PathLike,
        processor: SViTTEgoProcessor,
        num_frames: int,
        settings: EncoderSettings | None = None,
        accelerator: Accelerator | None = None,
        **fields,
    ):
        settings = replace(settings or EncoderSettings(), **fields)
        self.processor = processor
        self.num_frames = num_frames
        self.encoder = Encoder(processor, settings, accelerator)
        store, all_frames = VideoStore(video_root, settings.layout), num_frames * settings.views.num_clips
        self.dataset = EgoClipDataset(clips, store, num_frames=all_frames, sampling="middle")

    @property
    def settings(self) -> EncoderSettings:
        return self.encoder.settings

    @property
    def name(self) -> str:
        order = self.settings.frame_order
        return self._name or (self.benchmark if order == "natural" else f"{self.benchmark}_{order}")

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def accelerator(self) -> Accelerator | None:
        return self.encoder.accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        self.encoder.accelerator = accelerator

    def with_settings(self, **fields):
        """A copy of the evaluator with other settings, such as `frame_order="shuffled"`, that shares the clips."""
        other, settings = copy.copy(self), replace(self.settings, **fields)
        other.encoder = Encoder(self.processor, settings, self.accelerator)
        if settings.views.num_clips != self.settings.views.num_clips:
            other.dataset = copy.copy(self.dataset)
            other.dataset.num_frames = self.num_frames * settings.views.num_clips
        return other

    def make_report(
        self,
        numbers: dict[str, int | float],
        intervals: dict[str, list[float] | None],
        failures: Sequence[dict],
        num_items_affected: int,
        **fields,
    ) -> EvaluationReport:
        """
        The report with the part of the protocol that all clip benchmarks share.

        Args:
            numbers, intervals: Results of the metric functions.
            failures: Clips that could not be read, from [`EncodedClips`].
            num_items_affected (`int`): Number of questions or clips that count as wrong because of them.
            fields: Other fields of [`EvaluationReport`].
        """
        shared = {
            "num_frames": self.num_frames,
            "crop": describe_crop(self.processor),
            "window_rule": describe_window(self.num_frames),
            "failures": describe_failures(failures, num_items_affected, self.settings.on_error),
            "frame_order": self.settings.frame_order,
            "condition": CONDITIONS[self.settings.frame_order],
        }
        fields["details"] = {"views": str(self.settings.views)} | fields.get("details", {})
        return EvaluationReport.of_numbers(self.benchmark, numbers, intervals, **(shared | fields))


def by_name(evaluators: Evaluator | Sequence[Evaluator]) -> dict[str, Evaluator]:
    """
    Evaluators by the prefix of their metrics, which is empty if there is only one evaluator.

    Raises:
        ValueError: Two have the same name.
    """
    if isinstance(evaluators, Evaluator):
        return {"": evaluators}
    evaluators = list(evaluators)
    names = [evaluator.name for evaluator in evaluators]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two evaluators are called {twice[0]!r}; set `evaluator.name` of one of them.")
    return dict(zip(names, evaluators))


def run_evaluators(
    evaluators: Evaluator | Sequence[Evaluator],
    model: nn.Module,
    accelerator: Accelerator | None = None,
    prefix: str = "eval",
) -> tuple[dict[str, float], int]:
    """
    Runs every evaluator on `model`.

    Returns:
        Metrics and counts by the names that the Trainer logs (`eval_intra` for one evaluator, `eval_egomcq_intra` for
        several), and the number of items.
    """
    logged: dict[str, float] = {}
    num_items = 0
    for name, evaluator in by_name(evaluators).items():
        evaluator.accelerator = accelerator
        report = evaluator(model)
        start = "_".join(filter(None, [prefix, name]))
        logged |= {f"{start}_{metric}": value for metric, value in report.numbers().items()}
        num_items += report.num_items or 0
    return logged, num_items
