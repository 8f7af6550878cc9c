"""Features of whole videos: one window per stride, decoded in one pass and embedded in batches.

A feature describes its cell (model/feature_cells.py). The published EgoNLQ features have 30 fps / 16 frames = 1.875
cells a second.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..data.frame_order import check_frame_order, ordered_frames
from ..model.clip_reading import ClipReadError, clip_times
from ..model.feature_cells import cell_bounds, window_bounds
from .source_videos import SourceVideo, find_videos  # noqa: F401 (imported from here by earlier code)

WINDOWS_PER_SECOND = 1.875
NLQ_WINDOW_SECONDS = 1.0  # for a grounding head: the mean length of EgoClip's clips, nearly twice a cell
FEATURE_KINDS = ("projected", "pooled", "tokens")


@dataclass(frozen=True)
class WindowSettings:
    """
    Args:
        windows_per_second (`float`): Number of cells, and of features, per second of video.
        window_seconds (`float`, *optional*): Length of the window around the middle of a cell that the model sees; the
            length of a cell if not given. The clips of EgoClip have a mean length of one second, nearly twice a cell.
        num_frames (`int`): Frames of a window, which are the middle frames of equally long segments.
        kind (`str`): `"projected"` (`projection_dim`, comparable with texts, not normalised), `"pooled"` (before the
            projection, `hidden_size`) or `"tokens"` (`(num_tokens, hidden_size)`, [CLS] first, after pruning).
        frame_order (`str`): of the frames within a window, a control, see [`ordered_frames`].
    """

    windows_per_second: float = WINDOWS_PER_SECOND
    window_seconds: float | None = None
    num_frames: int = 4
    kind: str = "projected"
    frame_order: str = "natural"

    def __post_init__(self):
        check_frame_order(self.frame_order)
        if not (math.isfinite(self.windows_per_second) and self.windows_per_second > 0):
            raise ValueError(f"windows_per_second ({self.windows_per_second}) must be above 0.")
        if self.window_seconds is not None and not (math.isfinite(self.window_seconds) and self.window_seconds > 0):
            raise ValueError(f"window_seconds ({self.window_seconds}) must be above 0.")
        if self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be at least 1.")
        if self.kind not in FEATURE_KINDS:
            raise ValueError(f"kind ({self.kind!r}) must be one of {', '.join(FEATURE_KINDS)}.")

    def recorded(self) -> dict:
        """What a manifest says; the natural order of frames is not mentioned, as in folders of earlier versions."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("frame_order", "natural")}


def cells(duration: float, settings: WindowSettings) -> np.ndarray:
    """(num_cells, 2) seconds: start and end of each cell; together they are [0, duration)."""
    return cell_bounds(duration, settings.windows_per_second)


def windows(duration: float, settings: WindowSettings) -> np.ndarray:
    """(num_cells, 2) seconds: what the model sees for each cell."""
    return window_bounds(duration, settings.windows_per_second, settings.window_seconds)


# --------------------------------------------------------------------------------------------------- frames to vectors


def read_windows(video: SourceVideo, spans: np.ndarray, num_frames: int) -> Iterator[np.ndarray]:
    """The frames `(num_frames, height, width, 3)` of each span in turn; the video is decoded once."""
    times = np.array([clip_times(start, end, num_frames) for start, end in spans])
    order = np.argsort(times, axis=None, kind="stable")  # windows may overlap
    waiting: dict[int, list] = {}
    for place, frame in zip(order, video.frames(times.flat[order])):
        window = int(place) // num_frames
        frames = waiting.setdefault(window, [])
        frames.append(frame)
        if len(frames) == num_frames:  # windows begin in order and are of equal length, so they also end in order
            if len({frame.shape for frame in frames}) > 1:
                raise ClipReadError(f"{video.uid}: its frames change size around {times[window, 0]:.3f} s.")
            yield np.stack(waiting.pop(window))


