"""Video classification: zero-shot by prompts of the classes, or by a trained classification head.

Zero-shot, a class's text embedding is the mean of its prompts' (every template with every word of the class),
normalised; the score of a clip is its cosine with that.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.labelled_clips import LabelledClips
from ..data.taxonomy import Taxonomy
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .bootstrap import INTERVAL_RULE
from .classification_metrics import classification_accuracy, classification_intervals
from .encoding import EncodedClips, Encoder, EncoderSettings
from .evaluator import ClipEvaluator
from .prompts import PLACEHOLDERS, TEMPLATES, check_template, class_words, make_prompts, plain_words
from .report import EvaluationReport


@dataclass(frozen=True)
class Task:
    """
    Args:
        name (`str`): `verb`, `noun`, `action` (verb and noun together) or `label`.
        prompts (`list[list[str]]`): for each class its sentences.
        labels (`np.ndarray` of shape `(num_clips,)`): the right class of each clip.
    """

    name: str
    prompts: list[list[str]]
    labels: np.ndarray


def make_tasks(
    clips: LabelledClips,
    verbs: Taxonomy | None = None,
    nouns: Taxonomy | None = None,
    templates: dict[str, Sequence[str]] | None = None,
) -> list[Task]:
    """
    What can be asked of these clips: `label`, or `verb`, `noun` and `action` as far as the taxonomies go. The classes
    of `action` are the pairs that occur.
    """
    templates = {**TEMPLATES, **(templates or {})}
    for name, group in templates.items():
        for template in group:
            check_template(template, *PLACEHOLDERS[name])
    if "label" in clips.classes:
        prompts = [make_prompts(templates["label"], label=plain_words(name)) for name in clips.label_names]
        return [Task("label", prompts, clips.classes["label"])]
    words = {}
    for name, taxonomy in (("verb", verbs), ("noun", nouns)):
        if taxonomy is None:
            continue
        words[name] = class_words(taxonomy)
        highest = int(clips.classes[name].max())
        if highest >= len(taxonomy):
            raise ValueError(f"{name} class {highest} occurs, but the taxonomy has {len(taxonomy)} classes.")
    if not words:
        raise ValueError("Zero-shot classification needs the words of the verb or of the noun classes (a taxonomy).")
    tasks = []
    if "verb" in words:
        prompts = [make_prompts(templates["verb"], verbs=group) for group in words["verb"]]
        tasks.append(Task("verb", prompts, clips.classes["verb"]))
    if "noun" in words:
        prompts = [make_prompts(templates["noun"], nouns=group) for group in words["noun"]]
        tasks.append(Task("noun", prompts, clips.classes["noun"]))
    if len(words) == 2:
        pairs, labels = np.unique(
            np.stack([clips.classes["verb"], clips.classes["noun"]], 1), axis=0, return_inverse=True
        )
        # One word each: all of both would be hundreds of sentences for a pair.
        prompts = [
            make_prompts(templates["action"], words["verb"][verb][:1], words["noun"][noun][:1]) for verb, noun in pairs
        ]
        tasks.append(Task("action", prompts, labels.reshape(-1)))
    return tasks


def class_embeddings(encoder: Encoder, model: nn.Module, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Normalised mean embedding of each class's prompts, `(num_classes, projection_dim)`."""
    embeds = encoder.texts(model, [sentence for group in prompts for sentence in group], desc="prompts")
    ends = np.cumsum([len(group) for group in prompts])
    means = np.stack([embeds[end - len(group) : end].mean(axis=0) for end, group in zip(ends, prompts)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class ClassificationEvaluator(ClipEvaluator):
    """What the two ways of classifying labelled clips share: see [`ZeroShotEvaluator`] and [`HeadEvaluator`]."""

    benchmark = "video-classification"

    def __init__(
        self,
        clips: LabelledClips,
        video_root: str | os.PathLike,
        processor: SViTTEgoProcessor,
        num_frames: int,
        settings: EncoderSettings | None = None,
        *,
        accelerator: Accelerator | None = None,
        **fields,
    ):
        self.clips = clips
        super().__init__(clips.table, video_root, processor, num_frames, settings, accelerator, **fields)

    def _classification_report(
        self, scores: dict[str, np.ndarray], labels: dict[str, np.ndarray], clips: EncodedClips, **fields
    ) -> EvaluationReport:
        """
        Args:
            scores, labels: of each task `(num_clips, num_classes)` and `(num_clips,)`. Metrics are named
                `<task>_top1`, …, and those of the task `label` have no prefix.
        """
        videos = list(self.dataset.table["video_uid"])
        numbers: dict[str, int | float] = {}
        intervals: dict[str, list[float] | None] = {}
        for task, table in scores.items():
            prefix = metric_name(task, "")
            table = np.where(clips.failed[:, None], -np.inf, table)
            numbers |= {prefix + name: value for name, value in classification_accuracy(table, labels[task]).items()}
            found = classification_intervals(table, labels[task], videos)
            intervals |= {prefix + name: value for name, value in found.items()}
        numbers["num_left_out"] = self.clips.num_left_out
        return self.make_report(
            numbers,
            intervals,
            clips.failures,
            len(clips.failures),
            primary_metrics=[self.primary_metric],
            interval_rule=INTERVAL_RULE.format(clusters="videos"),
            num_items=len(self.dataset),
            tie_rule="the right class counts as ranked below every other of the same score",
            **fields,
        )


class ZeroShotEvaluator(ClassificationEvaluator):
    """
    Classifies clips by the cosine with the prompts of the classes: `evaluator(model)` returns an [`EvaluationReport`].

    Args:
        clips ([`LabelledClips`]): what is classified.
        tasks (sequence of [`Task`]): from [`make_tasks`]; the last one's top-1 is the primary metric.
        video_root, processor, num_frames, settings, accelerator, fields: as in [`ClipEvaluator`].
    """

    def __init__(self, clips: LabelledClips, tasks: Sequence[Task], *clip_arguments, **fields):
        self.tasks = tasks
        super().__init__(clips, *clip_arguments, **fields)

    @property
    def primary_metric(self) -> str:
        return metric_name(self.tasks[-1].name, "top1")

    def __call__(self, model: nn.Module) -> EvaluationReport:
        clips = self.encoder.clips(model, self.dataset, desc="clips")
        return self._classification_report(
            {task.name: clips.embeds @ class_embeddings(self.encoder, model, task.prompts).T for task in self.tasks},
            {task.name: task.labels for task in self.tasks},
            clips,
            scoring_mode="zero-shot",
            scoring_rule="cosine of the clip with the mean embedding of the class's prompts",
            details={"prompts": {task.name: task.prompts[0] + ["…"] for task in self.tasks}},
        )


class HeadEvaluator(ClassificationEvaluator):
    """
    Classifies clips by a trained head: `evaluator(model)` returns an [`EvaluationReport`].

    Args:
        clips ([`LabelledClips`]): what is classified.
        task (`str`): whose class numbers the head has: `verb`, `noun` or `label` (matched by name).
        video_root, processor, num_frames, settings, accelerator, fields: as in [`ClipEvaluator`].
    """

    def __init__(self, clips: LabelledClips, task: str, *clip_arguments, **fields):
        if task not in clips.classes:
            raise ValueError(f"The clips have no classes of {task!r}; they have {sorted(clips.classes)}.")
        self.task = task
        super().__init__(clips, *clip_arguments, **fields)

    @property
    def primary_metric(self) -> str:
        return metric_name(self.task, "top1")

    def __call__(self, model: nn.Module) -> EvaluationReport:
        labels = self._labels_of(model)
        clips = self.encoder.clips(model, self.dataset, head=True, desc="clips")
        return self._classification_report(
            {self.task: clips.embeds},
            {self.task: labels},
            clips,
            scoring_mode="head",
            scoring_rule="logits of the trained classification head",
            details={"task": self.task},
        )

    def _labels_of(self, model: nn.Module) -> np.ndarray:
        """The right classes in the head's numbering, `(num_clips,)`."""
        labels = self.clips.classes[self.task]
        if self.task != "label":
            if labels.max() >= model.config.num_labels:
                raise ValueError(
                    f"{self.task} class {labels.max()} occurs, but the head has {model.config.num_labels} classes."
                )
            return labels
        names, known = self.clips.label_names, model.config.label2id
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"The head has no class {unknown[0]!r}; it has {sorted(known)[:5]} ({len(known)} classes)."
            )
        return np.array([known[name] for name in names])[labels]


def metric_name(task: str, metric: str) -> str:
    """`top1` of the task `label`, `verb_top1` of another."""
    return metric if task == "label" else f"{task}_{metric}"
