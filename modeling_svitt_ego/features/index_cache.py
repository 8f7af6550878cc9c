"""The features of a searched video on disk, one file per video, checkpoint and settings."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from ..files.resumable_folder import aside
from .windows import SourceVideo


def cache_path(folder: Path, maker: list, source: SourceVideo) -> Path:
    key = json.dumps([maker, source.stamp(), [start for start, _ in source.files]], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["cells"], file["features"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"The index file {str(path)!r} is damaged ({error}); remove it.") from error


def write_cache(path: Path, cells: np.ndarray, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as part, open(part, "wb") as file:
        np.savez(file, cells=cells, features=features)
