"""`svitt-ego demo`: renders a synthetic world, pretrains on it and evaluates the result."""

import argparse
import os
from dataclasses import replace

from .arguments import non_negative_int

# The libraries choose their kernels by the instruction set of the CPU, and each choice rounds differently. This is the
# set that every x86-64 server and laptop of the last ten years has; values set in the environment take precedence.
INSTRUCTION_SET = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        default="svitt-ego-demo",
        metavar="FOLDER",
        help="folder for the rendered world, the model and the results",
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="seed of the world, the weights and the order of the clips"
    )
    parser.add_argument("--quick", action="store_true", help="run a smoke test on a small world with one epoch")
    parser.add_argument(
        "--training-videos",
        action="store_true",
        help="also write the training videos as mp4 files, which the scripts in examples/ read",
    )


def run_demo(arguments: argparse.Namespace) -> None:
    for name, value in INSTRUCTION_SET.items():
        os.environ.setdefault(name, value)
    from ..demo import demo

    settings = demo.QUICK if arguments.quick else demo.DemoSettings()
    demo.run_demo(arguments.output, replace(settings, training_videos=arguments.training_videos), arguments.seed)
