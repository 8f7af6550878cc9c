"""Clips to model input: window and frame sampling, crop or resize, normalisation, all frames of a clip alike.

Works on uint8 tensors until the last step, and on the decoder's channels-last memory as it is: the resize is several
times slower on float32 or on a contiguous copy.
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .clip_reading import frame_times, read_clip_and_info
from .clip_times import clamp_window, clip_times, frame_indices
from .decode_torchcodec import read_video_decoder
from .decoded_frames import as_array, as_pixels, channels_first
from .random_part import random_part
from .video_inputs import Frames, Window, clips_of, is_video_decoder, metadata_of
from .video_source import TIME_TOLERANCE, VideoInfo, as_source

# Settings of one call that are never saved: JSON has no generators, and a folder must not make a user download things.
_OF_A_CALL = ("generator", "allow_urls")


class SViTTEgoVideoProcessorKwargs(VideosKwargs, total=False):
    """
    sampling (`str`, defaults to `"middle"`):
        Which frame of each of the `num_frames` equal segments of a clip is taken: its `"middle"` one (evaluation) or a
        `"random"` one (training).
    generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
        Source of every random choice: one for the batch, or one per clip, which makes a clip's frames and crop
        independent of the rest of the batch. Only when calling; by default PyTorch's global one.
    video_backend (`str`, defaults to `"auto"`):
        The decoder of video files: `"auto"`, `"decord"`, `"pyav"`, `"torchcodec"` or, not tested by us,
        `"torchcodec-cuda"`.
    allow_urls (`bool`, defaults to `False`):
        Whether http and https addresses are downloaded into memory; otherwise they are an error. Only when calling.
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
    allow_urls: bool | None
    antialias: bool | None
    do_random_resized_crop: bool | None
    crop_scale: list[float] | tuple[float, ...] | None
    crop_ratio: list[float] | tuple[float, ...] | None
    do_random_flip: bool | None


