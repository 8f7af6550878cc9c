"""Folders that a stopped command goes on with: made by one set of settings, each file whole or not there.

A folder is claimed by a JSON file of how it is made. Whoever comes later compares: equal settings go on with what is
missing, others are refused, and so is a folder that holds things but no such file.
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


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` at the end, or removed if that end is not reached."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    with aside(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def begin_folder(folder: Path, name: str, settings: dict, notes: dict | None = None) -> dict | None:
    """Makes the folder and its settings file, unless it is there.

    Args:
        name (`str`): of the settings file.
        notes (`dict`): written beside the settings, compared by nobody.

    Returns:
        What the folder is made by: `settings` if it is new, else the file's content; None if it holds something else.
    """
    path = folder / name
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if folder.is_dir() and any(folder.iterdir()):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings | (notes or {}))
    return settings


def differences(there: dict, settings: dict, now: str) -> str:
    """`"crf: 23 there, 30 {now}; …"` of the settings that differ, empty if none does."""
    return "; ".join(
        f"{name}: {there.get(name)} there, {value} {now}"
        for name, value in settings.items()
        if there.get(name) != value
    )


def claim_folder(folder: Path, name: str, settings: dict) -> None:
    """Makes the folder by these settings, or goes on with it.

    Raises:
        FileExistsError: It was made with other settings, which are listed, or holds something else.
    """
    there = begin_folder(folder, name, settings)
    if there is None:
        raise FileExistsError(f"{str(folder)!r} is not empty and {name} is missing: not made by this command.")
    if different := differences(there, settings, "asked for"):
        raise FileExistsError(f"{str(folder)!r} was made with other settings ({different}).")


class FolderReport:
    """Base of the dataclasses that tell what a command left in its folder; they list `failures`."""

    @property
    def exit_code(self) -> int:
        return int(bool(self.failures))

    def as_dict(self) -> dict:
        return {**asdict(self), "exit_code": self.exit_code}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def run_jobs(work: Callable, jobs: Sequence[tuple], num_workers: int) -> Iterator[tuple[tuple, Any]]:
    """(job, `work(*job)`) of every job as it is done, in as many processes; with one worker in this one, in order.

    Raises:
        OSError: A worker died; what other jobs have written stays.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(*job)
        return
    # Not forked: the parent has threads, and a decoder's locks may be held in one of them.
    pool = ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(work, *job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process died (killed, or out of memory?). What is finished stays; run the same command again."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
