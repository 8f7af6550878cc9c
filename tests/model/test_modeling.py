"""The whole models: losses and their parts, checkpointing, several processes, the heads."""

import contextlib
import inspect
import logging

import pytest
import torch
import torch.nn.functional as F

from modeling_svitt_ego import (
    SViTTEgoForMultipleChoice,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
)
from modeling_svitt_ego.model import matching
from modeling_svitt_ego.model.losses import info_nce
from modeling_svitt_ego.model.objective_base import Batch, Columns
from tests.helpers.tiny_model import (
    HEADS,
    RAGGED,
    assert_same_gradients,
    gradients,
    tiny_batch,
    tiny_clips,
    tiny_config,
    tiny_model,
)


def train_step(model, batch, seed=0):
    torch.manual_seed(seed)
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@pytest.mark.parametrize("num_random", [None, 3], ids=["dense", "sparse"])
@pytest.mark.parametrize("strategy", ["cls_attn", "random", "motion"])
def test_gradient_checkpointing_changes_neither_loss_nor_any_gradient(strategy, num_random, reentrant):
    """Catches a pattern, drop path or dropout drawn again in the second forward (the release cannot checkpoint)."""
    vision = RAGGED | {"drop_path_rate": 0.5, "num_random_blocks": num_random, "keep_strategy": strategy}
    model = tiny_model(vision=vision).train()
    batch = tiny_batch(8)
    loss, expected = train_step(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, found = train_step(model, batch)
    torch.testing.assert_close(again, loss)
    assert len(expected) == len(list(model.parameters()))
    assert_same_gradients(expected, found)
    other, _ = train_step(model, batch, seed=1)
    assert not torch.allclose(other, loss), "the seed makes no difference: nothing random was tested"


def test_loss_info_parts_sum_to_the_loss_by_the_weights():
    """Catches a part that is logged and not added, or weighted twice."""
    model = tiny_model(contrastive_weight=0.5, vtm_weight=2.0, mlm_weight=3.0).train()
    out = model(**tiny_batch(), return_loss=True)
    info = out.loss_info
    torch.testing.assert_close(out.loss.detach(), 0.5 * info["contrastive"] + 2 * info["vtm"] + 3 * info["mlm"])
    assert not any(value.requires_grad for value in info.values())
    assert info["positives_per_clip"] == 6 / 4  # clips 0 and 1 share an action
    torch.testing.assert_close(info["temperature"], torch.tensor(0.18))
    assert info["vtm_negatives_per_clip"] == 1
    assert out.vtm_logits.shape == (12, 2) and out.mlm_logits.shape == (4, 7, 99)


@pytest.mark.parametrize(
    ("weights", "without"),
    [
        ({"mlm_weight": 0}, ["mlm_head"]),
        ({"vtm_weight": 0}, ["vtm_head"]),
        ({"vtm_weight": 0, "mlm_weight": 0}, ["vtm_head", "mlm_head", "fusion_model", "vision_model.layernorm"]),
        (
            {"contrastive_weight": 0},
            ["video_projection", "text_projection", "temperature", "vision_model.pooler_layernorm"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_part_of_weight_zero_leaves_its_parameters_without_gradient(weights, without):
    """Catches a part that is switched off and still trains (or still costs a fusion pass)."""
    model = tiny_model(**weights).train()
    _, found = train_step(model, tiny_batch())
    for name, _ in model.named_parameters():
        ours = any(name.startswith(part) for part in without)
        silent = name not in found or not found[name].any()
        tied = name == "text_model.embeddings.word_embeddings.weight"
        assert silent == ours or tied, name


def test_evaluation_losses_repeat():
    """Catches negatives and masked tokens drawn again, so that two evaluations of one checkpoint differ."""
    model, batch = tiny_model(), tiny_batch()
    with torch.no_grad():
        losses = [model(**batch, return_loss=True).loss for _ in range(2)]
        assert torch.equal(*losses)
        model.train()
        seeded = [
            model(**batch, return_loss=True, generator=torch.Generator().manual_seed(s)).mlm_logits.argmax(-1)
            for s in (0, 1)
        ]
    assert not torch.equal(*seeded)


@pytest.mark.parametrize(("start", "clamped"), [(0.0, 0.001), (9.0, 0.5), (0.2, 0.2)])
def test_the_temperature_is_clamped_in_training(start, clamped):
    """Catches a temperature that leaves its range, and one that no longer learns once it was clamped."""
    model = tiny_model(SViTTEgoModel).train()
    torch.nn.init.constant_(model.temperature, start)
    out = model(**tiny_batch(), return_loss=True)
    out.loss.backward()
    torch.testing.assert_close(model.temperature.detach(), torch.tensor([clamped]))
    assert model.temperature.grad.abs() > 0


def test_the_contrastive_loss_is_that_of_the_cosines():
    """Catches embeddings compared without normalisation, and logits that disagree with the loss."""
    model = tiny_model(SViTTEgoModel, contrastive_loss="info_nce")
    out = model(**tiny_batch(), return_loss=True)
    cosine = F.cosine_similarity(out.video_embeds[:, None], out.text_embeds[None], dim=-1)
    torch.testing.assert_close(out.logits_per_video, cosine / 0.18)
    assert torch.equal(out.logits_per_text, out.logits_per_video.T)
    torch.testing.assert_close(out.loss, info_nce(out.logits_per_video, out.logits_per_text))
    features = model.get_video_features(tiny_batch()["pixel_values_videos"])
    torch.testing.assert_close(F.normalize(features.pooler_output, dim=-1), out.video_embeds)
    assert torch.equal(features.pooler_output, out.vision_model_output.pooler_output)
    assert features.pooler_output.norm(dim=-1).sub(1).abs().min() > 1e-3
    for embeds in (out.video_embeds, out.text_embeds):  # as CLIP's
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4))


def test_ego_nce_without_tags_is_an_error():
    """Catches EgoNCE quietly becoming InfoNCE when a collator drops the tags."""
    batch = {key: value for key, value in tiny_batch().items() if not key.endswith("tags")}
    with pytest.raises(ValueError, match="verb_tags and noun_tags"):
        tiny_model(SViTTEgoModel)(**batch, return_loss=True)


def test_a_batch_of_positives_only_has_no_negatives_and_a_finite_loss():
    """Catches the release's crash ("invalid multinomial distribution") when all clips show one action."""
    batch = tiny_batch(2)  # clips 0 and 1 share their action
    out = tiny_model().train()(**batch, return_loss=True)
    out.loss.backward()
    assert out.loss.isfinite() and out.loss_info["vtm_negatives_per_clip"] == 0


def test_hard_negatives_are_matched_row_by_row(monkeypatch):
    """Catches a negative clip paired with the wrong text, a negative text with another text's mask, shifted labels."""
    model, batch = tiny_model(SViTTEgoForVideoTextRetrieval), tiny_batch()
    drawn = iter([torch.tensor([2, 3, -1, 1]), torch.tensor([3, 2, 1, -1])])  # clips for texts, texts for clips
    monkeypatch.setattr(matching, "sample_hard_negatives", lambda *_: next(drawn))
    pairs = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 2), (1, 3), (3, 1), (3, 0), (2, 1), (1, 2)]  # (text, clip)
    rows = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]  # 6 and 11 have no negative
    with torch.no_grad():
        out = model(**batch)
        texts, mask = out.text_model_output.last_hidden_state, batch["attention_mask"]
        videos = out.vision_model_output.last_hidden_state
        seen = Batch(out, batch["input_ids"], mask, Columns([batch]), model.temperature)
        logits, labels = matching.VideoTextMatching().score_pairs(model, seen)
        for row, (text, video) in zip(rows, pairs):
            alone = model.match(texts[text][None], mask[text][None], videos[video][None])[0]
            torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [1] * 4 + [0, 0, -100, 0] + [0, 0, 0, -100]


