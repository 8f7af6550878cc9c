"""Classifiers on a pretrained video tower: labels of all heads as one tensor, and probes on features computed once.

A probe leaves the tower as it is, so each clip passes it once and its features are kept: the pooled vector for a
linear probe, all tokens for an attentive one. Epochs then cost what the classifier costs.
"""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.labelled_clips import LabelledClips
from ..data.workers import start_worker
from ..model.modeling_svitt_ego import SViTTEgoForVideoClassification


def classifier_fields(clips: LabelledClips, *others: LabelledClips) -> dict:
    """
    Configuration fields of a classifier for these clips: one head by name, or several by their sizes.

    Args:
        others: further clips, such as those of the test: a head is large enough for the classes of all.
    """
    if "label" in clips.classes:
        names = clips.label_names
        fields = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
        return fields | ({"problem_type": "multi_label_classification"} if clips.is_multi_label else {})
    heads = {
        head: max(some.num_classes(head) for some in (clips, *others) if head in some.classes)
        for head in clips.classes
    }
    return {"classifier_heads": heads, "num_labels": sum(heads.values())}


def class_labels(clips: LabelledClips) -> torch.Tensor:
    """
    The labels that the classifier of [`classifier_fields`] trains on: `(num_clips,)`; `(num_clips, num_heads)`, -100
    where a clip has no class; or multi-hot `(num_clips, num_classes)`, float, where it may have several.
    """
    if clips.is_multi_label:
        return torch.from_numpy(clips.classes["label"]).float()
    columns = [torch.from_numpy(labels).long() for labels in clips.classes.values()]
    labels = columns[0] if len(columns) == 1 else torch.stack(columns, dim=1)
    return labels.masked_fill(labels < 0, -100)


@dataclass(frozen=True)
class FrozenFeatures:
    """
    Args:
        pooled (`torch.Tensor` of shape `(num_clips, hidden_size)`).
        tokens (`torch.Tensor` of shape `(num_clips, num_tokens, hidden_size)`, *optional*): in half precision.
        labels (`torch.Tensor`): as the data set gives them.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor | None
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.pooled)


@torch.no_grad()
def frozen_features(
    model: SViTTEgoForVideoClassification,
    dataset: Dataset,
    batch_size: int = 32,
    num_workers: int = 0,
    desc: str = "features",
) -> FrozenFeatures:
    """
    Every clip of `dataset` through the video tower, once; tokens too if the classifier pools them.

    Args:
        dataset: of `pixel_values_videos` and `labels`, such as [`LabelledExamples`].
    """
    device, with_tokens = next(model.parameters()).device, model.config.classifier_pooling == "attention"
    model.eval()
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        worker_init_fn=start_worker if num_workers else None,
    )
    pooled, tokens, labels = [], [], []
    for batch in tqdm(loader, desc=desc, unit="batch"):
        outputs = model.vision_model(batch["pixel_values_videos"].to(device), return_dict=True)
        pooled.append(outputs.pooler_output.float().cpu())
        labels.append(batch["labels"])
        if with_tokens:
            tokens.append(outputs.last_hidden_state.half().cpu())
    return FrozenFeatures(torch.cat(pooled), torch.cat(tokens) if with_tokens else None, torch.cat(labels))


def train_probe(
    model: SViTTEgoForVideoClassification,
    features: FrozenFeatures,
    epochs: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> list[float]:
    """
    Trains the classifier, and the pooler that it may have, on features of the frozen tower; AdamW with a cosine.

    Returns:
        The mean loss of every epoch.
    """
    model.requires_grad_(False)
    parts = [model.classifier, *([model.pooler] if model.config.classifier_pooling == "attention" else [])]
    parameters = [parameter for part in parts for parameter in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    losses = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            tokens = None if features.tokens is None else features.tokens[rows].to(device).float()
            _, loss = model.classify(features.pooled[rows].to(device), tokens, features.labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / len(features))
    return losses


__all__ = ["FrozenFeatures", "class_labels", "classifier_fields", "frozen_features", "train_probe"]
