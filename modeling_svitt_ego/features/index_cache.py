"""The features of a searched video on disk, one file per video, checkpoint and settings."""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np

from ..files.arrays import DamagedArrays, read_arrays, write_arrays
from ..files.writing import make_cache_folder
from .windows import SourceVideo

logger = logging.getLogger(__name__)


def make_index_cache(folder: str | os.PathLike) -> Path:
    """The folder of index files, created; an OSError with the remedy where that is not possible."""
    return make_cache_folder(
        folder,
        "Name another folder (--cache, cache_dir), set HF_HOME to one that can be written, or keep no features "
        "(--no-cache, cache_dir=None).",
    )


def cache_path(folder: Path, maker: list, source: SourceVideo) -> Path:
    key = json.dumps([maker, source.stamp(), [start for start, _ in source.files]], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Cells and features; `None` if there is no such file, or if it is damaged and must be written again."""
    if not path.is_file():
        return None
    try:
        cells, features = read_arrays(path, "cells", "features")
    except (OSError, DamagedArrays) as error:
        logger.warning("The index file %s is damaged (%s); its video is embedded again.", path, error)
        return None
    if cells.ndim != 2 or len(cells) != len(features) or not len(cells):
        logger.warning("The index file %s has %d cells for %d features; its video is embedded again.", path,
                       len(cells), len(features))  # fmt: skip
        return None
    return cells, features


def write_cache(path: Path, cells: np.ndarray, features: np.ndarray) -> None:
    write_arrays(path, cells=cells, features=features)
