"""Fine-tuning as a video classifier from the command line: all weights, LoRA (arXiv:2106.09685), or a linear probe.

`svitt-ego finetune` runs [`main`]. The clips and their classes come from any file that `svitt-ego evaluate
video-classification` reads; checkpoints, resuming and Ctrl-C are those of pretraining.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import AutoProcessor, HfArgumentParser, Trainer, set_seed
from transformers.utils import logging

from ..data.clips import EgoClipDataset, derive_seed
from ..data.failures import TooManyClipFailures
from ..data.labelled_clips import LabelledClips
from ..data.labelled_files import load_labelled_clips
from ..data.layouts import VideoStore
from ..evaluation.classification_metrics import classification_accuracy
from ..model.classification_heads import heads_loss
from ..model.modeling_svitt_ego import SViTTEgoForVideoClassification
from ..weights.loading import local_folder
from ..weights.lora import add_lora
from .arguments import SViTTEgoTrainingArguments
from .checkpoints import CheckpointsWrittenAside
from .leaving import LeaveOnSignal
from .manifest import checkpoints_of
from .resuming import ChecksBeforeTraining

logger = logging.get_logger(__name__)

# Peak learning rates: the fewer weights are trained, the further they have to move.
LEARNING_RATES = {"full": 3e-5, "lora": 5e-4, "probe": 1e-3}
USAGE = "%(prog)s --model MODEL --annotations FILE --videos VIDEO_ROOT --output_dir FOLDER [options, see --help]"


@dataclass
class FineTuningOptions:
    """Data, starting weights and method of a fine-tuning run; the rest are training arguments."""

    model: str = field(metadata={"help": "folder or Hub name of a pretrained SViTT-Ego"})
    annotations: str = field(
        metadata={"help": "clips and classes: egoclip.csv, EPIC-KITCHENS, EGTEA Gaze+, or a csv with labels"}
    )
    videos: str = field(metadata={"help": "folder of the videos, in any known layout"})
    eval_annotations: str | None = field(default=None, metadata={"help": "the same of the clips to evaluate on"})
    eval_videos: str | None = field(default=None, metadata={"help": "folder of their videos; --videos otherwise"})
    task: str | None = field(
        default=None, metadata={"help": "classes: verb, noun or label; needed if there are several"}
    )
    method: str = field(default="full", metadata={"help": "full, lora or probe", "choices": list(LEARNING_RATES)})
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "mix pairs of clips and their classes, by Beta(alpha, alpha); 0: off"}
    )
    lora_rank: int = field(default=8, metadata={"help": "rank of LoRA's updates of the video tower's attention"})
    resume: bool = field(
        default=False, metadata={"help": "continue the run in --output_dir from its newest whole checkpoint, if any"}
    )


@dataclass
class FineTuningRecipe(SViTTEgoTrainingArguments):
    """Defaults of fine-tuning; `learning_rate` of -1 is that of the method, see LEARNING_RATES."""

    learning_rate: float = field(default=-1.0, metadata={"help": "-1: 3e-5 (full), 5e-4 (lora) or 1e-3 (probe)"})
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
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])  # PEFT's wrapper hides them


class FineTuner(ChecksBeforeTraining, CheckpointsWrittenAside, Trainer):
    """
    The library's Trainer with whole checkpoints, checked resumes, and a checkpoint after SIGTERM or Ctrl-C.

    Args:
        mixup_alpha (`float`): above 0, mixes each clip and its classes, of all heads, with another of the batch
            (mixup, arXiv:1710.09412), in a share drawn from Beta(alpha, alpha).
    """

    def __init__(self, *args, mixup_alpha: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        if mixup_alpha < 0:
            raise ValueError(f"mixup_alpha ({mixup_alpha}) must not be negative.")
        self.mixup_alpha = mixup_alpha
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

    def run_facts(self) -> dict:
        return super().run_facts() | {"mixup_alpha": self.mixup_alpha}

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
    Clips ready for the model, with their classes.

    Args:
        clips ([`EgoClipDataset`]): one row per clip.
        labels (`torch.Tensor` of shape `(num_clips,)` or `(num_clips, …)`): see [`class_labels`].
        processor ([`SViTTEgoProcessor`]).
        augment (`bool`): random crops and flips, drawn from (seed, epoch, row).
    """

    def __init__(self, clips: EgoClipDataset, labels: torch.Tensor, processor, augment: bool = False) -> None:
        self.clips, self.labels, self.processor, self.augment = clips, labels, processor, augment

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def table(self):
        """Of the clips and their classes: a resumed run must have the same."""
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
        # The row really read: another clip takes the place of an unreadable one.
        return {"pixel_values_videos": inputs["pixel_values_videos"][0], "labels": self.labels[example["index"]]}


def main(argv: list[str] | None = None, **parser_settings) -> None:
    """
    Reads the command line and fine-tunes.

    Args:
        argv (`list[str]`, *optional*): the arguments; those of the process otherwise.
        parser_settings: of `argparse.ArgumentParser`, such as `prog`.

    Raises:
        ValueError, OSError: A mistake in the arguments, unreadable data, or a full disk.
    """
    parser = HfArgumentParser((FineTuningOptions, FineTuningRecipe), usage=USAGE, **parser_settings)
    try:
        fine_tune(*parser.parse_args_into_dataclasses(argv))
    except (TooManyClipFailures, SafetensorError) as error:
        raise OSError(str(error)) from error


def fine_tune(options: FineTuningOptions, arguments: FineTuningRecipe) -> FineTuner:
    """Trains, saves the model or the adapter to `output_dir/model`, and evaluates if there are clips for it."""
    if arguments.learning_rate < 0:
        arguments.learning_rate = LEARNING_RATES[options.method]
    for name in ("annotations", "eval_annotations", "videos", "eval_videos"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no {path!r}.")
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
        compute_metrics=lambda prediction: classification_accuracy(prediction.predictions, prediction.label_ids),
    )
    resumed = options.resume and bool(checkpoints_of(Path(arguments.output_dir)))
    trainer.train(resume_from_checkpoint=True if resumed else None)
    trainer.save_model(str(Path(arguments.output_dir) / "model"))
    if evaluated is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    return trainer


def choose_task(clips: LabelledClips, asked: str | None) -> str:
    kinds = list(clips.classes)
    task = asked or (kinds[0] if len(kinds) == 1 else None)
    if task not in kinds:
        raise ValueError(f"--task ({asked}) must be one of {', '.join(kinds)}, the classes that the clips have.")
    if clips.classes[task].ndim != 1:
        raise ValueError(f"--task ({task}): a clip has several classes of it; one class per clip is needed.")
    return task


def make_model(folder: Path, clips: LabelledClips, task: str, options: FineTuningOptions):
    """The classifier, with what the method trains left trainable."""
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
