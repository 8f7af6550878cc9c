"""One training run that writes down, per process, the rows and the pixels of each step; started by test_resume.py.

torchrun --nproc-per-node 2 recorded_run.py CORPUS OUTPUT RECORD [CHECKPOINT] [key=value …]

CORPUS is a folder of `make_corpus`, or the hf:// address of clip shards.
"""

import json
import sys
from pathlib import Path

from modeling_svitt_ego.data import ClipShardDataset
from modeling_svitt_ego.training.naming_clips import CLIPS
from tests.helpers.tiny_pretraining import make_trainer


def run(corpus, output, record, checkpoint=None, **arguments):
    if str(corpus).startswith("hf://"):
        arguments["dataset"] = ClipShardDataset(corpus)
    trainer = make_trainer(Path(corpus), Path(output), **arguments)
    step, records = trainer.training_step, []

    def recorded_step(model, inputs, *rest):
        rows = [clip["row"] for clip in inputs[CLIPS]]
        records.append([trainer.state.global_step + 1, rows, inputs["pixel_values_videos"].double().sum().item()])
        return step(model, inputs, *rest)

    trainer.training_step = recorded_step
    trainer.train(resume_from_checkpoint=checkpoint)
    Path(f"{record}-{trainer.args.process_index}.json").write_text(json.dumps(records))


if __name__ == "__main__":
    positional = [part for part in sys.argv[1:] if "=" not in part]
    options = dict(part.split("=") for part in sys.argv[1:] if "=" in part)
    run(*positional, **{key: json.loads(value) for key, value in options.items()})
