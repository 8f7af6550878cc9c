"""Output folders that a stopped command can resume.

A JSON file in the folder records the settings. A later run with equal settings resumes with what is missing; other
settings are refused, and so is a folder with other content.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .folder_lock import LOCK_NAME, locked
from .processes import end_workers, workers_ignore_interrupts
from .sharding import Shard
from .writing import TEMPORARY_SUFFIX, aside, remove_temporary_files, write_json

__all__ = [
    "FolderReport",
    "aside",
    "begin_folder",
    "claim_folder",
    "claimed_folder",
    "differences",
    "is_foreign",
    "num_cores",
    "run_jobs",
    "write_json",
]


def begin_folder(folder: Path, name: str, settings: dict, notes: dict | None = None) -> dict | None:
    """Create the folder and its settings file unless they exist.

    A folder that holds nothing but locks and temporary files was left by a run that was killed before it wrote its
    settings; it counts as empty.

    Args:
        name (`str`): of the settings file.
        notes (`dict`): stored with the settings but never compared.

    Returns:
        The settings of the folder: `settings` if it is new, else the content of the file. None if the folder holds
        something else.

    Raises:
        ValueError: The settings file is damaged.
    """
    path = folder / name
    if path.is_file():
        return _read_settings(path)
    if is_foreign(folder, name):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings | (notes or {}))
    return settings


def is_foreign(folder: Path, name: str) -> bool:
    """Whether the folder holds files but not the settings file `name`, so that another program made it."""
    if not folder.is_dir() or (folder / name).is_file():
        return False
    return not all(_is_ours(entry) for entry in folder.iterdir())


def _is_ours(entry: Path) -> bool:
    return entry.name.startswith(LOCK_NAME) or (entry.name.startswith(".") and entry.suffix == TEMPORARY_SUFFIX)


def _read_settings(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The settings {str(path)!r} are damaged ({error}). Remove the folder.") from None
    if not isinstance(content, dict):
        raise ValueError(f"The settings {str(path)!r} are damaged (not an object). Remove the folder.")
    return content


def differences(there: dict, settings: dict, now: str) -> str:
    """`"crf: 23 there, 30 {now}; …"` of the settings that differ; empty if none does."""
    return "; ".join(
        f"{name}: {there.get(name)} there, {value} {now}"
        for name, value in settings.items()
        if there.get(name) != value
    )


def claim_folder(folder: Path, name: str, settings: dict) -> None:
    """Create the folder with these settings, or check that it was made with them.

    Raises:
        FileExistsError: It was made with other settings, which are listed, or holds something else.
    """
    there = begin_folder(folder, name, settings)
    if there is None:
        raise _foreign(folder, name)
    if different := differences(there, settings, "asked for"):
        raise FileExistsError(f"{str(folder)!r} was made with other settings ({different}).")


@contextmanager
def claimed_folder(folder: Path, name: str, settings: dict, shard: Shard | None = None) -> Iterator[None]:
    """`claim_folder`, and hold the lock of the folder (or of one shard of it) until the end of the block.

    Raises:
        FileExistsError: As `claim_folder`, or another process writes to the folder (`FolderInUse`).
    """
    if is_foreign(folder, name):
        raise _foreign(folder, name)  # before a lock file is put into it
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, shard, lambda: claim_folder(folder, name, settings)):
        if shard is None:
            remove_temporary_files(folder)
        yield


def _foreign(folder: Path, name: str) -> FileExistsError:
    return FileExistsError(f"{str(folder)!r} is not empty and {name} is missing: not made by this command.")


class FolderReport:
    """Base of the dataclasses that report what a folder holds after a command; they list `failures`."""

    @property
    def exit_code(self) -> int:
        return int(bool(self.failures))

    def as_dict(self) -> dict:
        return {**asdict(self), "exit_code": self.exit_code}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def run_jobs(work: Callable, jobs: Sequence[tuple], num_workers: int) -> Iterator[tuple[tuple, Any]]:
    """Yield (job, `work(*job)`) as the jobs finish, in `num_workers` processes.

    With one worker the jobs run in this process, in order.

    Raises:
        OSError: A worker process died; the files of finished jobs stay.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(*job)
        return
    # Not forked: the parent has threads, and a decoder's locks may be held in one of them.
    pool = ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        with workers_ignore_interrupts():
            futures = {pool.submit(work, *job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process died (killed, or out of memory?). Finished files stay; run the same command again."
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        end_workers()  # or the end of the pool would wait for the jobs that are running
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
