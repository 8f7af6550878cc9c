"""Evaluation and prediction without an evaluator: every clip of a set is compared with every narration of it.

`eval_loss` is the contrastive loss of the whole set as one batch. A mean over the losses of batches would depend on
the batch size and on the number of processes, and an incomplete last batch would count too much. The loss is not
weighted, and contains neither matching nor masked language modelling.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from ..data.clips import ClipCollator
from ..model.losses import ego_nce, info_nce, itself, shared_action
from .naming_clips import NOT_FOR_THE_MODEL

RECALLED_AMONG = (1, 5, 10)
# Rows of the similarity matrix held at once: memory (1024, n), never (n, n).
ROWS_AT_ONCE = 1024


class EvaluatesWholeSets:
    """
    For a contrastive `Trainer` with `core`: `evaluate` logs `eval_loss` and recall in both directions, `predict`
    returns the embeddings.

    `compute_metrics` is called with `predictions=(video_embeds, text_embeds)`, arrays of shape
    `(num_rows, projection_dim)`, and `label_ids=arange(num_rows)`: clip i belongs to narration i.
    """

    def get_eval_dataloader(self, eval_dataset=None):
        with self._every_row_as_it_is():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._every_row_as_it_is():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _every_row_as_it_is(self) -> Iterator[None]:
        """Inside, no row is dropped, and clips are collated without random crops and flips."""
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = False
        if isinstance(collator, ClipCollator):
            self.data_collator = copy.copy(collator)
            self.data_collator.processor_kwargs = {
                name: value for name, value in collator.processor_kwargs.items() if not name.startswith("do_random_")
            }
        try:
            yield
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator

    @contextmanager
    def more_metrics(self, metrics: dict[str, float]) -> Iterator[None]:
        """Inside, `evaluate` logs these metrics together with its own, as one evaluation."""
        compute_metrics = self.compute_metrics
        self.compute_metrics = lambda prediction: (compute_metrics(prediction) if compute_metrics else {}) | metrics
        try:
            yield
        finally:
            self.compute_metrics = compute_metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs({name: x for name, x in inputs.items() if name not in NOT_FOR_THE_MODEL})

        def embed(core):
            texts = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("token_type_ids")
            return (
                core.get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output,
                core.get_text_features(*texts, return_dict=True).pooler_output,
            )

        with torch.no_grad(), self.compute_loss_context_manager():
            embeds = model(run_inside=embed)
        tags = [inputs[name].to(torch.uint8) for name in ("verb_tags", "noun_tags") if name in inputs]
        return None, (*(x.float() for x in embeds), *tags), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        if self.args.batch_eval_metrics:
            raise ValueError("batch_eval_metrics: the metrics need every clip and narration of the set, not a batch.")
        compute_metrics, self.compute_metrics = self.compute_metrics, None  # it is called below, with the embeddings
        try:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics
        if output.predictions is None:
            raise ValueError(f"{description}: the data set has no rows.")
        videos, texts, *tags = output.predictions
        rows = np.arange(len(videos))
        device_tensors = [torch.as_tensor(x, device=self.args.device) for x in (videos, texts, *tags)]
        metrics = {"loss": contrastive_loss_of_set(self.core, *device_tensors)}
        metrics |= recalls(*(F.normalize(x, dim=-1) for x in device_tensors[:2]))
        if compute_metrics is not None:
            prediction = EvalPrediction(predictions=(videos, texts), label_ids=rows)
            metrics |= denumpify_detensorize(compute_metrics(prediction))
        prefix = f"{metric_key_prefix}_"
        metrics = {name if name.startswith(prefix) else prefix + name: value for name, value in metrics.items()}
        return EvalLoopOutput((videos, texts), rows, output.metrics | metrics, output.num_samples)


@torch.no_grad()
def contrastive_loss_of_set(
    core,
    video_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    verb_tags: torch.Tensor | None = None,
    noun_tags: torch.Tensor | None = None,
) -> float:
    """
    The model's contrastive loss over n clips and their narrations as one batch.

    Args:
        core: the [`SViTTEgoModel`] whose temperature and configuration are used.
        video_embeds, text_embeds (`torch.Tensor` of shape `(n, projection_dim)`): not normalised.
        verb_tags, noun_tags (`torch.Tensor` of shapes `(n, num_verbs)` and `(n, num_nouns)`): for EgoNCE.
    """
    config, temperature = core.config, core.temperature.detach()
    if hasattr(temperature, "full_tensor"):  # sharded by FSDP
        temperature = temperature.full_tensor()
    if config.contrastive_loss == "ego_nce" and (verb_tags is None or noun_tags is None):
        raise ValueError(
            "contrastive_loss='ego_nce' needs verb_tags and noun_tags in the evaluation set, too; set "
            "contrastive_loss='info_nce' to do without them."
        )
    videos, texts = F.normalize(video_embeds, dim=-1) / temperature, F.normalize(text_embeds, dim=-1)
    total, count = 0.0, len(videos)
    for first in range(0, count, ROWS_AT_ONCE):
        rows = slice(first, min(first + ROWS_AT_ONCE, count))
        logits = videos[rows] @ texts.T, texts[rows] @ videos.T
        if config.contrastive_loss == "info_nce":
            loss = info_nce(*logits, first)
        else:
            positives = shared_action(verb_tags[rows], noun_tags[rows], verb_tags, noun_tags, first)
            loss = ego_nce(*logits, positives, config.ego_nce_form)
        total += loss.item() * (rows.stop - first)
    return total / count


@torch.no_grad()
def recalls(videos: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """
    Per cent of narrations whose own clip is among the k most similar, and the reverse.

    A tie counts as a miss: a model that embeds everything alike does not score.

    Args:
        videos, texts (`torch.Tensor` of shape `(n, dim)`): unit length; clip i belongs to narration i.
    """
    result = {}
    for name, queries, items in (("text_to_video", texts, videos), ("video_to_text", videos, texts)):
        ranks = []
        for first in range(0, len(queries), ROWS_AT_ONCE):
            similarity = queries[first : first + ROWS_AT_ONCE] @ items.T
            own = itself(*similarity.shape, first=first, device=similarity.device)
            at_least_as_near = similarity >= similarity[own][:, None]
            ranks.append((at_least_as_near & ~own).sum(-1))
        ranks = torch.cat(ranks)
        for k in RECALLED_AMONG:
            result[f"{name}_recall_at_{k}"] = 100 * (ranks < k).float().mean().item()
    return result
