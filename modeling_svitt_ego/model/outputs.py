"""Outputs of the models that join both towers."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MultipleChoiceModelOutput
from transformers.utils import ModelOutput

from .fusion import SViTTEgoFusionOutput
from .vision import SViTTEgoVisionOutput

_TOWERS = ("vision_model_output", "text_model_output", "fusion_model_output")


@dataclass
class SViTTEgoOutput(ModelOutput):
    """
    Output of the models that compare clips with narrations.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with `return_loss=True`): weighted sum of the parts.
        loss_info (`dict`, with `return_loss=True`): each part before weighting (`contrastive`, `vtm`, `mlm`), the
            `temperature` and `positives_per_clip` (mean number of positives of a clip, itself included); detached.
        logits_per_video (`torch.FloatTensor` of shape `(num_videos, num_texts)`): cosine over temperature.
        logits_per_text (`torch.FloatTensor` of shape `(num_texts, num_videos)`): its transpose.
        video_embeds (`torch.FloatTensor` of shape `(num_videos, projection_dim)`): the clip embeddings of length 1, as
            CLIP's; before normalisation they are `vision_model_output.pooler_output`.
        text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`): the narration embeddings of length 1;
            before normalisation `text_model_output.pooler_output`.
        vtm_logits (`torch.FloatTensor` of shape `(rows, 2)`): video-text matching; class 1 is a match. In pretraining
            the rows are the batch's pairs, each text with a hard negative clip, each clip with a hard negative text.
        mlm_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`).
        vision_model_output, text_model_output: outputs of the towers, `pooler_output` projected.
        fusion_model_output: output of the fusion tower for the pairs, without a loss.
    """

    loss: torch.FloatTensor | None = None
    loss_info: dict | None = None
    logits_per_video: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vtm_logits: torch.FloatTensor | None = None
    mlm_logits: torch.FloatTensor | None = None
    vision_model_output: SViTTEgoVisionOutput | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    fusion_model_output: SViTTEgoFusionOutput | None = None

    def to_tuple(self):
        return tuple(self[key].to_tuple() if key in _TOWERS else self[key] for key in self.keys())


@dataclass
class SViTTEgoMultipleChoiceOutput(MultipleChoiceModelOutput):
    """
    Output of [`SViTTEgoForMultipleChoice`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with `labels`): cross-entropy of the right choice.
        logits (`torch.FloatTensor` of shape `(batch_size, num_choices)`): cosine over temperature.
        hidden_states, attentions (`tuple`): those of the video tower, whose rows are all clips one after another.
        vision_model_output, text_model_output: outputs of the towers for all clips and all texts.
    """

    vision_model_output: SViTTEgoVisionOutput | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self):
        return tuple(self[key].to_tuple() if key in _TOWERS else self[key] for key in self.keys())


@dataclass
class SViTTEgoClassifierOutput(ImageClassifierOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with `labels`).
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): with several heads, one after another.
        logits_per_head (`dict[str, torch.FloatTensor]`, with `config.classifier_heads`): the same by head,
            `(batch_size, classes of the head)`.
        hidden_states, attentions: of the video tower.
    """

    logits_per_head: dict[str, torch.FloatTensor] | None = None


__all__ = ["SViTTEgoClassifierOutput", "SViTTEgoMultipleChoiceOutput", "SViTTEgoOutput"]
