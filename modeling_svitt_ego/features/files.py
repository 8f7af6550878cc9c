"""Feature files in the formats that EgoNLQ code bases read, written atomically.

pt      <key>.pt    one float tensor (num_windows, dim)         VSLNet; GroundNLQ's and CONE's LMDB converters
npz     <key>.npz   "features", for texts also "token_features"  GroundNLQ's LMDB values
hdf5    <key>.h5    the same names as datasets; `features.h5` links every key, as MAD's and CONE's single file
"""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..files.writing import aside

SUFFIXES = {"pt": ".pt", "npz": ".npz", "hdf5": ".h5"}
LINKS = "features.h5"
# Errors that the libraries raise for a truncated file.
_DAMAGE = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


def h5py():
    try:
        import h5py
    except ImportError as error:
        raise ValueError('The format "hdf5" needs h5py: pip install "h5py>=3.12".') from error
    return h5py


def save_features(folder: Path, key: str, layout: str, **arrays: np.ndarray) -> Path:
    """Write `arrays` as the file of `key`; "features" alone becomes a plain tensor in the format "pt"."""
    path = folder / f"{key}{SUFFIXES[layout]}"
    with aside(path) as part:
        if layout == "hdf5":
            with h5py().File(part, "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array)
        else:
            with open(part, "wb") as file:  # opened here: np.savez would add its suffix to a path
                if layout == "npz":
                    np.savez(file, **arrays)
                else:
                    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                    torch.save(tensors["features"] if set(tensors) == {"features"} else tensors, file)
    return path


def load_features(folder: Path, key: str, layout: str) -> dict[str, np.ndarray]:
    """Reads the arrays that [`save_features`] wrote for `key`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged; the message names it.
    """
    path = folder / f"{key}{SUFFIXES[layout]}"
    if not path.is_file():
        raise FileNotFoundError(f"There are no features of {key!r}: no file {str(path)!r}.")
    try:
        return _load(path, layout)
    except _DAMAGE as error:
        raise ValueError(
            f"The features {str(path)!r} are damaged ({error}). Run `svitt-ego extract` with the same arguments again."
        ) from error


def _load(path: Path, layout: str) -> dict[str, np.ndarray]:
    if layout == "hdf5":
        with h5py().File(path, "r") as file:
            return {name: dataset[()] for name, dataset in file.items()}
    if layout == "npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    content = torch.load(path, map_location="cpu", weights_only=True)
    content = {"features": content} if isinstance(content, torch.Tensor) else content
    return {name: tensor.numpy() for name, tensor in content.items()}


def link_features(folder: Path, keys: Iterable[str]) -> None:
    """Write `features.h5`, in which `file[key]` links to the features of that key in its own file."""
    library = h5py()
    with aside(folder / LINKS) as part, library.File(part, "w") as file:
        for key in keys:
            file[key] = library.ExternalLink(f"{key}{SUFFIXES['hdf5']}", "/features")
