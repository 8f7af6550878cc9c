"""`svitt-ego space`: writes the folder of a Gradio Space."""

import argparse


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="Hub name of the model (USER/MODEL), or a folder to try the Space locally"
    )
    parser.add_argument("out", metavar="OUT", help="new folder of the Space")


def run_space(arguments: argparse.Namespace) -> None:
    from ..hub.space import write_space

    folder = write_space(arguments.model, arguments.out)
    print(f"{folder}: try it with `python {folder}/app.py`, then `hf upload USER/SPACE {folder} --repo-type space`")
