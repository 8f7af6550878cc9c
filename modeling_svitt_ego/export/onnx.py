"""A dual encoder as two ONNX files, `video.onnx` and `text.onnx`, compared with PyTorch before they are kept.

The number of frames is fixed, because it decides how many tokens each layer keeps; batch and text length are free. The
random edges are those of evaluation (`pattern_seed`).
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..files.writing import folder_aside
from ..weights.fingerprint import model_fingerprint
from .towers import TextTower, VideoTower, example_clips, example_texts

MANIFEST = "export.json"
TOLERANCE = 1e-4  # largest difference of a float32 file to PyTorch, relative to the largest value
LOWEST_COSINE = 0.99  # between an int8 file's embeddings and PyTorch's
_OPSET = 20


@dataclass(frozen=True)
class ExportedTower:
    """
    Args:
        file (`str`): name in the folder.
        megabytes (`float`): size of the file.
        precision (`str`): `"float32"` or `"int8"`.
        max_error (`float`): largest difference to PyTorch, relative to the largest value, on random input.
        min_cosine (`float`): lowest cosine of an embedding with PyTorch's, on random input or the calibration clips.
    """

    file: str
    megabytes: float
    precision: str
    max_error: float
    min_cosine: float


def export_onnx(
    model,
    processor,
    folder: str | os.PathLike,
    num_frames: int | None = None,
    int8_text: bool = False,
    calibration: Iterable[np.ndarray] | None = None,
) -> list[ExportedTower]:
    """
    Writes both towers, the processor, the configuration and [`MANIFEST`] to a new folder.

    Args:
        model: [`SViTTEgoModel`] or another class with both towers.
        processor ([`SViTTEgoProcessor`]): saved next to the towers.
        folder (`str`): must not exist; it appears whole or not at all.
        num_frames (`int`, *optional*): frames of every clip; the configuration's by default.
        int8_text (`bool`): quantise the text tower dynamically.
        calibration (iterable of `np.ndarray`, *optional*): batches of `pixel_values_videos`; with them the video tower
            is quantised statically, and compared on them.

    Raises:
        ValueError: A file does not agree with PyTorch: above [`TOLERANCE`], or an int8 one below [`LOWEST_COSINE`].
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; give a new folder.")
    model = model.to("cpu", torch.float32).eval()
    config = model.config
    num_frames = num_frames or config.vision_config.num_frames
    with folder_aside(folder) as part:
        towers = _export_towers(model, part, num_frames, int8_text, calibration)
        processor.save_pretrained(part)
        config.save_pretrained(part)
        manifest = {
            "format": "onnx",
            "fingerprint": model_fingerprint(model),
            "num_frames": num_frames,
            "image_size": config.vision_config.image_size,
            "towers": [asdict(tower) for tower in towers],
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return towers


def _export_towers(model, folder: Path, num_frames: int, int8_text: bool, calibration) -> list[ExportedTower]:
    clips, texts = example_clips(model.config, 3, num_frames), example_texts(model.config, 3, 7)
    text_names = ["input_ids", "attention_mask"], ["text_embeds", "last_hidden_state"]
    video = _export(VideoTower(model), (clips,), folder / "video.onnx", ["pixel_values_videos"], ["video_embeds"])
    text = _export(TextTower(model), texts, folder / "text.onnx", *text_names)
    if int8_text:
        text = _quantise(TextTower(model), folder / "text.onnx", _dynamic, [texts])
    if calibration is not None:
        batches = [(torch.as_tensor(batch),) for batch in calibration]
        if not batches:
            raise ValueError("There are no calibration clips.")
        video = _quantise(VideoTower(model), folder / "video.onnx", _static(batches), batches)
    return [video, text]


def _export(tower, inputs: tuple, path: Path, input_names: list[str], output_names: list[str]) -> ExportedTower:
    needs_onnx()
    # Text length and batch are free; a clip's axes beyond the batch are not.
    free = [{0: "batch", 1: "length"} if x.dim() == 2 else {0: "batch"} for x in inputs]
    with torch.no_grad():
        program = torch.onnx.export(
            tower.eval(), inputs, dynamo=True, opset_version=_OPSET, verbose=False, dynamic_shapes=tuple(free),
            input_names=input_names, output_names=output_names,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )  # fmt: skip
    program.save(path)
    # Compared with other sizes than the traced ones: a size that was baked in shows here.
    config = tower.model.config
    if len(inputs) == 1:
        cases = [(example_clips(config, size, inputs[0].shape[1], seed=size),) for size in (1, 2)]
    else:
        cases = [example_texts(config, size, length, seed=size) for size, length in ((1, 3), (5, 11))]
    exported = _compare(tower, path, cases, "float32")
    if not exported.max_error <= TOLERANCE:
        raise ValueError(f"{path.name} differs from PyTorch by {exported.max_error:.2e}, more than {TOLERANCE}.")
    return exported


def _stable_sort(self, stable: bool = False, dim: int = -1, descending: bool = False):
    """`aten.sort.stable`, which torch's exporter lacks: of equal values, TopK gives that of the lower index first."""
    from onnxscript import opset20 as op

    dim = dim % len(self.shape)
    size = op.Shape(self, start=dim, end=dim + 1)
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _quantise(tower, path: Path, write: Callable[[Path, Path], None], cases: list[tuple]) -> ExportedTower:
    """Replaces a float32 file by an int8 one."""
    quantised = path.with_suffix(".int8.onnx")
    write(path, quantised)
    quantised.replace(path)
    exported = _compare(tower, path, cases, "int8")
    if not exported.min_cosine >= LOWEST_COSINE:
        raise ValueError(
            f"{path.name} in int8 has a cosine of {exported.min_cosine:.4f} with PyTorch, below {LOWEST_COSINE}; "
            "export it in float32."
        )
    return exported


def _dynamic(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _static(batches: list[tuple]) -> Callable[[Path, Path], None]:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Clips(CalibrationDataReader):
        def __init__(self):
            self.coming = iter([{"pixel_values_videos": batch[0].numpy()} for batch in batches])

        def get_next(self):
            return next(self.coming, None)

    def write(source: Path, target: Path) -> None:
        quantize_static(
            source, target, Clips(), weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip

    return write


def _compare(tower, path: Path, cases: list[tuple], precision: str) -> ExportedTower:
    """Outputs of the file against PyTorch's on `cases`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    error, cosine = 0.0, 1.0
    for inputs in cases:
        with torch.no_grad():
            expected = tower(*inputs)
        expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        for ours, theirs in zip(expected, map(torch.from_numpy, found), strict=True):
            error = max(error, float((ours - theirs).abs().max() / ours.abs().max()))
        cosine = min(cosine, float(torch.cosine_similarity(expected[0], torch.from_numpy(found[0])).min()))
    return ExportedTower(path.name, path.stat().st_size / 1e6, precision, error, cosine)


def needs_onnx() -> None:
    """Says what to install where a package is absent."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The ONNX export needs the package {error.name!r}: pip install onnx onnxscript onnxruntime"
        ) from error