def test_re_ranking_scores_are_those_of_the_pairs():
    """Catches pairs scored against another pair's clip or mask."""
    model, batch = tiny_model(SViTTEgoForVideoTextRetrieval), tiny_batch()
    with torch.no_grad():
        together = model(**batch)
        assert together.vtm_logits.shape == (4, 2)
        for row in range(4):
            alone = model(**{key: value[row : row + 1] for key, value in batch.items()})
            torch.testing.assert_close(alone.vtm_logits[0], together.vtm_logits[row], rtol=1e-4, atol=1e-5)
        unpaired = model(batch["pixel_values_videos"][:3], batch["input_ids"], batch["attention_mask"])
    assert unpaired.vtm_logits is None and unpaired.logits_per_video.shape == (3, 4)


def test_multiple_choice_logits_are_cosines_over_temperature():
    """Catches choices mixed across questions, in both directions (one text and N clips, one clip and N texts)."""
    model = tiny_model(SViTTEgoForMultipleChoice)
    two = SViTTEgoModel(model.config).eval()
    two.load_state_dict(model.state_dict())
    batch, clips = tiny_batch(2), tiny_clips(6, seed=4)
    texts = tiny_batch(6, seed=4)
    with torch.no_grad():
        text = (batch["input_ids"], batch["attention_mask"])
        out = model(clips.unflatten(0, (2, 3)), *text, labels=torch.tensor([2, 0]))
        pairs = two(clips, *text).logits_per_text.view(2, 2, 3)
        expected = torch.stack([pairs[0, 0], pairs[1, 1]])
        torch.testing.assert_close(out.logits, expected)
        torch.testing.assert_close(out.loss, F.cross_entropy(expected, torch.tensor([2, 0])))

        many = [texts[key].unflatten(0, (2, 3)) for key in ("input_ids", "attention_mask")]
        out = model(clips[:2], *many)
        pairs = two(clips[:2], texts["input_ids"], texts["attention_mask"]).logits_per_video.view(2, 2, 3)
        torch.testing.assert_close(out.logits, torch.stack([pairs[0, 0], pairs[1, 1]]))
    with pytest.raises(ValueError, match="input_ids of 2 and pixel_values_videos of 5"):
        model(clips, batch["input_ids"])


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_every_head_returns_hidden_states_and_attentions(cls):
    """Catches a head that drops what the towers record, and `return_dict=False` that cannot be a tuple of it."""
    model, batch = tiny_model(cls, implementation="eager"), tiny_batch(2)
    inputs = {key: batch[key] for key in ("pixel_values_videos", "input_ids", "attention_mask")}
    if cls is SViTTEgoForMultipleChoice:
        inputs["pixel_values_videos"] = tiny_clips(4).unflatten(0, (2, 2))
    if cls is SViTTEgoForVideoClassification:
        inputs = {"pixel_values_videos": batch["pixel_values_videos"]}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        plain = model(**inputs)
        assert isinstance(model(**inputs, output_hidden_states=True, return_dict=False), tuple)
    towers = [out[name] for name in out if name.endswith("_model_output")]
    parts = ("vision_model", "text_model", "fusion_model")
    assert len(towers) == (0 if cls is SViTTEgoForVideoClassification else sum(hasattr(model, x) for x in parts))
    if cls in (SViTTEgoForMultipleChoice, SViTTEgoForVideoClassification):
        assert plain.hidden_states is None and plain.attentions is None
        towers.append(out)
    for tower in towers:
        assert len(tower.hidden_states) == 3 and len(tower.attentions) == 2
    if hasattr(model, "fusion_model"):
        assert len(out.fusion_model_output.cross_attentions) == 2


