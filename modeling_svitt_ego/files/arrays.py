"""Arrays by name in one npz file of a cache: written whole or not at all, and checked when they are read."""

import os
import zipfile
import zlib

import numpy as np

from .writing import aside


class DamagedArrays(ValueError):
    """A file that is cut short, changed, or not an npz file with the wanted arrays."""


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    with aside(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike, *names: str) -> list[np.ndarray]:
    """
    The arrays `names`, each compared with its CRC.

    Raises:
        DamagedArrays: The file is damaged; the message is the reason.
        OSError: It cannot be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedArrays(str(error)) from error
