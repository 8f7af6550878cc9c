"""A thin Trainer: scene-aware batches, contrast across processes, a log of the loss parts, EgoMCQ as evaluation."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import speed_metrics

from .data.clips import EgoClipDataset
from .data.sampling import SceneAwareBatchSampler, SceneIndex, SeededBatchSampler, SharedNounBatchSampler, TagPairs
from .evaluation.egomcq import EgoMCQEvaluator, one_thread


@dataclass
class SViTTEgoTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the published recipe's optimiser as default (AdamW 3e-5, weight decay 0.02) and:

    Args:
        scene_aware_negatives (`bool`): half of each batch are partners, each from the video and the 60 seconds of a
            clip of the other half (EgoVLP, arXiv:2206.01670): hard negatives that share the background.
        shared_noun_share (`float`): without scene-aware negatives, share of the batches whose clips all share a noun,
            so that the verb must tell them apart.
        scene_seconds (`float`): how near in time a partner is: both lie in the same window of this many seconds.
    """

    learning_rate: float = field(default=3e-5)
    weight_decay: float = field(default=0.02)
    scene_aware_negatives: bool = field(
        default=True, metadata={"help": "Half of each batch are clips from the same scenes as the other half."}
    )
    scene_seconds: float = field(default=60.0, metadata={"help": "Length of a scene, in seconds."})
    shared_noun_share: float = field(default=0.0, metadata={"help": "Share of batches of clips with one noun."})
    # The collator runs the processor and needs every column.
    remove_unused_columns: bool = field(default=False)
    # A contrastive batch that is not full has another loss, and processes must have equally many rows.
    dataloader_drop_last: bool = field(default=True)


class SViTTEgoTrainer(Trainer):
    """
    Trains [`SViTTEgoModel`] or [`SViTTEgoForPreTraining`] on an [`EgoClipDataset`].

    Args:
        evaluator ([`EgoMCQEvaluator`], *optional*): what `evaluate` runs; its metrics get the prefix `eval_`.
        Others as in `transformers.Trainer`. Pass the processor as `processing_class`, so that checkpoints hold it.

    The order of the clips and the frames drawn depend on (seed, epoch) alone, so a resumed run sees what the
    uninterrupted one would have seen.
    """

    def __init__(self, *args, evaluator: EgoMCQEvaluator | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluator = evaluator
        self._loss_parts: dict[str, list[torch.Tensor]] = defaultdict(list)

    def get_train_dataloader(self) -> DataLoader:
        dataset, args = self.train_dataset, self.args
        if not isinstance(dataset, EgoClipDataset):
            return super().get_train_dataloader()
        common = {"seed": args.data_seed if args.data_seed is not None else args.seed, "follow": dataset}
        if {"tag_verb", "tag_noun"} <= set(dataset.table.column_names):
            common["tags"] = TagPairs(dataset.table)
        if args.scene_aware_negatives:
            sampler = SceneAwareBatchSampler(
                SceneIndex(dataset.table, args.scene_seconds), self._train_batch_size, **common
            )
        elif args.shared_noun_share > 0:
            sampler = SharedNounBatchSampler(
                dataset.table, self._train_batch_size, share=args.shared_noun_share, **common
            )
        else:
            sampler = SeededBatchSampler(len(dataset), self._train_batch_size, **common)
        self.batch_sampler = sampler
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=one_thread if args.dataloader_num_workers else None,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, contrasted with the batches of all processes. A mean over rows: nothing to rescale."""
        outputs = model(**inputs, return_loss=True, gather=self.accelerator.num_processes > 1)
        if model.training:
            for name, value in outputs.loss_info.items():
                self._loss_parts[name].append(value)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._loss_parts.items():
                mean = torch.stack([value.float() for value in values]).mean()
                logs[name] = self.accelerator.gather(mean[None]).mean().item()
            self._loss_parts.clear()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        if self.evaluator is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        started = time.time()
        self.evaluator.accelerator = self.accelerator
        metrics = self.evaluator(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=metrics[f"{metric_key_prefix}_num_questions"])
        self.log({name: value for name, value in metrics.items() if isinstance(value, (int, float))})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay on weight matrices only: not on biases, norms, bias tables, [CLS] or the temperature."""
        without = ("relative_position_bias_table", "cls_token")
        return [name for name, p in model.named_parameters() if p.dim() >= 2 and not name.endswith(without)]
