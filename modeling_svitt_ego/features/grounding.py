"""EgoNLQ with the grounding head: predictions, the challenge's file, and two baselines that need no head."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..files.resumable_folder import aside
from ..model.temporal_grounding_svitt_ego import (
    SViTTEgoForTemporalGrounding,
    SViTTEgoTemporalGroundingConfig,
    temporal_nms,
)
from .egonlq_features import EgoNLQFeatures, collate_egonlq

NUM_SPANS = 5  # the challenge reports R@1 and R@5


def config_for(data: EgoNLQFeatures, **fields) -> SViTTEgoTemporalGroundingConfig:
    """The head's configuration for the features of `data`; `fields` are any others."""
    item, settings = data[0], data.folder.settings
    return SViTTEgoTemporalGroundingConfig(
        video_dim=item["video_features"].shape[-1],
        text_dim=item["text_features"].shape[-1],
        use_similarity=fields.pop("use_similarity", settings.kind == "projected"),
        windows_per_second=settings.windows_per_second,
        window_seconds=settings.window_seconds,
        num_frames=settings.num_frames,
        feature_kind=settings.kind,
        encoder_fingerprint=data.folder.manifest["checkpoint"],
        **fields,
    )


def check_features(model: SViTTEgoForTemporalGrounding, data: EgoNLQFeatures) -> None:
    """
    Raises:
        ValueError: The features are of another checkpoint or of other windows than those of the training, which would
            give wrong predictions; the options of `svitt-ego extract` that give the right ones are named.
    """
    config, manifest, settings = model.config, data.folder.manifest, data.folder.settings
    pairs = {
        "checkpoint": (config.encoder_fingerprint, manifest["checkpoint"]),
        "windows_per_second": (config.windows_per_second, settings.windows_per_second),
        "window_seconds": (config.window_seconds, settings.window_seconds),
        "num_frames": (config.num_frames, settings.num_frames),
        "features": (config.feature_kind, settings.kind),
        "video_dim": (config.video_dim, data[0]["video_features"].shape[-1]),
    }
    wrong = [
        f"{name} {trained} in training, {here} here" for name, (trained, here) in pairs.items() if trained != here
    ]
    if wrong:
        options = [
            f"--{name.replace('_', '-')} {'stride' if trained is None else trained}"
            for name, (trained, here) in pairs.items()
            if trained != here and name in ("windows_per_second", "window_seconds", "num_frames", "features")
        ]
        if config.encoder_fingerprint != manifest["checkpoint"]:
            options.append("--model and the encoder of the training")
        remedy = f" Extract them into another folder with {' '.join(options)}." if options else ""
        raise ValueError(
            f"The head does not fit the features in {str(data.folder.path)!r}: {'; '.join(wrong)}.{remedy}"
        )


@torch.no_grad()
def ground(
    model: SViTTEgoForTemporalGrounding, data: EgoNLQFeatures, batch_size: int = 32, num_spans: int = NUM_SPANS
) -> list[list[list[float]]]:
    """For each query of `data` its best spans [start, end] in seconds of the clip, best first."""
    check_features(model, data)
    device, was_training = next(model.parameters()).device, model.training
    spans: list[list[tuple[int, int, float]]] = []
    model.eval()
    try:
        for batch in tqdm(DataLoader(data, batch_size, collate_fn=collate_egonlq), desc="ground", unit="batch"):
            outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
            spans += model.spans(outputs, num_spans)
    finally:
        model.train(was_training)
    return [data.times(i, [span[:2] for span in found]) for i, found in enumerate(spans)]


def write_predictions(
    path: str | os.PathLike, rows: Sequence[dict], spans: Sequence[Sequence[Sequence[float]]]
) -> Path:
    """The Ego4D challenge's prediction file; `rows` are the queries of `spans`."""
    results = [
        {
            "clip_uid": row["clip_uid"],
            "annotation_uid": row["annotation_uid"],
            "query_idx": row["query_idx"],
            "predicted_times": [[float(start), float(end)] for start, end in found],
        }
        for row, found in zip(rows, spans, strict=True)
    ]
    path = Path(path)
    with aside(path) as part:
        content = {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": results}
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------------------- baselines


def constant_spans(train: EgoNLQFeatures, data: EgoNLQFeatures, hits, num_steps: int = 12) -> list[list[list[float]]]:
    """
    The best constant prediction: the same spans for every query.

    Candidates are a grid of starts (as shares of the duration of the clip) and of lengths of training answers. The
    span that hits most training queries comes first, then the one that hits most of the remaining queries.

    Args:
        hits (function of spans and answers): how many training queries each candidate hits, `(num_queries,)` bool.
    """
    answers = _answers(train)
    durations = np.array([train.cells(i)[-1, 1] for i in range(len(train))])
    lengths = np.unique(np.quantile(answers[:, 1] - answers[:, 0], np.linspace(0, 1, num_steps)).round(3))
    # In shares of the duration, which apply to long and to short clips.
    candidates = [(share, length) for share in np.linspace(0, 1, 4 * num_steps, endpoint=False) for length in lengths]
    table = np.array([hits(_placed(share, length, durations), answers) for share, length in candidates])
    chosen, open_queries = [], np.ones(len(answers), dtype=bool)
    for _ in range(NUM_SPANS):
        best = int((table & open_queries).sum(1).argmax())
        chosen.append(candidates[best])
        open_queries &= ~table[best]
    result = []
    for i in range(len(data)):
        duration = np.array([data.cells(i)[-1, 1]])
        result.append([_placed(share, length, duration)[0].tolist() for share, length in chosen])
    return result


def _placed(share: float, length: float, durations: np.ndarray) -> np.ndarray:
    starts = np.minimum(share * durations, np.maximum(durations - length, 0))
    return np.stack([starts, np.minimum(starts + length, durations)], axis=1)


def sliding_window_spans(
    data: EgoNLQFeatures, num_cells: int, nms_threshold: float = 0.5, text_embeds: Sequence[torch.Tensor] | None = None
) -> list[list[list[float]]]:
    """
    Windows of `num_cells` cells by the cosine of their mean feature with the query, after suppression.

    Args:
        text_embeds (sequence of `torch.Tensor` of shape `(dim,)`, *optional*): in place of those of the queries.
    """
    if data.folder.settings.kind != "projected":
        raise ValueError(f"Cosines need features of kind 'projected', not {data.folder.settings.kind!r}.")
    result = []
    for i in range(len(data)):
        item = data[i]
        width = min(num_cells, len(item["video_features"]))
        means = item["video_features"].unfold(0, width, 1).mean(-1)  # (num_cells - width + 1, dim)
        query = item["text_embeds"] if text_embeds is None else text_embeds[i]
        scores = torch.nn.functional.cosine_similarity(means, query[None], dim=-1)
        starts = torch.arange(len(means))
        kept = temporal_nms(torch.stack([starts, starts + width], 1).float(), scores, nms_threshold, NUM_SPANS)
        result.append(data.times(i, [(int(first), int(first) + width - 1) for first in starts[kept]]))
    return result


def _answers(data: EgoNLQFeatures) -> np.ndarray:
    return np.array([(row["answer_start"], row["answer_end"]) for row in data.rows])