@pytest.mark.parametrize("name", ["vision_model", "text_model", "fusion_model"])
def test_attentions_asked_of_an_implementation_without_them_give_a_warning(name, caplog):
    """Catches an empty tuple that is mistaken for a model without attention."""
    model, batch = tiny_model(), tiny_batch(2)
    states = torch.zeros(2, 7, 32), torch.zeros(2, 5, 32)
    inputs = {"vision_model": [batch["pixel_values_videos"]], "text_model": [batch["input_ids"]]}.get(name, states)
    model.warn_without_attentions.__globals__["logger"].warning_once.cache_clear()
    with caplog.at_level("WARNING"), library_warnings_reach_caplog():
        getattr(model, name)(*inputs)
        assert "attentions" not in caplog.text
        assert getattr(model, name)(*inputs, output_attentions=True).attentions == ()
    assert "attn_implementation='sdpa'" in caplog.text and "attn_implementation='eager'" in caplog.text


@contextlib.contextmanager
def library_warnings_reach_caplog():
    logger = logging.getLogger("transformers")
    before, logger.propagate = logger.propagate, True
    try:
        yield
    finally:
        logger.propagate = before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"pixel_values_videos": b["pixel_values_videos"][:0]}, r"empty: its shape is \(0, 4, 3, 32, 32\)"),
        (
            lambda b: {"pixel_values_videos": b["pixel_values_videos"][:, :0]},
            r"empty: .* is \(2, 0, 3, 32, 32\)",
        ),
        (lambda b: {"pixel_values_videos": b["pixel_values_videos"].byte()}, "type torch.uint8: these are raw frames"),
        (lambda b: {"pixel_values_videos": torch.rand(2, 4, 3, 32, 32) * 255}, r"values up to 25\d\.\d.*processor"),
        (lambda b: {"input_ids": b["input_ids"][:0]}, r"input_ids is empty: .* is \(0, 7\)"),
        (lambda b: {"input_ids": b["input_ids"][:, :0]}, r"input_ids is empty: .* is \(2, 0\)"),
        (lambda b: {"input_ids": b["input_ids"][0]}, r"got torch.int64 of shape \(7,\)"),
        (lambda b: {"input_ids": b["input_ids"].float()}, "got torch.float32 of shape"),
        (
            lambda b: {"input_ids": b["input_ids"][:1], "attention_mask": None, "return_loss": True},
            "got 2 clips and 1 texts",
        ),
    ],
)
def test_inputs_without_sense_are_refused(change, message):
    """Catches an empty batch that ends in NaN, and raw frames that are computed on without complaint."""
    batch = tiny_batch(2)
    inputs = {key: batch[key] for key in ("pixel_values_videos", "input_ids")} | change(batch)
    with pytest.raises(ValueError, match=message):
        tiny_model(SViTTEgoModel, contrastive_loss="info_nce")(**inputs)


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_generator_and_random_patterns_are_arguments_of_every_forward(cls):
    """Catches documented arguments that the signature hides, and a generator that does not reach the pattern."""
    assert {"generator", "random_patterns"} <= inspect.signature(cls.forward).parameters.keys()


