"""The classifier with several heads and with attention pooling; old folders are covered by test_saved_folders.py."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.testing import assert_close

from modeling_svitt_ego import SViTTEgoForVideoClassification, SViTTEgoModel
from modeling_svitt_ego.model.classification_heads import AttentionPooler, heads_loss
from tests.helpers.tiny_model import tiny_clips, tiny_config, tiny_model, tiny_vision_config

HEADS = {"verb": 3, "noun": 5, "action": 4}


def test_heads_share_one_layer_and_their_losses_add_up():
    """Catches logits split in another order than the heads, and a missing label that counts."""
    model = tiny_model(SViTTEgoForVideoClassification, classifier_heads=HEADS)
    assert model.classifier.out_features == model.config.num_labels == 12
    labels = torch.tensor([[0, 4, 3], [2, -100, 1]])
    outputs = model(tiny_clips(), labels=labels)
    assert {name: part.shape[1] for name, part in outputs.logits_per_head.items()} == HEADS
    assert_close(torch.cat(list(outputs.logits_per_head.values()), 1), outputs.logits)
    parts = outputs.logits_per_head
    expected = F.cross_entropy(parts["verb"], labels[:, 0]) + F.cross_entropy(parts["noun"][:1], labels[:1, 1])
    assert_close(outputs.loss, expected + F.cross_entropy(parts["action"], labels[:, 2]))
    assert heads_loss(outputs.logits, torch.full((2, 3), -100), HEADS) == 0  # not nan
    with pytest.raises(ValueError, match=r"\(2, 3\).*verb, noun, action"):
        model(tiny_clips(), labels=torch.tensor([0, 1]))


def test_a_classifier_with_heads_survives_saving(tmp_path):
    model = tiny_model(SViTTEgoForVideoClassification, classifier_heads=HEADS, classifier_pooling="attention")
    model.save_pretrained(tmp_path)
    again = SViTTEgoForVideoClassification.from_pretrained(tmp_path).eval()
    # The library sorts the keys of config.json; the order of the heads is that of the logits.
    assert list(again.config.head_sizes.items()) == list(HEADS.items()) and again.config.num_labels == 12
    assert_close(again(tiny_clips()).logits, model(tiny_clips()).logits)


def test_heads_start_from_a_pretrained_folder(tmp_path):
    """As fine-tuning does: the folder has no classifier, and heads are asked for at loading."""
    tiny_model(SViTTEgoModel).save_pretrained(tmp_path)
    model = SViTTEgoForVideoClassification.from_pretrained(tmp_path, classifier_heads=HEADS, num_labels=12)
    assert model.classifier.out_features == 12 and model(tiny_clips()).logits_per_head["noun"].shape == (2, 5)
    model.save_pretrained(tmp_path / "tuned")
    again = SViTTEgoForVideoClassification.from_pretrained(tmp_path / "tuned")
    assert list(again.config.head_sizes) == list(HEADS)


@pytest.mark.parametrize(
    "fields",
    [
        {"classifier_heads": {}},
        {"classifier_heads": {"a": 0}},
        {"classifier_heads": {"a": 2}, "num_labels": 3},
        {"classifier_pooling": "max"},
    ],
)
def test_impossible_heads_are_refused(fields):
    with pytest.raises(StrictDataclassClassValidationError, match="classifier_"):
        tiny_config(**fields)


def test_attention_pooling_equals_its_definition():
    """Against one query and one head at a time; catches heads that are mixed up."""
    torch.manual_seed(0)
    config = tiny_vision_config()
    pooler = AttentionPooler(config).double()
    torch.nn.init.normal_(pooler.query)
    tokens = torch.randn(2, 9, config.hidden_size, dtype=torch.float64)
    query, keys, values = pooler.q_proj(pooler.query)[0, 0], pooler.k_proj(tokens), pooler.v_proj(tokens)
    size = config.hidden_size // config.num_attention_heads
    context = []
    for head in range(config.num_attention_heads):
        part = slice(head * size, (head + 1) * size)
        weights = (keys[..., part] @ query[part] / size**0.5).softmax(-1)
        context.append((weights[..., None] * values[..., part]).sum(1))
    pooled = pooler.o_proj(torch.cat(context, -1))
    expected = pooled + pooler.fc2(pooler.activation(pooler.fc1(pooler.layernorm(pooled))))
    assert_close(pooler(tokens), expected)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_every_parameter_that_wants_a_gradient_gets_one(pooling):
    """DDP waits for the gradient of each."""
    model = tiny_model(SViTTEgoForVideoClassification, classifier_heads=HEADS, classifier_pooling=pooling).train()
    model(tiny_clips(), labels=torch.zeros(2, 3, dtype=torch.long)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_several_classes_at_once_are_trained_by_multi_hot_labels():
    model = tiny_model(SViTTEgoForVideoClassification, num_labels=6)
    labels = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0.0] * 6])
    outputs = model(tiny_clips(), labels=labels)
    assert_close(outputs.loss, F.binary_cross_entropy_with_logits(outputs.logits, labels))
    assert outputs.logits_per_head is None
