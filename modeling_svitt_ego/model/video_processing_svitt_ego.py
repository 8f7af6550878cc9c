"""Clips to model input: window and frame sampling, crop or resize, normalisation, all frames of a clip alike.

Works on uint8 tensors until the last step, and on the decoder's channels-last memory as it is: the resize is several
times slower on float32 or on a contiguous copy.
"""

import difflib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import VideosKwargs
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .clip_reading import VideoInfo, clamp_window, clip_times, frame_indices, read_clip_and_info

logger = logging.get_logger(__name__)


class SViTTEgoVideoProcessorKwargs(VideosKwargs, total=False):
    """
    sampling (`str`, defaults to `"middle"`):
        Which frame of each of the `num_frames` equal segments of a clip is taken: its `"middle"` one (evaluation) or a
        `"random"` one (training).
    generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
        Source of every random choice: one for the batch, or one per clip, so that a clip's frames and crop do not
        depend on the rest of the batch. Only when calling; by default PyTorch's global one.
    video_backend (`str`, defaults to `"auto"`):
        The decoder of video files: `"auto"`, `"decord"`, `"pyav"` or `"torchcodec"`.
    antialias (`bool`, defaults to `True`):
        Whether making frames smaller averages over the pixels it skips. The published SViTT weights were trained
        without.
    do_random_resized_crop (`bool`, defaults to `False`):
        For training: a random part of the picture, the same in every frame of the clip, resized to `size`; takes the
        place of the plain resize.
    crop_scale (`tuple[float, float]`, defaults to `(0.5, 1.0)`):
        Bounds of the share of the picture's area in the random part.
    crop_ratio (`tuple[float, float]`, defaults to `(3/4, 4/3)`):
        Bounds of the random part's width over height.
    do_random_flip (`bool`, defaults to `False`):
        For training: mirrors half of the clips, whole. Off, unlike in SViTT, because narrations say left and right.
    """

    sampling: str | None
    generator: Any | None
    video_backend: str | None
    antialias: bool | None
    do_random_resized_crop: bool | None
    crop_scale: list[float] | tuple[float, ...] | None
    crop_ratio: list[float] | tuple[float, ...] | None
    do_random_flip: bool | None


