"""Masked language modelling of the narration by a text that sees its clip (SViTT, section 3.1)."""

import torch
from torch import nn

from .configuration_svitt_ego import SViTTEgoConfig
from .losses import mask_tokens, masked_language_modeling
from .objective_base import Batch, CachedObjective, CachedRows, Objective
from .row_exchange import mean_over_processes, world_size


class MaskedLanguageModeling(Objective):
    """
    Cross-entropy over the selected tokens.

    Reads `mlm_input_ids` and `mlm_labels` `(b, sequence_length)`, a text corrupted beforehand; without them it is
    corrupted here.
    """

    name = "mlm"
    needs = ("mlm_head",)
    reaches = ("vision_model.layernorm", "fusion_model", "mlm_head")
    columns = ("mlm_input_ids", "mlm_labels")

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        given = batch.columns.own("mlm_input_ids"), batch.columns.own("mlm_labels")
        ids, labels = given_or_corrupted(given, model.config, batch.input_ids, batch.attention_mask, batch.generator)
        video_states = batch.outputs.vision_model_output.last_hidden_state
        batch.outputs.mlm_logits = model.predict_masked(ids, batch.attention_mask, video_states)
        selected = mean_selected((labels != -100).sum(), batch.gather)
        return masked_language_modeling(batch.outputs.mlm_logits, labels, selected), {}

    def in_cached_step(self, step: CachedRows) -> CachedObjective:
        return _CachedMaskedLanguageModeling(self, step)


class _CachedMaskedLanguageModeling(CachedObjective):
    def across_rows(self) -> None:
        """Corrupts the texts of all rows, because pass 4 divides by the number of all selected tokens."""
        self.texts = []
        for part in self.step.parts:
            given = part.inputs.get("mlm_input_ids"), part.inputs.get("mlm_labels")
            config, input_ids = self.step.core.config, part.inputs["input_ids"]
            self.texts.append(given_or_corrupted(given, config, input_ids, part.attention_mask))
        self.selected = mean_selected(sum((labels != -100).sum() for _, labels in self.texts), self.step.gather)

    def of_micro_batch(self, core, part, outputs) -> torch.Tensor:
        ids, labels = self.texts[part.number]
        video_states = outputs.vision_model_output.last_hidden_state
        logits = core.predict_masked(ids, part.attention_mask, video_states)
        return masked_language_modeling(logits, labels, self.selected)


def given_or_corrupted(
    given: tuple[torch.Tensor | None, torch.Tensor | None], config: SViTTEgoConfig, *texts
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, labels = given
    if ids is None and labels is None:
        return corrupt(config, *texts)
    if ids is None or labels is None:
        raise ValueError("mlm_input_ids and mlm_labels must be given together, or neither.")
    return ids, labels


def corrupt(
    config: SViTTEgoConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked ids and labels `(b, sequence_length)` with the token ids and the probability of the configuration."""
    text = config.text_config
    ids = text.mask_token_id, text.cls_token_id, text.vocab_size
    return mask_tokens(input_ids, attention_mask, *ids, config.mlm_probability, generator)


def mean_selected(count: torch.Tensor, gather: bool) -> torch.Tensor:
    """The divisor of each process's summed loss: selected tokens per process, at least 1 over all of them."""
    return mean_over_processes(count, gather).clamp(min=1 / world_size(gather))
