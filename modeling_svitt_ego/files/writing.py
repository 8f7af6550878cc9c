"""Files that appear whole or not at all.

Everything is written under a temporary name that no other process uses, flushed to the disk, and then renamed. A
rename alone survives a crash of the process but not of the machine: without the flush, the name may point to an empty
file afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".part"


def temporary_path(path: str | os.PathLike) -> Path:
    """A hidden name in the folder of `path` that is unique to this call.

    It does not contain the final name, because the sum of both could exceed what the file system allows.
    """
    return Path(path).with_name(f".{os.getpid()}-{uuid.uuid4().hex[:16]}{TEMPORARY_SUFFIX}")


@contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed and renamed to `path`, on any exception it is removed."""
    path = Path(path)
    part = temporary_path(path)
    try:
        yield part
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it takes the place of `path`, an older folder included."""
    path = Path(path)
    part, old = temporary_path(path), temporary_path(path)
    try:
        part.mkdir(parents=True)
        yield part
        flush_folder(part)
        exchange_folder(part, path, old)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def exchange_folder(part: Path, path: Path, old: Path) -> None:
    """Rename the flushed folder `part` to `path`, and remove the folder that it replaces.

    A folder cannot be renamed over another, so the former one is called `old` in between. If the exchange fails, it is
    put back.
    """
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def publish(part: Path, path: Path) -> None:
    """Flush `part` and give it its final name."""
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def flush(path: str | os.PathLike) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows cannot open a folder and writes its entries itself
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError:
        if not os.path.isdir(path):  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: str | os.PathLike) -> None:
    """Flush every file and folder below `folder`, and `folder` itself."""
    for parent, _, names in os.walk(folder):
        for name in names:
            flush(os.path.join(parent, name))
        flush(parent)


def make_cache_folder(folder: str | os.PathLike, remedy: str) -> Path:
    """Create the folder of a cache, before the work whose results it keeps.

    Raises:
        OSError: It cannot be created or written; the message ends with `remedy`.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "there is no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise OSError(f"The cache {str(folder)!r} cannot be written: {reason}. {remedy}")
    return folder


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_json_lines(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Write one JSON object per line; with no rows an existing file is removed."""
    rows = list(rows)
    if rows:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        Path(path).unlink(missing_ok=True)


def append_json_line(path: str | os.PathLike, row: dict) -> None:
    """Append one line and flush it. A line that a crash cut short is dropped by `read_json_lines`."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """The rows of a file of JSON lines; empty if the file does not exist.

    A last line without its line break was cut short when the process was killed. It is removed from the file, because
    the next line would be appended to it.

    Raises:
        ValueError: Another line is not a JSON object; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        return []
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        with aside(path) as part:
            part.write_bytes(content)
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number} is not a JSON object: {line[:80]!r}.")
        rows.append(row)
    return rows


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes in hexadecimal; 1 GB takes about a second."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()


def is_whole(path: str | os.PathLike, num_bytes: int, sha256: str) -> bool:
    """Whether a file exists with exactly this content."""
    path = Path(path)
    return path.is_file() and path.stat().st_size == num_bytes and file_hash(path) == sha256


def remove_temporary_files(folder: str | os.PathLike) -> None:
    """Remove what killed processes left below `folder`. Only for a process that holds the lock of the whole folder."""
    for path in Path(folder).rglob(f".*{TEMPORARY_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
