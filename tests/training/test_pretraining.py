"""Pretraining under SViTTEgoTrainer: cached batches, the three objectives, stages of frames, the summary."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.model.resampling import resample_relative_position_bias
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.objectives import freeze_unreached_parameters, set_weights
from modeling_svitt_ego.training.run_summary import RunSummary, draw_curves, round_ticks
from modeling_svitt_ego.training.temporal_stages import Stage, apply_sparsity, parse_stages
from tests.helpers.tiny_model import gradients, tiny_batch, tiny_model
from tests.helpers.tiny_pretraining import CHECKPOINTING, losses, make_corpus, make_trainer

# ------------------------------------------------------------------------------------------------------ cached batches


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def trained(corpus, folder, double=False, **settings):
    trainer = make_trainer(corpus, folder, **({"max_steps": 3, "lively": False} | settings))
    if double:
        trainer.model.double()
    trainer.train()
    return trainer


def test_a_cached_run_is_the_plain_run_with_the_large_batch(corpus, tmp_path):
    """Catches other clips, a loss divided by the number of micro-batches, clipping before the last of them."""
    # In float64, because after two steps float32's rounding prunes other tokens; SGD, because Adam would turn the
    # rounding of gradients near 0 into whole steps.
    settings = {
        "double": True,
        "max_grad_norm": 1.0,
        "scene_aware_negatives": True,
        "optim": "sgd",
        "learning_rate": 1e-2,
    }
    plain = trained(corpus, tmp_path / "plain", per_device_train_batch_size=8, **settings)
    cached = trained(corpus, tmp_path / "cached", contrastive_batch_size=8, per_device_train_batch_size=3, **settings)
    assert cached.state.global_step == 3 and cached.batch_sampler.batch_size == 8
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-6)
    for key in ("grad_norm", "contrastive", "temperature", "positives_per_clip", "epoch"):
        values = [[entry[key] for entry in t.state.log_history if key in entry] for t in (plain, cached)]
        assert values[1] == pytest.approx(values[0], rel=1e-4) and values[0], key
    expected = plain.model.state_dict()
    for name, value in cached.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {CHECKPOINTING: True}, {"dataloader_num_workers": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_a_cached_run_with_everything_the_trainer_offers(settings, corpus, tmp_path):
    """Catches passes outside autocast, checkpointing and workers; all three objectives are logged."""
    trainer = trained(
        corpus,
        tmp_path,
        cls=SViTTEgoForPreTraining,
        contrastive_batch_size=8,
        per_device_train_batch_size=4,
        vtm_weight=0.5,
        mlm_weight=2.0,
        max_steps=2,
        **settings,
    )
    for entry in trainer.state.log_history[:2]:
        assert entry["loss"] == pytest.approx(entry["contrastive"] + 0.5 * entry["vtm"] + 2 * entry["mlm"], rel=1e-3)


def test_lora_under_the_trainer_trains_only_adapters(corpus, tmp_path):
    """Catches the trainer looking for the model's configuration on PEFT's wrapper."""
    trainer = make_trainer(corpus, tmp_path, max_steps=2, contrastive_batch_size=8)
    config = LoraConfig(r=2, target_modules=r".*\.(q_proj|v_proj)", task_type="FEATURE_EXTRACTION")
    model = get_peft_model(trainer.model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    again = type(trainer)(
        model=model, args=trainer.args, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator
    )
    again.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed and all("lora_" in name for name in changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_batch_size": 3}, r"contrastive_batch_size \(3\) must be a multiple .* at least .* \(4\)"),
        ({"contrastive_batch_size": 8, "gradient_accumulation_steps": 5}, r"leave gradient_accumulation_steps \(5\)"),
    ],
)
def test_batch_sizes_that_do_not_go_together_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SViTTEgoTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4, **settings)


# ---------------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize(
    "off", [(), ("contrastive",), ("vtm",), ("mlm",), ("vtm", "mlm"), ("contrastive", "mlm")], ids=str
)
@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForVideoTextRetrieval, SViTTEgoForPreTraining])
def test_every_parameter_left_trainable_gets_a_gradient(cls, off, monkeypatch):
    """Catches a parameter that DDP would wait for in vain, and one frozen that would have trained."""
    has = {"vtm": hasattr(cls, "match"), "mlm": hasattr(cls, "predict_masked"), "contrastive": True}
    if not any(has[name] for name in has if name not in off):
        pytest.skip("no objective is left")
    if cls is SViTTEgoForVideoTextRetrieval and off == ("contrastive", "vtm"):
        pytest.skip("no objective is left")
    model = tiny_model(cls).train()
    set_weights(model, **{f"{name}_weight": 0.0 for name in off})
    model(**tiny_batch(), return_loss=True).loss.backward()
    reached = {name for name, gradient in gradients(model).items() if gradient.any()}
    frozen = freeze_unreached_parameters(model)
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached <= left and not reached & set(frozen)
    model(**tiny_batch(), return_loss=True).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == left


def test_weights_that_a_model_cannot_train_are_refused():
    """Catches an objective asked for and silently not trained."""
    with pytest.raises(ValueError, match="SViTTEgoModel has no vtm_head"):
        set_weights(tiny_model(SViTTEgoModel), vtm_weight=1.0)
    with pytest.raises(ValueError, match=r"mlm_weight \(-1\) must not be negative"):
        set_weights(tiny_model(), mlm_weight=-1)
    with pytest.raises(ValueError, match="no other objective"):
        tiny_model(SViTTEgoModel, contrastive_weight=0)(**tiny_batch(), return_loss=True)


# -------------------------------------------------------------------------------------------------------------- stages


def test_stages_are_read_from_text():
    assert parse_stages("0:4:0.7:3, 0.5:8:0.6:dense") == [Stage(0.0, 4, 0.7, 3), Stage(0.5, 8, 0.6, None)]
    assert parse_stages("0:4:1:1:2,0.7:16:1:1:8")[1] == Stage(0.7, 16, 1.0, 1, 8)
    assert Stage(0.5, 8, 0.6, 5).first_step(5) == 3
    for text, message in (
        ("0:4:0.7:3:2:1", "0:4:0.7:3:2:1'"),
        ("0.1:4:0.7:3", "must start at 0"),
        ("0:4:0.7:3,0:8:0.6:5", "later"),
        ("0:4:0.7", "0:4:0.7'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_stages(text)


def test_a_combination_that_does_not_fit_changes_nothing():
    """Catches a model left half-changed, and more blocks refused that fit the new number of frames."""
    model = tiny_model(SViTTEgoModel)
    before = model.config.vision_config.to_dict()
    with pytest.raises(Exception, match="more than the 8 blocks"):
        apply_sparsity(model, {"num_frames": 4, "keep_rate": 0.7, "num_random_blocks": 9})
    assert model.config.vision_config.to_dict() == before
    apply_sparsity(model, {"num_frames": 8, "keep_rate": 0.5, "num_random_blocks": 11, "num_temporal_blocks": 4})
    vision = model.vision_model.config
    assert (vision.num_frames, vision.keep_rate) == (8, 0.5)
    assert (vision.num_random_blocks, vision.num_temporal_blocks) == (11, 4)
    assert model.config.vision_config is vision


def test_frames_grow_in_stages_and_the_optimizer_goes_on(corpus, tmp_path):
    """Catches tables not resampled, clips of the old length, and an optimizer that forgets more than the tables."""
    trainer = make_trainer(
        corpus, tmp_path, max_steps=4, temporal_stages="0:4:0.7:1,0.5:8:0.6:3:4", learning_rate=0.0, save_total_limit=1
    )
    seen = []
    trainer.core.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["pixel_values_videos"].shape[1]), with_kwargs=True
    )
    start = {n: p.detach().clone() for n, p in trainer.core.named_parameters()}
    trainer.train()
    assert seen == [4, 4, 8, 8] and trainer.state.global_step == 4
    vision = trainer.core.config.vision_config
    assert (vision.num_frames, vision.keep_rate, vision.num_random_blocks) == (8, 0.6, 3)
    assert vision.num_temporal_blocks == 4
    assert trainer.processing_class.video_processor.num_frames == 8
    steps = {}
    for name, parameter in trainer.core.named_parameters():
        if "bias_table" in name:
            torch.testing.assert_close(parameter.detach(), resample_relative_position_bias(start[name], 4, 8, 4))
        else:
            assert torch.equal(parameter, start[name]), name  # the learning rate is 0
        if parameter.requires_grad:
            state = trainer.optimizer.state[parameter]
            assert state["exp_avg"].shape == parameter.shape
            steps.setdefault("bias_table" in name, set()).add(int(state["step"]))
    assert steps == {True: {2}, False: {4}}
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------------- summary


def test_the_summary_says_where_the_time_went(corpus, tmp_path, capsys):
    """Catches reading counted as computing, clips counted once per pass, and a run without a last word."""
    trainer = trained(corpus, tmp_path, contrastive_batch_size=8, per_device_train_batch_size=4, max_steps=2)
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert summary["clips"] == 16
    assert summary["clips_per_second"] == pytest.approx(16 / summary["seconds"])
    shares = summary["shares"]
    assert all(share > 0 for share in shares.values()) and sum(shares.values()) == pytest.approx(1)
    assert summary["peak_memory_bytes"] > 50 * 2**20 and summary["peak_memory_of"] == "main process"
    assert "16 clips in" in capsys.readouterr().out
    assert trainer.summary.step >= trainer.summary.data_within_steps


def test_waiting_is_counted_as_data():
    summary = RunSummary()

    def slow():
        import time

        for _ in range(2):
            time.sleep(0.05)
            yield {"input_ids": [0, 0, 0]}

    assert len(list(summary.timed(slow()))) == 2
    assert summary.clips == 6 and 0.1 <= summary.data < 2


def test_curves_are_drawn_where_the_values_are():
    """Catches an axis upside down, and labels that are cut at the border of the picture."""
    picture = draw_curves({"loss": [(0, 3.0), (10, 1.0)], "other": []}).convert("RGB")
    colours = picture.load()
    blue = [(x, y) for x in range(picture.width) for y in range(30, 420) if colours[x, y] == (31, 95, 168)]
    left, right = min(blue), max(blue)
    assert left[0] < 70 and right[0] > 700 and left[1] < 60 and right[1] > 380
    dark = [(x, y) for x in range(picture.width) for y in range(picture.height) if sum(colours[x, y]) < 200]
    (x0, y0), (x1, y1) = map(min, zip(*dark)), map(max, zip(*dark))
    assert x0 > 1 and x1 < picture.width - 2 and y0 > 1 and y1 < picture.height - 1
    draw_curves({"constant": [(5, 2.0)]})
    many = draw_curves({str(i): [(0, float(i)), (10, float(i))] for i in range(14)}).convert("RGB")
    column = [min(many.getpixel((300, y))) < 200 for y in range(40, 410)]
    assert sum(now and not before for before, now in zip(column, column[1:])) == 14, "one colour or more is missing"


def test_ticks_are_round_and_cover_the_values():
    """Catches ticks such as 1.511, and a curve that leaves the axes."""
    assert round_ticks(0.2436, 1.933) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert round_ticks(4, 64) == [0.0, 20.0, 40.0, 60.0, 80.0]
    assert round_ticks(-3, -1) == [-3.0, -2.5, -2.0, -1.5, -1.0]
    assert round_ticks(2.0, 2.0)[0] <= 1.5 and round_ticks(2.0, 2.0)[-1] >= 2.5
