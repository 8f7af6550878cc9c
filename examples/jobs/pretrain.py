# /// script
# requires-python = ">=3.10"
# dependencies = ["transformers>=5.18,!=5.24.*"]  # and this package, see below
# ///
"""Pretrain on clips that are on the Hub, on a machine of the Hub, and push the model.

The clips are tar shards (`svitt-ego prepare VIDEOS OUT --clip-shards egoclip.csv`, then
`hf upload USER/clips OUT --repo-type dataset`). The package is not on PyPI: make a wheel of it and mount its folder.

    pip wheel --no-deps . --wheel-dir dist
    hf jobs uv run --flavor a10g-large --timeout 12h --secrets HF_TOKEN \
        --volume ./dist:/wheels --with /wheels/modeling_svitt_ego-0.1.0-py3-none-any.whl examples/jobs/pretrain.py \
        --shards hf://datasets/USER/clips --push_to USER/svitt-ego --output_dir runs/egoclip --bf16

`--with` also takes the address of a wheel. Without `hf jobs` it runs as `uv run --with . examples/jobs/pretrain.py …`
from a checkout, or as `python examples/jobs/pretrain.py …` in an environment that has the package. Every
argument of `transformers.TrainingArguments` works.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, set_seed

from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data import ClipShardDataset
from modeling_svitt_ego.data.clips import ClipCollator
from modeling_svitt_ego.hub.upload import push_folder
from modeling_svitt_ego.training.pretraining import (
    PretrainingOptions,
    Recipe,
    checkpoint_of_run,
    starting_point,
)
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer


@dataclass
class Options:
    shards: str = field(metadata={"help": "hf://datasets/USER/REPO, or a folder"})
    push_to: str | None = field(default=None, metadata={"help": "USER/MODEL that gets the result"})
    model: str | None = field(default=None, metadata={"help": "saved model to start from; BEiT and BERT otherwise"})
    from_scratch: str | None = field(default=None, metadata={"help": "configuration to start from random weights"})
    num_frames: int = field(default=4, metadata={"help": "frames per clip; must divide those in the shards"})


def main(argv: list[str] | None = None) -> None:
    options, arguments = HfArgumentParser((Options, Recipe)).parse_args_into_dataclasses(argv)
    set_seed(arguments.seed)

    # 1. The clips: only the indices are downloaded now; the frames of a clip are read when it is its turn.
    clips = ClipShardDataset(options.shards, num_frames=options.num_frames, seed=arguments.seed, on_error="skip")
    print(clips)

    # 2. The model. A job that was started again in the same folder resumes.
    checkpoint = checkpoint_of_run(arguments)
    start = PretrainingOptions(
        egoclip="", videos="", model=options.model, from_scratch=options.from_scratch, num_frames=options.num_frames
    )
    model, processor = starting_point(start, clips.table["clip_text"], checkpoint)

    # 3. Training.
    trainer = SViTTEgoTrainer(
        model=model,
        args=arguments,
        train_dataset=clips,
        data_collator=ClipCollator(processor, do_random_resized_crop=True),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    # 4. The result, to the Hub in one commit: the machine and its disk are gone when the job ends.
    folder = Path(arguments.output_dir) / "model"
    trainer.save_model(str(folder))
    if options.push_to is not None and trainer.is_world_process_zero():
        print(push_folder(folder, options.push_to).commit_url)


if __name__ == "__main__":
    run_script(main, "checkpoints are kept; the same command resumes from the newest one")
