"""Vectors by key on disk: an interrupted evaluation continues from them, and a second one decodes nothing."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files.arrays import DamagedArrays, read_arrays, write_arrays
from ..files.writing import make_cache_folder, write_json

logger = logging.getLogger(__name__)


class VectorCache:
    """
    Float32 vectors by text key, in memory and, with a folder, on disk.

    Several processes may write to one folder: each atomically writes its own files.

    Args:
        folder (`str`, *optional*): Folder of caches; this one uses a sub-folder that is named by a hash of `made_by`.
        made_by (`dict[str, str]`): Everything that the vectors depend on apart from their key, such as the
            fingerprints of the weights and of the transform.
    """

    def __init__(self, folder: str | os.PathLike | None, made_by: dict[str, str]):
        self._rows: dict[str, np.ndarray] = {}
        self._unwritten: list[str] = []
        self.folder = None
        if folder is None:
            return
        text = json.dumps(made_by, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        make_cache_folder(self.folder, "Name another folder, or none to keep no vectors.")
        # For people who look into the folder. The cache is found by its name.
        write_json(self.folder / "made_by.json", dict(sorted(made_by.items())))
        for path in sorted(self.folder.glob("*.npz")):
            try:
                keys, rows = read_arrays(path, "keys", "rows")
                self._rows.update(zip(keys.tolist(), rows))
            except DamagedArrays as error:
                logger.warning("%s is damaged (%s): it is deleted, and its vectors are recomputed.", path, error)
                path.unlink()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._rows[key]

    def keys(self) -> list[str]:
        return list(self._rows)

    def merge(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Adds vectors that another process has computed and written."""
        self._rows.update(zip(keys, rows))

    def add(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Adds `rows` of shape `(len(keys), dim)`; `write` writes them to the disk."""
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(keys):
            raise ValueError(f"{len(keys)} keys do not belong to vectors of shape {rows.shape}.")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ValueError(f"The model's output for {keys[bad]!r} is not finite.")
        self._rows.update(zip(keys, rows))
        self._unwritten += keys

    def write(self) -> None:
        """Writes the vectors that were added since the last call to a new file."""
        if self.folder is None or not self._unwritten:
            return
        rows = np.stack([self._rows[key] for key in self._unwritten])
        write_arrays(self.folder / f"{uuid.uuid4().hex}.npz", keys=np.array(self._unwritten), rows=rows)
        self._unwritten = []
