"""Worker processes and Ctrl-C: the terminal sends it to every process, but only the parent reacts.

A worker that reacted by itself would print a traceback for each process, and the parent could not tell an interrupt
from a crash.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_TO_END = 5.0


@contextmanager
def workers_ignore_interrupts() -> Iterator[None]:
    """
    Processes that are started inside do not react to Ctrl-C.

    The signal mask is inherited by forked and by spawned processes. A Ctrl-C that arrives in here reaches this process
    at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers() -> None:
    """Ends all processes that `multiprocessing` has started from this one, and waits until they are gone."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(SECONDS_TO_END)
        if worker.is_alive():
            worker.kill()
            worker.join()
