"""A saved model and its processor, ready for use.

A part that the checkpoint lacks would be left at its random initial values, so such a checkpoint is refused.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.modeling_svitt_ego import SViTTEgoForVideoClassification, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding

# The class that each scoring mode computes with.
CLASS_OF = {
    "dual": SViTTEgoModel,
    "fusion": SViTTEgoForVideoTextRetrieval,
    "ensemble": SViTTEgoForVideoTextRetrieval,
    "zero-shot": SViTTEgoModel,
    "head": SViTTEgoForVideoClassification,
    "grounding head": SViTTEgoForTemporalGrounding,
}
HUB_SECONDS = 10.0  # how long the Hub may take to say whether it has a model
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def local_folder(name: str | os.PathLike, files: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt")) -> Path:
    """
    The folder of a model: as it is, or fetched from the Hub by its name.

    Args:
        files: patterns of what is fetched from the Hub.

    Raises:
        FileNotFoundError: There is no such folder, and the Hub does not have it or was not reached in a few seconds.
            A name that looks like a path is not looked up there.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{str(name)!r} is a file; a model is a folder with config.json and its weights.")
    no_folder = f"There is no folder {str(name)!r}{_nearest_folder(folder)}"
    # "runs/model" is a path if there is a folder "runs" here.
    if not _HUB_NAME.fullmatch(str(name)) or folder.parent.is_dir():
        raise FileNotFoundError(f"{no_folder}, and it is not a name on the Hub (USER/MODEL).")
    offline = False
    try:
        # Without this question, a wrong name would be asked for again and again for a minute.
        HfApi().model_info(str(name), timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{no_folder}, and no such model on the Hub.") from None
    except Exception as error:  # the client's own errors of a connection have changed between versions
        offline, reason = True, error
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files), local_files_only=offline))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{no_folder}, and the Hub could not be asked for it ({type(reason).__name__}: {reason})."
            if offline
            else f"{no_folder}, and its files could not be fetched from the Hub."
        ) from None


def _nearest_folder(folder: Path) -> str:
    """A folder of nearly the same name, as a question; empty if there is none."""
    missing = folder
    while not missing.parent.is_dir():
        missing = missing.parent
    neighbours = {path.name: path for path in missing.parent.iterdir() if path.is_dir()}
    near = difflib.get_close_matches(missing.name, neighbours, n=1, cutoff=0.75)
    return f" (did you mean {str(neighbours[near[0]] / folder.relative_to(missing))!r}?)" if near else ""


def load_config(name: str | os.PathLike) -> SViTTEgoConfig:
    """
    The configuration of a model by folder or Hub name, without its weights.

    Raises:
        ValueError: It is of another kind of model.
    """
    folder = local_folder(name, files=("config.json",))
    saved = model_type(folder)
    if saved != SViTTEgoConfig.model_type:
        raise ValueError(
            f"{str(name)!r} holds a model of type {saved!r}; a whole {SViTTEgoConfig.model_type!r} is needed."
        )
    return SViTTEgoConfig.from_pretrained(folder)


def load_checkpoint(
    name: str | os.PathLike,
    scoring: str,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = "cpu",
) -> PreTrainedModel:
    """
    The model that a scoring mode needs, in evaluation mode.

    Args:
        name: folder or Hub name.
        scoring (`str`): one of [`CLASS_OF`].
        device (*optional*): where to put it; `None` is the accelerator if there is one.

    Raises:
        ValueError: The checkpoint is of another kind, or lacks a part that the mode needs; the parts are named.
    """
    folder, cls = local_folder(name), CLASS_OF[scoring]
    # An adapter's folder has no configuration; that of its base model is found by from_pretrained.
    is_adapter = (folder / "adapter_config.json").is_file()
    saved = cls.config_class.model_type if is_adapter else model_type(folder)
    if saved != cls.config_class.model_type:
        raise ValueError(
            f"{str(name)!r} holds a model of type {saved!r}; {scoring!r} needs a {cls.__name__} "
            f"({cls.config_class.model_type!r})."
        )
    with _quiet_transformers():  # what is missing is said below, in one line
        model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        parts = sorted({key.split(".")[0] for key in missing})
        if is_adapter:
            raise ValueError(
                f"{str(name)!r} is a PEFT adapter; its base model has no {', '.join(parts)}. Save the merged model "
                "(PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(folder)) and name that folder."
            )
        raise ValueError(
            f"{str(name)!r} has no trained {', '.join(parts)} ({len(missing)} weights such as {missing[0]!r} are "
            f"missing), which scoring mode {scoring!r} needs; with random weights it would score noise. It was saved "
            f"from {', '.join(architectures(folder)) or 'an unnamed class'}."
        )
    return model.to(accelerator_or_cpu() if device is None else device).eval()


def load_dual_encoder(
    name: str | os.PathLike, device: str | torch.device | None = None
) -> tuple[SViTTEgoModel, SViTTEgoProcessor]:
    """
    Args:
        name: folder or Hub name of any SViTT-Ego model with both towers.
        device (*optional*): the accelerator if there is one, else the CPU.

    Returns:
        The [`SViTTEgoModel`], in evaluation mode, and its processor.
    """
    folder = local_folder(name)
    return load_checkpoint(folder, "dual", device=device), load_processor(folder)


def load_grounding_head(
    name: str | os.PathLike, device: str | torch.device | None = None
) -> SViTTEgoForTemporalGrounding:
    """As [`load_dual_encoder`], a grounding head."""
    return load_checkpoint(name, "grounding head", device=device)


def load_processor(folder: str | os.PathLike) -> SViTTEgoProcessor:
    """
    Raises:
        FileNotFoundError: The folder has no processor; the remedy is named.
    """
    if not (Path(folder) / "processor_config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no processor_config.json: the model was saved without its processor. Save it there "
            "with processor.save_pretrained(folder)."
        )
    return SViTTEgoProcessor.from_pretrained(folder)


def accelerator_or_cpu() -> torch.device:
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def architectures(folder: str | os.PathLike) -> list[str]:
    """The classes that the checkpoint's config.json names."""
    return _config_json(folder).get("architectures") or []


def classifier_heads(folder: str | os.PathLike) -> dict[str, int]:
    """Names and sizes of a classifier's heads; empty for one head."""
    return dict(_config_json(folder).get("classifier_heads") or ())


def model_type(folder: str | os.PathLike) -> str | None:
    return _config_json(folder).get("model_type")


def _config_json(folder: str | os.PathLike) -> dict:
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} has no readable config.json: {error}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
