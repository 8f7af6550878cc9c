"""Where a result comes from: the commit of this package and the hash of a folder's weights."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

from ..files.plain_names import check_plain_name


def package_commit(path: str | os.PathLike | None = None) -> str | None:
    """
    The commit that this package is checked out at, `+changes` with uncommitted ones; `None` if it is not a checkout.

    Args:
        path (*optional*): folder whose uncommitted changes count; the package's own by default. A benchmark, whose
            script is part of what it measures, passes the whole checkout.
    """
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed package can be inside somebody else's repository.
        if not git("ls-files", str(Path(__file__).resolve())):
            return None
        changes = git("status", "--porcelain", "--", str(Path(path or package).resolve()))
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The safetensors files that a saved model should have, in order: from the index if it is sharded."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [folder / "model.safetensors"]
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index} is not a JSON file: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map.")
    return [
        folder / check_plain_name(name, f"{index}: the file") for name in sorted(set(weight_map.values()), key=str)
    ]


def weights_sha256(folder: str | os.PathLike) -> str:
    """SHA-256 of `model.safetensors`; of all shards in the order of their names if it is sharded."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