class SViTTEgoVideoProcessor(BaseVideoProcessor):
    r"""
    Makes `pixel_values_videos`, `float32` of shape `(batch_size, num_frames, 3, height, width)`, from clips.

    A clip is one of
      * a path of a video file: the whole video;
      * `{"path": path, "start": s, "end": e}` or `(path, s, e)`: its window [s, e), in seconds from its first frame; a
        bound may be `None`, and what reaches over the video's ends is cut off;
      * decoded frames: an array or tensor `(T, H, W, C)` or `(T, C, H, W)`, or a list of PIL images or of arrays, with
        values from 0 to 255;
      * an image (PIL, or an array of three dimensions): a clip of one frame, which is not sampled.

    A batch is a list of clips, or an array with one dimension more. A clip with fewer frames than `num_frames` repeats
    frames. A file or window that cannot be read raises `ClipReadError` with the path and the numbers.

    By default 4 frames, the middle ones of equal segments, are resized to 224 x 224 without keeping the aspect ratio,
    bicubic, and scaled to [-1, 1], as SViTT does for evaluation. Its training recipe is
    `sampling="random", do_random_resized_crop=True` (and `do_random_flip=True`, which we leave off: see there).

    Example:

    ```python
    >>> processor = SViTTEgoVideoProcessor(num_frames=4)
    >>> clips = [("kitchen.mp4", 12.0, 13.5), {"path": "garden.mp4", "start": 3.0, "end": 4.0}]
    >>> processor(clips, return_tensors="pt")["pixel_values_videos"].shape
    torch.Size([2, 4, 3, 224, 224])
    ```
    """

    valid_kwargs = SViTTEgoVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 4
    sampling = "middle"
    video_backend = "auto"
    do_resize = True
    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    antialias = True
    do_random_resized_crop = False
    crop_scale = (0.5, 1.0)
    crop_ratio = (3 / 4, 4 / 3)
    do_random_flip = False
    do_rescale = True
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]

    def __init__(self, **kwargs):
        if kwargs.get("generator") is not None:
            raise ValueError("generator is given when calling the video processor, because it cannot be saved.")
        super().__init__(**kwargs)

    def _standardize_kwargs(self, crop_scale=None, crop_ratio=None, **kwargs) -> dict:
        # Lists come back from JSON; tuples compare equal before and after saving, as image_mean does.
        bounds = {"crop_scale": crop_scale, "crop_ratio": crop_ratio}
        for name, value in bounds.items():
            if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
                raise ValueError(f"{name} must be two positive bounds in increasing order, got {value}.")
        bounds = {name: value if value is None else tuple(value) for name, value in bounds.items()}
        return {**super()._standardize_kwargs(**kwargs), **bounds}

    def preprocess(self, videos, **kwargs) -> BatchFeature:
        """
        Args:
            videos: A clip or a list of clips, see the class.
            return_metadata (`bool`, *optional*):
                Also return `video_metadata`: per clip its size, frame rate, the frames taken and the decoder.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"` for one stacked array, otherwise a list of tensors.
            kwargs: Any setting of this processor, for this call only.
        """
        for name in kwargs.keys() - self.valid_kwargs.__annotations__.keys():
            nearest = difflib.get_close_matches(name, self.valid_kwargs.__annotations__, n=1)
            raise TypeError(f"Unknown setting {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "."))
        validate_typed_dict(self.valid_kwargs, kwargs)
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)  # a call's rate goes before the default number
        for name in self.valid_kwargs.__annotations__:
            kwargs.setdefault(name, getattr(self, name, None))
        if kwargs["fps"] is not None and kwargs["num_frames"] is not None:
            raise ValueError(f"fps ({kwargs['fps']}) and num_frames ({kwargs['num_frames']}) cannot both be given.")
        kwargs = self._standardize_kwargs(**kwargs)
        self._validate_preprocess_kwargs(**kwargs)

        clips = list(_flatten(videos))
        if not clips:
            raise ValueError("No video was given.")
        generators = kwargs.pop("generator")
        if not isinstance(generators, (list, tuple)):
            generators = [generators] * len(clips)
        metadata = _flat_metadata(kwargs.pop("video_metadata")) or [None] * len(clips)
        for name, entries in (("generator", generators), ("video_metadata", metadata)):
            if len(entries) != len(clips):
                raise ValueError(f"{len(entries)} entries of {name} were given for {len(clips)} clips.")
        frames, metadata = zip(
            *[self._load(i, *clip, **kwargs) for i, clip in enumerate(zip(clips, metadata, generators))]
        )
        output = self._preprocess(frames, generators=generators, **kwargs)
        if kwargs["return_metadata"]:
            output["video_metadata"] = list(metadata)
        return output

    def sample_frames(
        self, metadata: VideoMetadata, num_frames=None, fps=None, sampling=None, generator=None, **kwargs
    ) -> list[int]:
        """Indices of the frames to take from a decoded clip; `fps` needs the clip's own rate in `metadata`."""
        if fps is not None:
            if metadata.fps is None:
                raise ValueError(f"fps={fps} needs the clip's own frame rate: pass video_metadata with fps.")
            num_frames = max(1, int(metadata.total_num_frames / metadata.fps * fps))
        num_frames = self.num_frames if num_frames is None else num_frames
        return frame_indices(metadata.total_num_frames, num_frames, sampling or self.sampling, generator)

    # ------------------------------------------------------------------------------------------------- input to frames

    def _load(self, index, clip, metadata, generator, do_sample_frames, input_data_format, device, **kwargs):
        """One clip, as a `(T, C, H, W)` tensor that may be a view of other memory order, and its metadata."""
        window = _window(clip)
        if window is not None:
            frames, metadata = self._read(*window, generator, do_sample_frames, **kwargs)
            frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
        else:
            frames, is_image = _as_array(clip, index, kwargs["do_convert_rgb"])
            frames = _channels_first(frames, input_data_format, index)
            (height, width), indices = frames.shape[-2:], list(range(len(frames)))
            metadata = replace(metadata or VideoMetadata(len(frames)), height=height, width=width)
            if do_sample_frames and not is_image:
                indices = self.sample_frames(metadata, generator=generator, **kwargs)
                frames = frames[indices]
            metadata.frames_indices = indices
            frames = _as_pixels(frames, index, kwargs["do_rescale"])
            if kwargs["do_convert_rgb"]:
                frames = self.convert_to_rgb(frames)
        return frames if device is None else frames.to(device), metadata

    def _read(self, path, start, end, generator, do_sample_frames, num_frames, fps, sampling, video_backend, **kwargs):
        if not do_sample_frames:
            raise ValueError(f"{path}: do_sample_frames=False is for decoded frames; for a denser clip pass fps.")
        times = []

        def sample(info: VideoInfo) -> list[float]:
            first, last = clamp_window(start, end, info.duration, path)
            count = max(1, round((last - first) * fps)) if fps is not None else num_frames
            times.extend(clip_times(first, last, count, sampling, generator))
            return times

        frames, info = read_clip_and_info(path, sample, video_backend)
        metadata = VideoMetadata(
            total_num_frames=info.num_frames or round(info.duration * info.fps),
            fps=info.fps,
            width=info.width,
            height=info.height,
            duration=info.duration,
            video_backend=info.backend,
            frames_indices=[int(t * info.fps) for t in times],
        )
        return frames, metadata

    # ------------------------------------------------------------------------------------------------ frames to pixels

    def _preprocess(
        self,
        videos,
        generators,
        do_resize,
        size,
        resample,
        antialias,
        do_random_resized_crop,
        crop_scale,
        crop_ratio,
        do_random_flip,
        do_center_crop,
        crop_size,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        if do_random_resized_crop and not (size and size.height and size.width):
            raise ValueError(f"do_random_resized_crop needs a size with height and width, got {size}.")
        clips = []
        for clip, generator in zip(videos, generators):
            if do_random_resized_crop:
                top, left, height, width = _random_part(*clip.shape[-2:], crop_scale, crop_ratio, generator)
                clip = clip[..., top : top + height, left : left + width]
            if do_random_resized_crop or do_resize:
                clip = self.resize(clip, size=size, resample=resample, antialias=bool(antialias))
            if do_random_flip and torch.rand((), generator=generator) < 0.5:
                clip = clip.flip(-1)
            if do_center_crop:
                clip = self.center_crop(clip, crop_size)
            clips.append(clip)

        shapes = {tuple(clip.shape) for clip in clips}
        if len(shapes) > 1 and return_tensors is not None:
            raise ValueError(f"Clips of different shapes cannot make one batch: {sorted(shapes)} (T, C, H, W).")
        batches = [torch.stack(clips)] if len(shapes) == 1 else [clip[None] for clip in clips]
        batches = [
            self.rescale_and_normalize(
                batch.contiguous(), do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
            for batch in batches
        ]
        pixels = batches[0] if len(shapes) == 1 and return_tensors is not None else [c for b in batches for c in b]
        return BatchFeature(data={"pixel_values_videos": pixels}, tensor_type=return_tensors)


# ------------------------------------------------------------------------------------------------------ input to clips


def _is_path(value) -> bool:
    return isinstance(value, (str, os.PathLike))


def _window(clip):
    """`(path, start, end)` of a clip in a file, `None` for decoded frames."""
    if _is_path(clip):
        return os.fspath(clip), None, None
    if isinstance(clip, dict):
        unknown = set(clip) - {"path", "start", "end"}
        if unknown or "path" not in clip:
            raise ValueError(f"A clip has the keys path, start and end; got {sorted(map(str, clip))}.")
        return os.fspath(clip["path"]), clip.get("start"), clip.get("end")
    if _is_window(clip):
        return os.fspath(clip[0]), clip[1], clip[2]
    return None


def _is_window(value) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 3
        and _is_path(value[0])
        and not any(_is_path(bound) or isinstance(bound, (tuple, list, dict)) for bound in value[1:])
    )


def _is_array(value) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_frame(value) -> bool:
    return isinstance(value, Image.Image) or (_is_array(value) and value.ndim in (2, 3))


def _flatten(videos) -> Iterator:
    """The clips of a clip, a batch or a nested batch."""
    if _is_path(videos) or isinstance(videos, dict) or _is_window(videos) or _is_frame(videos):
        yield videos
    elif _is_array(videos) and videos.ndim in (4, 5):
        yield from [videos] if videos.ndim == 4 else videos
    elif isinstance(videos, (list, tuple)):
        if videos and all(_is_frame(frame) for frame in videos):
            yield videos
        else:
            for i, video in enumerate(videos):
                if isinstance(video, (list, tuple)) and not video:
                    raise ValueError(f"Clip {i}: has no frames.")  # leaving it out would pair texts with wrong clips
                yield from _flatten(video)
    else:
        got = f"an array of shape {tuple(videos.shape)}" if _is_array(videos) else type(videos).__name__
        raise ValueError(f"A clip is a path, a path with start and end, frames or an image; got {got}.")


def _flat_metadata(value) -> list[VideoMetadata]:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [entry for item in value for entry in _flat_metadata(item)]
    return [value if isinstance(value, VideoMetadata) else VideoMetadata(**value)]


def _as_array(clip, index: int, do_convert_rgb: bool):
    """Frames as a tensor of four dimensions, and whether they were given as a single image."""
    is_image = _is_frame(clip)
    frames = [clip] if is_image else clip
    if not _is_array(frames):
        frames = [
            np.asarray(frame.convert("RGB") if do_convert_rgb else frame) if isinstance(frame, Image.Image) else frame
            for frame in frames
        ]
        shapes = {tuple(frame.shape) for frame in frames}
        if len(shapes) > 1:
            raise ValueError(f"Clip {index}: its frames have different shapes: {sorted(shapes)}.")
        stack = torch.stack if isinstance(frames[0], torch.Tensor) else np.stack
        frames = stack(list(frames))
    if isinstance(frames, np.ndarray):
        if frames.dtype.kind not in "uif":
            raise ValueError(f"Clip {index}: frames of type {frames.dtype} are not numbers.")
        if not frames.flags.writeable or any(stride < 0 for stride in frames.strides):
            frames = frames.copy()  # what PyTorch cannot share
        frames = torch.from_numpy(frames)
    if frames.ndim == 3:
        frames = frames[..., None]  # grey pictures
    if 0 in frames.shape:
        raise ValueError(f"Clip {index}: has no frames or no pixels, its shape is {tuple(frames.shape)}.")
    return frames, is_image


def _channels_first(frames: torch.Tensor, input_data_format, index: int) -> torch.Tensor:
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


def _as_pixels(frames: torch.Tensor, index: int, do_rescale: bool) -> torch.Tensor:
    """`uint8` as it is, other numbers checked."""
    if frames.dtype == torch.uint8:
        return frames
    if frames.is_floating_point():
        finite = torch.isfinite(frames)
        if not finite.all():
            bad = (~finite).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"Clip {index}: {int((~finite).sum())} values are NaN or infinite, in frames {bad}.")
        frames = frames.to(torch.float32)
        if do_rescale and 0 < frames.max() <= 1:
            logger.warning_once("Frames with values up to 1 are divided by 255 again; if so, pass do_rescale=False.")
        return frames
    low, high = int(frames.min()), int(frames.max())
    if low < 0 or high > 255:
        raise ValueError(f"Clip {index}: integer frames have values from {low} to {high}, outside 0 to 255.")
    return frames.to(torch.uint8)


def _random_part(height: int, width: int, scale, ratio, generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, by torchvision's RandomResizedCrop, with a generator."""
    for _ in range(10):
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + draws[0] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + draws[1] * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
    # No part of such a shape fits: the largest in the middle whose shape is nearest to it.
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


SViTTEgoVideoProcessor.register_for_auto_class()

__all__ = ["SViTTEgoVideoProcessor"]