@dataclass(frozen=True)
class VideoFeatures:
    """
    Args:
        cells (`np.ndarray` of shape `(num_cells, 2)`): start and end of each, in seconds of the source video.
        features (`np.ndarray` of shape `(num_cells, dim)`, or `(num_cells, num_tokens, dim)` of kind "tokens").
    """

    cells: np.ndarray
    features: np.ndarray


@torch.no_grad()
def embed_video(
    model,
    processor,
    video: SourceVideo,
    settings: WindowSettings | None = None,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> VideoFeatures:
    """
    The features of one video. Frames are decoded and resized in a thread while the model computes.

    Args:
        model: with `vision_model` and `video_projection`, as [`SViTTEgoModel`]; put into evaluation mode meanwhile.
        processor: [`SViTTEgoProcessor`] or its video processor.
        dtype (`torch.dtype`): of the result.
        progress (function of two `int`, *optional*): called after each batch with the windows of the batch and of the
            video.

    Raises:
        ClipReadError: The video cannot be decoded to its end.
        ValueError: A feature is not finite.
    """
    settings = settings or WindowSettings()
    processor = getattr(processor, "video_processor", processor)
    duration = video.duration()
    spans = windows(duration, settings)
    frames = (
        clip[ordered_frames(len(clip), settings.frame_order, seed=number)]
        for number, clip in enumerate(read_windows(video, spans, settings.num_frames))
    )

    def next_batch() -> torch.Tensor | None:
        # Resized window by window: a batch of large frames may not fit into memory with the model.
        clips = [
            processor([clip], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
            for clip in itertools.islice(frames, batch_size)
        ]
        return torch.cat(clips) if clips else None

    parameter, was_training = next(model.parameters()), model.training
    rows: list[torch.Tensor] = []
    model.eval()
    try:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next_batch)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next_batch)
                rows.append(_embed(model, batch.to(parameter.device, parameter.dtype), settings.kind).to("cpu", dtype))
                if progress is not None:
                    progress(len(batch), len(spans))
    finally:
        model.train(was_training)
    features = torch.cat(rows)
    if len(features) != len(spans):
        raise ClipReadError(f"{video.uid}: {len(features)} of {len(spans)} windows could be decoded.")
    _check_finite(video.uid, features, spans)
    return VideoFeatures(cells(duration, settings), features.numpy())


def _check_finite(uid: str, features: torch.Tensor, spans: np.ndarray) -> None:
    finite = torch.isfinite(features.flatten(1)).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{uid}: {int((~finite).sum())} of {len(features)} features are not finite in {features.dtype}, the first "
            f"at {spans[first, 0]:.3f} s."
        )


def _embed(model, pixel_values: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "projected":
        return model.get_video_features(pixel_values, return_dict=True).pooler_output
    outputs = model.vision_model(pixel_values, return_dict=True)
    return outputs.last_hidden_state if kind == "tokens" else outputs.pooler_output


@dataclass(frozen=True)
class TextFeatures:
    """
    Args:
        features (`np.ndarray` of shape `(projection_dim,)`): comparable with "projected" video features.
        token_features (`np.ndarray` of shape `(num_tokens, hidden_size)`): the text tower's states, no padding.
    """

    features: np.ndarray
    token_features: np.ndarray


@torch.no_grad()
def embed_texts(model, processor, texts: list[str], batch_size: int = 256) -> list[TextFeatures]:
    """The features of each text, in float32."""
    device, was_training = next(model.parameters()).device, model.training
    result = []
    model.eval()
    try:
        for first in range(0, len(texts), batch_size):
            inputs = processor(text=texts[first : first + batch_size], return_tensors="pt").to(device)
            outputs = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], return_dict=True)
            pooled, tokens = (
                outputs.pooler_output.float().cpu().numpy(),
                outputs.last_hidden_state.float().cpu().numpy(),
            )
            lengths = inputs["attention_mask"].sum(1).tolist()
            result += [TextFeatures(p, t[:length].copy()) for p, t, length in zip(pooled, tokens, lengths)]
    finally:
        model.train(was_training)
    return result
