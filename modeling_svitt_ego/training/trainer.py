"""A thin Trainer: scene-aware batches, contrast across processes, a log of the loss parts, EgoMCQ as evaluation.

Its parts are in training/: exact large batches in gradient_caching.py, atomic checkpoints in checkpoints.py, checks of
resumed runs in resuming.py, Ctrl-C and SIGTERM in leaving.py, evaluation without an evaluator in evaluating.py, stages
with more and more frames in temporal_stages.py, and the summary and the curves in run_summary.py.
"""

import time
from collections import defaultdict

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import speed_metrics
from transformers.utils import logging

from ..data.clips import ClipCollator, EgoClipDataset
from ..data.workers import start_worker
from ..evaluation.evaluator import Evaluator, by_name, run_evaluators
from .averaging import AveragesWeights
from .checkpoints import CheckpointsWrittenAside, name_code_of_sharded
from .evaluating import EvaluatesWholeSets
from .failure_report import ReportUnreadableClips, unreadable_clips
from .gradient_caching import CachedStep, MicroBatches, MicroBatchSampler
from .kept_patches import LogKeptPatches
from .leaving import LeaveOnSignal
from .naming_clips import CLIPS, NOT_FOR_THE_MODEL, NamingCollator, refuse_non_finite
from .objectives import freeze_unreached_parameters, set_weights
from .optimization import MuonWithAdamW, layer_matrices
from .parameter_groups import TOWERS, freeze_towers, grouped
from .reading import CarriesFailures, make_batch_sampler, readable_batches
from .resuming import ChecksBeforeTraining
from .run_summary import RunSummary
from .temporal_stages import TrainsInStages, parse_stages

logger = logging.get_logger(__name__)


