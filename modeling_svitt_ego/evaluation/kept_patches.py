"""Pictures of what the model does: which patches survive each pruning layer of a clip."""

import numpy as np
import torch
from PIL import Image, ImageDraw

_LABEL_HEIGHT = 14
_GAP = 4


def surviving_patches(model, pixel_values: torch.Tensor) -> list[np.ndarray]:
    """
    Which patches of one clip are left, at the input and after each pruning layer.

    Args:
        model: [`SViTTEgoModel`] or any model with its `vision_model`.
        pixel_values (`torch.Tensor` of shape `(num_frames, channels, height, width)`).

    Returns:
        Boolean arrays `(num_frames, grid, grid)`, all True first.
    """
    config = model.config.vision_config
    grid = config.image_size // config.patch_size
    shape = (pixel_values.shape[0], grid, grid)
    training = model.training
    model.eval()
    with torch.no_grad():
        token_ids = model.vision_model(pixel_values[None].to(next(model.parameters()).device)).token_ids
    model.train(training)
    stages = [np.ones(shape, dtype=bool)]
    for ids in token_ids:
        left = np.zeros(shape, dtype=bool)
        left.flat[ids[0].cpu().numpy()] = True
        stages.append(left)
    return stages


def draw_surviving_patches(model, processor, video: np.ndarray, title: str = "", frame_size: int = 192) -> Image.Image:
    """
    A picture with a row per pruning stage and a column per frame; pruned patches are darkened.

    Args:
        video (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8): the frames the model sees.
        title (`str`): shown above, for instance the narration.
        frame_size (`int`): width and height of a frame in the picture, in pixels.
    """
    pixels = processor(videos=[video], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"][0]
    stages = surviving_patches(model, pixels)
    prune_layers = model.config.vision_config.prune_layers
    row_height = frame_size + _LABEL_HEIGHT + _GAP
    picture = Image.new(
        "RGB", (len(video) * (frame_size + _GAP) + _GAP, _LABEL_HEIGHT + _GAP + len(stages) * row_height), "white"
    )
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, 1), title, fill="black")
    for row, left in enumerate(stages):
        y = _LABEL_HEIGHT + _GAP + row * row_height
        where = "input" if row == 0 else f"after layer {prune_layers[row - 1]} (zero-based)"
        draw.text((_GAP, y), f"{where}: {left.sum()} of {left.size} patches", fill="black")
        for column, frame in enumerate(video):
            image = np.asarray(Image.fromarray(frame).resize((frame_size, frame_size), Image.Resampling.BICUBIC))
            mask = np.asarray(
                Image.fromarray(left[column].astype(np.uint8) * 255).resize(
                    (frame_size, frame_size), Image.Resampling.NEAREST
                )
            )
            shown = np.where(mask[..., None] > 0, image, image // 5)
            picture.paste(Image.fromarray(shown), (_GAP + column * (frame_size + _GAP), y + _LABEL_HEIGHT))
    return picture
