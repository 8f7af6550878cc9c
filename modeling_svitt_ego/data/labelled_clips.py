"""Clips with the numbers of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np


@dataclass(frozen=True)
class LabelledClips:
    """
    Args:
        table (`datasets.Dataset`): `video_uid`, `clip_start`, `clip_end` (seconds).
        classes (`dict[str, np.ndarray]`): by head (`verb`, `noun`, `action`, or `label`) the class of every clip,
            `(num_clips,)`; or, where a clip may have several, a mask `(num_clips, num_classes)`, bool.
        label_names (`list[str]`): of the classes of `label`.
        num_left_out (`int`): rows of the file without exactly one verb and one noun.
        names (`dict[str, list[str]]`): of the classes of other heads, where the benchmark's files have them.
        benchmark (`str`): its name in reports.
        metric (`str`): what the benchmark's papers report of the last head: `top1`, `mean_class` or `map`.
    """

    table: datasets.Dataset
    classes: dict[str, np.ndarray]
    label_names: list[str] = field(default_factory=list)
    num_left_out: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)
    benchmark: str = "video-classification"
    metric: str = "top1"

    def __post_init__(self):
        for head, labels in self.classes.items():
            if len(labels) != len(self.table):
                raise ValueError(f"There are {len(labels)} labels of '{head}' for {len(self.table)} clips.")

    @property
    def is_multi_label(self) -> bool:
        return any(labels.ndim == 2 for labels in self.classes.values())

    def class_names(self, head: str) -> list[str]:
        """Empty where the benchmark's files have none."""
        return self.label_names if head == "label" else self.names.get(head, [])

    def num_classes(self, head: str) -> int:
        """As many as there are names; without names, one more than the highest number that occurs."""
        labels = self.classes[head]
        if labels.ndim == 2:
            return labels.shape[1]
        return max(len(self.class_names(head)), int(labels.max(initial=-1)) + 1)


def with_actions(
    clips: LabelledClips, known: Sequence[Sequence[int]] = ()
) -> tuple[LabelledClips, list[tuple[int, int]]]:
    """
    The clips with classes of `action` too, and the pairs of verb and noun that these stand for.

    Args:
        known: the first pairs, such as those that a head was trained on; the others that occur follow, sorted.
    """
    pairs = list(zip(clips.classes["verb"].tolist(), clips.classes["noun"].tolist()))
    numbered = [(int(verb), int(noun)) for verb, noun in known]
    numbered += sorted(set(pairs) - set(numbered))
    number_of = {pair: number for number, pair in enumerate(numbered)}
    actions = np.array([number_of[pair] for pair in pairs])
    return replace(clips, classes={**clips.classes, "action": actions}), numbered
