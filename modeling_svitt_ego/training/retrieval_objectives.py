"""Objectives for retrieval with relevance, as EPIC-KITCHENS-100 fine-tuning uses them, and their schedules.

```python
model.objectives = [SymmetricMultiSimilarity(margin="cosine:0.4:0.8:5")]
trainer = SViTTEgoTrainer(model, ..., callbacks=[FollowSchedules(model.objectives)])
```

All of them train under gradient caching and over several processes. They read `verb_tags` and `noun_tags` of the clips
and, where sentences are drawn ([`RelevantSentences`]), `text_verb_tags` and `text_noun_tags` of the texts.
"""

from collections.abc import Sequence

import torch
from transformers import TrainerCallback

from ..model.losses import itself, sample_hard_negatives
from ..model.matching import VideoTextMatching
from ..model.objective_base import EmbeddingObjective, Objective, Rows
from .relevance_losses import adaptive_max_margin, soft_info_nce, symmetric_multi_similarity, tag_relevance
from .schedules import parse_schedule

TAGS = ("verb_tags", "noun_tags", "text_verb_tags", "text_noun_tags")


def relevance_of_rows(rows: Rows, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Relevance of all texts for these clips, and of these texts for all clips, `(r, B)` each.

    Raises:
        ValueError: The batch has no tags; the message names the objective `name`.
    """
    clips = [(rows.own(tags), rows.everyone(tags)) for tags in TAGS[:2]]
    if any(own is None for own, _ in clips):
        raise ValueError(
            f"The objective '{name}' needs verb_tags and noun_tags in the batch: a collator such as "
            "RetrievalCollator, and a table with tag_verb and tag_noun."
        )
    texts = [(rows.own(tags), rows.everyone(tags)) for tags in TAGS[2:]]
    texts = [clip if text[0] is None else text for clip, text in zip(clips, texts)]
    (verbs, all_verbs), (nouns, all_nouns) = clips
    (text_verbs, all_text_verbs), (text_nouns, all_text_nouns) = texts
    per_video = tag_relevance(verbs, nouns, all_text_verbs, all_text_nouns)
    return per_video, tag_relevance(text_verbs, text_nouns, all_verbs, all_nouns)


class RelevanceObjective(EmbeddingObjective):
    """
    A loss of similarities and of relevances.

    Attributes:
        progress (`float`): share of the run that is done; [`FollowSchedules`] keeps it current.
    """

    columns = TAGS

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.progress = 0.0

    def relevance(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all texts for these clips, and of these texts for all clips, `(r, B)` each."""
        return relevance_of_rows(rows, self.name)

    def info(self, relevance: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is logged: how much relevance a batch holds for a clip, not counting its own text."""
        return {"relevance_per_clip": relevance.sum(1).mean()}


class MarginObjective(RelevanceObjective):
    """
    A loss of cosines with a margin; the temperature is not trained.

    Args:
        margin (`float` or `str`): a number or a schedule, see [`parse_schedule`].
    """

    reaches = tuple(part for part in EmbeddingObjective.reaches if part != "temperature")

    def __init__(self, margin: float | str, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.margin = parse_schedule(margin)

    def cost(self, rows: Rows, relevance: tuple[torch.Tensor, torch.Tensor], margin: float) -> torch.Tensor:
        raise NotImplementedError

    def of_rows(self, config, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        relevance, margin = self.relevance(rows), self.margin(self.progress)
        info = self.info(relevance[0]) | {"margin": relevance[0].new_tensor(margin)}
        return self.cost(rows, relevance, margin), info


class AdaptiveMaxMargin(MarginObjective):
    """
    See [`adaptive_max_margin`].

    Args:
        margin (`float` or `str`): 0.2 to 0.4 in published work, or a schedule.
        scaled_by (`str`): `"negative"` or `"positive"`.
    """

    name = "mi_mm"

    def __init__(self, margin: float | str = 0.2, scaled_by: str = "negative", weight: float = 1.0) -> None:
        super().__init__(margin, weight)
        self.scaled_by = scaled_by

    def cost(self, rows, relevance, margin):
        scores = rows.cosines_per_video, rows.cosines_per_text
        return adaptive_max_margin(*scores, *relevance, margin, self.scaled_by, rows.first)


class SymmetricMultiSimilarity(MarginObjective):
    """
    See [`symmetric_multi_similarity`].

    Args:
        margin (`float` or `str`): 0.6 in published work, or a schedule.
        threshold (`float`): by how much the cosines of equally relevant texts may differ.
    """

    name = "sms"

    def __init__(self, margin: float | str = 0.6, threshold: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(margin, weight)
        self.threshold = threshold

    def cost(self, rows, relevance, margin):
        scores = rows.cosines_per_video, rows.cosines_per_text
        return symmetric_multi_similarity(*scores, *relevance, margin, self.threshold, rows.first)


class SoftInfoNCE(RelevanceObjective):
    """
    See [`soft_info_nce`].

    Args:
        threshold (`float`): texts of at most this relevance are no targets.
    """

    name = "soft_info_nce"

    def __init__(self, threshold: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.threshold = threshold

    def of_rows(self, config, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        relevance = self.relevance(rows)
        logits = rows.logits_per_video, rows.logits_per_text
        loss = soft_info_nce(*logits, *relevance, self.threshold, rows.first)
        return loss, self.info(relevance[0]) | {"temperature": rows.temperature.detach().squeeze().clone()}


class RelevanceMatching(VideoTextMatching):
    """
    [`VideoTextMatching`] whose answer is the relevance, for sentences that fit a clip in part.

    The drawn sentence of a clip has a relevance below 1 more often than not, and other clips of the batch have one
    above 0: as matches and mismatches they would teach the head what is wrong. So each pair's label is its relevance,
    and nothing of relevance 1 is drawn as a negative. The head's log odds then rank by relevance.
    """

    columns = TAGS

    def draw(self, config, rows, generator=None):
        per_video, per_text = relevance_of_rows(rows, self.name)
        own = itself(*per_video.shape, first=rows.first, device=per_video.device)
        video_ids = sample_hard_negatives(rows.logits_per_text, own | (per_text == 1), generator)
        return video_ids, sample_hard_negatives(rows.logits_per_video, own | (per_video == 1), generator)

    def labels(self, rows, video_ids, text_ids):
        per_video, per_text = relevance_of_rows(rows, self.name)
        own = itself(*per_video.shape, first=rows.first, device=per_video.device)
        drawn = [
            relevance.gather(1, ids.clamp(min=0)[:, None]).squeeze(1).masked_fill(ids < 0, -100)
            for relevance, ids in ((per_text, video_ids), (per_video, text_ids))
        ]
        return torch.stack([(per_video * own).sum(1), *drawn])


class FollowSchedules(TrainerCallback):
    """
    Tells the objectives how far the run is before each step, and sets the temperature if it has a schedule.

    Both are functions of the step number, so a resumed run continues with the same values.

    Args:
        objectives: those of the model; the ones with a `progress` follow.
        temperature (`float` or `str`, *optional*): a number or a schedule; the temperature is then not trained.
    """

    def __init__(self, objectives: Sequence[Objective], temperature: float | str | None = None) -> None:
        self.objectives = [objective for objective in objectives if hasattr(objective, "progress")]
        self.temperature = None if temperature is None else parse_schedule(temperature)

    def on_init_end(self, args, state, control, model=None, **kwargs):
        if self.temperature is not None:
            for parameter in self._temperatures(model):
                parameter.requires_grad_(False)  # before DDP wraps the model and waits for its gradient

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        config = getattr(model, "config", None)
        if self.temperature is None or not hasattr(config, "temperature_min"):
            return
        values = [self.temperature(step / 200) for step in range(201)]
        if min(values) < config.temperature_min or max(values) > config.temperature_max:
            raise ValueError(
                f"The temperature goes from {min(values):g} to {max(values):g}, but the configuration keeps it in "
                f"[{config.temperature_min:g}, {config.temperature_max:g}]: set temperature_min and temperature_max."
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        progress = min(state.global_step / max(state.max_steps, 1), 1.0)
        for objective in self.objectives:
            objective.progress = progress
        if self.temperature is not None:
            for parameter in self._temperatures(model):
                parameter.data.fill_(self.temperature(progress))

    @staticmethod
    def _temperatures(model) -> list[torch.nn.Parameter]:
        return [parameter for name, parameter in model.named_parameters() if name.split(".")[-1] == "temperature"]


RETRIEVAL_OBJECTIVES = {"mi_mm": AdaptiveMaxMargin, "sms": SymmetricMultiSimilarity, "soft_info_nce": SoftInfoNCE}

__all__ = [
    "AdaptiveMaxMargin",
    "FollowSchedules",
    "RETRIEVAL_OBJECTIVES",
    "RelevanceMatching",
    "SoftInfoNCE",
    "SymmetricMultiSimilarity",
]
