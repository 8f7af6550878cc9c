"""Probes on frozen features: labels of every kind, features equal to the tower's, only the classifier moves."""

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoForVideoClassification
from modeling_svitt_ego.data.labelled_clips import LabelledClips
from modeling_svitt_ego.training.probes import (
    FrozenFeatures,
    class_labels,
    classifier_fields,
    frozen_features,
    train_probe,
)
from tests.helpers.tiny_model import tiny_clips, tiny_model


def clips(**classes):
    return LabelledClips(range(3), {name: np.array(labels) for name, labels in classes.items()}, ["a", "b"])


def test_labels_and_fields_of_every_kind():
    """Catches heads in another order than the columns of the labels, and a missing class that is taken for one."""
    several = clips(verb=[0, 4, -1], noun=[2, 0, 1])
    assert classifier_fields(several) == {"classifier_heads": {"verb": 5, "noun": 3}, "num_labels": 8}
    assert classifier_fields(several, clips(verb=[6, 0, 0], noun=[0, 0, 0]))["classifier_heads"]["verb"] == 7
    assert class_labels(several).tolist() == [[0, 2], [4, 0], [-100, 1]]
    one = clips(label=[0, 1, 0])
    assert classifier_fields(one)["label2id"] == {"a": 0, "b": 1} and class_labels(one).tolist() == [0, 1, 0]
    many = clips(label=[[True, True], [False, False], [False, True]])
    assert classifier_fields(many)["problem_type"] == "multi_label_classification"
    assert class_labels(many).dtype == torch.float32 and class_labels(many).sum() == 3


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_probe_learns_and_leaves_the_tower_alone(pooling):
    """Catches features of training mode, a tower that moves, and logits that differ from the whole model's."""
    model = tiny_model(
        SViTTEgoForVideoClassification, classifier_heads={"verb": 2, "noun": 3}, classifier_pooling=pooling
    )
    pixels, labels = tiny_clips(6), torch.tensor([[0, 2], [1, 0], [0, 1], [1, 1], [0, 0], [1, 2]])

    rows = [{"pixel_values_videos": pixels[row], "labels": labels[row]} for row in range(6)]
    features = frozen_features(model.train(), rows, batch_size=4)
    with torch.no_grad():
        whole = model(pixels).logits
        tokens = None if features.tokens is None else features.tokens.float()
        found, _ = model.classify(features.pooled, tokens)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-2 if pooling == "attention" else 1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train_probe(model, features, epochs=60, batch_size=4, learning_rate=2e-2)
    assert losses[-1] < 0.5 * losses[0]
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"classifier", "pooler"} if pooling == "attention" else {"classifier"})
    assert isinstance(features, FrozenFeatures) and len(features) == 6
