"""What reaches the Hub: the files transformers copies next to the weights, and what they import."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import modeling_svitt_ego

MODEL = Path(modeling_svitt_ego.__file__).parent / "model"
# One entry file per registered kind of class.
ENTRIES = ["modeling_svitt_ego.py", "processing_svitt_ego.py", "video_processing_svitt_ego.py"]
SHIPPED = [
    "absolute_positions.py",
    "block_attention.py",
    "blocks.py",
    "classification_heads.py",
    "clip_reading.py",
    "clip_times.py",
    "configuration_base.py",
    "configuration_svitt_ego.py",
    "contrastive.py",
    "decode_decord.py",
    "decode_pyav.py",
    "decode_torchcodec.py",
    "decoded_frames.py",
    "display_matrix.py",
    "edge_gradient_kernels.py",
    "edge_kernels.py",
    "edge_triton.py",
    "edit_lists.py",
    "flex_blocks.py",
    "frame_table.py",
    "fused_layer.py",
    "fusion.py",
    "input_checks.py",
    "kernel_launches.py",
    "layer_kernels.py",
    "lean_linear.py",
    "losses.py",
    "masked_language.py",
    "matching.py",
    "modeling_svitt_ego.py",
    "needed_frames.py",
    "objective_base.py",
    "objectives.py",
    "outputs.py",
    "pipeline_svitt_ego.py",
    "pretrained_svitt_ego.py",
    "processing_svitt_ego.py",
    "random_part.py",
    "resampling.py",
    "row_exchange.py",
    "second_derivatives.py",
    "sparsity.py",
    "text.py",
    "video_inputs.py",
    "video_processing_svitt_ego.py",
    "video_source.py",
    "vision.py",
]
# numpy comes with transformers, PIL with torchvision; the decoders (decord, av) are imported inside `try`.
ALLOWED = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL"} | sys.stdlib_module_names


def closure() -> list[str]:
    """As transformers walks it: a regular expression over the source, not Python's imports."""
    files = set(ENTRIES)
    for entry in ENTRIES:
        files |= {Path(file).name for file in get_relative_import_files(MODEL / entry)}
    return sorted(files)


def test_the_shipped_files_are_these():
    """Catches a new import that pulls the trainer or the data code to the Hub, or a file that is left behind."""
    assert closure() == SHIPPED


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_files_import_nothing_that_users_do_not_have(file):
    """Catches `import einops`: every user of the Hub model would have to install it."""
    required = set(get_imports(MODEL / file))  # as check_imports sees it: imports inside `try` are optional
    assert required <= ALLOWED, required - ALLOWED


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_files_import_siblings_in_the_one_form_that_is_copied(file):
    """Catches `from . import x`, `from ..x import y`, `from .x.y import z` and imports of the package by name."""
    for node in ast.walk(ast.parse((MODEL / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
                assert f"{node.module}.py" in SHIPPED
            else:
                assert node.module.split(".")[0] != "modeling_svitt_ego", ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "modeling_svitt_ego" for alias in node.names)
