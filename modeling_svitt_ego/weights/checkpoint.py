"""A saved model, loaded whole: a part that the checkpoint lacks would be random, and its scores noise."""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging

from ..model.modeling_svitt_ego import SViTTEgoForVideoClassification, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from ..model.processing_svitt_ego import SViTTEgoProcessor

# What each scoring mode computes with.
CLASS_OF = {
    "dual": SViTTEgoModel,
    "fusion": SViTTEgoForVideoTextRetrieval,
    "ensemble": SViTTEgoForVideoTextRetrieval,
    "zero-shot": SViTTEgoModel,
    "head": SViTTEgoForVideoClassification,
}


def local_folder(name: str | os.PathLike) -> Path:
    """The folder of a model: as it is, or fetched from the Hub by its name."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).count("/") != 1:
        raise FileNotFoundError(f"There is no folder {str(name)!r}, and it is no name on the Hub (user/model).")
    return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.txt"]))


def load_checkpoint(folder: str | os.PathLike, scoring: str, dtype: str | torch.dtype = torch.float32):
    """
    The model that `scoring` needs, in evaluation mode.

    Raises:
        ValueError: The checkpoint lacks a part that the mode needs; the parts are named.
    """
    cls = CLASS_OF[scoring]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is said below, in one line
    try:
        model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    if missing:
        parts = sorted({name.split(".")[0] for name in missing})
        raise ValueError(
            f"{str(folder)!r} has no trained {', '.join(parts)} ({len(missing)} weights such as {missing[0]!r} are "
            f"missing), which scoring mode {scoring!r} needs; with random weights it would score noise. It was saved "
            f"from {', '.join(architectures(folder)) or 'an unnamed class'}."
        )
    return model.eval()


def load_processor(folder: str | os.PathLike) -> SViTTEgoProcessor:
    return SViTTEgoProcessor.from_pretrained(folder)


def architectures(folder: str | os.PathLike) -> list[str]:
    """The classes that the checkpoint's config.json names."""
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} has no readable config.json: {error}") from error
