"""Inputs that a model would compute on without complaint and without sense are refused here."""

import torch

# The processor's frames are within 3 of 0 with every common mean and standard deviation; raw ones reach 255.
LARGEST_PIXEL = 32.0


def check_frames(pixel_values_videos: torch.Tensor, config) -> None:
    """Refuses other shapes, empty batches, raw frames (integers), and one frame where pruning compares frames."""
    if pixel_values_videos.dim() != 5:
        raise ValueError(
            "pixel_values_videos must have the shape (batch_size, num_frames, channels, height, width) or, for "
            f"images, (batch_size, channels, height, width); got {tuple(pixel_values_videos.shape)}."
        )
    if pixel_values_videos.numel() == 0:
        raise ValueError(f"pixel_values_videos is empty: its shape is {tuple(pixel_values_videos.shape)}.")
    if not pixel_values_videos.is_floating_point():
        raise ValueError(
            f"pixel_values_videos has the type {pixel_values_videos.dtype}: these are raw frames. Pass the videos "
            "through the processor (`processor(videos=…)`), which resizes and normalises them."
        )
    if pixel_values_videos.shape[1] == 1 and config.keep_strategy == "motion" and config.keep_rate < 1.0:
        raise ValueError(
            'keep_strategy="motion" compares frames, and these clips have one. Give at least two frames, or set '
            "keep_rate to 1."
        )


def check_range(pixel_values_videos: torch.Tensor, was_checked: bool) -> bool:
    """
    Refuses frames that were not normalised (values up to 255), and returns whether frames of this model were checked.

    On an accelerator only the first frames are, because reading a value waits for the device.
    """
    # Traced and fake tensors have no values.
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


def check_states(text_states: torch.Tensor, video_states: torch.Tensor | None) -> None:
    """Refuses what the fusion tower has nothing to join of: an empty batch, no text, no patch tokens of a video."""
    if video_states is None:
        raise ValueError("The fusion tower needs video_states.")
    texts, videos = tuple(text_states.shape), tuple(video_states.shape)
    if len(texts) != 3 or text_states.numel() == 0:
        raise ValueError(f"text_states must have a shape of three sizes above 0; got {texts}.")
    if len(videos) != 3 or videos[0] != texts[0] or videos[1] < 2:
        raise ValueError(
            f"video_states must hold [CLS] and patch tokens of the clips of {texts[0]} texts, in a shape of three "
            f"sizes; got {videos}."
        )


def flatten_choices(
    pixel_values_videos: torch.Tensor | None, input_ids: torch.Tensor | None, *further: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """
    All clips and all texts of multiple choice, one after another.

    Args:
        pixel_values_videos (`torch.Tensor`), input_ids (`torch.Tensor`): of 6 and 2 dimensions (clips to choose from),
            or of 5 and 3 (texts to choose from).
        further: attention mask and token types of the texts, or None.
    """
    if pixel_values_videos is None or input_ids is None:
        raise ValueError("Multiple choice needs pixel_values_videos and input_ids.")
    choose_clip, choose_text = pixel_values_videos.dim() == 6, input_ids.dim() == 3
    if choose_clip == choose_text:
        raise ValueError(
            "Give one text and N clips (input_ids of 2, pixel_values_videos of 6 dimensions) or one clip and N texts "
            f"(5 and 3); got input_ids of {input_ids.dim()} and pixel_values_videos of {pixel_values_videos.dim()}."
        )
    texts = [x.flatten(0, 1) if x is not None and x.dim() == 3 else x for x in (input_ids, *further)]
    return pixel_values_videos.flatten(0, 1) if choose_clip else pixel_values_videos, texts
