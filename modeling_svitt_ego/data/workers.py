"""How the worker processes of a data loader begin, in training and in evaluation."""

from collections.abc import Callable

import torch

from ..files.processes import leave_signals_to_the_parent


def one_thread(worker: int) -> None:
    """Computes in one thread in a worker process, because there is a worker per core."""
    torch.set_num_threads(1)


def start_worker(worker: int, first: Callable[[int], None] | None = None) -> None:
    """
    Prepares a worker process: it computes in one thread and leaves signals to the main process.

    Args:
        worker (`int`): Its number.
        first (function of the number, *optional*): Called before, such as the `worker_init_fn` of a library.
    """
    if first is not None:
        first(worker)
    one_thread(worker)
    leave_signals_to_the_parent()
