"""Reading the SViTT code's files: checkpoints (tensors only, never Python objects) and run configurations."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Checkpoint:
    """
    Args:
        state_dict (`dict[str, torch.Tensor]`): SViTT's names, without wrappers' prefixes.
        settings (`dict`, *optional*): the run configuration, which a training checkpoint holds too.
    """

    state_dict: dict[str, torch.Tensor]
    settings: dict | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """
    The weights in a `.pth`, `.pt` or `.safetensors` file.

    Raises:
        ValueError: it is not such a file, is damaged, holds more than tensors and plain values, or no state dict.
    """
    path = Path(path)
    if path.is_dir():
        converted = " It holds a config.json: a converted model loads by from_pretrained."
        hint = converted if (path / "config.json").is_file() else ""
        raise ValueError(f"{path} is a folder; give the checkpoint file.{hint}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {_first_line(error)}") from error
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_pickle(path)
    else:
        known = ", ".join((*TORCH_SUFFIXES, ".safetensors"))
        raise ValueError(
            f"{path} is not a checkpoint by its name, which ends in '{path.suffix}', not in one of {known}."
        )
    try:
        return read_state_dict(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_pickle(path: Path):
    zipped = zipfile.is_zipfile(path)  # False for files from before PyTorch 1.6, and for truncated ones
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        if not re.search("GLOBAL|class|allowlisted|unrecognized", reason):
            raise ValueError(f"{path} is damaged or not a PyTorch file.") from error
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        what = f" ({', '.join(sorted(names)[:6])})" if names else ""
        raise ValueError(
            f"{path} holds Python objects besides tensors{what}. Reading them could run any code, so it is refused. "
            "If you trust the file, save its weights alone where it was made: torch.save(torch.load(FILE, "
            "weights_only=False)['model'], 'weights.pth')."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not a PyTorch file: {_first_line(error)}") from error


def read_state_dict(content: Mapping) -> Checkpoint:
    """
    The state dict in what a file held: itself, or under `model` or `state_dict` of a training checkpoint, whose
    optimizer, scheduler and counters are left; without the `module.` of distributed training.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"holds no state dict but {'nothing' if content == {} else type(content).__name__}.")
    settings = None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            settings = content.get("config")
            content = content[key]
            break
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content:
        raise ValueError(f"holds no state dict: {', '.join(others[:6]) or 'it is empty'}{' …' * (len(others) > 6)}.")
    while all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    usable = isinstance(settings, Mapping) and "vision_encoder_args" in settings
    return Checkpoint(dict(content), dict(settings) if usable else None)


def read_settings(path: str | Path) -> dict:
    """A run configuration of the SViTT code, `.yaml`, `.yml` or `.json`, as it is written."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a configuration: {_first_line(error)}") from error
    if not isinstance(content, dict) or "vision_encoder_args" not in content:
        raise ValueError(f"{path} is not a configuration of the SViTT code: it has no vision_encoder_args.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


__all__ = ["Checkpoint", "read_checkpoint", "read_settings", "read_state_dict"]
