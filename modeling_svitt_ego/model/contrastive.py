"""The contrastive objective: EgoNCE or InfoNCE, as the configuration says (functions in losses.py)."""

import torch

from .configuration_svitt_ego import SViTTEgoConfig
from .losses import ego_nce, info_nce, itself, shared_action
from .objective_base import EmbeddingObjective, Rows


class Contrastive(EmbeddingObjective):
    """
    Each clip against all narrations and each narration against all clips, over the temperature.

    Reads `verb_tags` `(b, num_verbs)` and `noun_tags` `(b, num_nouns)`, multi-hot, where
    `config.contrastive_loss` is `"ego_nce"`.
    """

    name = "contrastive"
    columns = ("verb_tags", "noun_tags")

    def of_rows(self, config: SViTTEgoConfig, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        positives = find_positives(config, rows)
        if config.contrastive_loss == "info_nce":
            loss = info_nce(rows.logits_per_video, rows.logits_per_text, rows.first)
        else:
            loss = ego_nce(rows.logits_per_video, rows.logits_per_text, positives, config.ego_nce_form)
        return loss, {
            "temperature": rows.temperature.detach().squeeze().clone(),  # not what the next step makes of it
            "positives_per_clip": positives.float().sum(-1).mean(),
        }


def find_positives(config: SViTTEgoConfig, rows: Rows) -> torch.Tensor:
    """The mask of positives `(r, B)`: with EgoNCE clips of one action, with InfoNCE each clip's own narration."""
    if config.contrastive_loss == "info_nce":
        return itself(len(rows), len(rows.all_videos), rows.first, rows.videos.device)
    verbs, nouns = rows.own("verb_tags"), rows.own("noun_tags")
    if verbs is None or nouns is None:
        raise ValueError(
            "contrastive_loss='ego_nce' needs verb_tags and noun_tags; set contrastive_loss='info_nce' to train "
            "without them."
        )
    return shared_action(verbs, nouns, rows.everyone("verb_tags"), rows.everyone("noun_tags"), rows.first)