class SViTTEgoTrainer(
    AveragesWeights, ChecksBeforeTraining, TrainsInStages, CheckpointsWrittenAside, EvaluatesWholeSets, Trainer
):
    """
    Trains [`SViTTEgoModel`] or [`SViTTEgoForPreTraining`] on an [`EgoClipDataset`].

    Args:
        evaluator ([`Evaluator`] or a list of them, *optional*): what `evaluate` runs. The metrics of one get the
            prefix `eval_` (`eval_intra`), those of several also the evaluator's name (`eval_egomcq_intra`). Without
            one, `evaluate` compares all clips of `eval_dataset` with all its narrations, see evaluating.py.
        Others as in `transformers.Trainer`. Pass the processor as `processing_class`, so that checkpoints hold it; the
            default `data_collator` is then a [`ClipCollator`] without augmentation.

    The order of the clips and the frames drawn depend on (seed, epoch) alone, so a resumed run sees what the
    uninterrupted one would have seen.
    """

    def __init__(self, *args, evaluator: Evaluator | list[Evaluator] | None = None, **kwargs):
        self.has_eval_set = kwargs.get("eval_dataset") is not None or len(args) > 4
        if evaluator is not None:
            first, *_ = by_name(evaluator).values()
            kwargs.setdefault("eval_dataset", first.dataset)  # or eval_strategy would be refused
        super().__init__(*args, **kwargs)
        if kwargs.get("data_collator", args[2] if len(args) > 2 else None) is None:
            self._collate_clips()
        self.evaluator = evaluator
        self._loss_parts: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._clips: list[dict] | None = None
        self._cached: CachedStep | None = None
        self._epoch_iterator = None
        self._warned_without_negatives = False
        self.batch_sampler = None
        self._partners_logged = (0, 0)
        args = self.args
        set_weights(
            self.core,
            contrastive_weight=args.contrastive_weight,
            vtm_weight=args.vtm_weight,
            mlm_weight=args.mlm_weight,
        )
        freeze_unreached_parameters(self.core)
        freeze_towers(self.core, args.frozen_towers)
        self.check_averaging()
        self.summary = RunSummary()
        self.add_callback(self.summary)
        self.add_callback(ReportUnreadableClips(self.train_dataset))
        self.add_callback(LogKeptPatches(self))
        self.stages = parse_stages(args.temporal_stages) if args.temporal_stages else []
        self.check_stages()
        self._leave_on_signal = LeaveOnSignal(self)
        self.add_callback(self._leave_on_signal)
        if evaluator is not None and not self.has_eval_set and args.metric_for_best_model == "loss":
            # Set by TrainingArguments where no metric is named; an evaluator gives accuracies and no loss.
            name, first = next(iter(by_name(evaluator).items()))
            args.metric_for_best_model = "_".join(filter(None, [name, first.primary_metric]))
            args.greater_is_better = True
        if args.contrastive_batch_size is not None and (args.n_gpu > 1 or self.is_deepspeed_enabled):
            raise ValueError("contrastive_batch_size needs one process per device, and does not go with DeepSpeed.")

    @property
    def core(self):
        """The bare [`SViTTEgoModel`] or subclass, without PEFT's and accelerate's wrapping."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _collate_clips(self) -> None:
        """Gives clips the collator that they need, where the Trainer would take one for texts."""
        datasets = self.train_dataset, self.eval_dataset
        clips = [dataset for dataset in datasets if isinstance(dataset, EgoClipDataset)]
        if not clips:
            return
        if not hasattr(self.processing_class, "video_processor"):
            raise ValueError("Give the processor as processing_class, or a data_collator: clips need their processor.")
        self.data_collator = ClipCollator(self.processing_class, num_views=clips[0].num_views)

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:  # also after an error
            self._leave_on_signal.restore()
            self._end_workers()

    def _end_workers(self) -> None:
        """
        Releases the loader, whose worker processes end with its last reference.

        If Python's garbage collector released it, the workers would end in an order in which each takes 5 seconds.
        """
        self._cached = None
        if self._epoch_iterator is not None:
            self._epoch_iterator.close()
            self._epoch_iterator = None
        loader, self.callback_handler.train_dataloader = self.callback_handler.train_dataloader, None
        if hasattr(loader, "base_dataloader"):
            loader.base_dataloader = None

    def get_train_dataloader(self) -> DataLoader:
        dataset, args = self.train_dataset, self.args
        if not isinstance(dataset, EgoClipDataset):
            if args.contrastive_batch_size is not None:
                raise ValueError(
                    f"contrastive_batch_size needs an EgoClipDataset, not {type(dataset).__name__}: its batches are "
                    "cut into micro-batches."
                )
            return super().get_train_dataloader()
        cached = args.contrastive_batch_size is not None
        if cached:
            share = {"num_replicas": args.world_size, "rank": args.process_index}
            sampler = make_batch_sampler(dataset, args, args.contrastive_share, **share)
        else:
            sampler = make_batch_sampler(dataset, args, self._train_batch_size)
        self.batch_sampler, self._partners_logged = sampler, (0, 0)
        dataset.failures.keep_in(args.output_dir)
        loader = DataLoader(
            CarriesFailures(dataset),
            batch_sampler=MicroBatchSampler(sampler, self._train_batch_size) if cached else sampler,
            collate_fn=NamingCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=start_worker if args.dataloader_num_workers else None,
        )
        if cached:  # every process keeps its share, and the clips wait on the host
            return prepare_data_loader(loader, num_processes=1, process_index=0)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._epoch_iterator = epoch_iterator
        batches = self.summary.timed(readable_batches(epoch_iterator, lambda: self.state.global_step + 1))
        if self.args.contrastive_batch_size is None:
            return super().get_batch_samples(batches, num_batches, device)
        micro_batches = MicroBatches(batches, num_batches, self._keep_on_host)
        # The loader draws a random number when its first batch is asked for, and a resumed run sets the random state
        # after this function: asking later would shift it.
        micro_batches[0]
        self._cached = self._cached_step(micro_batches)
        return micro_batches, None

    def _cached_step(self, batches: MicroBatches) -> CachedStep:
        return CachedStep(
            lambda **kwargs: self.model_wrapped(**kwargs),
            self.core,
            batches,
            prepare=self._prepare_inputs,
            backward=self.accelerator.backward,
            no_sync=lambda: self.accelerator.no_sync(self.model_wrapped),
            loss_scale=lambda: 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale(),
            gather=self.accelerator.num_processes > 1,
        )

    def _keep_on_host(self, batch: dict) -> dict:
        """Under autocast in half precision the first convolution rounds the pixels anyway."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        if half is not None:
            batch["pixel_values_videos"] = batch["pixel_values_videos"].to(half)
        return batch

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self._clips = inputs.get(CLIPS)
        if self.is_fsdp_enabled:  # what the model clamps in its forward is a copy, put together for that long
            config = self.core.config
            self.core.temperature.data.clamp_(config.temperature_min, config.temperature_max)
        if self.args.contrastive_batch_size is None:
            return self.summary.timed_step(
                lambda: super(SViTTEgoTrainer, self).training_step(model, inputs, num_items_in_batch)
            )
        return self.summary.timed_step(lambda: self._cached_training_step(model))

    def _cached_training_step(self, model) -> torch.Tensor:
        """One micro-batch of a contrastive batch; the first also embeds and contrasts all of them."""
        step, loss = self._cached, 0.0
        if not step.parts:
            model.train()
            loss = step.start()
            clips = [clip for batch in step.batches for clip in batch.get(CLIPS, [])]
            refuse_non_finite(loss, self.state.global_step + 1, clips, step.videos, step.texts)
            self._warn_without_negatives(step.loss_info)
        loss = loss + step.advance()
        refuse_non_finite(loss, self.state.global_step + 1, self._clips)
        if step.is_done:
            for name, value in step.loss_info.items():
                self._loss_parts[name].append(value)
            self._cached = None
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss over the batches of all processes. A mean over rows: nothing to rescale."""
        inputs = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        outputs = model(**inputs, return_loss=True, gather=self.accelerator.num_processes > 1)
        if model.training:
            embeds = outputs.video_embeds, outputs.text_embeds
            refuse_non_finite(outputs.loss.detach(), self.state.global_step + 1, self._clips, *embeds)
            self._warn_without_negatives(outputs.loss_info)
            for name, value in outputs.loss_info.items():
                self._loss_parts[name].append(value)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _warn_without_negatives(self, loss_info: dict) -> None:
        """Warns once about a batch without negatives, whose contrastive loss of 0 trains nothing."""
        if self._warned_without_negatives or loss_info.get("contrastive") is None or loss_info["contrastive"] != 0:
            return
        self._warned_without_negatives = True
        logger.warning(
            f"The contrastive loss of step {self.state.global_step + 1} is 0: each clip of its batch has only "
            f"positives ({loss_info['positives_per_clip']:g} per clip), so nothing is learnt from it. Use a larger "
            "per_device_train_batch_size, contrastive_batch_size, or more processes."
        )

    def _save(self, output_dir=None, state_dict=None):
        name_code_of_sharded(self.core)
        super()._save(output_dir, state_dict)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._loss_parts.items():
                mean = torch.stack([value.float() for value in values]).mean()
                logs[name] = self.accelerator.gather(mean[None]).mean().item()
            self._loss_parts.clear()
            logs["clips_per_second"] = self.summary.clips_per_second(self.args.world_size)
            logs |= self._scene_partners() | unreadable_clips(self.train_dataset)
        super().log(logs, start_time)

    def _scene_partners(self) -> dict[str, float]:
        """Share of the partners drawn since the last log that are of their clip's scene; workers read ahead."""
        statistics = getattr(self.batch_sampler, "statistics", None)
        if statistics is None:
            return {}
        counts = statistics.scene_partners, statistics.video_partners + statistics.random_partners
        of_scene, others = (now - before for now, before in zip(counts, self._partners_logged))
        self._partners_logged = counts
        return {"scene_partners": of_scene / (of_scene + others)} if of_scene + others else {}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of the evaluators, and of the evaluation set (evaluating.py) if there is one."""
        with self.weights_to_evaluate():
            if self.evaluator is None:
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            started = time.time()
            model = self.accelerator.unwrap_model(self.model)
            metrics, num_items = run_evaluators(self.evaluator, model, self.accelerator, metric_key_prefix)
            if self.has_eval_set or eval_dataset is not None:
                with self.more_metrics(metrics):
                    return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics |= speed_metrics(metric_key_prefix, started, num_samples=num_items)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def create_optimizer(self, model=None):
        args = self.args
        tower_rates = {name: getattr(args, f"{name}_learning_rate") for name in TOWERS}
        by_layer = args.layer_decay is not None or any(rate is not None for rate in tower_rates.values())
        if self.optimizer is not None or (args.muon_learning_rate is None and not by_layer):
            return super().create_optimizer(model)
        if not args.optim.startswith("adamw_torch") or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "muon_learning_rate, layer_decay and learning rates of towers go with optim='adamw_torch' "
                f"({args.optim}), without FSDP/DeepSpeed."
            )
        if args.muon_learning_rate is not None and by_layer:
            raise ValueError("muon_learning_rate goes neither with layer_decay nor with learning rates of towers.")
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        groups = grouped(model, decayed, args.learning_rate, args.weight_decay, tower_rates, args.layer_decay)
        if by_layer:
            optimizer, settings = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = optimizer(groups, **settings)
        else:
            betas, eps = (args.adam_beta1, args.adam_beta2), args.adam_epsilon
            self.optimizer = MuonWithAdamW(
                layer_matrices(model), groups, args.muon_learning_rate, args.learning_rate, betas=betas, eps=eps
            )
        return self.optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay on weight matrices only: not on biases, norms, bias tables, [CLS] or the temperature."""
        without = ("relative_position_bias_table", "cls_token")
        return [name for name, p in model.named_parameters() if p.dim() >= 2 and not name.endswith(without)]
