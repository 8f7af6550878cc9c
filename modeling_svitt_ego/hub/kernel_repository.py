"""Writes the attention kernels as a kernel repository, which `kernels.get_kernel` loads without this package.

    python -m modeling_svitt_ego.hub.kernel_repository FOLDER --repo-id USER/svitt-ego-attention \
        --launches benchmarks/results/kernel_launches

FOLDER/torch-ext and build.toml are the source that kernel-builder takes; FOLDER/build/torch-cuda is what it would make
of them: pure Python ("torch-noarch"), because Triton compiles on the user's machine. `--launches` is a folder of tuned
values, one JSON per card, from benchmarks/tune_kernels.py; other cards use the defaults.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ..model import edge_triton
from ..model.kernel_launches import launches_from_json

NAME = "svitt-ego-attention"
PYTHON_NAME = NAME.replace("-", "_")
_CONFIGS = "configs"

_INIT = '''"""Block-sparse attention with a learned relative position bias, forward and backward, as Triton kernels."""

import json
from pathlib import Path

import torch

from .edge_triton import triton_attention
from .kernel_launches import launches_from_json, use_launches
from .sparsity import RelativePositions, edge_attention_reference


def use_tuned_launches(device_name: str | None = None) -> bool:
    """Loads the values that were tuned on this card; False where there are none, and the defaults stay."""
    if device_name is None and not torch.cuda.is_available():
        return False
    name = (device_name or torch.cuda.get_device_name()).replace(" ", "_")
    path = Path(__file__).parent / "configs" / f"{name}.json"
    if not path.exists():
        return False
    use_launches(launches_from_json(json.loads(path.read_text())))
    return True


use_tuned_launches()

__all__ = ["RelativePositions", "edge_attention_reference", "triton_attention", "use_tuned_launches"]
'''

_COMPATIBILITY = f'''"""For versions of `kernels` that look for the package in a folder of its name."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).parents[1] / "__init__.py"
_spec = importlib.util.spec_from_file_location("{PYTHON_NAME}_build", _path)
_module = importlib.util.module_from_spec(_spec)
sys.modules["{PYTHON_NAME}_build"] = _module
_spec.loader.exec_module(_module)
globals().update({{name: getattr(_module, name) for name in _module.__all__}})
__all__ = _module.__all__
'''

_BUILD = """[general]
name = "{name}"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cuda"]

[general.hub]
repo-id = "{repo_id}"

[torch-noarch]
pyext = ["json", "py"]
"""

_README = """---
library_name: kernels
license: apache-2.0
tags: [kernel, triton, attention]
---

# {name}

Attention of video tokens in blocks: each block attends to [CLS], to its neighbours and to a few random blocks, with a
learned 3-D relative position bias, after pruning too. Forward and backward, in float32, bfloat16 and float16, for head
dims up to 128; gradients of q, k, v and the bias table.

```python
from kernels import get_kernel

attention = get_kernel("{repo_id}", version=1, trust_remote_code=True)
positions = attention.RelativePositions.from_token_ids(token_ids, window=(frames, height, width))
context, cls_attention = attention.triton_attention(q, k, v, table, positions, block_ids, block_size=56)
```

`edge_attention_reference` is the definition, written out. Tuned cards: {cards}.
"""


def write_kernel_repository(
    output: str | os.PathLike, repo_id: str, launches: str | os.PathLike | None = None
) -> list[Path]:
    """
    Args:
        output: the folder, new or empty.
        repo_id: `USER/NAME` on the Hub, for the card and build.toml. Nothing is uploaded.
        launches (*optional*): folder of tuned values, `CARD.json`.

    Returns:
        The files written, relative to `output`.

    Raises:
        FileExistsError: `output` is not empty.
        ValueError: a file of `launches` names an unknown kernel or field.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; give a new folder.")
    tuned = sorted(Path(launches).glob("*.json")) if launches is not None else []
    for path in tuned:
        try:
            launches_from_json(json.loads(path.read_text()))
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} holds no launches as benchmarks/tune_kernels.py writes them: {error}") from error

    source, build = output / "torch-ext" / PYTHON_NAME, output / "build" / "torch-cuda"
    for folder in (source, build):
        _write_package(folder, tuned)
    (build / PYTHON_NAME).mkdir()
    (build / PYTHON_NAME / "__init__.py").write_text(_COMPATIBILITY)
    metadata = {
        "id": f"_{PYTHON_NAME}_cuda_1",
        "name": NAME,
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cuda"},
    }
    (build / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (output / "build.toml").write_text(_BUILD.format(name=NAME, repo_id=repo_id))
    cards = ", ".join(path.stem.replace("_", " ") for path in tuned) or "none yet"
    (output / "README.md").write_text(_README.format(name=NAME, repo_id=repo_id, cards=cards))
    return sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())


def _write_package(folder: Path, tuned: list[Path]) -> None:
    (folder / _CONFIGS).mkdir(parents=True)
    (folder / "__init__.py").write_text(_INIT)
    entry = Path(edge_triton.__file__)
    for file in {entry, *map(Path, get_relative_import_files(entry))}:
        shutil.copyfile(file, folder / file.name)
    for path in tuned:
        shutil.copyfile(path, folder / _CONFIGS / path.name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--repo-id", required=True, help="USER/NAME, for the card; nothing is uploaded")
    parser.add_argument("--launches", help="folder of tuned values, one JSON per card")
    arguments = parser.parse_args(argv)
    for path in write_kernel_repository(arguments.folder, arguments.repo_id, arguments.launches):
        print(path)


if __name__ == "__main__":
    main()
