"""Inputs that a model would compute on without complaint and without sense are refused here."""

import torch

# The processor's frames are within 3 of 0 with every common mean and standard deviation; raw ones reach 255.
LARGEST_PIXEL = 32.0


def check_frames(pixel_values_videos: torch.Tensor) -> None:
    """Refuses empty batches and raw frames (integers)."""
    if pixel_values_videos.numel() == 0:
        raise ValueError(f"pixel_values_videos is empty: its shape is {tuple(pixel_values_videos.shape)}.")
    if not pixel_values_videos.is_floating_point():
        raise ValueError(
            f"pixel_values_videos has the type {pixel_values_videos.dtype}: these are raw frames. Pass the videos "
            "through the processor (`processor(videos=…)`), which resizes and normalises them."
        )


def check_range(pixel_values_videos: torch.Tensor, was_checked: bool) -> bool:
    """
    Refuses frames that were not normalised (values up to 255), and returns whether frames of this model were checked.

    On an accelerator only the first frames are, because reading a value waits for the device.
    """
    # A trace has no values, nor have the tensors of other classes that stand for one.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(pixel_values_videos) is not torch.Tensor
    if traced or pixel_values_videos.is_meta or (was_checked and pixel_values_videos.device.type != "cpu"):
        return was_checked
    largest = pixel_values_videos.detach().abs().amax().item()
    if largest > LARGEST_PIXEL:
        raise ValueError(
            f"pixel_values_videos has values up to {largest:.1f}, but normalised frames are within {LARGEST_PIXEL} of "
            "0. Pass the videos through the processor (`processor(videos=…)`), which scales and normalises them."
        )
    return True


def check_texts(input_ids: torch.Tensor) -> None:
    """Refuses empty batches, texts of no tokens and anything that is not a batch of token ids."""
    shape = tuple(input_ids.shape)
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids must hold token ids of shape (batch_size, sequence_length); got {input_ids.dtype} of shape "
            f"{shape}."
        )
    if input_ids.numel() == 0:
        raise ValueError(f"input_ids is empty: its shape (batch_size, sequence_length) is {shape}.")
