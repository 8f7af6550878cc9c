"""The text tower and the fusion tower: padding, implementations, pruning by the text."""

import pytest
import torch

from modeling_svitt_ego.model.fusion import SViTTEgoFusionModel
from modeling_svitt_ego.model.sparsity import select_tokens
from modeling_svitt_ego.model.text import SViTTEgoTextModel
from tests.helpers.tiny_model import (
    NO_DROPOUT,
    assert_same_gradients,
    gradients,
    tiny_batch,
    tiny_config,
    tiny_model,
    with_weights,
)

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def text_tower(implementation="sdpa", **fields):
    torch.manual_seed(0)
    config = tiny_config(text=fields).text_config
    return with_weights(SViTTEgoTextModel._from_config(config, attn_implementation=implementation)).eval()


def fusion_tower(implementation="sdpa", **fields):
    torch.manual_seed(0)
    config = tiny_config(fusion=fields).cross_modal_config
    return with_weights(SViTTEgoFusionModel._from_config(config, attn_implementation=implementation)).eval()


def states(batch_size=3, text_length=5, num_patches=20, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(batch_size, text_length, 32, generator=generator, dtype=torch.float64)
    video = torch.randn(batch_size, 1 + num_patches, 32, generator=generator, dtype=torch.float64)
    return text.to(dtype), video.to(dtype)


def test_the_order_of_the_words_changes_the_text():
    """Catches position embeddings that are left out: attention alone does not see the order."""
    model, ids = text_tower(), torch.tensor([[2, 7, 8, 9, 3], [2, 9, 8, 7, 3]])
    with torch.no_grad():
        one, other = model(ids).last_hidden_state
    assert (one[0] - other[0]).abs().max() > 1e-3
    assert (one[1] - other[3]).abs().max() > 1e-3  # the same word at two places


@IMPLEMENTATIONS
def test_padding_of_the_text_is_invisible(implementation):
    """Catches an attention mask that is dropped on the way (a sub-config without implementation does that)."""
    model = text_tower(implementation)
    batch = tiny_batch()
    with torch.no_grad():
        padded = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        for row, length in enumerate(batch["attention_mask"].sum(1)):
            alone = model(batch["input_ids"][row : row + 1, :length])
            torch.testing.assert_close(
                padded.last_hidden_state[row, :length], alone.last_hidden_state[0], rtol=1e-4, atol=1e-5
            )
        unmasked = model(batch["input_ids"])
    assert not torch.allclose(unmasked.pooler_output[1], padded.pooler_output[1], atol=1e-3)
    assert torch.equal(padded.pooler_output, padded.last_hidden_state[:, 0])


@pytest.mark.parametrize("strategy", ["cls_attn", "avg_attn"])
@IMPLEMENTATIONS
def test_padding_of_the_text_is_invisible_to_fusion(implementation, strategy):
    """Catches padded text rows voting on which video tokens stay, or being attended to."""
    model = fusion_tower(implementation, keep_strategy=strategy).double()
    text, video = states()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    with torch.no_grad():
        padded = model(text, video, mask)
        for row, length in enumerate(mask.sum(1)):
            alone = model(text[row : row + 1, :length], video[row : row + 1])
            assert torch.equal(padded.token_positions[0][row], alone.token_positions[0][0])
            torch.testing.assert_close(padded.last_hidden_state[row, :length], alone.last_hidden_state[0])


def test_eager_equals_sdpa_in_the_text_tower():
    """Catches a scale, mask or dropout that only one implementation applies."""
    batch, results = tiny_batch(), []
    for implementation in ("eager", "sdpa"):
        model = text_tower(implementation).double()
        out = model(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        out.square().sum().backward()
        results.append((out, gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert_same_gradients(results[0][1], results[1][1])


def test_eager_equals_sdpa_in_the_fusion_tower():
    """Catches the two implementations keeping other video tokens."""
    (text, video), results = states(), []
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    for implementation in ("eager", "sdpa"):
        model = fusion_tower(implementation).double()
        out = model(text, video, mask)
        out.last_hidden_state[:, 0].square().sum().backward()
        results.append((out.last_hidden_state[:, 0], out.token_positions[0], gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert_same_gradients(results[0][2], results[1][2])


def test_a_text_that_is_too_long_is_refused_with_both_numbers():
    """Catches an index error from inside an embedding."""
    with pytest.raises(ValueError, match="17 tokens.*16"):
        text_tower()(torch.ones(1, 17, dtype=torch.long))


def test_text_guided_pruning_is_really_active():
    """Catches q_m being read nowhere (as in the release): output and attended tokens follow keep_rate."""
    text, video = states()
    outputs = {}
    for keep_rate, kept in ((1.0, 20), (0.5, 10), (0.1, 2)):
        model = fusion_tower("eager", keep_rate=keep_rate).double()
        out = model(text, video, output_attentions=True)
        assert [a.shape[-1] for a in out.cross_attentions] == [21, 1 + kept]
        assert [ids.shape for ids in out.token_positions] == ([(3, kept)] if keep_rate < 1 else [])
        outputs[keep_rate] = out.last_hidden_state
    assert not torch.allclose(outputs[1.0], outputs[0.5])
    assert not torch.allclose(outputs[0.5], outputs[0.1])


@pytest.mark.parametrize("strategy", ["cls_attn", "avg_attn"])
def test_the_kept_video_tokens_are_those_the_text_attends_to_most(strategy):
    """Catches scoring by another row, by the video's [CLS], or by the self-attention."""
    model = fusion_tower("eager", keep_strategy=strategy).double()
    text, video = states()
    out = model(text, video, output_attentions=True)
    rows = out.cross_attentions[0].mean(1)[:, :, 1:]
    scores = rows[:, 0] if strategy == "cls_attn" else rows.mean(1)
    assert torch.equal(out.token_positions[0], scores.topk(10).indices.sort().values)


@pytest.mark.parametrize("is_autocast", [False, True], ids=["bfloat16", "autocast"])
def test_half_precision_ranks_video_tokens_without_ties(is_autocast):
    """Catches probabilities rounded before the ranking: at 1/21 each, bfloat16 cannot tell most of them apart."""
    layer = fusion_tower("eager", initializer_range=0.02).layers[0]
    text, video = states(dtype=torch.float32)
    if not is_autocast:
        layer, text, video = layer.bfloat16(), text.bfloat16(), video.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        scores = layer.score(text, video, None)
        attention = layer.cross_attention
        q, k = attention.heads(attention.q_proj(text[:, :1])), attention.heads(attention.k_proj(video))
    assert q.dtype == torch.bfloat16 and scores.dtype == torch.float32
    exact = (q.double() @ k.double().transpose(-1, -2) * attention.scaling).softmax(-1).mean(1)[:, 0, 1:]
    assert torch.equal(select_tokens(scores, 10), select_tokens(exact, 10))


@pytest.mark.parametrize(
    ("text", "video", "says"),
    [
        ((0, 5, 32), (0, 9, 32), r"text_states .*\(0, 5, 32\)"),
        ((2, 0, 32), (2, 9, 32), r"text_states .*\(2, 0, 32\)"),
        ((2, 5, 32), (2, 1, 32), r"patch tokens.*\(2, 1, 32\)"),
        ((2, 5, 32), (3, 9, 32), r"of 2 texts.*\(3, 9, 32\)"),
        ((2, 5, 32), None, "needs video_states"),
    ],
    ids=["batch-0", "text-0", "cls-only", "batches-differ", "none"],
)
def test_states_with_nothing_to_join_are_refused_with_their_shape(text, video, says):
    """Catches a reshape or a topk that fails deep inside a layer."""
    with pytest.raises(ValueError, match=says):
        fusion_tower()(torch.zeros(text), None if video is None else torch.zeros(video))


def test_dropped_video_tokens_matter_to_the_pruning_layer_only():
    """Catches pruning one layer early: the layer that prunes still sees every token, the next only the kept."""
    model = fusion_tower(num_hidden_layers=1).double()
    text, video = states()
    out = model(text, video)
    whole = fusion_tower(num_hidden_layers=1, keep_rate=1.0).double()(text, video)
    torch.testing.assert_close(out.last_hidden_state, whole.last_hidden_state)
    assert out.token_positions[0].shape == (3, 10)


def test_every_parameter_of_both_towers_gets_a_gradient():
    """Catches a branch that is computed and thrown away."""
    model = fusion_tower(**NO_DROPOUT).double().train()
    text, video = states()
    model(text.requires_grad_(), video.requires_grad_()).last_hidden_state.square().mean().backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    assert text.grad.abs().sum() > 0 and (video.grad.abs().sum(-1) > 0).all()


def test_half_precision_runs_through_all_towers():
    """Catches float32 masks or scores that a bfloat16 fusion tower cannot take."""
    batch = tiny_batch()
    for implementation in ("eager", "sdpa"):
        model = tiny_model(implementation=implementation).bfloat16().train()
        out = model(**batch | {"pixel_values_videos": batch["pixel_values_videos"].bfloat16()}, return_loss=True)
        out.loss.backward()
        assert out.loss.isfinite() and all(g.isfinite().all() for g in gradients(model).values())
        model = tiny_model(implementation=implementation).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        assert loss.isfinite() and all(g.isfinite().all() for g in gradients(model).values())


def test_text_guided_pruning_keeps_the_same_tokens_in_training_as_in_evaluation():
    """Catches pruning that is off while training: the model would learn on tokens that it never sees afterwards."""
    model = fusion_tower(num_hidden_layers=3, prune_layers=[0, 1], **NO_DROPOUT)
    text, video = states(dtype=torch.float32)
    evaluated = model(text, video).token_positions
    trained = model.train()(text, video).token_positions
    assert [kept.shape for kept in trained] == [(3, 10), (3, 5)]
    assert all(torch.equal(a, b) for a, b in zip(trained, evaluated))


def test_text_and_fusion_attend_by_the_librarys_fused_attention(monkeypatch):
    """Catches scores written out where one fused kernel would do; padding is masked, cross-attention needs no mask."""
    fused, masks = torch.nn.functional.scaled_dot_product_attention, []

    def noted(q, k, v, attn_mask=None, **options):
        masks.append(None if attn_mask is None else attn_mask.dtype)
        return fused(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    batch = tiny_batch()
    text_tower()(batch["input_ids"], batch["attention_mask"])
    assert masks == [torch.bool] * 2
    masks.clear()
    text, video = states(dtype=torch.float32)
    mask = torch.ones(text.shape[:2], dtype=torch.int64)
    mask[0, -1] = 0
    fusion_tower(**NO_DROPOUT)(text, video, mask)
    assert masks == [torch.bool, None] * 2
