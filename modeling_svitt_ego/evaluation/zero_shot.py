"""Video classification: zero-shot by prompts of verbs and nouns, or by a trained head.

A class's text embedding is the mean of its prompts' (every template with every word of the class), normalised; the
score of a clip is its cosine with that. The verb stands in the third person, as in the narrations.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from ..data.clips import EgoClipDataset
from ..data.egoclip import load_egoclip
from ..data.epic_kitchens import load_epic_kitchens
from ..data.layouts import VideoStore
from ..data.taxonomy import Taxonomy
from .bootstrap import INTERVAL_RULE
from .classification_metrics import classification_accuracy, classification_intervals
from .encoding import Encoder, describe_crop, describe_failures, describe_window
from .report import EvaluationReport

TEMPLATES = {
    "verb": ("#C C {verb} something", "#C C {verb} it", "#C C {verb} the object"),
    "noun": ("#C C uses the {noun}", "#C C picks up the {noun}", "#C C holds a {noun}"),
    "action": ("#C C {verb} the {noun}", "#C C {verb} a {noun}"),
    "label": ("#C C {label}", "{label}"),
}
LABEL_COLUMNS = ("video_uid", "clip_start", "clip_end", "label")
WORDS_PER_PROMPT = 5  # of a class's words, the first ones: Ego4D's groups have up to dozens, most of them rare


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


@dataclass(frozen=True)
class LabelledClips:
    """
    Args:
        table (`datasets.Dataset`): `video_uid`, `clip_start`, `clip_end`.
        classes (`dict[str, np.ndarray]`): class numbers of every clip: `verb` and `noun`, or `label`.
        label_names (`list[str]`): of the classes of `label`.
        num_left_out (`int`): rows of the file without exactly one verb and one noun.
    """

    table: datasets.Dataset
    classes: dict[str, np.ndarray]
    label_names: list[str] = field(default_factory=list)
    num_left_out: int = 0


def load_labelled_clips(path: str | os.PathLike) -> LabelledClips:
    """
    Clips and their classes, from `egoclip.csv` (rows with one verb and one noun tag), from EPIC-KITCHENS'
    `EPIC_100_validation.csv`, or from a csv with the columns video_uid, clip_start, clip_end (seconds) and label.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}.") from None
    if {"clip_text", "tag_verb", "tag_noun"} <= set(first.split("\t")):
        table = load_egoclip(path, strict=True)
        verbs, nouns = list(table["tag_verb"]), list(table["tag_noun"])
        kept = [i for i, (verb, noun) in enumerate(zip(verbs, nouns)) if len(verb) == len(noun) == 1]
        if not kept:
            raise ValueError(f"{path!r} has no row with exactly one verb and one noun tag, of {len(table)}.")
        classes = {"verb": np.array([verbs[i][0] for i in kept]), "noun": np.array([nouns[i][0] for i in kept])}
        return LabelledClips(_places(table.select(kept)), classes, num_left_out=len(table) - len(kept))
    header = next(csv.reader([first]), [])
    if "narration_id" in header:
        table = load_epic_kitchens(path)
        classes = {"verb": np.array(table["verb_class"]), "noun": np.array(table["noun_class"])}
        return LabelledClips(_places(table), classes)
    if set(LABEL_COLUMNS) <= set(header):
        return _read_labels(path)
    raise ValueError(
        f"{path!r} is no egoclip.csv, no EPIC-KITCHENS csv and no csv with {', '.join(LABEL_COLUMNS)}; its header is "
        f"{first[:200]!r}."
    )


def _places(table: datasets.Dataset) -> datasets.Dataset:
    return table.select_columns(["video_uid", "clip_start", "clip_end"])


def _read_labels(path: str) -> LabelledClips:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path!r} has a header but no rows.")
    clips = []
    for number, row in enumerate(rows, start=2):
        try:
            place = {"video_uid": row["video_uid"], **{k: float(row[k]) for k in ("clip_start", "clip_end")}}
        except (TypeError, ValueError):
            raise ValueError(f"{path!r}, line {number}: clip_start and clip_end must be seconds.") from None
        if not row["label"] or not row["label"].strip():
            raise ValueError(f"{path!r}, line {number}: the label is empty.")
        clips.append(place)
    names = sorted({row["label"].strip() for row in rows})
    labels = np.array([names.index(row["label"].strip()) for row in rows])
    return LabelledClips(datasets.Dataset.from_list(clips), {"label": labels}, names)


def third_person(verb: str) -> str:
    """`"pick up"` → `"picks up"`, `"wash"` → `"washes"`, `"carry"` → `"carries"`; as narrations have it."""
    first, *rest = verb.split()
    if first.endswith(("s", "sh", "ch", "x", "z", "o")):
        first += "es"
    elif first.endswith("y") and first[-2:-1] not in ("", "a", "e", "i", "o", "u"):
        first = first[:-1] + "ies"
    else:
        first += "s"
    return " ".join([first, *rest])


def plain_words(name: str) -> str:
    """Class names as a person says them: `"chopping board"` for `"board:chopping"`, `"turn on"` for `"turn-on"`."""
    return " ".join(reversed(name.split(":"))).replace("-", " ").replace("_", " ").strip()


