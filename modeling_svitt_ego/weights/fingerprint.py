"""Short hashes that say whether two results were made by the same weights and the same preparation of their input."""

import hashlib
import json

import torch
from transformers import BaseVideoProcessor, PreTrainedModel, ProcessorMixin

# What a configuration says about the software that wrote it, not about the numbers that come out.
_INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "image_processor_type",
    "processor_class",
    "transformers_version",
    "video_processor_type",
}
_LENGTH = 16  # hex digits: 64 bits


def model_fingerprint(model: PreTrainedModel) -> str:
    """Of the weights, by name, type and value, and of the configuration; the same after saving and loading."""
    if isinstance(getattr(model, "fingerprint", None), str):  # an exported engine, which has no state_dict
        return model.fingerprint
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())  # bytes: bfloat16 has no numpy type
    digest.update(_canonical(model.config.to_dict()))
    return digest.hexdigest()[:_LENGTH]


def video_fingerprint(processor: ProcessorMixin | BaseVideoProcessor) -> str:
    """Of everything that turns frames into pixel values. `processor` may be the joint or the video processor."""
    processor = getattr(processor, "video_processor", processor)
    return hashlib.sha256(_canonical(processor.to_dict())).hexdigest()[:_LENGTH]


def text_fingerprint(processor: ProcessorMixin) -> str:
    """Of the tokenizer, whole, and of the text cleaning of a [`SViTTEgoProcessor`]."""
    # What was padded and truncated last is state of the tokenizer object, not of the tokenizer.
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    settings = {"tokenizer": tokenizer, "text_cleaning": processor.text_cleaning}
    return hashlib.sha256(_canonical(settings)).hexdigest()[:_LENGTH]


def _canonical(content: dict) -> bytes:
    return json.dumps(_essential(content), sort_keys=True, default=str).encode()


def _essential(content):
    if isinstance(content, dict):
        return {str(key): _essential(value) for key, value in content.items() if key not in _INCIDENTAL}
    return [_essential(value) for value in content] if isinstance(content, (list, tuple)) else content
