"""Pretrain SViTT-Ego on EgoClip with the published recipe as defaults (arXiv:2406.09462; SViTT, arXiv:2304.08809).

    python examples/pretrain_egoclip.py --egoclip egoclip.csv --videos VIDEO_ROOT \
        --egomcq egomcq.json --egomcq_videos MCQ_ROOT --output_dir runs/egoclip --bf16

On many devices the same script, `accelerate launch [--config_file examples/fsdp.yaml] examples/pretrain_egoclip.py …`
or `torchrun --nproc_per_node 8 examples/pretrain_egoclip.py …`. With little memory add `--contrastive_batch_size 1024
--per_device_train_batch_size 8`: loss and gradients stay those of the large batch. After a kill, the same line with
`--resume`. Every argument of `transformers.TrainingArguments` works; `--help` lists them.
"""

import os
from dataclasses import dataclass, field

from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoProcessor, SViTTEgoVideoProcessor
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from modeling_svitt_ego.weights.tokenizer import train_tokenizer


@dataclass
class DataAndModel:
    egoclip: str = field(metadata={"help": "egoclip.csv"})
    videos: str = field(metadata={"help": "folder of its videos, in any known layout"})
    egomcq: str | None = field(default=None, metadata={"help": "egomcq.json, evaluated as --eval_strategy says"})
    egomcq_videos: str | None = field(default=None, metadata={"help": "folder of its videos; --videos otherwise"})
    vision_encoder: str = field(default="microsoft/beit-base-patch16-224-pt22k-ft22k")
    text_encoder: str = field(default="bert-base-uncased")
    from_scratch: str | None = field(
        default=None,
        metadata={"help": "folder with a config.json: random weights and a vocabulary of the narrations instead"},
    )
    num_frames: int = field(default=4, metadata={"help": "frames per clip; --from_scratch takes the config's"})
    warmup_epochs: float = field(default=1.0, metadata={"help": "linear warm-up, unless --warmup_steps is given"})
    resume: bool = field(default=False, metadata={"help": "from the newest checkpoint in --output_dir, if any"})


@dataclass
class Recipe(SViTTEgoTrainingArguments):
    """AdamW 3e-5 and weight decay 0.02 are SViTTEgoTrainingArguments' own defaults, the temperature's range the
    configuration's. The release decays [CLS], the bias tables and the temperature; here they are spared."""

    num_train_epochs: float = field(default=10.0)
    per_device_train_batch_size: int = field(default=32)
    # The release takes the greater of cosine and 1 %; transformers' schedule ends at 1 % smoothly.
    lr_scheduler_type: str = field(default="cosine_with_min_lr")
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.01})
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: gradients are not clipped"})
    seed: int = field(default=42)
    save_strategy: str = field(default="steps")
    save_steps: float = field(default=1000)
    save_total_limit: int | None = field(default=2)
    logging_steps: float = field(default=50)


def main() -> None:
    options, arguments = HfArgumentParser((DataAndModel, Recipe)).parse_args_into_dataclasses()
    if arguments.warmup_steps == 0 and options.warmup_epochs < arguments.num_train_epochs:
        arguments.warmup_steps = options.warmup_epochs / arguments.num_train_epochs  # a share of all steps
    set_seed(arguments.seed)

    # 1. The clips: a memory-mapped table; the main process makes it, the others read it.
    with arguments.main_process_first(desc="reading the table"):
        table = load_egoclip(options.egoclip)

    # 2. The model: BEiT and BERT joined as in SViTT, or random weights.
    if options.from_scratch is None:
        model = SViTTEgoForPreTraining.from_encoders(
            options.vision_encoder, options.text_encoder, num_frames=options.num_frames
        )
        tokenizer = AutoTokenizer.from_pretrained(options.text_encoder)
    else:
        model = SViTTEgoForPreTraining._from_config(AutoConfig.from_pretrained(options.from_scratch))
        tokenizer = train_tokenizer(table["clip_text"], vocab_size=model.config.text_config.vocab_size)
    vision = model.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    processor = SViTTEgoProcessor(SViTTEgoVideoProcessor(size=size, num_frames=vision.num_frames), tokenizer)

    # 3. Training, resumed where it stopped.
    evaluator = None
    if options.egomcq is not None:
        evaluator = EgoMCQEvaluator(
            options.egomcq,
            options.egomcq_videos or options.videos,
            processor,
            vision.num_frames,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
        )
    trainer = SViTTEgoTrainer(
        model=model,
        args=arguments,
        train_dataset=EgoClipDataset(
            table, VideoStore(options.videos), num_frames=vision.num_frames, seed=arguments.seed, on_error="skip"
        ),
        data_collator=ClipCollator(processor, do_random_resized_crop=True),
        processing_class=processor,
        evaluator=evaluator,
    )
    checkpoint = None
    if options.resume and os.path.isdir(arguments.output_dir):
        checkpoint = get_last_checkpoint(arguments.output_dir)
    if options.resume and trainer.is_world_process_zero():
        print(f"Resuming from {checkpoint}." if checkpoint else f"{arguments.output_dir} has no checkpoint: starting.")
    trainer.train(resume_from_checkpoint=checkpoint)

    # 4. The result: a folder for AutoModel.from_pretrained, and EgoMCQ.
    trainer.save_model(os.path.join(arguments.output_dir, "model"))
    if evaluator is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", {name: value for name, value in metrics.items() if not isinstance(value, dict)})


if __name__ == "__main__":
    main()
