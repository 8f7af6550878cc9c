"""SViTT-Ego (arXiv:2406.09462): the two towers side by side, the fusion tower on top, and the heads of each task.

Every class keeps its parts under the same names (vision_model, text_model, video_projection, text_projection,
temperature, fusion_model, vtm_head, mlm_head), so any of them loads from the checkpoint of any other.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .classification_heads import AttentionPooler, heads_loss, split_by_head, warn_of_frozen_head
from .configuration_svitt_ego import SViTTEgoConfig
from .fusion import SViTTEgoFusionModel
from .input_checks import flatten_choices
from .objective_base import Batch, Columns, Objective, unit_vectors
from .objectives import OBJECTIVES, loss_generator, sum_of_losses
from .outputs import SViTTEgoClassifierOutput, SViTTEgoMultipleChoiceOutput, SViTTEgoOutput
from .pipeline_svitt_ego import custom_pipelines
from .pretrained_svitt_ego import SViTTEgoPreTrainedModel
from .text import MLMHead, SViTTEgoTextModel, text_tower
from .vision import SViTTEgoVisionModel, SViTTEgoVisionOutput


class SViTTEgoModel(SViTTEgoPreTrainedModel):
    """
    The dual encoder: one embedding for a clip, one for a narration, compared by cosine (`AutoModel`).

    ```python
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(videos=["clip.mp4"], text=["#C C picks up the cup", "#C C opens the door"])
    model(**inputs).logits_per_video.softmax(-1)
    ```
    """

    custom_pipelines = custom_pipelines()
    # Parts that other classes have: a checkpoint of theirs loads without a warning, any other unknown key is reported.
    _keys_to_ignore_on_load_unexpected = [r"^(fusion_model|vtm_head|mlm_head|classifier|pooler)\."]
    # What `forward(return_loss=True)` sums; assign a list to one model to train it with others (objective_base.py).
    objectives: Sequence[Objective] = OBJECTIVES

    def __init__(self, config: SViTTEgoConfig):
        super().__init__(config)
        self.vision_model = SViTTEgoVisionModel._from_config(config.vision_config)
        self.text_model = text_tower(config.text_config)
        self.video_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.empty(1))  # one dimension: FSDP cannot shard a scalar
        self.add_heads(config)
        if not hasattr(self, "fusion_model"):
            # The token states' norm is not part of any loss: DDP would wait for its gradient for ever.
            self.vision_model.layernorm.requires_grad_(False)
        self.post_init()

    def add_heads(self, config: SViTTEgoConfig):
        """Further parts of a subclass, made before the weights are initialised."""

    def init_own_parameters(self, std: float):
        init.constant_(self.temperature, self.config.temperature_init)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> SViTTEgoVisionOutput:
        """The video tower's output with `pooler_output` projected: `(num_videos, projection_dim)`, not normalised."""
        outputs = self.vision_model(pixel_values_videos, random_patterns, generator, return_dict=True, **kwargs)
        outputs.pooler_output = self.video_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The text tower's output with `pooler_output` projected: `(num_texts, projection_dim)`, not normalised."""
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        mask = attention_mask if self.config.use_text_mask else None
        outputs = self.text_model(input_ids, attention_mask=mask, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def clamp_temperature(self) -> torch.Tensor:
        """The temperature, first put back into its range in training (as the release does at every forward)."""
        if self.training:
            # .data: a second forward before the backward must not count as a change; the value is in range by then.
            self.temperature.data.clamp_(self.config.temperature_min, self.config.temperature_max)
        return self.temperature

    def encode(
        self,
        pixel_values_videos: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> SViTTEgoOutput:
        """Both towers and their similarities; no loss."""
        kwargs.pop("inputs_embeds", None)  # PEFT's FEATURE_EXTRACTION passes it as None
        # Before its first use: a compiled graph must not keep the temperature from before for the backward.
        temperature = self.clamp_temperature()
        videos = self.get_video_features(pixel_values_videos, random_patterns, generator, return_dict=True, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        video_embeds, text_embeds = unit_vectors(videos.pooler_output), unit_vectors(texts.pooler_output)
        logits_per_video = video_embeds @ text_embeds.T / temperature
        return SViTTEgoOutput(
            logits_per_video=logits_per_video,
            logits_per_text=logits_per_video.T,
            video_embeds=video_embeds,
            text_embeds=text_embeds,
            vision_model_output=videos,
            text_model_output=texts,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        verb_tags: torch.Tensor | None = None,
        noun_tags: torch.Tensor | None = None,
        return_loss: bool | None = None,
        gather: bool = False,
        run_inside: Callable | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoOutput:
        r"""
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, channels, height, width)`).
            input_ids, attention_mask (`torch.Tensor` of shape `(num_texts, sequence_length)`).
            verb_tags, noun_tags (`torch.Tensor` of shapes `(batch_size, num_verbs)` and `(batch_size, num_nouns)`):
                multi-hot taxonomy groups, for EgoNCE.
            return_loss (`bool`, *optional*): also return the loss, the weighted sum of `objectives`; clip i then
                belongs to text i.
            gather (`bool`, *optional*): the loss over the batches of all processes, as `SViTTEgoTrainer` takes it.
            run_inside (`Callable`, *optional*): called with the model; its result is returned instead. This is how the
                passes of gradient caching run inside whatever wraps this forward: DDP, autocast, PEFT.
            random_patterns (`list[torch.LongTensor]`, *optional*): see [`SViTTEgoVisionModel`].
            generator (`torch.Generator`, *optional*): for the random edges, the negatives and the masked tokens; in
                training the default generator otherwise, in evaluation always the same draws.
            kwargs: further inputs that an objective names in its `columns`, and `output_hidden_states`,
                `output_attentions`, `return_dict`.
        """
        if run_inside is not None:
            return run_inside(self)
        columns = {"verb_tags": verb_tags, "noun_tags": noun_tags}
        for name in {name for objective in self.objectives for name in objective.columns} & kwargs.keys():
            columns[name] = kwargs.pop(name)
        texts = input_ids, attention_mask, token_type_ids
        outputs = self.encode(pixel_values_videos, *texts, random_patterns, generator, **kwargs)
        if not return_loss:
            self.score_pairs(outputs, attention_mask, **kwargs)
            return outputs
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        generator = loss_generator(self, generator, input_ids.device)
        batch = Batch(outputs, input_ids, mask, Columns([columns], gather), self.temperature, gather, generator)
        outputs.loss, outputs.loss_info = sum_of_losses(self, batch)
        return outputs

    def score_pairs(self, outputs: SViTTEgoOutput, attention_mask: torch.Tensor | None, **kwargs) -> None:
        """Further logits of a subclass, without a loss."""


class SViTTEgoForVideoTextRetrieval(SViTTEgoModel):
    """
    Dual encoder plus fusion tower and matching head: retrieve by cosine, re-rank pairs by `match`.

    With `return_loss=True` the loss is contrastive plus matching, SViTT's retrieval objective.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mlm_head|classifier|pooler)\."]

    def add_heads(self, config: SViTTEgoConfig):
        self.fusion_model = SViTTEgoFusionModel._from_config(config.cross_modal_config)
        self.vtm_head = nn.Linear(config.cross_modal_config.hidden_size, 2)

    def match(
        self,
        text_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_states: torch.Tensor,
    ) -> torch.Tensor:
        """
        Matching logits `(pairs, 2)`, class 1 a match, of the pairs (text i, clip i).

        Args:
            text_states (`torch.Tensor` of shape `(pairs, sequence_length, hidden_size)`): the text tower's
                `last_hidden_state`.
            attention_mask (`torch.Tensor` of shape `(pairs, sequence_length)`, *optional*): of the texts.
            video_states (`torch.Tensor` of shape `(pairs, num_tokens, hidden_size)`): the video tower's.
        """
        fused = self.fusion_model(text_states, video_states, attention_mask, return_dict=True)
        return self.vtm_head(fused.last_hidden_state[:, 0])

    def score_pairs(self, outputs: SViTTEgoOutput, attention_mask: torch.Tensor | None, **kwargs) -> None:
        """`vtm_logits` of text i with clip i, where the inputs are paired."""
        if len(outputs.video_embeds) == len(outputs.text_embeds):
            texts, videos = outputs.text_model_output, outputs.vision_model_output
            states = texts.last_hidden_state, videos.last_hidden_state
            outputs.fusion_model_output = self.fusion_model(*states, attention_mask, return_dict=True, **kwargs)
            outputs.vtm_logits = self.vtm_head(outputs.fusion_model_output.last_hidden_state[:, 0])


class SViTTEgoForPreTraining(SViTTEgoForVideoTextRetrieval):
    """
    All three pretraining objectives (SViTT, section 3.1): contrastive (EgoNCE), video-text matching with hard
    negatives, and masked language modelling, the last two through the fusion tower.
    """

    _tied_weights_keys = {"mlm_head.decoder.weight": "text_model.embeddings.word_embeddings.weight"}

    _keys_to_ignore_on_load_unexpected = [r"^(classifier|pooler)\."]

    def add_heads(self, config: SViTTEgoConfig):
        super().add_heads(config)
        self.mlm_head = MLMHead(config)

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.mlm_head.decoder = value

    def predict_masked(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_states: torch.Tensor,
    ) -> torch.Tensor:
        """MLM logits `(b, L, vocab_size)` of corrupted texts that see their clips."""
        text_states = self.text_model(input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        states = self.fusion_model(text_states, video_states, attention_mask, return_dict=True).last_hidden_state
        return self.mlm_head(states)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        verb_tags: torch.Tensor | None = None,
        noun_tags: torch.Tensor | None = None,
        mlm_input_ids: torch.LongTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        gather: bool = False,
        run_inside: Callable | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoOutput:
        r"""
        See [`SViTTEgoModel.forward`]. `mlm_input_ids` and `mlm_labels` `(batch_size, sequence_length)` are a text
        corrupted beforehand; without them, it is corrupted during the forward.
        """
        masked = {"mlm_input_ids": mlm_input_ids, "mlm_labels": mlm_labels}
        return super().forward(
            pixel_values_videos,
            input_ids,
            attention_mask,
            token_type_ids,
            verb_tags,
            noun_tags,
            return_loss,
            gather,
            run_inside,
            random_patterns,
            generator,
            **{name: value for name, value in masked.items() if value is not None},
            **kwargs,
        )


class SViTTEgoForMultipleChoice(SViTTEgoModel):
    """One narration and N clips, or one clip and N narrations: cosine over temperature as N logits (EgoMCQ)."""

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoMultipleChoiceOutput:
        r"""
        Args:
            pixel_values_videos (`torch.FloatTensor`): `(batch_size, num_choices, num_frames, channels, height, width)`
                clips to choose from, with `input_ids` of shape `(batch_size, sequence_length)`; or
                `(batch_size, num_frames, channels, height, width)`, with `input_ids` of shape
                `(batch_size, num_choices, sequence_length)` to choose from.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): the right choice, for the loss.
            random_patterns, generator: see [`SViTTEgoVisionModel`].
        """
        kwargs.pop("inputs_embeds", None)
        clips, texts = flatten_choices(pixel_values_videos, input_ids, attention_mask, token_type_ids)
        videos = self.get_video_features(clips, random_patterns, generator, return_dict=True, **kwargs)
        narrations = self.get_text_features(*texts, return_dict=True, **kwargs)
        batch_size = input_ids.shape[0]
        video, text = (unit_vectors(x.pooler_output).unflatten(0, (batch_size, -1)) for x in (videos, narrations))
        logits = (video * text).sum(-1) / self.clamp_temperature()
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SViTTEgoMultipleChoiceOutput(
            loss=loss,
            logits=logits,
            hidden_states=videos.hidden_states,
            attentions=videos.attentions,
            vision_model_output=videos,
            text_model_output=narrations,
        )


class SViTTEgoForVideoClassification(SViTTEgoPreTrainedModel):
    """
    The video tower with a linear classifier on its pooled vector.

    `config.classifier_heads` makes it several classifiers at once, for example verb, noun and action; the label of a
    clip is then one class per head. `config.classifier_pooling="attention"` pools the tokens by a learnt query.
    """

    input_modalities = ("video",)
    _keys_to_ignore_on_load_unexpected = [
        r"^(text_model|text_projection|video_projection|fusion_model|vtm_head|mlm_head)\.",
        r"^temperature$",
    ]

    def __init__(self, config: SViTTEgoConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = SViTTEgoVisionModel._from_config(config.vision_config)
        # One of the two norms is not part of the loss, see SViTTEgoModel.
        if config.classifier_pooling == "attention":
            self.pooler = AttentionPooler(config.vision_config)
            self.vision_model.pooler_layernorm.requires_grad_(False)
            if self.vision_model.pooler is not None:
                self.vision_model.pooler.requires_grad_(False)
        else:
            self.vision_model.layernorm.requires_grad_(False)
        self.classifier = nn.Linear(config.vision_config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.vision_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoClassifierOutput:
        r"""
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch_size, num_frames, channels, height, width)`).
            labels (`torch.Tensor`, *optional*): class ids `(batch_size,)`; with several heads `(batch_size,
                num_heads)`, -100 where a clip has no class; multi-hot `(batch_size, num_labels)`, float, where a clip
                may have several classes (`config.problem_type`).
            random_patterns, generator: see [`SViTTEgoVisionModel`].
        """
        for key in ("input_ids", "attention_mask", "inputs_embeds"):
            kwargs.pop(key, None)  # PEFT passes them as None
        if labels is not None and self.training and not torch.compiler.is_compiling():
            warn_of_frozen_head(self.classifier, self.vision_model)
        outputs = self.vision_model(pixel_values_videos, random_patterns, generator, return_dict=True, **kwargs)
        logits, loss = self.classify(outputs.pooler_output, outputs.last_hidden_state, labels)
        heads = self.config.head_sizes
        return SViTTEgoClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            logits_per_head=split_by_head(logits, heads) if heads else None,
        )

    def classify(
        self, pooled: torch.Tensor, tokens: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Logits and loss from the video tower's outputs: what a probe on frozen features trains.

        Args:
            pooled (`torch.Tensor` of shape `(batch_size, hidden_size)`): the tower's `pooler_output`.
            tokens (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`, *optional*): its
                `last_hidden_state`, which `classifier_pooling="attention"` needs.
        """
        if self.config.classifier_pooling == "attention":
            pooled = self.pooler(tokens)
        logits = self.classifier(pooled)
        if labels is None:
            return logits, None
        if self.config.head_sizes and not labels.is_floating_point():
            return logits, heads_loss(logits, labels, self.config.head_sizes)
        return logits, self.loss_function(labels, logits, self.config)


SViTTEgoVisionModel.register_for_auto_class("AutoModel")
SViTTEgoTextModel.register_for_auto_class("AutoModel")
SViTTEgoModel.register_for_auto_class("AutoModel")
SViTTEgoForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SViTTEgoForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
SViTTEgoForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")

__all__ = [
    "SViTTEgoForMultipleChoice",
    "SViTTEgoForPreTraining",
    "SViTTEgoForVideoClassification",
    "SViTTEgoForVideoTextRetrieval",
    "SViTTEgoModel",
    "SViTTEgoOutput",
    "SViTTEgoPreTrainedModel",
    "SViTTEgoTextModel",
    "SViTTEgoVisionModel",
]
