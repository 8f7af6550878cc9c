"""Fine-tuning a video classifier from the command line: all weights, LoRA (arXiv:2106.09685), or a linear probe.

`svitt-ego finetune` runs [`main`]. The clips and their classes come from any file that `svitt-ego evaluate
video-classification` reads. Checkpoints, resuming and Ctrl-C work as in pretraining.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoProcessor, Trainer, set_seed
from transformers.utils import logging

from ..data.clips import EgoClipDataset, derive_seed
from ..data.labelled_clips import LabelledClips
from ..data.labelled_files import load_labelled_clips
from ..data.layouts import VideoStore
from ..data.workers import start_worker
from ..evaluation.classification_metrics import classification_accuracy
from ..model.classification_heads import heads_loss
from ..model.modeling_svitt_ego import SViTTEgoForVideoClassification
from ..weights.loading import local_folder
from ..weights.lora import add_lora
from .arguments import SViTTEgoTrainingArguments
from .checkpoints import CheckpointsWrittenAside
from .command_line import run_command_line
from .leaving import LeaveOnSignal
from .manifest import checkpoints_of
from .resuming import ChecksBeforeTraining

logger = logging.get_logger(__name__)

# Peak learning rates: the fewer weights are trained, the larger the steps that they need.
LEARNING_RATES = {"full": 3e-5, "lora": 5e-4, "probe": 1e-3}
USAGE = "%(prog)s --model MODEL --annotations FILE --videos VIDEO_ROOT --output_dir FOLDER [options, see --help]"


@dataclass
class FineTuningOptions:
    """Data, starting weights and method of a fine-tuning run; everything else is a training argument."""

    model: str = field(metadata={"help": "folder or Hub name of a pretrained SViTT-Ego"})
    annotations: str = field(
        metadata={
            "help": "clips and their classes: egoclip.csv, a file of EPIC-KITCHENS or EGTEA Gaze+, or a csv with the "
            "columns video_uid, clip_start, clip_end and label"
        }
    )
    videos: str = field(metadata={"help": "folder of the videos, in any known layout"})
    eval_annotations: str | None = field(
        default=None, metadata={"help": "file with the clips and classes to evaluate on"}
    )
    eval_videos: str | None = field(
        default=None, metadata={"help": "folder of the videos to evaluate on; --videos if not given"}
    )
    task: str | None = field(
        default=None,
        metadata={"help": "classes to train on (verb, noun or label), if the annotations have several kinds"},
    )
    method: str = field(
        default="full",
        metadata={
            "help": "train all weights (full), LoRA updates (lora) or a linear classifier (probe)",
            "choices": list(LEARNING_RATES),
        },
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={"help": "mix pairs of clips and their classes with shares from Beta(alpha, alpha); 0 turns it off"},
    )
    lora_rank: int = field(
        default=8, metadata={"help": "with --method lora: rank of the updates of the video tower's attention"}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "continue the run in --output_dir from its newest undamaged checkpoint, if there is one"},
    )


@dataclass
class FineTuningRecipe(SViTTEgoTrainingArguments):
    """Defaults of fine-tuning. A `learning_rate` of -1 means the rate of the method, see LEARNING_RATES."""

    learning_rate: float = field(
        default=-1.0, metadata={"help": "peak learning rate; -1 means 3e-5 (full), 5e-4 (lora) or 1e-3 (probe)"}
    )
    num_train_epochs: float = field(default=10.0)
    per_device_train_batch_size: int = field(default=32)
    lr_scheduler_type: str = field(default="cosine")
    warmup_steps: float = field(default=0.1)
    weight_decay: float = field(default=0.05)
    save_strategy: str = field(default="epoch")
    save_total_limit: int | None = field(default=2)
    logging_steps: float = field(default=50)
    scene_aware_negatives: bool = field(default=False)
    dataloader_drop_last: bool = field(default=False)
    # The Trainer reads the label names off the signature of the model, which the wrapper of PEFT hides.
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])


class FineTuner(ChecksBeforeTraining, CheckpointsWrittenAside, Trainer):
    """
    The Trainer of transformers with atomic checkpoints, checked resumes, and a checkpoint after SIGTERM or Ctrl-C.

    Args:
        mixup_alpha (`float`): Above 0, each clip and its classes (of all heads) are mixed with another of the batch
            (mixup, arXiv:1710.09412), with a share drawn from Beta(alpha, alpha).
        what_is_trained (`dict`, *optional*): Settings that decide which weights exist, such as the method and the
            task. A run resumes only with equal ones.
    """

    def __init__(self, *args, mixup_alpha: float = 0.0, what_is_trained: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if mixup_alpha < 0:
            raise ValueError(f"mixup_alpha ({mixup_alpha}) must not be negative.")
        self.mixup_alpha = mixup_alpha
        self.what_is_trained = what_is_trained or {}
        self._leave_on_signal = LeaveOnSignal(self)
        self.add_callback(self._leave_on_signal)

    @property
    def core(self):
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self._leave_on_signal.restore()

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader
        if base.num_workers:
            base.worker_init_fn = functools.partial(start_worker, first=base.worker_init_fn)
        return loader

    def run_facts(self) -> dict:
        return super().run_facts() | {"mixup_alpha": self.mixup_alpha} | self.what_is_trained

    @property
    def unchangeable(self) -> set[str]:
        return {*super().unchangeable, *self.what_is_trained}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training or self.mixup_alpha == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        clips, labels = inputs["pixel_values_videos"], inputs["labels"]
        alpha = torch.tensor(self.mixup_alpha)
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        outputs = model(pixel_values_videos=share * clips + (1 - share) * clips.roll(1, 0))
        # Cross-entropy is linear in the target: mixed labels cost what the labels cost, mixed.
        own, other = (self._label_loss(outputs.logits.float(), some) for some in (labels, labels.roll(1, 0)))
        loss = share * own + (1 - share) * other
        return (loss, outputs) if return_outputs else loss

    def _label_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        config = self.core.config
        if config.head_sizes and not labels.is_floating_point():
            return heads_loss(logits, labels, config.head_sizes)
        return self.core.loss_function(labels, logits, config)


class LabelledExamples(Dataset):
    """
    Processed clips with their classes.

    Args:
        clips ([`EgoClipDataset`]): One row per clip.
        labels (`torch.Tensor` of shape `(num_clips,)` or `(num_clips, …)`): See [`class_labels`].
        processor ([`SViTTEgoProcessor`]): Processor of the model.
        augment (`bool`): Whether to crop and flip at random, by (seed, epoch, row).
    """

    def __init__(self, clips: EgoClipDataset, labels: torch.Tensor, processor, augment: bool = False) -> None:
        self.clips, self.labels, self.processor, self.augment = clips, labels, processor, augment

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def table(self):
        """Clips and classes, which a resumed run must share with the interrupted one."""
        return self.clips.table.add_column("label", self.labels.tolist())

    def set_epoch(self, epoch: int) -> None:
        self.clips.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self.clips[index]
        inputs = self.processor(
            videos=[example["video"]],
            return_tensors="pt",
            do_sample_frames=False,
            do_random_resized_crop=self.augment,
            do_random_flip=self.augment,
            generator=[torch.Generator().manual_seed(derive_seed(example["seed"], 1))],
        )
        # The classes of the row that was read: an unreadable clip is replaced by another one.
        return {"pixel_values_videos": inputs["pixel_values_videos"][0], "labels": self.labels[example["index"]]}


def main(argv: list[str] | None = None, **parser_settings) -> None:
    """Reads the command line and fine-tunes; see [`run_command_line`]."""
    run_command_line(fine_tune, FineTuningOptions, FineTuningRecipe, USAGE, argv, **parser_settings)


def fine_tune(options: FineTuningOptions, arguments: FineTuningRecipe) -> FineTuner:
    """Trains, saves the model or the adapter to `output_dir/model`, and evaluates if there are clips to evaluate."""
    if arguments.learning_rate < 0:
        arguments.learning_rate = LEARNING_RATES[options.method]
    for name in ("annotations", "eval_annotations", "videos", "eval_videos"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no file or folder {path!r}.")
    set_seed(arguments.seed)
    folder = local_folder(options.model)
    clips = load_labelled_clips(options.annotations)
    task = choose_task(clips, options.task)
    processor = AutoProcessor.from_pretrained(folder)
    model = make_model(folder, clips, task, options)
    num_frames = processor.video_processor.num_frames

    def examples(labelled: LabelledClips, videos: str, training: bool) -> LabelledExamples:
        dataset = EgoClipDataset(
            labelled.table,
            VideoStore(videos),
            num_frames=num_frames,
            sampling="random" if training else "middle",
            seed=arguments.seed,
            on_error="skip" if training else "raise",
        )
        dataset.failures.keep_in(arguments.output_dir)
        return LabelledExamples(dataset, torch.from_numpy(labelled.classes[task]), processor, augment=training)

    evaluated = None
    if options.eval_annotations is not None:
        labelled = load_labelled_clips(options.eval_annotations)
        choose_task(labelled, task)
        if labelled.num_classes(task) > clips.num_classes(task):
            raise ValueError(
                f"{options.eval_annotations} has {labelled.num_classes(task)} classes of {task}, "
                f"{options.annotations} has {clips.num_classes(task)}."
            )
        evaluated = examples(labelled, options.eval_videos or options.videos, training=False)
    trainer = FineTuner(
        model=model,
        args=arguments,
        train_dataset=examples(clips, options.videos, training=True),
        eval_dataset=evaluated,
        processing_class=processor,
        mixup_alpha=options.mixup_alpha,
        what_is_trained=what_is_trained(options, task),
        compute_metrics=lambda prediction: classification_accuracy(prediction.predictions, prediction.label_ids),
    )
    trainer.resume_hint = "The same command with --resume continues with the next step."
    resumed = options.resume and bool(checkpoints_of(Path(arguments.output_dir)))
    trainer.train(resume_from_checkpoint=True if resumed else None)
    trainer.save_model(str(Path(arguments.output_dir) / "model"))
    if evaluated is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    return trainer


def what_is_trained(options: FineTuningOptions, task: str) -> dict:
    """Settings that decide which weights a checkpoint has."""
    rank = {"lora_rank": options.lora_rank} if options.method == "lora" else {}
    return {"method": options.method, "task": task} | rank


def choose_task(clips: LabelledClips, asked: str | None) -> str:
    kinds = list(clips.classes)
    task = asked or (kinds[0] if len(kinds) == 1 else None)
    if task not in kinds:
        raise ValueError(f"--task ({asked}) must be one of {', '.join(kinds)}, the classes that the clips have.")
    if clips.classes[task].ndim != 1:
        raise ValueError(f"--task ({task}): a clip has several classes of it; one class per clip is needed.")
    return task


def make_model(folder: Path, clips: LabelledClips, task: str, options: FineTuningOptions):
    """The classifier, in which only the weights that the method trains require a gradient."""
    names = clips.class_names(task) or [str(number) for number in range(clips.num_classes(task))]
    model = SViTTEgoForVideoClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}
    )
    if options.method == "probe":
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    elif options.method == "lora":
        model = add_lora(model, "vision", rank=options.lora_rank, trained=["classifier"])
    return model
