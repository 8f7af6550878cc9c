"""Training on EPIC-KITCHENS-100 retrieval: a text for each clip, drawn among all sentences that fit it in part.

Relevance comes from the classes of the two csv files alone (see `ek100_relevance`), one clip at a time: the published
pickle with the matrix of all 67,217 training clips is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa

from .clips import ClipCollator, multi_hot

NUM_EPIC_VERBS = 97
NUM_EPIC_NOUNS = 300


def training_table(clips: datasets.Dataset) -> datasets.Dataset:
    """
    Rows of [`load_epic_kitchens`] as [`EgoClipDataset`] and its samplers take them: `tag_verb` and `tag_noun` are the
    verb class and all noun classes, `narration_time` the middle of the clip in seconds.
    """
    table = clips.with_format("arrow")[:]
    start, end = (table[name].to_numpy() for name in ("clip_start", "clip_end"))
    columns = {name: table[name] for name in ("narration_id", "video_uid", "clip_start", "clip_end", "clip_text")}
    columns["tag_verb"] = pa.array([[number] for number in table["verb_class"].to_pylist()], pa.list_(pa.int32()))
    columns["tag_noun"] = pa.array(table["all_noun_classes"].to_pylist(), pa.list_(pa.int32()))
    columns["narration_time"] = (start + end) / 2
    return datasets.Dataset(pa.table(columns))


class RelevantSentences:
    """
    For each clip a sentence drawn evenly among those whose relevance is above a threshold.

    The drawn pair's relevance may be below 1, which the losses of training/relevance_losses.py account for: the
    sentence's own classes travel with it. A clip without any relevant sentence keeps its own narration and classes.

    Args:
        clips (`datasets.Dataset`): from [`load_epic_kitchens`], the rows of the data set.
        sentences (`datasets.Dataset`): likewise, with the sentence file.
        threshold (`float`): 0.1 in published work.
        template (`str`): what is made of a sentence, with `{}` for it, such as `"#C C {}"`.
    """

    def __init__(
        self, clips: datasets.Dataset, sentences: datasets.Dataset, threshold: float = 0.1, template: str = "{}"
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold ({threshold}) must be in [0, 1): no relevance is above 1.")
        if "{}" not in template:
            raise ValueError(f"template ({template!r}) has no {{}}, the place of the sentence.")
        self.threshold, self.template = threshold, template
        self.verbs, self.nouns = list(clips["verb_class"]), list(clips["all_noun_classes"])
        self.own_texts = list(clips["clip_text"])
        self.texts = list(sentences["clip_text"])
        self.text_verbs = np.array(sentences["verb_class"], dtype=np.int32)
        self.text_nouns = list(sentences["all_noun_classes"])
        num_nouns = 1 + max((noun for row in [*self.nouns, *self.text_nouns] for noun in row), default=0)
        self._has_noun = np.zeros((len(self.texts), num_nouns), dtype=bool)
        for row, numbers in enumerate(self.text_nouns):
            self._has_noun[row, list(numbers)] = True
        self._num_nouns = self._has_noun.sum(axis=1)

    def __len__(self) -> int:
        return len(self.verbs)

    def relevance(self, row: int) -> np.ndarray:
        """Of every sentence for clip `row`, `(num_sentences,)` in [0, 1]."""
        nouns = sorted(set(self.nouns[row]))
        shared = self._has_noun[:, nouns].sum(axis=1)
        union = self._num_nouns + len(nouns) - shared
        overlap = np.divide(shared, union, out=np.zeros(len(union)), where=union > 0)
        return ((self.text_verbs == self.verbs[row]) + overlap) / 2

    def draw(self, row: int, seed: int) -> dict:
        """The `text` of clip `row` this time, and its classes."""
        candidates = np.flatnonzero(self.relevance(row) > self.threshold)
        if len(candidates) == 0:
            verb, nouns, text = self.verbs[row], self.nouns[row], self.own_texts[row]
        else:
            chosen = int(candidates[np.random.default_rng(seed).integers(len(candidates))])
            verb, nouns, text = int(self.text_verbs[chosen]), self.text_nouns[chosen], self.texts[chosen]
        return {"text": self.template.format(text), "text_verb_tags": [verb], "text_noun_tags": list(nouns)}


class RetrievalCollator(ClipCollator):
    """
    [`ClipCollator`] for examples with drawn sentences: also `text_verb_tags` and `text_noun_tags`, multi-hot.

    Args:
        num_verbs, num_nouns (`int`): 97 and 300 classes of EPIC-KITCHENS-100.
        Others as in [`ClipCollator`].
    """

    def __init__(self, processor, num_verbs: int = NUM_EPIC_VERBS, num_nouns: int = NUM_EPIC_NOUNS, **kwargs) -> None:
        super().__init__(processor, num_verbs, num_nouns, **kwargs)

    def __call__(self, examples: Sequence[dict]) -> dict:
        batch = super().__call__(examples)
        for kind, size in (("verb", self.num_verbs), ("noun", self.num_nouns)):
            tags = [e.get(f"text_{kind}_tags", e[f"{kind}_tags"]) for e in examples]
            batch[f"text_{kind}_tags"] = multi_hot(tags, size, kind, examples).repeat(self.num_views, 1)
        return batch


__all__ = ["NUM_EPIC_NOUNS", "NUM_EPIC_VERBS", "RelevantSentences", "RetrievalCollator", "training_table"]