@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForMultipleChoice, SViTTEgoForVideoClassification])
def test_every_trainable_parameter_of_a_head_gets_a_gradient(cls):
    """Catches a parameter that DDP would wait for in vain."""
    model, batch = tiny_model(cls).train(), tiny_batch(2)
    if cls is SViTTEgoForMultipleChoice:
        clips = tiny_clips(6).unflatten(0, (2, 3))
        out = model(clips, batch["input_ids"], batch["attention_mask"], labels=torch.tensor([0, 1]))
    elif cls is SViTTEgoModel:
        out = model(**batch, return_loss=True)
    else:
        out = model(batch["pixel_values_videos"], labels=torch.tensor([0, 1]))
    out.loss.backward()
    assert gradients(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        (None, 5, torch.tensor([4, 0])),
        (None, 1, torch.tensor([0.5, -1.0])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
    ids=["classes", "regression", "multi-label"],
)
def test_video_classification_loss_of_each_problem_type(problem_type, num_labels, labels):
    """Catches the loss and the labels being swapped, and num_labels being ignored."""
    model = tiny_model(SViTTEgoForVideoClassification, num_labels=num_labels, problem_type=problem_type)
    out = model(tiny_clips(), labels=labels)
    assert out.logits.shape == (2, num_labels)
    if problem_type:
        expected = F.binary_cross_entropy_with_logits(out.logits, labels)
    elif num_labels == 1:
        expected = F.mse_loss(out.logits.squeeze(), labels)
    else:
        expected = F.cross_entropy(out.logits, labels)
    torch.testing.assert_close(out.loss, expected)


# --------------------------------------------------------------------------------------------------- several processes


def gathered_step(rank: int, world_size: int, folder: str) -> None:
    """One process: its share of the batch, contrasted with everyone's; gradients averaged as DDP does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    model = tiny_model(SViTTEgoModel)
    rows = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    share = {key: value[rows] for key, value in tiny_batch().items()}
    loss, found = model(**share, return_loss=True, gather=True).loss, {}
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            found[name] = parameter.grad / world_size
    torch.distributed.all_reduce(loss := loss.detach())
    if rank == 0:
        torch.save((loss / world_size, found), f"{folder}/result.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_equal_one_with_both_halves(tmp_path):
    """Catches gathered columns without gradient, a gradient scaled by the number of processes, positives shifted."""
    torch.multiprocessing.spawn(gathered_step, (2, str(tmp_path)), nprocs=2)
    loss, found = torch.load(tmp_path / "result.pt")
    model = tiny_model(SViTTEgoModel)
    expected = model(**tiny_batch(), return_loss=True).loss
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert_same_gradients(gradients(model), found)


def test_pretraining_model_ties_its_decoder():
    """Catches an MLM decoder with weights of its own."""
    model = SViTTEgoForPreTraining(tiny_config())
    assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight
    untied = SViTTEgoForPreTraining(tiny_config(tie_word_embeddings=False))
    assert untied.mlm_head.decoder.weight is not untied.text_model.embeddings.word_embeddings.weight
