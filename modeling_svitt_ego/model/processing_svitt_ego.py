"""Clips and narrations to one batch."""

import re
from collections.abc import Sequence
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .video_processing_svitt_ego import SViTTEgoVideoProcessor, SViTTEgoVideoProcessorKwargs


class SViTTEgoProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: SViTTEgoVideoProcessorKwargs
    _defaults = {
        "text_kwargs": {"max_length": 32, "padding": True, "truncation": True, "return_token_type_ids": False},
    }


class SViTTEgoProcessor(ProcessorMixin):
    r"""
    Joins a [`SViTTEgoVideoProcessor`] and a BERT tokenizer.

    Args:
        video_processor ([`SViTTEgoVideoProcessor`]): Makes `pixel_values_videos` from `videos`.
        tokenizer ([`PreTrainedTokenizerBase`]): Makes `input_ids` and `attention_mask` from `text`.
        text_cleaning (`str`, defaults to `"none"`):
            `"svitt"` removes punctuation as the SViTT release does before tokenizing, which its weights expect.

    Example:

    ```python
    >>> batch = processor(
    ...     videos=[("kitchen.mp4", 12.0, 13.5)], text=["#C C picks up the red cup"], return_tensors="pt"
    ... )
    >>> sorted(batch)
    ['attention_mask', 'input_ids', 'pixel_values_videos']
    ```
    """

    valid_processor_kwargs = SViTTEgoProcessorKwargs

    def __init__(
        self,
        video_processor: SViTTEgoVideoProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_cleaning: str = "none",
        **kwargs: Any,
    ):
        if text_cleaning not in ("none", "svitt"):
            raise ValueError(f"text_cleaning must be 'none' or 'svitt', got {text_cleaning!r}.")
        super().__init__(video_processor, tokenizer, **kwargs)
        self.text_cleaning = text_cleaning
        # Saving writes this and loading drops it: with it here, a processor equals itself after both.
        self.auto_map = {"AutoProcessor": "processing_svitt_ego.SViTTEgoProcessor"}

    def __call__(
        self,
        videos: Any = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[SViTTEgoProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            videos (*optional*): A clip or a list of clips, see [`SViTTEgoVideoProcessor`].
            text (`str` or `list[str]`, *optional*): A narration or a list of narrations.
            kwargs: Settings of the video processor and of the tokenizer, and `return_tensors`.
        """
        for name in ("images", "audio"):
            if kwargs.pop(name, None) is not None:
                remedy = " An image is a clip of one frame: pass it as videos." if name == "images" else ""
                raise TypeError(f"{type(self).__name__} takes videos and text, not {name}.{remedy}")
        if videos is None and text is None:
            raise ValueError("Neither videos nor text were given.")
        if text is not None:
            text = self._clean(text)
        return super().__call__(videos=videos, text=text, **kwargs)

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, dict]:
        merged = super()._merge_kwargs(*args, **kwargs)
        # Merging copies; a copied generator would draw the same frames in every call.
        generator = kwargs.get("generator", (kwargs.get("videos_kwargs") or {}).get("generator"))
        if generator is not None:
            merged["videos_kwargs"]["generator"] = generator
        return merged

    def _clean(self, text: str | list[str]) -> str | list[str]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, Sequence):
            raise ValueError(f"text must be a string or a list of strings, got {type(text).__name__}.")
        if len(texts) == 0:
            raise ValueError("text is an empty list: there is nothing to tokenize.")
        cleaned = []
        for i, entry in enumerate(texts):
            if not isinstance(entry, str):
                raise ValueError(f"text {i} must be a string, got {type(entry).__name__}: {entry!r}.")
            cleaned.append(clean_text(entry) if self.text_cleaning == "svitt" else entry)
            if not cleaned[-1].strip():
                raise ValueError(f"text {i} has no words: {entry!r}.")
        return cleaned[0] if isinstance(text, str) else cleaned

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values_videos"]


def clean_text(text: str) -> str:
    """The SViTT release's `pre_text`: lower case, no punctuation, hyphens and slashes as spaces."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


SViTTEgoProcessor.register_for_auto_class()

__all__ = ["SViTTEgoProcessor"]
