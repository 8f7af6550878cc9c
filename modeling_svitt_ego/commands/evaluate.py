"""`svitt-ego evaluate`: a saved model on a benchmark → one JSON, and a table that also shows published numbers."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from .arguments import check_output_file, non_negative_int, positive_int
from .benchmarks import BENCHMARKS
from .corpus import LAYOUT_HELP, add_shard_arguments
from .running import DEBUG_HELP

FRAME_ORDERS = ("natural", "shuffled", "reversed", "repeated")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        text = benchmark.description
        command = commands.add_parser(name, help=text, description=text, epilog=DEBUG_HELP)
        if benchmark.reads_clips:
            command.add_argument("folder", help="saved model: a folder, or a name on the Hub")
        else:
            command.add_argument("folder", nargs="?", help="saved model that made the predictions, or grounding head")
        benchmark.add_arguments(command)
        if benchmark.reads_clips:
            _add_clip_arguments(command)
        command.add_argument("--output", help="the JSON to write; evaluation_<benchmark>.json by default")
        command.add_argument("--dataset", help="name of the data, if it is not the published benchmark")


def _add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, help="folder of the videos, in any known layout")
    parser.add_argument("--layout", help=LAYOUT_HELP)
    parser.add_argument("--num-frames", type=positive_int, help="frames per clip; the model's own number by default")
    parser.add_argument(
        "--frame-order",
        default="natural",
        choices=FRAME_ORDERS,
        help="a control: what the model loses in another order is what it owes to time",
    )
    parser.add_argument("--num-clips", type=positive_int, default=1, help="sets of frames per clip, averaged")
    parser.add_argument("--crops", default="whole", choices=("whole", "three"), help="three squares, averaged")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="clips embedded at once")
    parser.add_argument(
        "--num-workers",
        type=non_negative_int,
        default=2,
        help="processes that decode, per device; 0 decodes in the main process",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights and the computation",
    )
    parser.add_argument("--cache", help="folder for embeddings: a stopped run resumes from it")
    add_shard_arguments(parser, "the clips, into --cache")
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "wrong"),
        help="at an unreadable clip: stop, or count what needs it as wrong and list it",
    )


def _evaluate(opened):
    """The report, or None after one shard of the clips."""
    from ..evaluation.encoding import ShardFinished

    try:
        return opened.evaluator(opened.model)
    except ShardFinished as finished:
        print(f"{finished}; after all shards: --merge")
        return None


def run_evaluate(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output or f"evaluation_{arguments.benchmark.replace('-', '_')}.json")
    check_output_file(output, "--output")
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
    report.save(output)
    print(f"Written: {output}")
    return 0
