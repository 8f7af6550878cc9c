"""`pipeline("temporal-grounding")`: when in a video the answer to a question is, by the grounding head.

The head works on features: a vector for each cell of the video (`svitt-ego extract`) and the states of the query's
tokens. With the encoder of the head's training given to the pipeline, the input may be a video and a question. This
file travels with a saved head, and config.json names it under `custom_pipelines`.
"""

import types
from typing import Any

import torch
from transformers.pipelines import Pipeline

from .feature_cells import cell_bounds, window_bounds

WINDOWS_AT_ONCE = 32  # embedded
TASK = "temporal-grounding"


def custom_pipelines() -> dict[str, dict]:
    """The entry of config.json by which `pipeline(model=folder)` finds this file."""
    impl = f"{__name__.split('.')[-1]}.{TemporalGroundingPipeline.__name__}"
    return {TASK: {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}}


class TemporalGroundingPipeline(Pipeline):
    """
    Finds spans of a video that answer a query.

    ```python
    find = pipeline("temporal-grounding", model=head, encoder=model, processor=processor)
    find({"video": "kitchen.mp4", "query": "Where did I put the knife?"}, top_k=3)
    # [{"start": 12.3, "end": 14.4, "score": 0.4}, …] in seconds from the beginning of the video, best first
    find({"video_features": cells, "query": "Where did I put the knife?"})
    ```

    A video is embedded again for each question, window by window as `svitt-ego extract` does; to ask one video many
    questions, extract its features once and pass them.

    Args:
        encoder (*optional*): the model that made the features of the head's training; for videos and texts. The
            sizes are compared, the weights are not.
        processor (*optional*): of the encoder.
    """

    _load_processor = False
    _load_video_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, encoder=None, processor=None, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "spans"):
            raise TypeError(f"{TASK} needs a temporal grounding head, not {type(self.model).__name__}.")
        if (encoder is None) != (processor is None):
            raise ValueError("Give encoder and processor together: videos and texts need both.")
        self.encoder, self.text_processor = encoder, processor
        self.model.eval()
        if encoder is not None:
            encoder.eval()

    def __call__(self, inputs: Any, top_k: int | None = None, **kwargs: Any):
        """
        Args:
            inputs (`dict` or a list of them): `video` (a path, or another whole video that the processor reads; needs
                the encoder), or `video_features` `(num_cells, video_dim)`; and `query` (a text, needs the encoder), or
                `text_features` `(num_tokens, text_dim)` and `text_embeds` `(video_dim,)`.
            top_k (`int`, defaults to 5): how many spans to return.

        Returns:
            `[{"start": float, "end": float, "score": float}, …]`, seconds from the start of the video (or of the first
            cell), best first; a list of such for several inputs.
        """
        if isinstance(inputs, types.GeneratorType):
            inputs = list(inputs)
        return super().__call__(inputs, **({} if top_k is None else {"top_k": top_k}), **kwargs)

    def _sanitize_parameters(self, top_k=None, **unknown):
        if unknown:
            raise TypeError(f"{TASK} has no argument {', '.join(map(repr, unknown))}.")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k ({top_k!r}) must be a positive number of spans.")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, inputs):
        if not isinstance(inputs, dict) or ("video" in inputs) == ("video_features" in inputs):
            raise ValueError(
                "Give a dict with either video or video_features, and either query, or text_features and text_embeds."
            )
        duration = None
        if "video" in inputs:
            video, duration = self._embed_video(inputs["video"])
        else:
            video = torch.as_tensor(inputs["video_features"]).float()
        if video.dim() != 2 or video.shape[1] != self.model.config.video_dim or not len(video):
            raise ValueError(
                f"video_features must have the shape (num_cells, {self.model.config.video_dim}), got "
                f"{tuple(video.shape)}."
            )
        if "query" in inputs:
            text = self._embed(inputs["query"])
        else:
            names = ["text_features", *(["text_embeds"] if self.model.config.use_similarity else [])]
            missing = [name for name in names if name not in inputs]
            if missing:
                raise ValueError(f"Without a query, the input needs {', '.join(missing)}.")
            text = {name: torch.as_tensor(inputs[name]).float() for name in names}
        features = {"video_features": video[None], **{name: value[None] for name, value in text.items()}}
        return features | {"duration": duration}

    @torch.no_grad()
    def _embed_video(self, video: Any) -> tuple[torch.Tensor, float]:
        """The features `(num_cells, video_dim)` of a whole video, as `svitt-ego extract` makes them; its seconds."""
        if self.encoder is None:
            raise ValueError("A video needs encoder= and processor= of the model that made the head's features.")
        config = self.model.config
        processor = getattr(self.text_processor, "video_processor", self.text_processor)
        duration = processor(video, num_frames=1, return_metadata=True)["video_metadata"][0].duration
        spans = window_bounds(duration, config.windows_per_second, config.window_seconds).tolist()
        parameter, rows = next(self.encoder.parameters()), []
        for first in range(0, len(spans), WINDOWS_AT_ONCE):
            clips = [(video, start, end) for start, end in spans[first : first + WINDOWS_AT_ONCE]]
            pixels = processor(clips, num_frames=config.num_frames, return_tensors="pt")["pixel_values_videos"]
            pixels = pixels.to(parameter.device, parameter.dtype)
            embed = (
                self.encoder.get_video_features if config.feature_kind == "projected" else self.encoder.vision_model
            )
            rows.append(embed(pixels, return_dict=True).pooler_output.float().cpu())
        return torch.cat(rows), duration

    @torch.no_grad()
    def _embed(self, query: str) -> dict[str, torch.Tensor]:
        if self.encoder is None:
            raise ValueError("A query as text needs encoder= and processor= of the model that made the features.")
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"query must be a text with words in it, got {query!r}.")
        device = next(self.encoder.parameters()).device
        inputs = self.text_processor(text=[query], return_tensors="pt").to(device)
        outputs = self.encoder.get_text_features(inputs["input_ids"], inputs["attention_mask"], return_dict=True)
        return {
            "text_features": outputs.last_hidden_state[0].float().cpu(),
            "text_embeds": outputs.pooler_output[0].float().cpu(),
        }

    def _forward(self, model_inputs):
        duration = model_inputs.pop("duration")
        return {"outputs": self.model(**model_inputs), "duration": duration}

    def postprocess(self, model_outputs, top_k=5):
        outputs, rate = model_outputs["outputs"], self.model.config.windows_per_second
        # Without the video, whose last cell may be shorter, all cells are whole ones.
        duration = model_outputs["duration"] or outputs.start_logits.shape[1] / rate
        cells = cell_bounds(duration, rate).tolist()
        return [
            {"start": cells[first][0], "end": cells[last][1], "score": score}
            for first, last, score in self.model.spans(outputs, top_k)[0]
        ]


__all__ = ["TemporalGroundingPipeline"]
