"""Video classification: zero-shot by prompts of the classes, or by a trained classifier with one head or several.

In zero-shot classification, the embedding of a class is the normalised mean over its prompts (every template with
every word of the class), and the score of a clip is its cosine with that embedding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.labelled_clips import LabelledClips, with_actions
from ..data.taxonomy import Taxonomy
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .bootstrap import INTERVAL_RULE
from .classification_metrics import accuracy_of_hits, hits, intervals_of_hits, pair_hits
from .encoding import EncodedClips, Encoder, EncoderSettings
from .evaluator import ClipEvaluator
from .multilabel_metrics import mean_average_precision, mean_average_precision_intervals
from .prompts import PLACEHOLDERS, TEMPLATES, check_template, class_words, make_prompts, plain_words
from .report import EvaluationReport


@dataclass(frozen=True)
class Task:
    """
    Args:
        name (`str`): `verb`, `noun`, `action` (verb and noun together) or `label`.
        prompts (`list[list[str]]`): for each class its sentences.
        labels (`np.ndarray` of shape `(num_clips,)`): the right class of each clip; or a mask `(num_clips,
            num_classes)` where a clip may have several.
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
    The tasks that these clips have labels for: `label`, or `verb`, `noun` and `action` if their taxonomies are given.
    The classes of `action` are the pairs that occur. Without a taxonomy, the tasks whose classes the files name.
    """
    templates = {**TEMPLATES, **(templates or {})}
    for name, group in templates.items():
        for template in group:
            check_template(template, *PLACEHOLDERS[name])
    if "label" in clips.classes:
        prompts = [make_prompts(templates["label"], label=plain_words(name)) for name in clips.label_names]
        return [Task("label", prompts, clips.classes["label"])]
    if clips.names and verbs is None and nouns is None:
        named = {head: names for head in clips.classes if (names := clips.class_names(head))}
        return [
            Task(head, _named_prompts(head, names, templates), clips.classes[head]) for head, names in named.items()
        ]
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


def _named_prompts(head: str, names: Sequence[str], templates: dict[str, Sequence[str]]) -> list[list[str]]:
    """For each class its sentences, from its name alone."""
    words = [plain_words(name).lower() for name in names]
    if head == "verb":
        return [make_prompts(templates["verb"], verbs=[word]) for word in words]
    if head == "noun":
        return [make_prompts(templates["noun"], nouns=[word]) for word in words]
    return [make_prompts(templates["label"], label=word) for word in words]


def class_embeddings(encoder: Encoder, model: nn.Module, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Normalised mean embedding of each class's prompts, `(num_classes, projection_dim)`."""
    embeds = encoder.texts(model, [sentence for group in prompts for sentence in group], desc="prompts")
    ends = np.cumsum([len(group) for group in prompts])
    means = np.stack([embeds[end - len(group) : end].mean(axis=0) for end, group in zip(ends, prompts)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class ClassificationEvaluator(ClipEvaluator):
    """Base class of [`ZeroShotEvaluator`] and [`HeadEvaluator`]."""

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
        self.benchmark = clips.benchmark
        super().__init__(clips.table, video_root, processor, num_frames, settings, accelerator, **fields)

    def primary_metrics(self, task: str) -> list[str]:
        """What papers report of a task, the benchmark's own metric first."""
        names = [self.clips.metric] if self.clips.metric in ("top1", "map") else [self.clips.metric, "top1"]
        return [metric_name(task, name) for name in names]

    def _classification_report(
        self,
        scores: dict[str, np.ndarray],
        labels: dict[str, np.ndarray],
        clips: EncodedClips,
        pair_task: str | None = None,
        **fields,
    ) -> EvaluationReport:
        """
        Args:
            scores, labels: of each task `(num_clips, num_classes)` and `(num_clips,)`. Metrics are named
                `<task>_top1`, …, and those of the task `label` have no prefix.
            pair_task (`str`, *optional*): name for the action by the product of the probabilities of verb and noun.
        """
        scores = {task: np.where(clips.failed[:, None], -np.inf, table) for task, table in scores.items()}
        numbers: dict[str, int | float] = {}
        intervals: dict[str, list[float] | None] = {}
        for task, table in scores.items():
            self._add_task(task, *self._measure(table, labels[task]), numbers, intervals)
        if pair_task is not None:
            verbs, nouns = labels["verb"], labels["noun"]
            sizes = scores["verb"].shape[1], scores["noun"].shape[1]
            found = pair_hits(scores["verb"], scores["noun"], verbs, nouns)
            measured = self._measure_hits(*found, verbs * sizes[1] + nouns, sizes[0] * sizes[1])
            self._add_task(pair_task, *measured, numbers, intervals)
        numbers["num_left_out"] = self.clips.num_left_out
        return self.make_report(
            numbers,
            intervals,
            clips.failures,
            len(clips.failures),
            interval_rule=INTERVAL_RULE.format(clusters="videos"),
            num_items=len(self.dataset),
            tie_rule="the right class counts as ranked below every other of the same score",
            **({"primary_metrics": [self.primary_metric]} | fields),
        )

    def _measure(self, scores: np.ndarray, labels: np.ndarray) -> tuple[dict, dict]:
        """Numbers and intervals of one task."""
        if labels.ndim == 1:
            return self._measure_hits(*hits(scores, labels), labels, scores.shape[1])
        videos = list(self.dataset.table["video_uid"])
        return mean_average_precision(scores, labels), mean_average_precision_intervals(scores, labels, videos)

    def _measure_hits(self, top1, top5, labels: np.ndarray, num_classes: int) -> tuple[dict, dict]:
        videos = list(self.dataset.table["video_uid"])
        return accuracy_of_hits(top1, top5, labels, num_classes), intervals_of_hits(top1, top5, labels, videos)

    @staticmethod
    def _add_task(task: str, found: dict, found_intervals: dict, numbers: dict, intervals: dict) -> None:
        numbers |= {metric_name(task, name): value for name, value in found.items()}
        intervals |= {metric_name(task, name): value for name, value in found_intervals.items()}


class ZeroShotEvaluator(ClassificationEvaluator):
    """
    Classifies clips by the cosine with the prompts of the classes: `evaluator(model)` returns an [`EvaluationReport`].

    Args:
        clips ([`LabelledClips`]): what is classified.
        tasks (sequence of [`Task`]): from [`make_tasks`]; the last one's is the primary metric.
        video_root, processor, num_frames, settings, accelerator, fields: as in [`ClipEvaluator`].
    """

    def __init__(self, clips: LabelledClips, tasks: Sequence[Task], *clip_arguments, **fields):
        self.tasks = tasks
        super().__init__(clips, *clip_arguments, **fields)

    @property
    def primary_metric(self) -> str:
        return self.primary_metrics(self.tasks[-1].name)[0]

    def __call__(self, model: nn.Module) -> EvaluationReport:
        clips = self.encoder.clips(model, self.dataset, desc="clips")
        return self._classification_report(
            {task.name: clips.embeds @ class_embeddings(self.encoder, model, task.prompts).T for task in self.tasks},
            {task.name: task.labels for task in self.tasks},
            clips,
            primary_metrics=self.primary_metrics(self.tasks[-1].name),
            scoring_mode="zero-shot",
            scoring_rule="cosine of the clip with the mean embedding of the class's prompts",
            details={"prompts": {task.name: task.prompts[0] + ["…"] for task in self.tasks}},
        )


class HeadEvaluator(ClassificationEvaluator):
    """
    Classifies clips by a trained classifier: `evaluator(model)` returns an [`EvaluationReport`].

    A classifier with several heads (`config.classifier_heads`) is scored on each head that the clips have classes of,
    and on the action: by the pair of verb and noun, or by a joint head. Of EPIC-KITCHENS-100, whose actions are pairs
    (`config.action_pairs`), a joint head is `action` and the pair `action_of_pair`, and an action that the head has
    not been trained on counts as missed.

    Args:
        clips ([`LabelledClips`]): what is classified.
        task (`str`): whose class numbers a classifier with one head has: `verb`, `noun`, `action` or `label` (matched
            by name).
        video_root, processor, num_frames, settings, accelerator, fields: as in [`ClipEvaluator`].
    """

    def __init__(self, clips: LabelledClips, task: str | None, *clip_arguments, **fields):
        if task is not None and task not in clips.classes:
            raise ValueError(f"The clips have no classes of {task!r}; they have {sorted(clips.classes)}.")
        self.task = task or [*clips.classes][-1]
        super().__init__(clips, *clip_arguments, **fields)

    @property
    def primary_metric(self) -> str:
        pair = {"verb", "noun"} <= self.clips.classes.keys()
        return self.primary_metrics("action" if pair else self.task)[0]

    def __call__(self, model: nn.Module) -> EvaluationReport:
        heads = model.config.head_sizes or {self.task: model.config.num_labels}
        labels = {
            head: self._labels_of(model, head, size) for head, size in heads.items() if head in self.clips.classes
        }
        joint = "action" in heads and model.config.action_pairs is not None and {"verb", "noun"} <= labels.keys()
        if joint:
            actions, pairs = with_actions(self.clips, model.config.action_pairs)
            labels["action"] = actions.classes["action"]
        if not labels:
            raise ValueError(
                f"The classifier's heads are {sorted(heads)}, the clips' are {sorted(self.clips.classes)}."
            )
        clips = self.encoder.clips(model, self.dataset, head=True, desc="clips")
        ends = np.cumsum(list(heads.values()))
        scores = {head: clips.embeds[:, end - size : end] for (head, size), end in zip(heads.items(), ends)}
        if joint:  # no score for what the head has never seen
            unseen = ((0, 0), (0, len(pairs) - heads["action"]))
            scores["action"] = np.pad(scores["action"], unseen, constant_values=-np.inf)
        from_pair = {"verb", "noun"} <= labels.keys() and (joint or "action" not in labels)
        pair_task = "action_of_pair" if joint else "action"
        last = "action" if from_pair else [head for head in self.clips.classes if head in labels][-1]
        return self._classification_report(
            {head: scores[head] for head in labels},
            labels,
            clips,
            pair_task if from_pair else None,
            primary_metrics=self.primary_metrics(last),
            scoring_mode="head",
            scoring_rule="logits of the trained classification head"
            + (f"; {pair_task}: product of the probabilities of verb and noun" if from_pair else ""),
            details={"task": ", ".join(labels)},
        )

    def _labels_of(self, model: nn.Module, task: str, num_classes: int) -> np.ndarray:
        """The right classes in the head's numbering, `(num_clips,)`, or the mask `(num_clips, num_classes)`."""
        labels = self.clips.classes[task]
        if task != "label":
            if labels.max() >= num_classes:
                raise ValueError(f"{task} class {labels.max()} occurs, but the head has {num_classes} classes.")
            return labels
        names, known = self.clips.label_names, model.config.label2id
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"The head has no class {unknown[0]!r}; it has {sorted(known)[:5]} ({len(known)} classes)."
            )
        columns = np.array([known[name] for name in names])
        if labels.ndim == 1:
            return columns[labels]
        mask = np.zeros((len(labels), num_classes), dtype=bool)
        mask[:, columns] = labels
        return mask


def metric_name(task: str, metric: str) -> str:
    """`top1` of the task `label`, `verb_top1` of another."""
    return metric if task == "label" else f"{task}_{metric}"
