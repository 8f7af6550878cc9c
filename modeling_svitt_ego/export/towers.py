"""The two towers as functions of plain tensors, the form in which they are exported."""

import torch
from torch import nn


class VideoTower(nn.Module):
    """
    `pixel_values_videos` `(batch, num_frames, channels, height, width)` to `video_embeds` `(batch, projection_dim)`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return self.model.get_video_features(pixel_values_videos, return_dict=True).pooler_output


class TextTower(nn.Module):
    """
    `input_ids` and `attention_mask` `(batch, length)` to `text_embeds` `(batch, projection_dim)` and the
    `last_hidden_state` `(batch, length, hidden_size)`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model.get_text_features(input_ids, attention_mask, return_dict=True)
        return outputs.pooler_output, outputs.last_hidden_state


def example_clips(config, batch_size: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    """Random clips of the model's size, to trace and to compare with."""
    vision = config.vision_config
    shape = (batch_size, num_frames, vision.num_channels, vision.image_size, vision.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def example_texts(config, batch_size: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and a mask whose last row is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.text_config.vocab_size, (batch_size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0 if length > 1 else 1
    return ids, mask
