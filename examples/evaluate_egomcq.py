"""Scores a saved model on EgoMCQ, with and without the order of the frames.

    python examples/evaluate_egomcq.py --model MODEL --annotations egomcq.json --videos VIDEO_ROOT

`svitt-ego evaluate egomcq` does the same with more options, and runs on several processes.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from modeling_svitt_ego import EgoMCQEvaluator
from modeling_svitt_ego.commands.running import run_script

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="folder or Hub name of a SViTT-Ego model")
parser.add_argument("--annotations", required=True, help="egomcq.json")
parser.add_argument("--videos", required=True, help="folder of the videos, in any known layout")
parser.add_argument("--num-workers", type=int, default=2, help="processes that decode clips (default: %(default)s)")
parser.add_argument("--output", default="egomcq_result.json", help="report to write (default: %(default)s)")


def main() -> None:
    arguments = parser.parse_args()

    # 1. The model and its processor.
    model = AutoModel.from_pretrained(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)

    # 2. The evaluator decodes every clip once and compares each question with its five choices.
    evaluator = EgoMCQEvaluator(
        arguments.annotations,
        arguments.videos,
        processor,
        num_frames=model.config.vision_config.num_frames,
        num_workers=arguments.num_workers,
    )
    report = evaluator(model)
    shuffled = evaluator.with_settings(frame_order="shuffled")(model)

    # 3. Accuracy in per cent. What shuffling the frames costs is what the model reads from their order.
    for name in ("inter", "intra"):
        print(f"{name}: {report.metrics[name]:.1f}, frames shuffled {shuffled.metrics[name]:.1f}, chance 20.0")

    # 4. The report, from which a model card is written.
    folder = arguments.model if Path(arguments.model).is_dir() else None  # its weights' hash goes into the report
    report = report.with_origin(arguments.model, folder, sys.argv)
    report.save(arguments.output)
    print(f"Report: {arguments.output}")


if __name__ == "__main__":
    run_script(main)
