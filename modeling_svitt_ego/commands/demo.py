"""`svitt-ego demo`: the whole path on a synthetic world."""

import argparse
import os
from dataclasses import replace

from .arguments import non_negative_int

# The libraries choose their code by the CPU's instruction set, and each choice rounds differently. What every x86-64
# server and laptop of the last ten years has is chosen here; a value that is set in the environment stays.
INSTRUCTION_SET = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="svitt-ego-demo", help="folder for the world, the model and the numbers")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of world, weights and order of clips")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small world and one epoch")
    parser.add_argument(
        "--training-videos", action="store_true", help="write the training videos as mp4 too, for examples/"
    )


def run_demo(arguments: argparse.Namespace) -> None:
    for name, value in INSTRUCTION_SET.items():
        os.environ.setdefault(name, value)
    from ..demo import demo

    settings = demo.QUICK if arguments.quick else demo.DemoSettings()
    demo.run_demo(arguments.output, replace(settings, training_videos=arguments.training_videos), arguments.seed)
