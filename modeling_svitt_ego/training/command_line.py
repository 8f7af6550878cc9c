"""The command lines of pretraining and fine-tuning: their options and those of the Trainer, with one-line errors."""

import difflib
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from transformers import HfArgumentParser

from ..data.failures import TooManyClipFailures


def run_command_line(
    work: Callable[[Any, Any], object],
    options: type,
    recipe: type,
    usage: str,
    argv: list[str] | None = None,
    **parser_settings,
) -> None:
    """
    Reads a command line and runs `work(options, recipe)`.

    Args:
        work (function): The training run.
        options (dataclass): Data and starting weights of the run.
        recipe (dataclass): Its training arguments, a subclass of `TrainingArguments`.
        usage (`str`): First line of `--help`.
        argv (`list[str]`, *optional*): The arguments; those of the process if not given.
        parser_settings: Arguments of `argparse.ArgumentParser`, such as `prog`.

    Raises:
        ValueError, OSError: A mistake in the arguments, unreadable data, or a full disk.
    """
    parser = HfArgumentParser((options, recipe), usage=usage, **parser_settings)
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        raise ValueError(f"unknown option {unknown[0]}{f'; did you mean {near[0]}?' if near else ''} (see --help)")
    try:
        work(*parsed)
    except (TooManyClipFailures, SafetensorError) as error:  # not errors that a command reports in one line
        raise OSError(str(error)) from error
