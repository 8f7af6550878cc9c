"""One writer per output: a lock that names its holder, and that shards of one job share.

A run on the whole folder excludes every other run. Runs on different shards of the same split (`--shard I/N`) work on
the folder at the same time; the same shard twice, or shards of two different splits, exclude each other.
The locks are `filelock`'s: the operating system releases them when their process ends, also when it is killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .sharding import Shard
from .writing import write_json

LOCK_NAME = ".lock"
# Every run holds the lock of the folder for a moment when it starts; this long another start waits for it.
START_SECONDS = 10.0


class FolderInUse(FileExistsError):
    """Another process writes to the same output; the message names it."""


@contextmanager
def locked(
    output: str | os.PathLike, shard: Shard | None = None, at_start: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold `output` for this process, as a whole or for one shard.

    Args:
        output: A folder that exists, or a file to be written; the lock of a file is next to it.
        shard: The part of the job that this process does, if it was split.
        at_start: Called while no other run, of a shard neither, can start: to write or compare the settings.

    Raises:
        FolderInUse: Another process holds it.
    """
    output = Path(output)
    path = output / LOCK_NAME if output.is_dir() else output.with_name(f".{output.name[:100]}{LOCK_NAME}")
    with ExitStack() as held:
        with ExitStack() as starting:
            _hold(path, output, starting, START_SECONDS if shard else 1.0)
            for other in sorted(path.parent.glob(f"{path.name}.shard-*-of-*")):
                if other.suffix != ".json" and (shard is None or not other.name.endswith(f"-of-{shard.count:05d}")):
                    _hold(other, output, starting)
            if shard is None:
                held.push(starting.pop_all())
                _name_holder(path, held)
                if at_start is not None:
                    at_start()
            else:
                own = path.with_name(f"{path.name}.{shard.name}")
                _hold(own, output, held)
                _name_holder(own, held)
                if at_start is not None:
                    at_start()
        yield


def _hold(path: Path, output: Path, stack: ExitStack, timeout: float = 0.0) -> None:
    try:
        stack.enter_context(FileLock(path, timeout=timeout, thread_local=False))
    except Timeout:
        raise FolderInUse(
            f"{str(output)!r} is being written by {_holder(path)}. Wait for it, stop it, choose another output, or "
            "split the work with --shard I/N."
        ) from None


def _name_holder(path: Path, stack: ExitStack) -> None:
    note = path.with_name(f"{path.name}.json")
    write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "command": os.path.basename(sys.argv[0])})
    stack.callback(note.unlink, missing_ok=True)


def _holder(path: Path) -> str:
    for note in (path.with_name(f"{path.name}.json"), *sorted(path.parent.glob(f"{path.name}.shard-*.json"))):
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            return f"process {content['pid']} on {content['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return f"another process (it holds {str(path)!r})"
