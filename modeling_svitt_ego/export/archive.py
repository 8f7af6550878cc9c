"""The whole dual encoder as one `torch.export` archive (`.pt2`): clips and texts to their similarities."""

import os
from pathlib import Path

import torch
from torch import nn

from ..files.resumable_folder import aside
from .onnx import TOLERANCE
from .towers import example_clips, example_texts


class Similarities(nn.Module):
    """Clips and texts to `logits_per_video` `(num_videos, num_texts)`, `video_embeds` and `text_embeds`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        outputs = self.model(pixel_values_videos, input_ids, attention_mask, return_dict=True)
        return outputs.logits_per_video, outputs.video_embeds, outputs.text_embeds


def export_archive(model, path: str | os.PathLike, num_frames: int | None = None) -> float:
    """
    Writes the archive; `torch.export.load(path).module()` runs it without this package.

    Args:
        num_frames (`int`, *optional*): frames of every clip; the configuration's by default. The numbers of clips and
            of texts, and the length of the texts, are free.

    Returns:
        The largest difference to the model, relative to the largest value, on random input.

    Raises:
        ValueError: The difference is above [`TOLERANCE`].
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; give a new file.")
    model = model.to("cpu").eval()
    num_frames = num_frames or model.config.vision_config.num_frames
    whole = Similarities(model)
    free = ({0: torch.export.Dim.DYNAMIC}, *[{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}] * 2)
    example = (example_clips(model.config, 2, num_frames), *example_texts(model.config, 3, 7))
    with torch.no_grad():
        program = torch.export.export(whole.eval(), example, dynamic_shapes=free, strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as part:
        with open(part, "wb") as file:
            torch.export.save(program, file)
        with open(part, "rb") as file:
            loaded = torch.export.load(file).module()
        inputs = (example_clips(model.config, 4, num_frames, seed=1), *example_texts(model.config, 5, 9, seed=1))
        with torch.no_grad():
            pairs = zip(loaded(*inputs), whole(*inputs), strict=True)
            error = max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
        if not error <= TOLERANCE:
            raise ValueError(f"The archive differs from the model by {error:.2e}, more than {TOLERANCE}.")
    return error
