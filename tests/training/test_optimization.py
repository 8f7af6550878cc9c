"""Muon for the layers' matrices and AdamW for the rest, behaving as one optimizer; and whitened first layers."""

import copy

import pytest
import torch
from torch import nn

from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.muon import orthogonalize
from modeling_svitt_ego.training.optimization import MuonWithAdamW, layer_matrices
from modeling_svitt_ego.training.patch_whitening import whiten_patch_projection
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from tests.helpers.tiny_model import tiny_config, tiny_vision_model

ADAM = dict(betas=(0.9, 0.98), eps=1e-8)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.Linear(6, 5), "word_embeddings": nn.Embedding(7, 6)})


def make_optimizer(model) -> MuonWithAdamW:
    decayed = [model["layers"].weight, model["word_embeddings"].weight]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [model["layers"].bias], "weight_decay": 0.0}]
    return MuonWithAdamW([model["layers"].weight], groups, muon_learning_rate=0.02, learning_rate=0.01, **ADAM)


def step(model, optimizer, number):
    ids = torch.tensor([number % 7, (3 * number + 1) % 7])
    model["layers"](model["word_embeddings"](ids)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_each_part_takes_torchs_own_step_but_in_float32(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())  # torch's Muon iterates in it
    ours, theirs = make_model(), make_model()
    optimizer = make_optimizer(ours)
    layer, embedding = theirs["layers"], theirs["word_embeddings"]
    muon = torch.optim.Muon([layer.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    embedding_adamw = torch.optim.AdamW([embedding.weight], lr=0.01, weight_decay=0.1, **ADAM)
    bias_adamw = torch.optim.AdamW([layer.bias], lr=0.01, weight_decay=0.0, **ADAM)
    for number in range(3):
        step(ours, optimizer, number)
        layer(embedding(torch.tensor([number % 7, (3 * number + 1) % 7]))).square().sum().backward()
        for part in (muon, embedding_adamw, bias_adamw):
            part.step()
            part.zero_grad()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_an_update_has_singular_values_near_one_and_the_precision_of_float32(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    exact, settings = matrix.double(), ((3.4445, -4.7750, 2.0315), 5, 1e-7)
    update = orthogonalize(matrix, *settings)
    assert update.dtype == torch.float32 and update.shape == shape
    values = torch.linalg.svdvals(update)
    assert 0.5 < values.min() and values.max() < 1.5
    left, old, right = torch.linalg.svd(exact, full_matrices=False)
    new = old / exact.norm()
    for _ in range(5):
        new = 3.4445 * new - 4.7750 * new**3 + 2.0315 * new**5
    torch.testing.assert_close(update, (left * new @ right).float(), atol=1e-4, rtol=0)


def test_a_loaded_checkpoint_goes_on_as_if_never_stopped():
    model = make_model()
    optimizer = make_optimizer(model)
    for number in range(2):
        step(model, optimizer, number)
    again = copy.deepcopy(model)
    resumed = make_optimizer(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(2, 5):
        step(model, optimizer, number)
        step(again, resumed, number)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_scheduler_scales_both_learning_rates():
    optimizer = make_optimizer(make_model())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1.0 if number == 0 else 0.25)
    optimizer.step()
    scheduler.step()
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.0025, 0.0025, 0.005]


def test_only_layers_and_projections_are_muons():
    model = SViTTEgoForPreTraining(tiny_config())
    chosen = {id(parameter) for parameter in layer_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    assert {"vision_model.layers.0.attention.q_proj.weight", "text_projection.weight"} <= names
    others = ("embedding", "bias_table", "patch_projection", "vtm_head", "mlm_head", "bias", "norm")
    assert not [name for name in names if any(word in name for word in others)]
    model.text_model.requires_grad_(False)
    assert len(layer_matrices(model)) < len(names)


def test_nothing_left_for_one_of_them_is_an_error():
    model = make_model()
    with pytest.raises(ValueError, match="0 matrices for Muon and 3 other"):
        MuonWithAdamW([], [{"params": list(model.parameters())}], 0.02, 0.01)


def test_the_trainer_gives_every_parameter_to_exactly_one_of_them(tmp_path):
    arguments = dict(output_dir=str(tmp_path), report_to="none", use_cpu=True, muon_learning_rate=0.01)
    model = SViTTEgoForPreTraining(tiny_config())
    trainer = SViTTEgoTrainer(model=model, args=SViTTEgoTrainingArguments(**arguments))
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, MuonWithAdamW)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)) and set(held) == trained
    trainer = SViTTEgoTrainer(model=model, args=SViTTEgoTrainingArguments(**arguments, optim="sgd"))
    with pytest.raises(ValueError, match="optim='adamw_torch'"):
        trainer.create_optimizer()


def smooth_clips(clips=12):
    """Neighbouring pixels are alike, as in real frames."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clips * 4, 3, 32, 32, generator=generator)
    return (nn.functional.avg_pool2d(noise, 5, 1, 2) * 3 + 0.4).unflatten(0, (clips, 4))


def test_whitened_patches_have_equal_variance_in_every_direction():
    model, clips = tiny_vision_model(), smooth_clips()

    def covariance():
        with torch.no_grad():
            patches = model.embeddings.patch_projection(clips.flatten(0, 1)).flatten(2).transpose(1, 2).flatten(0, 1)
        return patches.mean(0), torch.cov(patches.T, correction=0)

    assert torch.linalg.cond(covariance()[1]) > 30
    whiten_patch_projection(model, clips, standard_deviation=0.5)
    mean, after = covariance()
    torch.testing.assert_close(mean, torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, 0.25 * torch.eye(32), atol=2e-3, rtol=0)


def test_too_few_patches_to_whiten_with_are_an_error():
    with pytest.raises(ValueError, match="128 patches of 192 values"):
        whiten_patch_projection(tiny_vision_model(), smooth_clips(2))