def class_words(taxonomy: Taxonomy) -> list[list[str]]:
    """For each class its words, the class's own name first, each once."""
    result = []
    for label, group in zip(taxonomy.labels, taxonomy.words):
        # Ego4D writes some names as "take_(pick,_grab,_get)".
        names = [label.split("_(")[0], *group]
        result.append(list(dict.fromkeys(plain_words(name) for name in names if plain_words(name))))
    return result


def make_prompts(
    templates: Sequence[str], verbs: Sequence[str] = ("",), nouns: Sequence[str] = ("",), label: str = ""
):
    """Every template with every verb (in the third person) and every noun of one class, each sentence once."""
    sentences = [
        template.format(verb=third_person(verb) if verb else "", noun=noun, label=label)
        for template in templates
        for verb in verbs[:WORDS_PER_PROMPT]
        for noun in nouns[:WORDS_PER_PROMPT]
    ]
    return list(dict.fromkeys(sentences))


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


def class_embeddings(encoder: Encoder, model, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Normalised mean embedding of each class's prompts, `(num_classes, projection_dim)`."""
    embeds = encoder.texts(model, [sentence for group in prompts for sentence in group], desc="prompts")
    ends = np.cumsum([len(group) for group in prompts])
    means = np.stack([embeds[end - len(group) : end].mean(axis=0) for end, group in zip(ends, prompts)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class VideoClassificationEvaluator:
    """
    Args:
        clips ([`LabelledClips`]): what is classified.
        video_root: where the videos lie, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        layout (`str`, *optional*): of the videos; found by looking otherwise.
        encoder: settings of [`Encoder`].
    """

    def __init__(
        self,
        clips: LabelledClips,
        video_root: str | os.PathLike,
        processor,
        num_frames: int,
        layout: str | None = None,
        **encoder,
    ):
        self.clips = clips
        self.processor = processor
        self.num_frames = num_frames
        self.encoder = Encoder(processor, **encoder)
        store = VideoStore(Path(video_root), layout)
        self.dataset = EgoClipDataset(clips.table, store, num_frames=num_frames, sampling="middle")

    def zero_shot(self, model, tasks: Sequence[Task], dataset: str | None = None) -> EvaluationReport:
        """The record of all tasks, metrics named `<task>_top1`, … (of the task `label` without a prefix)."""
        clips = self.encoder.clips(model, self.dataset, desc="clips")
        scores = {task.name: clips.embeds @ class_embeddings(self.encoder, model, task.prompts).T for task in tasks}
        labels = {task.name: task.labels for task in tasks}
        details = {"prompts": {task.name: task.prompts[0] + ["…"] for task in tasks}}
        rule = "cosine of the clip with the mean embedding of the class's prompts"
        return self._report(scores, labels, clips, "zero-shot", rule, details, dataset)

    def head(self, model, task: str, dataset: str | None = None) -> EvaluationReport:
        """The record of a trained classifier, whose class numbers are those of `task` (`verb`, `noun` or `label`)."""
        if task not in self.clips.classes:
            raise ValueError(f"The clips have no classes of {task!r}; they have {sorted(self.clips.classes)}.")
        labels = self.clips.classes[task]
        if task == "label":
            labels = self._head_labels(model, labels)
        elif labels.max() >= model.config.num_labels:
            raise ValueError(
                f"{task} class {labels.max()} occurs, but the head has {model.config.num_labels} classes."
            )
        clips = self.encoder.clips(model, self.dataset, head=True, desc="clips")
        rule = "logits of the trained classification head"
        return self._report({task: clips.embeds}, {task: labels}, clips, "head", rule, {"task": task}, dataset)

    def _head_labels(self, model, labels: np.ndarray) -> np.ndarray:
        """The csv's labels in the head's own numbering, by name."""
        names, known = self.clips.label_names, model.config.label2id
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"The head has no class {unknown[0]!r}; it has {sorted(known)[:5]} ({len(known)} classes)."
            )
        return np.array([known[name] for name in names])[labels]

    def _report(self, scores, labels, clips, mode, rule, details, dataset) -> EvaluationReport:
        videos = list(self.dataset.table["video_uid"])
        numbers: dict = {}
        intervals: dict = {}
        for task, table in scores.items():
            prefix = "" if task == "label" else f"{task}_"
            table = np.where(clips.failed[:, None], -np.inf, table)
            numbers |= {prefix + name: value for name, value in classification_accuracy(table, labels[task]).items()}
            found = classification_intervals(table, labels[task], videos)
            intervals |= {prefix + name: value for name, value in found.items()}
        numbers["num_left_out"] = self.clips.num_left_out
        last = [*scores][-1]  # of verb, noun and action, the action
        return EvaluationReport.of_numbers(
            "video-classification",
            numbers,
            ["top1"] if last == "label" else [f"{last}_top1"],
            intervals,
            interval_rule=INTERVAL_RULE.format(clusters="videos"),
            num_items=len(self.dataset),
            num_frames=self.num_frames,
            scoring_mode=mode,
            scoring_rule=rule,
            crop=describe_crop(self.processor),
            window_rule=describe_window(self.num_frames),
            tie_rule="the right class counts as ranked below every other of the same score",
            failures=describe_failures(clips.failures, len(clips.failures), self.encoder.on_error),
            dataset=dataset,
            details=details,
        )
