"""How a command or an example script ends: with an exit status, and one line for a mistake of the user or for Ctrl-C.

if __name__ == "__main__":
    run_script(main, stopped="checkpoints are kept; --resume true goes on from the newest")
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .terminal import make_printable

DEBUG_VARIABLE = "SVITT_EGO_DEBUG"
DEBUG_HELP = f"With {DEBUG_VARIABLE}=1 in the environment an error shows its full traceback."
USAGE_ERROR = 2
NUM_SIGINT, NUM_SIGTERM = 2, 15


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a cluster or `kill` sends. It ends a command as Ctrl-C does."""


def run(name: str, work: Callable[[], int | None], stopped: str) -> int:
    """
    Runs `work`.

    Args:
        name (`str`): what the one line begins with, such as `svitt-ego extract`.
        stopped (`str`): what an interrupted run keeps, and what goes on with it.

    Returns:
        What `work` returns (0 for `None`); 2 after a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM, each
        with one line on the error stream. Any other error is a defect and keeps its traceback.
    """
    make_printable()
    try:
        with _sigterm_raises():
            return work() or 0
    except SystemExit as end:  # the --help or the usage error of a parser inside
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt as interrupt:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _end_quietly()
        kind = "terminated" if isinstance(interrupt, Terminated) else "interrupted"
        print(f"\n{name}: {kind}; {stopped}", file=sys.stderr, flush=True)
        return 128 + (NUM_SIGTERM if isinstance(interrupt, Terminated) else NUM_SIGINT)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) or not _is_mistake_of_the_user(error):
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


def run_script(main: Callable[[], object], stopped: str = "nothing is kept; the same command starts again") -> None:
    """Runs the `main` of a script and exits as a command does."""
    sys.exit(run(Path(sys.argv[0]).name, lambda: main() and None, stopped))


def same_command(argv: list[str] | None = None) -> str:
    """The command line of `svitt-ego`, ready to be pasted."""
    return shlex.join(["svitt-ego", *(sys.argv[1:] if argv is None else argv)])


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; of an error in a worker process without the worker's traceback."""
    if _is_refused_configuration(error) and error.__cause__ is not None:
        error = error.__cause__
    if _is_failed_write(error):
        return f"a file could not be written, perhaps because the disk is full: {str(error).splitlines()[0]}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught ") and "worker process" in lines[0]:
        _, _, message = lines[-1].partition(": ")
        return message or lines[-1]
    return " ".join(line.strip() for line in lines if line.strip())


def _is_mistake_of_the_user(error: Exception) -> bool:
    """Missing files, values out of range, packages that are not installed, a full disk."""
    return isinstance(error, (ValueError, OSError, ImportError)) or (
        _is_refused_configuration(error) or _is_failed_write(error)
    )


def _is_failed_write(error: BaseException) -> bool:
    """What safetensors and torch.save raise on a full disk is not an OSError."""
    name, text = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O error" in text) or (
        isinstance(error, RuntimeError) and "inline_container.cc" in text
    )


def _is_refused_configuration(error: BaseException) -> bool:
    """huggingface_hub wraps what the validation of a configuration raises; by name, because its import takes long."""
    return any(base.__name__ == "StrictDataclassError" for base in type(error).__mro__)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    command = os.getpid()

    def terminate(number, frame):
        if os.getpid() != command:  # a forked worker has inherited this function
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_quietly() -> None:
    """Ends worker processes; a second Ctrl-C does not interrupt that."""
    from ..files.processes import end_workers

    if threading.current_thread() is not threading.main_thread():
        end_workers()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_workers()
    finally:
        signal.signal(signal.SIGINT, before)
