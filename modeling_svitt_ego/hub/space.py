"""A folder for a Gradio Space: search in an uploaded video, names of actions, kept patches."""

import os
from pathlib import Path

from .card import PLACEHOLDER_NAME
from .extras import TEMPLATES

_README = """---
title: SViTT-Ego
emoji: 🎥
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
models:
- {model}
---

Find a moment in a first-person video, name its action, and see which patches [{model}](https://huggingface.co/{model})
keeps. Runs on a CPU.
"""
_GRADIO = "6.31.0"  # the version that the app was tried with
_REQUIREMENTS = ("torch", "torchvision", "transformers>=5.18", "av>=17", "numpy", "pillow")


def write_space(model: str, folder: str | os.PathLike) -> Path:
    """
    Writes `app.py`, `requirements.txt` and `README.md` to a new folder, ready for `hf upload --repo-type space`.

    Args:
        model (`str`): Hub name of the model (USER/MODEL), or a folder to try the app locally; the environment variable
            MODEL overrides it.

    Raises:
        ValueError: the folder exists, or `model` is neither a name nor a folder.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; give a new folder.")
    if not Path(model).is_dir() and model.count("/") != 1:
        raise ValueError(f"{model!r} is neither a folder nor the name of a model on the Hub (USER/MODEL).")
    folder.mkdir(parents=True)
    app = (TEMPLATES / "space_app.py").read_text(encoding="utf-8")
    (folder / "app.py").write_text(app.replace(PLACEHOLDER_NAME, model), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_REQUIREMENTS) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README.format(model=model, gradio=_GRADIO), encoding="utf-8")
    return folder
