"""An exported dual encoder with the two methods of the PyTorch model that search and feature extraction call."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers import AutoConfig

from .onnx import MANIFEST


class OnnxDualEncoder(nn.Module):
    """
    `get_video_features` and `get_text_features` computed by onnxruntime.

    Args:
        folder (`str`): written by [`export_onnx`].
        num_threads (`int`, *optional*): of onnxruntime; all cores by default.
    """

    def __init__(self, folder: str | os.PathLike, num_threads: int | None = None):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("The ONNX engine needs the package 'onnxruntime': pip install onnxruntime") from error
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} has no {MANIFEST}: it was not written by `svitt-ego export --format onnx`.")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        self.num_frames = manifest["num_frames"]
        # Names the numbers that come out: an int8 file of the same weights gives others.
        self.fingerprint = "-".join([manifest["fingerprint"], *(tower["precision"] for tower in manifest["towers"])])
        self.config = AutoConfig.from_pretrained(folder)
        options = onnxruntime.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._video, self._text = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in ("video.onnx", "text.onnx")
        )
        # Callers ask the parameters for the device and the dtype of the input.
        self.input_like = nn.Parameter(torch.zeros(()), requires_grad=False)

    def get_video_features(self, pixel_values_videos: torch.Tensor, return_dict: bool = True) -> SimpleNamespace:
        """`pooler_output` `(batch, projection_dim)` of clips `(batch, num_frames, channels, height, width)`."""
        if pixel_values_videos.shape[1] != self.num_frames:
            raise ValueError(
                f"The exported video tower takes {self.num_frames} frames, not {pixel_values_videos.shape[1]}; export "
                "it with --num-frames, or ask for its number of frames."
            )
        (embeds,) = self._video.run(None, {"pixel_values_videos": pixel_values_videos.float().numpy()})
        return SimpleNamespace(pooler_output=torch.from_numpy(embeds))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_dict: bool = True
    ) -> SimpleNamespace:
        """`pooler_output` `(batch, projection_dim)` and `last_hidden_state` of texts `(batch, length)`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeds, states = self._text.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()})
        return SimpleNamespace(pooler_output=torch.from_numpy(embeds), last_hidden_state=torch.from_numpy(states))
