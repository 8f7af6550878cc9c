# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.11", "transformers>=5.18,!=5.24.*"]  # and this package, see below
# ///
"""Fine-tune a model of the Hub on clips of the Hub, on a machine of the Hub, and push the result.

The task is the verb of a clip: the first verb group of its annotation. For clips with other labels, change step 1.
See examples/jobs/pretrain.py for the shards and for the wheel.

    hf jobs uv run --flavor t4-small --secrets HF_TOKEN \
        --volume ./dist:/wheels --with /wheels/modeling_svitt_ego-0.1.0-py3-none-any.whl examples/jobs/finetune.py \
        --model USER/svitt-ego --shards hf://datasets/USER/clips --push_to USER/svitt-ego-verbs \
        --output_dir runs/verbs --max_steps 1000
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForVideoClassification, AutoProcessor, HfArgumentParser, Trainer, TrainingArguments

from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data import ClipShardDataset
from modeling_svitt_ego.hub.upload import push_folder


@dataclass
class Options:
    model: str = field(metadata={"help": "saved model: a Hub name or a folder"})
    shards: str = field(metadata={"help": "hf://datasets/USER/REPO, or a folder"})
    push_to: str | None = field(default=None, metadata={"help": "USER/MODEL that gets the result"})


class Verbs(Dataset):
    """The clips that have a verb, each with the place of its first verb group among `groups`."""

    def __init__(self, clips: ClipShardDataset, processor):
        tags = clips.table["tag_verb"]
        self.clips, self.processor = clips, processor
        self.rows = [row for row in range(len(clips)) if tags[row]]
        self.groups = sorted({tags[row][0] for row in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[self.rows[index]]
        inputs = self.processor(videos=[clip["video"]], do_sample_frames=False, return_tensors="pt")
        label = torch.tensor(self.groups.index(clip["verb_tags"][0]))
        return {"pixel_values_videos": inputs["pixel_values_videos"][0], "labels": label}


def main(argv: list[str] | None = None) -> None:
    options, arguments = HfArgumentParser((Options, TrainingArguments)).parse_args_into_dataclasses(argv)

    # 1. Clips and labels.
    processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=True)
    num_frames = processor.video_processor.num_frames
    data = Verbs(ClipShardDataset(options.shards, num_frames=num_frames, seed=arguments.seed), processor)
    print(f"{data.clips}: {len(data)} clips with a verb, {len(data.groups)} verbs")

    # 2. The model, with a new head.
    labels = {place: f"verb group {group}" for place, group in enumerate(data.groups)}
    model = AutoModelForVideoClassification.from_pretrained(
        options.model, trust_remote_code=True, id2label=labels, label2id={name: i for i, name in labels.items()}
    )

    # 3. The stock Trainer.
    trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=processor)
    trainer.train()

    # 4. The result, to the Hub in one commit.
    folder = Path(arguments.output_dir) / "model"
    trainer.save_model(str(folder))
    if options.push_to is not None and trainer.is_world_process_zero():
        print(push_folder(folder, options.push_to).commit_url)


if __name__ == "__main__":
    run_script(main)
