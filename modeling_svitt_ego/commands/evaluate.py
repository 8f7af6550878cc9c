"""`svitt-ego evaluate`: evaluates a saved model on a benchmark; prints a table and writes one JSON."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from .arguments import FRAME_ORDERS, check_output_file, non_negative_int, positive_int
from .benchmarks import BENCHMARKS
from .corpus import LAYOUT_HELP, add_shard_arguments
from .running import DEBUG_HELP


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        text = benchmark.description
        description = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=description, epilog=DEBUG_HELP)
        if benchmark.reads_clips:
            command.add_argument("folder", metavar="MODEL", help="folder or Hub name of a saved model")
        else:
            command.add_argument(
                "folder",
                nargs="?",
                metavar="MODEL",
                help="folder or Hub name of a grounding head, or of the model that made the predictions",
            )
        benchmark.add_arguments(command)
        if benchmark.reads_clips:
            _add_clip_arguments(command)
        output = f"evaluation_{name.replace('-', '_')}.json"
        command.add_argument("--output", default=output, metavar="JSON", help="file for the results")
        command.add_argument(
            "--dataset", metavar="NAME", help="name of the data in the results, if it is not the published benchmark"
        )


def _add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, metavar="FOLDER", help="folder of the videos, in any known layout")
    parser.add_argument("--layout", help=LAYOUT_HELP)
    parser.add_argument(
        "--num-frames", type=positive_int, metavar="T", help="frames per clip; the number of the model if not given"
    )
    parser.add_argument(
        "--frame-order",
        default="natural",
        choices=FRAME_ORDERS,
        help="order of the frames; the accuracy that is lost in another order than the natural one shows how much "
        "the model uses time",
    )
    parser.add_argument(
        "--num-clips", type=positive_int, default=1, metavar="N", help="average over N sets of frames per clip"
    )
    parser.add_argument(
        "--crops",
        default="whole",
        choices=("whole", "three"),
        help="embed the whole frame, or average over three square crops",
    )
    parser.add_argument("--flip", action="store_true", help="average with the horizontally flipped clip")
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, metavar="N", help="number of clips embedded at once"
    )
    parser.add_argument(
        "--num-workers",
        type=non_negative_int,
        default=2,
        metavar="N",
        help="number of processes per device that decode clips; 0 decodes in the main process",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="data type of the weights and of the computation",
    )
    parser.add_argument(
        "--cache", metavar="FOLDER", help="folder that keeps the embeddings; an interrupted run continues from it"
    )
    add_shard_arguments(parser, "the clips, into --cache")
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "wrong"),
        help="at an unreadable clip, either stop (raise), or list the clip and count the items that need it as wrong",
    )


def _evaluate(opened):
    """The report of the evaluator; `None` after one shard of the clips."""
    from ..evaluation.encoding import ShardFinished

    try:
        return opened.evaluator(opened.model)
    except ShardFinished as finished:
        print(f"{finished}; when all shards are finished, run the same command with --merge")
        return None


def run_evaluate(arguments: argparse.Namespace) -> int:
    check_output_file(arguments.output, "--output")
    opened = BENCHMARKS[arguments.benchmark].open(arguments)
    report = _evaluate(opened)
    if report is None:
        return 0
    accelerator = opened.evaluator.accelerator
    if accelerator is not None and not accelerator.is_main_process:
        return 0
    details = dict(report.details)
    if accelerator is not None:
        details |= {"dtype": arguments.dtype, "num_processes": accelerator.num_processes}
        details["annotations"] = Path(arguments.annotations).name
    device = None if accelerator is None else accelerator.device
    report = replace(report, dataset=arguments.dataset, details=details)
    report = report.with_origin(arguments.folder, opened.folder, ["svitt-ego", *sys.argv[1:]], device)
    print(report.table())
    report.save(arguments.output)
    print(f"Written: {arguments.output}")
    return 0
