"""The options of a training run: `TrainingArguments` with the published recipe and the fields of this package."""

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class SViTTEgoTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the published recipe's optimizer as default (AdamW 3e-5, weight decay 0.02) and:

    Args:
        scene_aware_negatives (`bool`): half of each batch are partners, each from the same video and the same 60
            seconds as a clip of the other half (EgoVLP, arXiv:2206.01670): hard negatives that share the background.
        shared_noun_share (`float`): without scene-aware negatives, share of the batches whose clips all share a noun
            and differ by their verb.
        scene_seconds (`float`): length of a scene: a clip and its partner start in the same window of this length.
        muon_learning_rate (`float`, *optional*): trains the layers' weight matrices with Muon at this rate and the
            rest with AdamW at `learning_rate` (optimization.py), for training from scratch.
        contrastive_batch_size (`int`, *optional*): clips that are contrasted with each other, over all processes. Each
            process takes its share in micro-batches of `per_device_train_batch_size` by gradient caching: loss and
            gradients are those of the large batch, and the device memory is that of a micro-batch
            (gradient_caching.py gives the cost on the host). Without it, the batches of all processes are contrasted:
            `per_device_train_batch_size` times the number of processes.
        contrastive_weight, vtm_weight, mlm_weight (`float`, *optional*): weights of the objectives; those of the
            model's configuration if not given. An objective of weight 0 is not computed.
        temporal_stages (`str`, *optional*): `start:num_frames:keep_rate:num_random_blocks` for each stage, e.g.
            `"0:4:0.7:3,0.5:8:0.6:5"`, or with `:num_temporal_blocks` too; see temporal_stages.py.
        vision_learning_rate, text_learning_rate, fusion_learning_rate (`float`, *optional*): learning rate of one
            tower; `learning_rate` if not given.
        layer_decay (`float`, *optional*): factor from the learning rate of a layer to that of the layer below
            (parameter_groups.py); all layers have the same rate if it is 1 or not given.
        frozen_towers (`str`, *optional*): towers that are not trained, comma separated: `vision`, `text`, `fusion`.
        ema_decay (`float`, *optional*): keeps an exponential moving average of the weights, such as 0.999. Evaluation
            uses the average, checkpoints contain both, and the trained model has the average.
        overwrite_output_dir (`bool`): start in a folder with checkpoints of another run, which are deleted. Otherwise
            such a run is refused.
        resume_changed (`bool`): resume although data, seed, batch size or number of processes differ from those of
            the run that wrote the checkpoint. Another vocabulary is always refused.
        dataloader_drop_last (`bool`): applies to training only, where an incomplete contrastive batch has another
            loss. Evaluation and prediction keep every row.
        logging_nan_inf_filter (`bool`): off, because a loss that is not finite stops the run and names its clips.
        ddp_find_unused_parameters (`bool`): off, because parameters that no objective reaches are frozen.
    """

    learning_rate: float = field(default=3e-5)
    weight_decay: float = field(default=0.02)
    scene_aware_negatives: bool = field(
        default=True, metadata={"help": "Half of each batch are clips from the same scenes as the other half."}
    )
    scene_seconds: float = field(default=60.0, metadata={"help": "Length of a scene in seconds."})
    shared_noun_share: float = field(
        default=0.0,
        metadata={"help": "Without scene-aware negatives: share of the batches whose clips all have one noun."},
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Train the weight matrices of the layers with Muon at this learning rate."}
    )
    # The collator runs the processor and needs every column.
    remove_unused_columns: bool = field(default=False)
    # An incomplete contrastive batch has another loss, and all processes must have the same number of rows.
    dataloader_drop_last: bool = field(default=True)
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={"help": "Clips that are contrasted with each other, over all processes (gradient caching)."},
    )
    contrastive_weight: float | None = field(default=None, metadata={"help": "Weight of EgoNCE."})
    vtm_weight: float | None = field(default=None, metadata={"help": "Weight of video-text matching."})
    mlm_weight: float | None = field(default=None, metadata={"help": "Weight of masked language modelling."})
    temporal_stages: str | None = field(
        default=None,
        metadata={
            "help": "Stages with more and more frames: start:num_frames:keep_rate:num_random_blocks of each stage, "
            "optionally :num_temporal_blocks, separated by commas."
        },
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the video tower; learning_rate if not given."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the text tower; learning_rate if not given."}
    )
    fusion_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the fusion tower; learning_rate if not given."}
    )
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor from the learning rate of a layer to that of the layer below."}
    )
    frozen_towers: str | None = field(
        default=None, metadata={"help": "Towers that are not trained: vision, text, fusion, separated by commas."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay of an exponential moving average of the weights, such as 0.999."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints of another run in output_dir and start again."}
    )
    resume_changed: bool = field(
        default=False,
        metadata={"help": "Resume although data, seed, batch size or number of processes have changed."},
    )
    logging_nan_inf_filter: bool = field(default=False)
    ddp_find_unused_parameters: bool | None = field(default=False)

    def __post_init__(self):
        if not torch.accelerator.is_available():
            # Otherwise processes that torchrun launches on a CPU would each train alone, into the same folder.
            self.use_cpu = True
        super().__post_init__()
        _refuse_lost_processes(self.world_size)
        if self.contrastive_batch_size is None:
            return
        size, rows, world = self.contrastive_batch_size, self.per_device_train_batch_size, self.world_size
        if size % world or size < rows * world:
            raise ValueError(
                f"contrastive_batch_size ({size}) must be a multiple of the number of processes ({world}) and at "
                f"least per_device_train_batch_size ({rows}) on each."
            )
        # The Trainer reads this many micro-batches per step, and exchanges gradients after the last one.
        micro_batches = -(-self.contrastive_share // rows)
        if self.gradient_accumulation_steps not in (1, micro_batches):
            raise ValueError(
                f"contrastive_batch_size ({size}) is the whole batch of a step: leave gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}) at 1."
            )
        self.gradient_accumulation_steps = micro_batches

    @property
    def contrastive_share(self) -> int:
        """Number of clips of a contrastive batch in each process."""
        return self.contrastive_batch_size // self.world_size


def _refuse_lost_processes(world_size: int) -> None:
    """Raises an error if a launcher should start several processes but this process knows of no others."""
    if world_size > 1:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"The launcher started {os.environ['WORLD_SIZE']} processes, but they did not join: each would train "
            "alone. On a CPU give --use_cpu; on GPUs check torch.cuda.is_available()."
        )
    # accelerate sets the address of a main process only if it was asked for several.
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise ValueError(
            "accelerate launch --cpu starts one process, whatever --num_processes says. To start several processes on "
            "a CPU, use torchrun --nproc_per_node 2 SCRIPT …"
        )
