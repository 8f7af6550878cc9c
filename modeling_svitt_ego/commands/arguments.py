"""What the arguments of all commands share: a parser with one-line errors, and types that check their values.

Each type is a function of the text, for `add_argument(type=…)`. It refuses a wrong value before any work begins.
"""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

FRAME_ORDERS = ("natural", "shuffled", "reversed", "repeated")  # of data/frame_order.py, whose import takes a second


class CommandParser(argparse.ArgumentParser):
    """Shows defaults in `--help` and reports a usage error in one line. Its sub-parsers do the same."""

    def __init__(self, *args, formatter_class=None, **kwargs):
        super().__init__(*args, formatter_class=formatter_class or HelpWithDefaults, **kwargs)

    def error(self, message: str):
        # "argument --top-k: (0) must be …" reads better without argparse's first word.
        message = re.sub(r"^argument (\S+): \(", r"\1 (", message)
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter):
    """Adds the default value to the help text of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default  # 0 is a default worth showing, though it equals False
        no_default = default is None or default is False or default is argparse.SUPPRESS or default in ("", (), [])
        if no_default or "%(default)" in text or not (action.option_strings or action.nargs == "?"):
            return text
        return f"{text} (default: %(default)s)" if text else "default: %(default)s"


def _number(convert: Callable[[str], float], kind: str, low: float, high: float, allowed: str):
    def check(text: str):
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None
        if value != value or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"({text}) must be {allowed}")
        return value

    return check


_SMALLEST = math.nextafter(0.0, 1.0)
_LARGEST = math.nextafter(math.inf, 0.0)
_INTEGER = int, "a whole number"
_FLOAT = float, "a number"

positive_int = _number(*_INTEGER, 1, math.inf, "at least 1")
non_negative_int = _number(*_INTEGER, 0, math.inf, "at least 0")
integer = _number(*_INTEGER, -math.inf, math.inf, "a whole number")
jpeg_quality = _number(*_INTEGER, 1, 100, "between 1 and 100")
x264_crf = _number(*_INTEGER, 0, 51, "between 0 and 51")
positive_float = _number(*_FLOAT, _SMALLEST, _LARGEST, "a finite number above 0")
non_negative_float = _number(*_FLOAT, 0.0, _LARGEST, "a finite number of at least 0")
positive_or_infinite = _number(*_FLOAT, _SMALLEST, math.inf, "above 0")
probability = _number(*_FLOAT, 0.0, math.nextafter(1.0, 0.0), "at least 0 and below 1")
share = _number(*_FLOAT, _SMALLEST, 1.0, "above 0 and at most 1")


def window_seconds(text: str) -> float | str:
    """Seconds, or the word `stride`."""
    return text if text == "stride" else positive_float(text)


def device(text: str) -> str:
    """`cpu`, `cuda`, `cuda:1`, `mps`, …; a device that this machine lacks is refused."""
    import torch

    try:
        wanted = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; name cpu, cuda, cuda:1 or mps") from None
    if wanted.type == "cpu":
        return text
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != wanted.type:
        has = "no accelerator" if here is None else f"no {wanted.type}, but {here.type}"
        raise argparse.ArgumentTypeError(f"{text!r} is not available: torch finds {has} on this machine")
    count = torch.accelerator.device_count()
    if wanted.index is not None and wanted.index >= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not available: this machine has {count} of {wanted.type}")
    return text


def check_output_file(path: str | os.PathLike | None, option: str) -> None:
    """
    Refuses an output file before the work starts if it could not be written after the work; `None` is accepted.

    Raises:
        OSError: `path` is a folder, or there is no permission to write it or its folder.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{option}: {str(path)!r} is a folder; name a file.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{option}: {str(parent)!r} is not a folder, so {str(path)!r} cannot be written.")
    if not os.access(path if path.exists() else parent, os.W_OK) or not os.access(parent, os.W_OK):
        raise PermissionError(f"{option}: there is no permission to write {str(path)!r}.")
