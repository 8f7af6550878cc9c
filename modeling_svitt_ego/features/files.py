"""Feature files in the layouts that EgoNLQ code bases read, written whole or not at all.

pt      <key>.pt    one float tensor (num_windows, dim)         VSLNet; GroundNLQ's and CONE's LMDB converters
npz     <key>.npz   "features", for texts also "token_features"  GroundNLQ's LMDB values
hdf5    <key>.h5    the same names as datasets; `features.h5` links every key, as MAD's and CONE's single file
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..files.resumable_folder import aside

SUFFIXES = {"pt": ".pt", "npz": ".npz", "hdf5": ".h5"}
LINKS = "features.h5"


def h5py():
    try:
        import h5py
    except ImportError as error:
        raise ValueError('The layout "hdf5" needs h5py: pip install "modeling-svitt-ego[hdf5]".') from error
    return h5py


def save_features(folder: Path, key: str, layout: str, **arrays: np.ndarray) -> Path:
    """Writes `arrays` as the file of `key`; "features" alone becomes a plain tensor in the layout "pt"."""
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
    """What [`save_features`] wrote for `key`."""
    path = folder / f"{key}{SUFFIXES[layout]}"
    if not path.is_file():
        raise FileNotFoundError(f"There are no features of {key!r}: no file {str(path)!r}.")
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
    """Makes `features.h5`, in which `file[key]` is the features of that key; the files stay where they are."""
    library = h5py()
    with aside(folder / LINKS) as part, library.File(part, "w") as file:
        for key in keys:
            file[key] = library.ExternalLink(f"{key}{SUFFIXES['hdf5']}", "/features")
