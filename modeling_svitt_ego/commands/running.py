"""How a command or an example script ends: with an exit status, and one line after a mistake of the user or Ctrl-C.

if __name__ == "__main__":
    run_script(main, stopped="checkpoints are kept; continue from the newest one with --resume")
"""

import errno
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
DEBUG_HELP = f"With {DEBUG_VARIABLE}=1 in the environment, an error shows its full traceback."
USAGE_ERROR = 2
NUM_SIGINT, NUM_SIGTERM = 2, 15
SECONDS_UNTIL_AGAIN = 0.1
LISTED = 5


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster or `kill` sends. It ends a command in the same way as Ctrl-C."""


def run(name: str, work: Callable[[], int | None], stopped: str) -> int:
    """
    Runs `work`.

    Args:
        name (`str`): Start of the one line, such as `svitt-ego extract`.
        stopped (`str`): Says what an interrupted run keeps, and how to continue.

    Returns:
        The result of `work` (0 for `None`); 2 after a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM, each
        with one line on the error stream. Any other error is a defect and keeps its traceback.
    """
    make_printable()
    try:
        with _signals_raise():
            return work() or 0
    except SystemExit as end:  # --help or a usage error of a parser that `work` calls
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
    """Runs the `main` of a script and exits with the status and the messages of a command."""
    sys.exit(run(Path(sys.argv[0]).name, lambda: main() and None, stopped))


def same_command(argv: list[str]) -> str:
    """The command line of `svitt-ego`, quoted for a shell."""
    return shlex.join(["svitt-ego", *argv])


def list_failures(failures: dict[str, str], where: str) -> str:
    """
    The first failures, one line each, and the number of the others.

    Args:
        failures (`dict[str, str]`): For each path or name, the reason.
        where (`str`): The file that lists all of them.
    """
    lines = [f"  {name}: {reason}" for name, reason in list(failures.items())[:LISTED]]
    if len(failures) > LISTED:
        lines.append(f"  and {len(failures) - LISTED} more, listed in {where}")
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, and without the traceback of a worker process."""
    if _is_refused_configuration(error) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        path = error.filename2 or error.filename
        return f"the disk is full{f': {path} could not be written' if path else ''}; make space and run it again"
    if _is_failed_write(error):
        return f"a file could not be written, perhaps because the disk is full: {str(error).splitlines()[0]}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught ") and "worker process" in lines[0]:
        _, _, message = lines[-1].partition(": ")
        return message or lines[-1]
    return " ".join(line.strip() for line in lines if line.strip())


def _is_mistake_of_the_user(error: Exception) -> bool:
    """Whether an error is one of the user's: missing files, wrong values, missing packages, a full disk."""
    return isinstance(error, (ValueError, OSError, ImportError)) or (
        _is_refused_configuration(error) or _is_failed_write(error)
    )


def _is_failed_write(error: BaseException) -> bool:
    """Whether a file could not be written: safetensors and torch.save raise no OSError on a full disk."""
    name, text = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O error" in text) or (
        isinstance(error, RuntimeError) and "inline_container.cc" in text
    )


def _is_refused_configuration(error: BaseException) -> bool:
    """Whether a configuration was refused: huggingface_hub wraps that error in a class whose import takes long."""
    return any(base.__name__ == "StrictDataclassError" for base in type(error).__mro__)


@contextmanager
def _signals_raise() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    command = os.getpid()

    def terminate(number, frame):
        if os.getpid() != command:  # a forked worker process inherits this handler
            os._exit(128 + number)
        raise Terminated

    before, hook_before = signal.signal(signal.SIGTERM, terminate), sys.unraisablehook
    sys.unraisablehook = _interrupt_again
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook_before


def _interrupt_again(unraisable) -> None:
    """
    Sends a signal again that arrived inside a destructor, where Python prints the exception and drops it.

    Without this, a Ctrl-C while a large model is loaded (thousands of objects are released) may have no effect.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = NUM_SIGTERM if issubclass(unraisable.exc_type, Terminated) else NUM_SIGINT
    timer = threading.Timer(SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _end_quietly() -> None:
    """Ends the worker processes, which a second Ctrl-C does not interrupt."""
    from ..files.processes import end_workers

    if threading.current_thread() is not threading.main_thread():
        end_workers()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_workers()
    finally:
        signal.signal(signal.SIGINT, before)