class SViTTEgoVideoProcessor(BaseVideoProcessor):
    r"""
    Makes `pixel_values_videos`, `float32` of shape `(batch_size, num_frames, 3, height, width)`, from clips.

    A clip is one of
      * a video: the path of a file, its content as `bytes`, a binary file object, or a torchcodec `VideoDecoder`, as
        columns of type `datasets.Video` give it;
      * `{"path": path, "start": s, "end": e}` or `(video, s, e)`: the window [s, e) of a video, in seconds from its
        first frame; a bound may be `None`, and what reaches over the video's ends is cut off;
      * `{"bytes": content, "path": name}`, also with `start` and `end`: a file in memory;
      * decoded frames: an array or tensor `(T, H, W, C)` or `(T, C, H, W)`, or a list of PIL images or of arrays, with
        values from 0 to 255; or `{"array": frames, "video_metadata": {"fps": …}}`;
      * an image (PIL, or an array of three dimensions): a clip of one frame, which is not sampled.

    A batch is a list of clips, a column of a data set, or an array with one dimension more. A clip with fewer frames
    than `num_frames` repeats frames; `do_sample_frames=False` takes every frame. A file or window that cannot be read
    raises `ClipReadError` with the path and the numbers.

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

    def __init__(self, **kwargs: Any):
        for name in _OF_A_CALL:
            if kwargs.pop(name, None):
                raise ValueError(f"{name} is given when calling the video processor, because it is not saved.")
        super().__init__(**kwargs)

    def _standardize_kwargs(
        self, crop_scale: Sequence[float] | None = None, crop_ratio: Sequence[float] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # Lists come back from JSON; tuples compare equal before and after saving, as image_mean does.
        bounds = {"crop_scale": crop_scale, "crop_ratio": crop_ratio}
        for name, value in bounds.items():
            if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
                raise ValueError(f"{name} must be two positive bounds in increasing order, got {value}.")
        bounds = {name: value if value is None else tuple(value) for name, value in bounds.items()}
        return {**super()._standardize_kwargs(**kwargs), **bounds}

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """
        Args:
            videos: A clip or a list of clips, see the class.
            do_sample_frames (`bool`, defaults to `True`): Whether to take `num_frames` frames; otherwise all are kept.
            video_metadata (*optional*):
                `VideoMetadata` or a dict of it per clip of decoded frames; `fps` needs their frame rate.
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

        clips = clips_of(videos)
        generators = kwargs.pop("generator")
        if not isinstance(generators, (list, tuple)):
            generators = [generators] * len(clips)
        metadata = metadata_of(kwargs.pop("video_metadata")) or [None] * len(clips)
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
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        sampling: str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """
        Indices of the frames to take from a decoded clip; `fps` needs the clip's own rate in `metadata`.

        Where `metadata` says that the frames are a whole video (its `fps`, and `frames_indices` from 0 on), they are
        those that are taken from its file.
        """
        if metadata.fps and metadata.frames_indices == list(range(metadata.total_num_frames)):
            duration = metadata.total_num_frames / metadata.fps
            count = max(1, round(duration * fps)) if fps is not None else num_frames or self.num_frames
            times = clip_times(0.0, duration, count, sampling or self.sampling, generator)
            late = min(TIME_TOLERANCE, 0.25 / metadata.fps)
            return [min(int((t + late) * metadata.fps), metadata.total_num_frames - 1) for t in times]
        if fps is not None:
            if metadata.fps is None:
                raise ValueError(f"fps={fps} needs the clip's own frame rate: pass video_metadata with fps.")
            num_frames = max(1, int(metadata.total_num_frames / metadata.fps * fps))
        num_frames = self.num_frames if num_frames is None else num_frames
        return frame_indices(metadata.total_num_frames, num_frames, sampling or self.sampling, generator)

    # ------------------------------------------------------------------------------------------------- input to frames

    def _load(
        self,
        index: int,
        clip: Window | Frames,
        metadata: VideoMetadata | None,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """One clip, as a `(T, C, H, W)` tensor that may be a view of other memory order, and its metadata."""
        if isinstance(clip, Window):
            frames, metadata = self._read(clip, generator, **kwargs)
            frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
        else:
            frames, metadata = self._take(index, clip.frames, metadata or clip.metadata, generator, **kwargs)
        return frames if device is None else frames.to(device), metadata

    def _take(
        self, index, frames, metadata, generator, do_sample_frames, input_data_format, do_convert_rgb, **kwargs
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Some of the frames of a clip that was decoded elsewhere, checked."""
        frames, is_image = as_array(frames, index, do_convert_rgb)
        frames = channels_first(frames, input_data_format, index)
        (height, width), indices = frames.shape[-2:], list(range(len(frames)))
        # The number of frames given counts, even where the metadata states another one.
        metadata = replace(
            metadata or VideoMetadata(len(frames)), total_num_frames=len(frames), height=height, width=width
        )
        if do_sample_frames and not is_image:
            indices = self.sample_frames(metadata, generator=generator, **kwargs)
            frames = frames[indices]
        metadata.frames_indices = indices
        frames = as_pixels(frames, index, _largest_value(**kwargs))
        return self.convert_to_rgb(frames) if do_convert_rgb else frames, metadata

    def _read(
        self,
        window: Window,
        generator: torch.Generator | None,
        do_sample_frames: bool,
        num_frames: int | None,
        fps: float | None,
        sampling: str,
        video_backend: str,
        allow_urls: bool | None,
        **kwargs: Any,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """The frames `(T, H, W, C)` of a window of a video file."""
        is_open = is_video_decoder(window.video)
        if is_open and not do_sample_frames:
            raise ValueError(
                f"{window.name}: do_sample_frames=False of a VideoDecoder: pass decoder.get_all_frames().data instead."
            )
        video = window.video if is_open else as_source(window.video, bool(allow_urls))
        times: list[float] = []

        def sample(info: VideoInfo) -> Sequence[float]:
            first, last = clamp_window(window.start, window.end, info.duration, window.name)
            if do_sample_frames:
                count = max(1, round((last - first) * fps)) if fps is not None else num_frames
                times.extend(clip_times(first, last, count, sampling, generator))
            else:
                begins = frame_times(video)
                times.extend(begins[(begins >= first - info.tolerance) & (begins < last - info.tolerance)].tolist())
            return times or [first]

        frames, info = (
            read_video_decoder(video, sample) if is_open else read_clip_and_info(video, sample, video_backend)
        )
        metadata = VideoMetadata(
            total_num_frames=info.num_frames or round(info.duration * info.fps),
            fps=info.fps,
            width=info.width,
            height=info.height,
            duration=info.duration,
            video_backend=info.backend,
            frames_indices=[int((t + info.tolerance) * info.fps) for t in times],
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
                top, left, height, width = random_part(*clip.shape[-2:], crop_scale, crop_ratio, generator)
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


def _largest_value(
    do_rescale: bool | None, rescale_factor: float | None, do_normalize: bool | None, **kwargs: Any
) -> float | None:
    """The largest value that frames may have, for the steps that follow; `None` for any."""
    if do_rescale:
        return 255.0 if rescale_factor is not None and abs(255 * rescale_factor - 1) < 1e-3 else None
    return 1.0 if do_normalize else None


SViTTEgoVideoProcessor.register_for_auto_class()

__all__ = ["SViTTEgoVideoProcessor"]
