"""`svitt-ego pretrain` and `svitt-ego finetune`, which also take every option of the Trainer."""

import argparse


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Passes all arguments, also `--help`, on to the parser of the Trainer, whose import takes seconds."""

    def keep(arguments: list[str], namespace: argparse.Namespace | None = None):
        namespace = argparse.Namespace() if namespace is None else namespace
        namespace.arguments = arguments
        namespace.parser = {"prog": parser.prog, "description": parser.description, "epilog": parser.epilog}
        for name, value in parser._defaults.items():
            setattr(namespace, name, value)
        return namespace, []

    parser.parse_known_args = keep


def run_pretrain(arguments: argparse.Namespace) -> None:
    from ..training.pretraining import main

    main(arguments.arguments, **arguments.parser)


def run_finetune(arguments: argparse.Namespace) -> None:
    from ..training.finetuning import main

    main(arguments.arguments, **arguments.parser)
