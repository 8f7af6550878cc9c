"""Views of a test clip (sets of frames, crops, the mirror image), whose vectors or logits are averaged.

Each view costs a forward of the video tower. A mirrored clip contradicts "left" and "right" in a narration, but papers
report it for EPIC-KITCHENS-100, so the report names the views.
"""

from dataclasses import dataclass

import numpy as np
import torch

CROPS = ("whole", "three")


@dataclass(frozen=True)
class Views:
    """
    Args:
        num_clips (`int`): sets of frames. Each covers the whole window with frames between those of the others.
        crops (`str`): `"whole"`: the frame as the processor takes it. `"three"`: the squares at both ends and in the
            middle of its longer side.
        flip (`bool`): also every view's mirror image.
    """

    num_clips: int = 1
    crops: str = "whole"
    flip: bool = False

    def __post_init__(self):
        if self.num_clips < 1:
            raise ValueError(f"num_clips ({self.num_clips}) must be at least 1.")
        if self.crops not in CROPS:
            raise ValueError(f"crops ({self.crops!r}) must be one of {CROPS}.")

    def __len__(self) -> int:
        return self.num_clips * (3 if self.crops == "three" else 1) * (2 if self.flip else 1)

    def __str__(self) -> str:
        parts = [f"{self.num_clips} sets of frames"] if self.num_clips > 1 else []
        parts += ["3 square crops along the longer side"] if self.crops == "three" else []
        parts += ["mirrored too"] if self.flip else []
        return "1 view" if not parts else f"{len(self)} views, averaged: {', '.join(parts)}"

    def of_frames(self, video: np.ndarray) -> list[np.ndarray]:
        """
        The views without their mirror images.

        Args:
            video (`np.ndarray` of shape `(num_clips * num_frames, height, width, 3)`): frames in order of time.
        """
        if len(video) % self.num_clips:
            raise ValueError(f"{len(video)} frames cannot be divided into {self.num_clips} sets.")
        sets = [video[first :: self.num_clips] for first in range(self.num_clips)]
        return sets if self.crops == "whole" else [crop for frames in sets for crop in three_crops(frames)]

    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels of the views `(num_views, …, height, width)`, with their mirror images behind them if asked for."""
        return torch.cat([pixels, pixels.flip(-1)]) if self.flip else pixels


def three_crops(frames: np.ndarray) -> list[np.ndarray]:
    """The squares of the shorter side at the start, in the middle and at the end of the longer side."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    offsets = [((height - side) * i // 2, (width - side) * i // 2) for i in range(3)]
    return [frames[:, top : top + side, left : left + side] for top, left in offsets]


__all__ = ["Views", "three_crops"]
