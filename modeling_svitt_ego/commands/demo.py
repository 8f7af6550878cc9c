"""`svitt-ego demo`: the whole path on a synthetic world."""

import argparse

from .arguments import non_negative_int


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="svitt-ego-demo", help="folder for the world, the model and the numbers")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of world, weights and order of clips")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small world and one epoch")


def run_demo(arguments: argparse.Namespace) -> None:
    from ..demo import demo

    demo.run_demo(arguments.output, demo.QUICK if arguments.quick else None, arguments.seed)
