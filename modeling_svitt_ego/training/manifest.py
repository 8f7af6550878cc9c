"""The manifest of a checkpoint: which files it has, and which run wrote it.

A resumed run must continue the interrupted one. Without this list, a missing optimizer state, another seed or another
table of clips would only be visible in the loss curve.
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.arrow_cache import content_hash

MANIFEST_NAME = "manifest.json"
_VERSION = 1
_ROWS_PER_BATCH = 1 << 16
# Optimizer state is one file, or under FSDP a file or folder of another name.
_OPTIMIZER = re.compile(r"optimizer(\.pt|\.bin|_\d+(/.*)?)|.*_optim_states\.pt")
_WEIGHTS = re.compile(r"(model|adapter_model)(-.*)?\.safetensors|pytorch_model.*|.*model_states\.pt")


class CheckpointError(OSError):
    """A checkpoint could not be written, or cannot be resumed; other checkpoints are intact."""


def checkpoint_number(folder: Path) -> int | None:
    """The step of a checkpoint folder, from its name; None if it is not one."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, from the newest to the oldest, also damaged ones."""
    if not run_dir.is_dir():
        return []
    numbered = [(number, path) for path in run_dir.iterdir() if (number := checkpoint_number(path)) is not None]
    return [path for _, path in sorted(numbered, reverse=True)]


def write_manifest(folder: Path, run: dict) -> None:
    """
    Lists every file of the checkpoint with its size and SHA-256.

    Args:
        run (`dict`): what a resumed run must have in common with this one, see [`run_facts`].
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": content_hash(path).hex()}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    content = {"version": _VERSION, "run": run, "files": files}
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a checkpoint; None if it was saved before checkpoints had one.

    Raises:
        CheckpointError: The manifest cannot be read.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["run"], dict):
            raise ValueError("files and run must be objects")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    return manifest


def damage(folder: Path, num_processes: int) -> list[str]:
    """
    The reasons why a checkpoint cannot be resumed: missing, truncated or changed files. Empty if there are none.

    Args:
        num_processes (`int`): each process has saved a random state.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    if manifest is None:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        found = [f"{name}: {reason}" for name in sorted(files) if (reason := _unreadable(folder / name))]
    else:
        files = set(manifest["files"])
        found = [message for name, saved in manifest["files"].items() if (message := _changed(folder, name, saved))]
        num_processes = manifest["run"].get("num_processes", num_processes)
    return found + _lacking(files, num_processes)


def _changed(folder: Path, name: str, saved: dict) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != saved["size"]:
        return f"{name} has {size} bytes and was saved with {saved['size']}"
    return None if content_hash(path).hex() == saved["sha256"] else f"{name} has changed since it was saved"


def _unreadable(path: Path) -> str | None:
    """Without a manifest: the error of a file whose format shows that it was truncated."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"cut short ({path.stat().st_size} bytes)"
    except (SafetensorError, ValueError) as error:
        return f"cannot be read ({error})"
    return None


def _lacking(files: set[str], num_processes: int) -> list[str]:
    """The kinds of files that are missing, without which a run would silently restart part of its state."""
    states = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    found = [f"it has no {name}" for name in ("trainer_state.json", "scheduler.pt", *states) if name not in files]
    if not any(_WEIGHTS.fullmatch(name.split("/")[0]) for name in files):
        found.append("it has no weights")
    if not any(_OPTIMIZER.fullmatch(name) for name in files):
        found.append("it has no optimizer state (saved with save_only_model?)")
    return found


# ----------------------------------------------------------------------------------------------- the run that wrote it


def data_fingerprint(dataset) -> str | None:
    """Number of rows and hash of a table of clips, whatever the cache or the folder it was read from."""
    table = getattr(dataset, "table", None)
    if table is None:
        return f"{len(dataset)} rows" if hasattr(dataset, "__len__") else None
    digest = hashlib.sha256()
    for part in table.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH):
        # Serialising drops what a slice of a larger buffer carries along, so equal rows give equal bytes.
        part = part.replace_schema_metadata(None).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
        digest.update(sink.getvalue())
    return f"{len(table)} rows, {digest.hexdigest()[:16]}"


def vocabulary_fingerprint(processing_class) -> str | None:
    """Number of tokens and hash of token and id; None without a tokenizer."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
    return f"{len(vocabulary)} tokens, {digest}"
