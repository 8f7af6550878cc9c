"""Frames that were decoded elsewhere: to one tensor `(T, C, H, W)` of uint8 or float, or an error with the numbers."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension


def is_array(value: Any) -> bool:
    """Whether `value` is a numpy array or a tensor."""
    return isinstance(value, (np.ndarray, torch.Tensor))


def is_frame(value: Any) -> bool:
    """Whether `value` is one picture: a PIL image, or an array of two or three dimensions."""
    return isinstance(value, Image.Image) or (is_array(value) and value.ndim in (2, 3))


def as_array(clip: Any, index: int, do_convert_rgb: bool | None) -> tuple[torch.Tensor, bool]:
    """Frames as a tensor of four dimensions, and whether they were given as a single image."""
    is_image = is_frame(clip)
    frames: Any = [clip] if is_image else clip
    if not is_array(frames):
        frames = _stacked(frames, index, do_convert_rgb)
    if isinstance(frames, np.ndarray):
        if frames.dtype.kind not in "uif":
            raise ValueError(f"Clip {index}: frames of type {frames.dtype} are not numbers.")
        if not frames.flags.writeable or any(stride < 0 for stride in frames.strides):
            frames = frames.copy()  # what PyTorch cannot share
        frames = torch.from_numpy(frames)
    if frames.ndim == 3:
        frames = frames[..., None]  # grey pictures
    if frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(
            f"Clip {index}: has no frames or no pixels, its shape is {tuple(frames.shape)} instead of (T, H, W, C)."
        )
    return frames, is_image


def _stacked(frames, index: int, do_convert_rgb: bool | None) -> Any:
    pictures = []
    for frame in frames:
        if isinstance(frame, Image.Image):
            frame = np.asarray(frame.convert("RGB") if do_convert_rgb else frame)
        if not is_array(frame):
            raise ValueError(f"Clip {index}: a frame is a PIL image or an array, got {type(frame).__name__}.")
        pictures.append(frame)
    shapes = {tuple(picture.shape) for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"Clip {index}: its frames have different shapes: {sorted(shapes)}.")
    if not pictures:
        raise ValueError(f"Clip {index}: has no frames.")
    return torch.stack(pictures) if isinstance(pictures[0], torch.Tensor) else np.stack(pictures)


def channels_first(frames: torch.Tensor, input_data_format: str | ChannelDimension | None, index: int) -> torch.Tensor:
    """A view `(T, C, H, W)`; the place of the channels is guessed where `input_data_format` does not name it."""
    if input_data_format is not None:
        first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
    else:
        likelihood = {1: 1, 3: 2, 4: 1}  # where both could be, three channels; where both are three, first
        first = likelihood.get(frames.shape[1], 0) >= likelihood.get(frames.shape[3], 0)
    frames = frames if first else frames.permute(0, 3, 1, 2)
    if frames.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"Clip {index}: frames have 1, 3 or 4 channels, first or last, but its shape is {tuple(frames.shape)}."
        )
    return frames


def as_pixels(frames: torch.Tensor, index: int, largest: float | None) -> torch.Tensor:
    """
    Checks the values of frames: `uint8` stays, other integers become `uint8`, floating point numbers `float32`.

    Args:
        frames (`torch.Tensor`): Of any number type.
        index (`int`): Number of the clip, for messages.
        largest (`float`, *optional*): Values are from 0 to this: 255 where they will be divided by 255, 1 where they
            will only be normalised, `None` where neither happens and any value is allowed.

    Raises:
        ValueError: A value is not finite or outside the range, or all are so small that they were divided before.
    """
    if frames.is_floating_point():
        finite = torch.isfinite(frames)
        if not finite.all():
            bad = (~finite).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"Clip {index}: {int((~finite).sum())} values are NaN or infinite, in frames {bad}.")
        frames = frames.to(torch.float32)
    elif largest is None or largest >= 255 or frames.dtype != torch.uint8:
        if frames.dtype == torch.uint8:
            return frames  # always within the range
        low, high = int(frames.min()), int(frames.max())
        if low < 0 or high > 255:
            raise ValueError(f"Clip {index}: integer frames have values from {low} to {high}, outside 0 to 255.")
        frames = frames.to(torch.uint8)
    if largest is not None:
        _check_range(frames, index, largest)
    return frames


def _check_range(frames: torch.Tensor, index: int, largest: float) -> None:
    low, high = float(frames.min()), float(frames.max())
    if low < 0 or high > largest:
        remedy = "" if largest > 1 else " (do_rescale=False is for frames that were divided by 255 before)"
        raise ValueError(f"Clip {index}: values from {low:g} to {high:g} are outside 0 to {largest:g}{remedy}.")
    if largest > 1 and frames.is_floating_point() and 0 < high <= 1:
        raise ValueError(
            f"Clip {index}: values from {low:g} to {high:g} would be divided by 255 a second time: pass "
            "do_rescale=False, or frames from 0 to 255."
        )
