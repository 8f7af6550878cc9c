"""Video-text matching with hard negatives (ALBEF, arXiv:2107.07651; SViTT, section 3.1) through the fusion tower."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_svitt_ego import SViTTEgoConfig
from .contrastive import find_positives
from .losses import sample_hard_negatives, video_text_matching
from .objective_base import (
    Batch,
    CachedObjective,
    CachedRows,
    Objective,
    Rows,
    at_least_float32,
    compared_with,
    slices,
)
from .row_exchange import RowExchange, largest_of_processes, mean_over_processes


class VideoTextMatching(Objective):
    """
    Does this narration belong to this clip? Asked for the b pairs, for each text with a hard negative clip and for
    each clip with a hard negative text; both are drawn by similarity among everyone's rows that are no positives.

    A subclass that knows better what is a negative, or how well it fits, replaces `draw` and `labels`.
    """

    name = "vtm"
    needs = ("vtm_head",)
    reaches = ("vision_model.layernorm", "fusion_model", "vtm_head")
    columns = ("verb_tags", "noun_tags")

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, labels = self.score_pairs(model, batch)
        batch.outputs.vtm_logits = logits
        num_pairs = mean_over_processes((labels != -100).sum(), batch.gather)
        num_rows = len(batch.outputs.video_embeds)
        negatives = (labels[num_rows:] != -100).sum() / (2 * num_rows)
        return video_text_matching(logits, labels, num_pairs), {"vtm_negatives_per_clip": negatives}

    def draw(
        self, config: SViTTEgoConfig, rows: Rows, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For each of r texts a clip and for each clip a text, numbers among the B; -1 where there is none to draw."""
        positives = find_positives(config, rows)
        video_ids = sample_hard_negatives(rows.logits_per_text, positives, generator)
        return video_ids, sample_hard_negatives(rows.logits_per_video, positives, generator)

    def labels(self, rows: Rows, video_ids: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """
        Labels `(3, r)` of the pairs, of the texts with the clips drawn and of the clips with the texts drawn: 1 and 0,
        or floats between; -100 where a pair does not count, as where there was none to draw.
        """
        return torch.stack([torch.ones_like(video_ids), negative_labels(video_ids), negative_labels(text_ids)])

    def score_pairs(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Logits `(3 b, 2)` and labels `(3 b,)`: the pairs; each text with its negative clip; each clip with its negative
        text. The label is -100 where there was no negative to draw.
        """
        rows = batch.rows
        with torch.no_grad():
            video_ids, text_ids = self.draw(model.config, rows, batch.generator)
            labels = self.labels(rows, video_ids, text_ids).flatten()
        own = torch.arange(rows.first, rows.first + len(rows), device=video_ids.device)
        texts = batch.outputs.text_model_output.last_hidden_state
        videos = batch.outputs.vision_model_output.last_hidden_state
        # Texts of all processes have the length of the longest.
        missing = largest_of_processes(texts.shape[1], texts.device, batch.gather) - texts.shape[1]
        texts, mask = F.pad(texts, (0, 0, 0, missing)), F.pad(batch.attention_mask, (0, missing))
        of_texts = RowExchange(torch.where(text_ids < 0, own, text_ids), len(rows), batch.gather)
        of_videos = RowExchange(torch.where(video_ids < 0, own, video_ids), len(rows), batch.gather)
        logits = model.match(
            torch.cat([texts, texts, of_texts.fetch(texts)]),
            torch.cat([mask, mask, of_texts.send(mask[of_texts.rows])]),
            torch.cat([videos, of_videos.fetch(videos), videos]),
        )
        return logits, labels

    def in_cached_step(self, step: CachedRows) -> CachedObjective:
        return _CachedVideoTextMatching(self, step)


class _CachedVideoTextMatching(CachedObjective):
    """Negatives go through the fusion tower before pass 4, the true pairs in it."""

    keeps_token_states = True

    def across_rows(self) -> torch.Tensor:
        """The negatives' part of the loss; its gradient by the token states is added to those kept."""
        step = self.step
        with torch.no_grad():
            own, everyone = compared_with(step)
            drawn, labels = [], []
            for rows in slices(step, own, everyone, step.temperature):
                drawn.append(self.objective.draw(step.core.config, rows))
                labels.append(self.objective.labels(rows, *drawn[-1]))
        video_ids, text_ids = (torch.cat(ids) for ids in zip(*drawn))
        self.labels = torch.cat(labels, dim=1)
        self.num_pairs = mean_over_processes((self.labels != -100).sum(), step.gather)
        self.loss_info["vtm_negatives_per_clip"] = (self.labels[1:] != -100).sum() / (2 * step.num_rows)
        longest = max(len(row) for row in step.masks.rows)
        self.longest = largest_of_processes(longest, step.device, step.gather)
        total = torch.zeros((), device=step.device, dtype=step.videos.dtype)
        for part in step.parts:
            some = slice(part.first, part.first + part.size)
            total += self._match_negatives(part, video_ids[some], text_ids[some])
        return total

    def _match_negatives(self, part, video_ids: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """The negatives of one micro-batch's texts and clips, in one pass of the fusion tower."""
        step, b = self.step, self.step.num_rows
        own = torch.arange(part.first, part.first + part.size, device=step.device) + step.first
        clips, narrations = (torch.where(ids < 0, own, ids) for ids in (video_ids, text_ids))
        labels = self.labels[1:, part.first : part.first + part.size].flatten()
        of_texts = RowExchange(torch.cat([own, narrations]), b, step.gather)
        of_videos = RowExchange(torch.cat([clips, own]), b, step.gather)
        text_rows, video_rows = of_texts.rows.tolist(), of_videos.rows.tolist()
        mask = of_texts.send(step.masks.pick(text_rows, self.longest, step.device))
        text_states = of_texts.send(step.text_states.pick(text_rows, self.longest, step.device)).requires_grad_()
        num_tokens = len(step.video_states.rows[0])
        video_states = of_videos.send(step.video_states.pick(video_rows, num_tokens, step.device)).requires_grad_()

        def loss(core) -> torch.Tensor:
            return video_text_matching(core.match(text_states, mask, video_states), labels, self.num_pairs)

        found = step.run(loss, self.weight)
        scale = step.loss_scale()  # the backward scaled the gradients, and pass 4 will do so again
        step.text_states.add_gradient(text_rows, of_texts.send_back(at_least_float32(text_states.grad) / scale))
        step.video_states.add_gradient(video_rows, of_videos.send_back(at_least_float32(video_states.grad) / scale))
        return found

    def of_micro_batch(self, core, part, outputs) -> torch.Tensor:
        """The pairs' part of the loss."""
        text_states = outputs.text_model_output.last_hidden_state
        logits = core.match(text_states, part.attention_mask, outputs.vision_model_output.last_hidden_state)
        return video_text_matching(logits, self.labels[0, part.first : part.first + part.size], self.num_pairs)


def negative_labels(ids: torch.Tensor) -> torch.Tensor:
    """Matching labels of drawn negatives: 0, and -100 (not counted) where there was none to draw."""
    return torch.where(ids < 0, -100, 0)
