"""`svitt-ego demo`: the whole path on a synthetic world."""

import argparse


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="svitt-ego-demo", help="folder for everything that is made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small world and one epoch")


def run_demo(arguments: argparse.Namespace) -> None:
    from ..demo import demo

    demo.run_demo(arguments.output, demo.QUICK if arguments.quick else None, arguments.seed)
