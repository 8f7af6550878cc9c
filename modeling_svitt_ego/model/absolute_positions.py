"""Learnt absolute positions of patches, for a video tower that starts from an image model such as CLIP or SigLIP."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


class AbsolutePositions(nn.Module):
    """
    Adds to every patch the position of its place in the frame and that of its frame.

    The image model's table serves every frame (inflation). The frames' own vectors start at zero: at first a clip is
    what the image model sees in each frame.

    Args:
        config ([`SViTTEgoVisionConfig`]).
    """

    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Parameter(torch.empty(config.patches_per_frame, config.hidden_size))
        self.frame_embedding = nn.Parameter(torch.empty(config.num_frames, config.hidden_size))

    def init_own_parameters(self, std: float):
        init.trunc_normal_(self.patch_embedding, mean=0.0, std=std)
        init.zeros_(self.frame_embedding)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches `(batch_size, num_frames, patches_per_frame, hidden_size)`; frames' vectors are resampled."""
        frames = resample_frame_embedding(self.frame_embedding, patches.shape[1])
        return patches + self.patch_embedding + frames[:, None]


def resample_frame_embedding(table: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Vectors `(T, hidden_size)` of frames, between two of them linearly, for `num_frames` over the same time."""
    if len(table) == num_frames:
        return table
    return F.interpolate(table.T[None], num_frames, mode="linear", align_corners=False)[0].T


__all__ = ["AbsolutePositions", "resample_frame_embedding"]
