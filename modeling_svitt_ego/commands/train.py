"""`svitt-ego pretrain` and `svitt-ego finetune`; their options are those of the Trainer as well."""

import argparse


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Keeps the arguments, `--help` too, for the Trainer's own parser, which is slow to import."""

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
