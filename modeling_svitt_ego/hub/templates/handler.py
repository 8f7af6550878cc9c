"""Custom handler of an Inference Endpoint: texts and clips to embeddings, or labels to a clip.

{"inputs": {"text": ["#C C opens the door"]}}
{"inputs": {"videos": ["<base64 of a video file>"], "start": 1.0, "end": 2.0}}
{"inputs": {"videos": ["<base64>"]}, "parameters": {"candidate_labels": ["opens the door", "closes the door"]}}
"""

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

MAX_VIDEO_BYTES = 64 << 20


class EndpointHandler:
    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

    @torch.no_grad()
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """`text_embeddings` and `video_embeddings` of unit length, or `labels` with their probabilities per video."""
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(inputs, dict) or not (inputs.get("text") or inputs.get("videos")):
            return {"error": "inputs must be an object with 'text' (sentences) or 'videos' (base64 files), or both."}
        try:
            result, videos = {}, None
            if inputs.get("videos"):
                videos = self._videos(inputs)
                result["video_embeddings"] = videos.tolist()
            if inputs.get("text"):
                result["text_embeddings"] = self._texts(inputs["text"]).tolist()
            labels = parameters.get("candidate_labels")
            if labels and videos is not None:
                template = parameters.get("hypothesis_template", "#C C {}")
                texts = self._texts([template.format(label) for label in labels])
                probabilities = (videos @ texts.T / self.model.temperature.cpu()).softmax(-1)
                result["labels"] = [dict(zip(labels, row)) for row in probabilities.tolist()]
            return result
        except (ValueError, OSError) as error:
            return {"error": str(error)}

    def _texts(self, texts: list[str]) -> torch.Tensor:
        batch = self.processor(text=list(texts), return_tensors="pt").to(self.model.device)
        return self._unit(self.model.get_text_features(**batch).pooler_output)

    def _videos(self, inputs: dict[str, Any]) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            clips = []
            for number, encoded in enumerate(inputs["videos"]):
                try:
                    content = base64.b64decode(encoded, validate=True)
                except (binascii.Error, TypeError, ValueError) as error:
                    raise ValueError(f"Video {number} is not base64: {error}") from error
                if len(content) > MAX_VIDEO_BYTES:
                    raise ValueError(f"Video {number} has {len(content):,} bytes, more than {MAX_VIDEO_BYTES:,}.")
                path = Path(folder) / f"{number}.mp4"
                path.write_bytes(content)
                window = {name: inputs[name] for name in ("start", "end") if inputs.get(name) is not None}
                clips.append({"path": str(path), **window})
            batch = self.processor(videos=clips, return_tensors="pt").to(self.model.device)
        return self._unit(self.model.get_video_features(**batch).pooler_output)

    def _unit(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()
