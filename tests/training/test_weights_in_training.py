"""Moving average of the weights, learning rates by tower and by layer, frozen towers; all exact under resume."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.training.averaging import AVERAGED_NAME
from modeling_svitt_ego.training.manifest import CheckpointError
from modeling_svitt_ego.training.parameter_groups import freeze_towers, grouped
from tests.helpers.tiny_model import tiny_model
from tests.helpers.tiny_pretraining import losses, make_corpus, make_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2}
SETTINGS = {
    "ema": {"ema_decay": 0.5},
    "rates": {"layer_decay": 0.5, "vision_learning_rate": 2e-3, "frozen_towers": "text"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_with_the_same_weights(name, corpus, tmp_path):
    """Catches an average that starts over, and optimizer state that lands on other parameters."""
    settings = SAVING | SETTINGS[name] | {"max_steps": 4}
    whole = make_trainer(corpus, tmp_path / "whole", **settings)
    seen = []
    if name == "ema":
        step = whole.training_step

        def recording(*args, **kwargs):
            seen.append({key: value.clone() for key, value in whole.model.state_dict().items()})
            return step(*args, **kwargs)

        whole.training_step = recording
    start = {key: value.clone() for key, value in whole.model.state_dict().items()}
    whole.train()
    resumed = make_trainer(corpus, tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    if name == "ema":
        # Weights before steps 2, 3, 4 are those after 1, 2, 3; the last ones are in the checkpoint.
        last = make_trainer(corpus, tmp_path / "last", max_steps=4)
        last._load_from_checkpoint(str(tmp_path / "whole" / "checkpoint-4"))
        after = [*seen[1:], last.model.state_dict()]
        for key, value in whole.model.state_dict().items():
            expected = after[0][key].double()
            for weights in after[1:]:
                expected = 0.5 * expected + 0.5 * weights[key].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, after[-1][key])
    else:
        trained = whole.model.state_dict()
        changed = {key for key in start if not torch.equal(start[key], trained[key])}
        assert changed and not any(key.startswith("text_model") for key in changed)


def test_evaluation_uses_the_average_and_training_goes_on_from_the_weights(corpus, tmp_path):
    """Catches an evaluation that leaves the averaged weights in training."""
    trainer = make_trainer(corpus, tmp_path / "ema", max_steps=3, ema_decay=0.9)
    evaluated = []
    trainer.eval_dataset = trainer.train_dataset
    step = trainer.training_step

    def evaluating(*args, **kwargs):
        if trainer.state.global_step == 2:
            before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
            with trainer.weights_to_evaluate(), trainer.weights_to_evaluate():
                evaluated.append(any(not torch.equal(before[k], v) for k, v in trainer.model.state_dict().items()))
            evaluated.append(all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items()))
        return step(*args, **kwargs)

    trainer.training_step = evaluating
    trainer.train()
    plain = make_trainer(corpus, tmp_path / "plain", max_steps=3)
    plain.train()
    assert evaluated == [True, True] and losses(trainer) == losses(plain)


def test_a_checkpoint_without_an_average_is_refused(corpus, tmp_path):
    settings = SAVING | {"max_steps": 2}
    make_trainer(corpus, tmp_path, **settings).train()
    trainer = make_trainer(corpus, tmp_path, **settings | {"max_steps": 3}, ema_decay=0.5, resume_changed=True)
    with pytest.raises(CheckpointError, match=AVERAGED_NAME):
        trainer.train(resume_from_checkpoint=True)
    for wrong in ({"ema_decay": 1.0}, {"ema_decay": 0.5, "temporal_stages": "0:4:0.7:3"}):
        with pytest.raises(ValueError, match="ema_decay"):
            make_trainer(corpus, tmp_path / "wrong", **wrong)


def test_each_layer_has_its_rate_and_each_parameter_one_group():
    """Catches a layer counted from the wrong end, and parameters in two groups or in none."""
    model = tiny_model(SViTTEgoForPreTraining, vision={"num_hidden_layers": 3})
    decayed = {"vision_model.layers.2.mlp.fc1.weight"}
    groups = grouped(model, decayed, 1.0, 0.1, {"text": 8.0, "vision": None}, layer_decay=0.5)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    expected = {
        "vision_model.layers.2.mlp.fc1.weight": (1.0, 0.1),
        "vision_model.layers.2.mlp.fc1.bias": (1.0, 0.0),
        "vision_model.layers.0.attention.q_proj.weight": (0.25, 0.0),
        "vision_model.embeddings.cls_token": (0.125, 0.0),
        "vision_model.pooler_layernorm.weight": (1.0, 0.0),
        "text_model.layers.1.attention.q_proj.weight": (8.0, 0.0),
        "text_model.embeddings.word_embeddings.weight": (2.0, 0.0),
        "fusion_model.layers.0.attention.q_proj.weight": (0.5, 0.0),
        "video_projection.weight": (1.0, 0.0),
        "temperature": (1.0, 0.0),
    }
    assert {name: rate[id(model.get_parameter(name))] for name in expected} == expected
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)
    with pytest.raises(ValueError, match=r"layer_decay \(0\)"):
        grouped(model, decayed, 1.0, 0.1, {}, layer_decay=0)


def test_frozen_towers_are_named(corpus, tmp_path):
    model = tiny_model(SViTTEgoModel)
    freeze_towers(model, "vision, text")
    left = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert left == {"video_projection", "text_projection", "temperature"}
    with pytest.raises(ValueError, match="SViTTEgoModel has no tower 'fusion'; it has vision, text"):
        freeze_towers(model, "fusion")
    with pytest.raises(ValueError, match="layer_decay"):
        make_trainer(corpus, tmp_path, layer_decay=0.9, muon_learning_rate=0.01).create_optimizer()
