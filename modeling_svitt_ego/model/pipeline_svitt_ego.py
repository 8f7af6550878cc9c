"""`pipeline("zero-shot-video-classification")`: which of some labels describes a clip best, by the dual encoder.

transformers has no such task. This file travels with every model that can do it, and config.json names it under
`custom_pipelines`, so `pipeline(model=folder, trust_remote_code=True)` finds it.
"""

import os
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.pipelines import Pipeline

from .decoded_frames import is_frame
from .video_inputs import is_column, is_video

TASK = "zero-shot-video-classification"
# Ego4D's narrations, on which the model is trained, say of the person who wears the camera: "#C C opens the door".
HYPOTHESIS_TEMPLATE = "#C C {}"


def custom_pipelines() -> dict[str, dict]:
    """The entry of config.json by which `pipeline(model=folder)` finds this file."""
    impl = f"{__name__.split('.')[-1]}.{ZeroShotVideoClassificationPipeline.__name__}"
    return {TASK: {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}}


class ZeroShotVideoClassificationPipeline(Pipeline):
    """
    Scores labels against clips: the softmax, over the labels, of cosine similarity over temperature.

    ```python
    classifier = pipeline(model=folder, trust_remote_code=True)
    classifier("kitchen.mp4", candidate_labels=["opens the fridge", "closes the fridge"], start=12.0, end=13.5)
    # [{"score": 0.9, "label": "opens the fridge"}, {"score": 0.1, "label": "closes the fridge"}]
    ```

    `candidate_labels`, `hypothesis_template` and `top_k` may also be given when the pipeline is made. Where the
    package is imported, `pipeline("zero-shot-video-classification", model=model, processor=processor)` takes loaded
    parts.
    """

    _load_processor = True
    _load_video_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(f"{TASK} needs the model's processor: pass processor=AutoProcessor.from_pretrained(…).")
        if not hasattr(self.model, "get_text_features"):
            raise TypeError(f"{TASK} needs a model that compares clips with texts, not {type(self.model).__name__}.")
        self.model.eval()  # as if loaded: in training every forward draws another sparsity pattern

    def __call__(
        self,
        videos: Any,
        candidate_labels: list[str] | None = None,
        start: float | list[float | None] | None = None,
        end: float | list[float | None] | None = None,
        hypothesis_template: str | None = None,
        top_k: int | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Args:
            videos: a clip as [`SViTTEgoVideoProcessor`] takes it (a path, a path with its window, decoded frames), or
                a list, array, generator or data set of clips.
            candidate_labels (`list[str]`): the labels to choose from.
            start, end (`float` or `list[float]`, *optional*): window of a path, seconds from the start of the video;
                one for all videos of a list, or one for each.
            hypothesis_template (`str`, defaults to `"#C C {}"`): makes a narration of a label; `"{}"` takes the
                labels as they are.
            top_k (`int`, *optional*): how many labels to return; all by default.
            kwargs: `batch_size`, `num_workers`, and `allow_urls=True` to download videos named by http(s) addresses.

        Returns:
            `[{"score": float, "label": str}, …]`, the best first; a list of such for several clips.
        """
        given = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template, "top_k": top_k}
        given = {name: value for name, value in given.items() if value is not None}
        settings = {**self._postprocess_params, **given}
        labels = _checked_labels(settings.get("candidate_labels"))
        template = settings.get("hypothesis_template", HYPOTHESIS_TEMPLATE)
        # Once per call, not once per clip.
        given["text_embeds"] = self.embed_texts([template.replace("{}", label) for label in labels])
        return super().__call__(_clips(videos, start, end), **given, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | None = None,
        top_k: int | None = None,
        text_embeds: torch.Tensor | None = None,
        allow_urls: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"{TASK} has no argument {', '.join(map(repr, unknown))}.")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k ({top_k!r}) must be a positive number of labels.")
        if hypothesis_template is not None and "{}" not in hypothesis_template:
            raise ValueError(f"hypothesis_template ({hypothesis_template!r}) must hold {{}}, the place of the label.")
        if candidate_labels is not None:
            candidate_labels = _checked_labels(candidate_labels)
        settings = {
            "candidate_labels": candidate_labels,
            "hypothesis_template": hypothesis_template,
            "top_k": top_k,
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        preprocessing = {} if allow_urls is None else {"allow_urls": allow_urls}
        return preprocessing, {} if text_embeds is None else {"text_embeds": text_embeds}, settings

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors `(num_texts, projection_dim)`."""
        inputs = self.processor(text=texts, return_tensors="pt").to(self.device)
        with torch.no_grad():
            return F.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)

    def preprocess(self, clip: Any, allow_urls: bool = False) -> BatchFeature:
        return self.processor(videos=[clip], allow_urls=allow_urls, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature, text_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        video_embeds = F.normalize(self.model.get_video_features(**model_inputs).pooler_output, dim=-1)
        return {"logits_per_video": video_embeds @ text_embeds.T / self.model.temperature}

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        candidate_labels: list[str],
        hypothesis_template: str | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, Any]]:
        scores = model_outputs["logits_per_video"][0].float().softmax(-1)
        best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        return [{"score": scores[i].item(), "label": candidate_labels[i]} for i in best]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """The model, this file and the processor: a folder from which `pipeline(model=folder)` works again."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)  # the base class saves only parts of it


def _checked_labels(labels: Any) -> list[str]:
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"candidate_labels must be a list of strings, got {labels!r}.")
    labels = list(labels)
    if not labels:
        raise ValueError("candidate_labels is empty: there is nothing to choose from.")
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"candidate_labels must be strings with words in them, got {label!r}.")
    return labels


def _clips(videos: Any, start: Any, end: Any) -> Any:
    """Clips with their windows, in the container from which `Pipeline` tells one input from many."""
    if isinstance(videos, types.GeneratorType):
        return (_with_window(video, start, end) for video in videos)
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        videos = list(videos)
    if is_column(videos):
        videos = list(videos)
    if not isinstance(videos, list):
        if isinstance(videos, torch.utils.data.Dataset) and start is None and end is None:
            return videos
        return _with_window(videos, start, end)
    if not videos:
        raise ValueError("No video was given.")
    if all(is_frame(frame) for frame in videos):
        return _with_window(np.stack([np.asarray(frame) for frame in videos]), start, end)
    bounds = {"start": start, "end": end}
    for name, values in bounds.items():
        if not isinstance(values, (list, tuple)):
            bounds[name] = [values] * len(videos)
        elif len(values) != len(videos):
            raise ValueError(f"{len(values)} values of {name} were given for {len(videos)} videos.")
    return [_with_window(*one) for one in zip(videos, bounds["start"], bounds["end"])]


def _with_window(video: Any, start: Any, end: Any) -> Any:
    if start is None and end is None:
        return video
    for name, bound in (("start", start), ("end", end)):
        if isinstance(bound, (list, tuple)):
            raise ValueError(f"One video has one value of {name}, got {bound}.")
    if is_video(video):
        return (video, start, end)
    if isinstance(video, dict) and not {"start", "end", "array"} & video.keys():
        return {**video, "start": start, "end": end}
    kind = "has its own window already" if isinstance(video, (dict, tuple)) else "is not a video file"
    raise ValueError(f"start ({start}) and end ({end}) are for video files, but this {type(video).__name__} {kind}.")


__all__ = ["ZeroShotVideoClassificationPipeline"]
