"""Worker processes and signals: a terminal sends Ctrl-C, and a cluster SIGTERM, to every process; the parent reacts.

A worker that reacted by itself would print a traceback, and the parent could not tell an interrupt from a crash.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def workers_ignore_interrupts() -> Iterator[None]:
    """
    Processes that are started inside do not react to Ctrl-C.

    Forked and spawned processes inherit the signal mask. A Ctrl-C that arrives inside reaches this process at the end
    of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent() -> None:
    """
    Called in a worker: it ignores Ctrl-C and the first SIGTERM.

    Slurm sends SIGTERM to every process of a job. If the workers ended, the parent could not finish its step. A second
    SIGTERM ends the worker, because `multiprocessing` ends what is left of its processes in this way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def end_workers() -> None:
    """Ends all processes that `multiprocessing` has started from this one, and waits until they are gone."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for a killed worker
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()  # a worker may ignore SIGTERM, and has nothing to clean up
    for worker in workers:
        worker.join()
