"""The video tower: patterns, pruning, any number of frames, implementations, precision."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoVisionModel
from modeling_svitt_ego.model import block_attention
from modeling_svitt_ego.model.resampling import resample_relative_position_bias
from modeling_svitt_ego.model.sparsity import RelativePositions, cls_row, select_tokens, take_tokens
from modeling_svitt_ego.model.vision import directional_bias
from tests.helpers.tiny_model import (
    RAGGED,
    assert_same_gradients,
    gradients,
    tiny_clips,
    tiny_vision_config,
    tiny_vision_model,
)

SPARSE = pytest.mark.parametrize("num_random", [None, 3], ids=["dense", "sparse"])


def forward_backward(model, clips, **kwargs):
    out = model(clips, **kwargs)
    weight = torch.randn(out.pooler_output.shape, generator=torch.Generator().manual_seed(5)).to(clips.dtype)
    ((out.pooler_output * weight).sum() + out.last_hidden_state.square().mean()).backward()
    return out, gradients(model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_sparse_tower_equals_the_dense_one_when_every_block_is_kept(implementation):
    """Catches an edge lost or counted twice anywhere in the tower, in value and in every gradient."""
    dense = tiny_vision_model(implementation, num_random_blocks=None, **RAGGED).double()
    sparse = tiny_vision_model(implementation, num_random_blocks=7, **RAGGED).double()
    clips = tiny_clips().double()
    expected, expected_gradients = forward_backward(dense, clips)
    out, found = forward_backward(sparse, clips)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output)
    assert_same_gradients(expected_gradients, found)


@pytest.mark.parametrize("released", [False, True], ids=["masked", "released"])
@SPARSE
def test_eager_equals_sdpa_through_the_tower(num_random, released):
    """Catches the readable reference and the fast path drifting apart, also where the last block is ragged."""
    fields = dict(num_random_blocks=num_random, released_attention=released, **RAGGED)
    clips = tiny_clips().double()
    expected, expected_gradients = forward_backward(tiny_vision_model("eager", **fields).double(), clips)
    out, found = forward_backward(tiny_vision_model("sdpa", **fields).double(), clips)
    for a, b in zip(out.token_ids, expected.token_ids):
        assert torch.equal(a, b)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output)
    assert_same_gradients(expected_gradients, found)


@pytest.mark.parametrize("strategy", ["cls_attn", "random", "motion"])
@SPARSE
def test_evaluation_repeats_and_a_clip_does_not_depend_on_its_batch(num_random, strategy):
    """Catches a pattern or a random pruning that is drawn again in eval, or per batch."""
    model = tiny_vision_model(num_random_blocks=num_random, keep_strategy=strategy, **RAGGED)
    clips = tiny_clips(8)
    with torch.no_grad():
        batch, again = model(clips), model(clips)
        assert torch.equal(batch.last_hidden_state, again.last_hidden_state)
        for row in (0, 5):
            alone = model(clips[row : row + 1])
            for ids, of_batch in zip(alone.token_ids, batch.token_ids):
                assert torch.equal(ids[0], of_batch[row])
            torch.testing.assert_close(alone.last_hidden_state[0], batch.last_hidden_state[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.pooler_output[0], batch.pooler_output[row], rtol=1e-4, atol=1e-5)


def test_pattern_seed_chooses_the_pattern_of_evaluation():
    """Catches a seed that is read nowhere."""
    clips = tiny_clips()
    with torch.no_grad():
        first, other = (tiny_vision_model(pattern_seed=seed)(clips).pooler_output for seed in (0, 1))
    assert not torch.allclose(first, other)


def test_training_draws_a_new_pattern_per_forward_and_repeats_with_the_generator():
    """Catches a pattern that stays the same in training, or one that a generator does not control."""
    model = tiny_vision_model(drop_path_rate=0.0).train()
    clips = tiny_clips()
    with torch.no_grad():
        a, b = model(clips).pooler_output, model(clips).pooler_output
        assert not torch.allclose(a, b)
        seeded = [model(clips, generator=torch.Generator().manual_seed(s)).pooler_output for s in (0, 0, 1)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.allclose(seeded[0], seeded[2])


def test_injected_patterns_replace_the_drawn_ones():
    """Catches random_patterns being ignored, and a pattern of the wrong length being taken."""
    model = tiny_vision_model(**RAGGED)
    clips, seed = tiny_clips(), torch.tensor(model.config.pattern_seed)
    with torch.no_grad():
        drawn = [model.block_ids(i, torch.arange(n)[None], 4, seed)[:, 1:] for i, n in enumerate((64, 45, 32))]
        assert torch.equal(model(clips, random_patterns=drawn).pooler_output, model(clips).pooler_output)
        other = [(ids + 1) % len(ids) for ids in drawn]
        assert not torch.allclose(model(clips, random_patterns=other).pooler_output, model(clips).pooler_output)
        with pytest.raises(ValueError, match=r"layer 1 is for 8 blocks, but its 45 tokens make 6 blocks of 8"):
            model(clips, random_patterns=[drawn[0], drawn[0], drawn[2]])


@pytest.mark.parametrize("strategy", ["cls_attn", "random", "motion"])
def test_token_ids_are_ascending_and_compose_to_ids_in_the_clip(strategy):
    """Catches ids that refer to the sequence that entered a layer instead of to the clip."""
    out = tiny_vision_model(keep_strategy=strategy, **RAGGED)(tiny_clips(3))
    first, second = out.token_ids
    assert first.shape == (3, 45) and second.shape == (3, 32)
    assert (first.diff(dim=1) > 0).all() and (second.diff(dim=1) > 0).all()
    assert first.max() < 64
    for ids, later in zip(first.tolist(), second.tolist()):
        assert set(later) < set(ids)
    assert out.last_hidden_state.shape == (3, 33, 32)


def test_pruning_before_the_mlp_equals_pruning_after_it():
    """Catches tokens, ids or order lost by pruning early: the reference prunes the whole layer's output (SViTT)."""
    model = tiny_vision_model(num_random_blocks=None).double()
    layer, clips = model.layers[1], tiny_clips().double()
    states = model.embeddings(clips)
    ids = torch.randperm(100)[:64].sort().values[None] % 64
    seed = torch.tensor(0)
    pruned, pruned_ids = layer(states, ids, 4, None, 45, seed)

    whole, _ = layer(states, ids, 4, None, None, seed)
    attention = layer.attention
    normed = layer.layernorm_before(states)
    q, k, v = (
        p(normed).unflatten(-1, (4, 8)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    positions = RelativePositions.from_token_ids(ids, (4, 4, 4))
    _, cls_attention = cls_row(q, k, v, attention.relative_position_bias_table, positions)
    kept = select_tokens(cls_attention[:, :, 1:].mean(1), 45)
    torch.testing.assert_close(pruned, take_tokens(whole, kept))
    torch.testing.assert_close(pruned[:, 0], whole[:, 0])  # [CLS] stays first
    assert torch.equal(pruned_ids, ids.expand(2, -1).gather(1, kept))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@SPARSE
def test_any_number_of_frames_at_run_time(num_random, implementation):
    """Catches tables, patterns or counts bound to config.num_frames."""
    model = tiny_vision_model(implementation, num_random_blocks=num_random, **RAGGED)
    for frames, kept in ((1, 9), (3, 24), (8, 63), (16, 126)):
        out, found = forward_backward(model, tiny_clips(1, frames))
        assert out.last_hidden_state.shape == (1, 1 + kept, 32), frames
        assert out.last_hidden_state.isfinite().all()
        assert len(found) == len(list(model.parameters())) and all(g.isfinite().all() for g in found.values())


def test_images_are_clips_of_one_frame():
    """Catches 4-D input read as another layout."""
    model = tiny_vision_model()
    images = tiny_clips(3, 1)
    with torch.no_grad():
        assert torch.equal(model(images[:, 0]).last_hidden_state, model(images).last_hidden_state)


def test_a_resampled_bias_is_symmetric_in_time_and_the_same_at_equal_length():
    """Catches the release's nearest-neighbour rule, which maps dt = +1 and dt = -1 to different distances."""
    table = torch.randn(7 * 49 + 3, 4, dtype=torch.float64)
    assert resample_relative_position_bias(table, 4, 4, 4) is table
    offsets = table[:-3].unflatten(0, (7, 49))
    symmetric = torch.cat([(offsets + offsets.flip(0)).flatten(0, 1), table[-3:]])
    for frames in (1, 3, 8, 16):
        new = resample_relative_position_bias(symmetric, 4, frames, 4)
        assert new.shape == ((2 * frames - 1) * 49 + 3, 4)
        by_time = new[:-3].unflatten(0, (2 * frames - 1, 49))
        torch.testing.assert_close(by_time, by_time.flip(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(by_time[frames - 1], symmetric[:-3].unflatten(0, (7, 49))[3])
        assert torch.equal(new[-3:], table[-3:])


@pytest.mark.parametrize("precision", ["bfloat16 model", "autocast"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@SPARSE
def test_half_precision_runs_forward_and_backward(num_random, implementation, precision):
    """Catches a buffer in the default dtype (the release fails here) and infinities from masking."""
    model = tiny_vision_model(implementation, num_random_blocks=num_random, **RAGGED).train()
    clips = tiny_clips()
    if precision == "bfloat16 model":
        model, clips = model.bfloat16(), clips.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        out = model(clips)
    out.pooler_output.float().square().sum().backward()
    assert out.last_hidden_state.isfinite().all()
    found = gradients(model)
    assert len(found) == len(list(model.parameters())) - 2  # all but the token states' norm
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_half_precision_is_near_full_precision():
    """Catches a softmax in half precision, or other tokens kept because scores were rounded."""
    model = tiny_vision_model(keep_rate=1.0)
    with torch.no_grad():
        exact = model(tiny_clips()).pooler_output
        half = model.bfloat16()(tiny_clips().bfloat16()).pooler_output
    assert (half.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@SPARSE
def test_eager_and_sdpa_are_equally_near_full_precision_in_half(num_random, precision):
    """Catches an implementation that rounds more than the other; without pruning, which is a choice, no number."""
    models = [tiny_vision_model(name, num_random_blocks=num_random, keep_rate=1.0) for name in ("eager", "sdpa")]
    clips = tiny_clips(4).to(precision)
    with torch.no_grad():
        exact = models[0](clips.float()).last_hidden_state
        halves = [model.to(precision)(clips).last_hidden_state.float() for model in models]
    epsilon = torch.finfo(precision).eps
    errors = [((half - exact).abs().mean() / exact.abs().mean()).item() for half in halves]
    assert max(errors) < epsilon
    assert max(errors) < 1.3 * min(errors)
    torch.testing.assert_close(halves[0], halves[1], atol=8 * epsilon, rtol=8 * epsilon)


def test_released_attention_differs_exactly_where_padding_or_repetition_occurs():
    """Catches the switch changing a full last block, or not changing a ragged one, or reaching other blocks."""
    clips = tiny_clips(1)
    ours, released = (tiny_vision_model(released_attention=flag, **RAGGED) for flag in (False, True))
    with torch.no_grad():
        a, b = (m(clips, output_hidden_states=True).hidden_states for m in (ours, released))
        # Layer 0: 64 tokens, no padding, blocks enough.
        assert torch.equal(a[1], b[1])
        # Layer 1: 45 tokens in 6 blocks, padding only in the last. The layer prunes, so look at it without.
        ours.config.keep_rate = released.config.keep_rate = 1.0
        states, ids = a[1], torch.arange(45)[None]
        seed = torch.tensor(0)
        pattern = ours.block_ids(1, ids, 4, seed)
        assert torch.equal(pattern, released.block_ids(1, ids, 4, seed))
        a, b = (m.layers[1](states, ids, 4, pattern, None, seed)[0][0] for m in (ours, released))
    differs = (a - b).abs().amax(-1) > 1e-6
    attends_last = (pattern == 5).any(1).repeat_interleave(8)[:45]
    assert 0 < attends_last.sum() < 45
    assert torch.equal(differs[1:], attends_last) and not differs[0]


def test_released_attention_counts_local_blocks_twice_when_few_are_left():
    """Catches the second trait of the release: 3 blocks, K_l + K_r = 4, so the local block fills up."""
    ours, released = (tiny_vision_model(released_attention=flag) for flag in (False, True))
    seed = torch.tensor(0)
    assert ours.block_ids(0, torch.arange(24)[None], 4, seed).shape == (3, 3)
    twice = released.block_ids(0, torch.arange(24)[None], 4, seed)
    assert twice.tolist() == [[b, 0, 1, 2] for b in range(3)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_released_attention_mirrors_the_local_blocks_where_there_are_three(implementation, monkeypatch):
    """Catches the tower computing three local blocks unmirrored, or mirrored without `released_attention`."""
    fields = dict(num_local_blocks=3, num_random_blocks=2, **RAGGED)
    clips = tiny_clips().double()
    released = tiny_vision_model(implementation, released_attention=True, **fields).double()
    assert released.config.num_mirrored_blocks == 3
    assert tiny_vision_config(**fields).num_mirrored_blocks == 0
    for other in ({"num_local_blocks": 1}, {"num_random_blocks": None}):
        assert tiny_vision_config(**(fields | {"released_attention": True} | other)).num_mirrored_blocks == 0
    eager = tiny_vision_model("eager", released_attention=True, **fields).double()
    out, found = forward_backward(released, clips)
    expected, expected_gradients = forward_backward(eager, clips)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert_same_gradients(expected_gradients, found)
    monkeypatch.setattr(type(released.config), "num_mirrored_blocks", 0)
    assert not torch.allclose(released(clips).pooler_output, out.pooler_output, atol=1e-3)


def test_mirrored_blocks_never_reach_kernels_that_cannot_compute_them(monkeypatch, caplog):
    """Catches a GPU silently computing another pairing than a CPU; the slower way is said once."""
    model = tiny_vision_model(num_local_blocks=3, num_random_blocks=2, released_attention=True, **RAGGED)
    expected = model(tiny_clips()).pooler_output
    monkeypatch.setattr(block_attention, "uses_kernels", lambda q: True)
    monkeypatch.setattr(block_attention, "triton_attention", None)
    block_attention.logger.warning_once.cache_clear()
    assert torch.equal(model(tiny_clips()).pooler_output, expected)
    assert "with 3 local blocks is computed by plain operations" in caplog.text


def test_hidden_states_and_attentions_follow_the_pruning():
    """Catches outputs recorded at the wrong place: each layer has the length that entered it."""
    out = tiny_vision_model("eager", **RAGGED)(tiny_clips(), output_hidden_states=True, output_attentions=True)
    assert [state.shape[1] for state in out.hidden_states] == [65, 46, 33, 33]
    assert [attention.shape for attention in out.attentions] == [(2, 4, n, n) for n in (65, 46, 33)]
    for attention in out.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        (None, "pixel_values_videos"),
        (torch.zeros(2, 4, 3, 32, 24), "3 x 32 x 24"),
        (torch.zeros(2, 4, 1, 32, 32), "1 x 32 x 32"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
    ],
    ids=["none", "size", "channels", "dimensions"],
)
def test_clips_that_do_not_fit_are_refused_with_their_shape(clips, says):
    """Catches a shape error from deep inside a convolution or a gather."""
    with pytest.raises(ValueError, match=says):
        tiny_vision_model()(clips)


def test_directional_tables_point_each_head_somewhere_else():
    """Even layers look through time at the same place, odd ones to the four sides; rows count query minus key."""
    window = (4, 3, 3)

    def favourite(layer, head):
        table = directional_bias(window, 4, layer)[:-3, head].view(7, 5, 5)
        dt, dy, dx = (int(i) for i in torch.nonzero(table == table.max())[0])
        return dt - 3, dy - 2, dx - 2

    assert [favourite(0, head) for head in range(3)] == [(1, 0, 0), (-1, 0, 0), (0, 0, 0)]
    assert directional_bias(window, 4, 0)[:, 3].eq(0).all()  # the fourth head looks everywhere
    assert [favourite(1, head) for head in range(4)] == [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0)]
    torch.testing.assert_close(directional_bias(window, 8, 2)[:, 4:], directional_bias(window, 4, 0))


def test_relative_position_init_chooses_the_tables_at_the_start():
    for name, expected in (("zeros", 0.0), ("directional", 1.0)):
        tables = [
            layer.attention.relative_position_bias_table
            for layer in SViTTEgoVisionModel(tiny_vision_config(relative_position_init=name)).layers
        ]
        window = (4, 4, 4)
        for number, table in enumerate(tables):
            torch.testing.assert_close(table.detach(), expected * directional_bias(window, 4, number))


TEMPORAL = {"num_temporal_blocks": 2, "num_random_blocks": 1, "block_size": 4, **RAGGED}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_towers_temporal_blocks_follow_each_clips_tokens(implementation):
    """Catches a pattern that depends on the batch, is not that of the kept tokens, or ignores the other frames."""
    model = tiny_vision_model(implementation, **TEMPORAL)
    clips = tiny_clips(4)
    seed = torch.tensor(model.config.pattern_seed)
    with torch.no_grad():
        out = model(clips)
        assert model.block_ids(0, torch.arange(64)[None], 4, seed).shape == (16, 4)
        patterns = model.block_ids(1, out.token_ids[0], 4, seed)
        assert patterns.shape == (4, 12, 4)
        assert not torch.equal(patterns[0], patterns[1])
        for row in range(4):
            alone = model(clips[row : row + 1])
            torch.testing.assert_close(alone.pooler_output[0], out.pooler_output[row], rtol=1e-4, atol=1e-5)
        given = [
            model.block_ids(layer, ids, 4, seed)[..., 1:]
            for layer, ids in enumerate((torch.arange(64)[None], *out.token_ids))
        ]
        assert torch.equal(model(clips, random_patterns=given).pooler_output, out.pooler_output)
        model.config.num_temporal_blocks, model.config.num_random_blocks = 0, 3
        assert not torch.allclose(model(clips).pooler_output, out.pooler_output)


def test_every_implementation_computes_the_same_temporal_tower():
    """Catches a pattern of each clip read as one of all, in value or in a gradient."""
    clips = tiny_clips(3).double()
    expected, expected_gradients = forward_backward(tiny_vision_model("eager", **TEMPORAL).double(), clips)
    out, found = forward_backward(tiny_vision_model("sdpa", **TEMPORAL).double(), clips)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert_same_gradients(expected_gradients, found)


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_temporal_blocks_at_any_number_of_frames(frames):
    """Catches a pattern that needs a frame before or after."""
    out, found = forward_backward(tiny_vision_model(**TEMPORAL), tiny_clips(2, frames))
    assert out.last_hidden_state.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_pruning_is_on_in_training_too():
    """Catches a tower that prunes in evaluation only."""
    out = tiny_vision_model(**RAGGED).train()(tiny_clips(3))
    assert [ids.shape for ids in out.token_ids] == [(3, 45), (3, 32)]
    assert out.last_hidden_state.shape == (3, 33, 32)


def test_stochastic_depth_grows_linearly_to_its_rate_in_the_last_layer():
    """Catches a rate that is never reached, and a first layer that is dropped."""
    model = SViTTEgoVisionModel(tiny_vision_config(num_hidden_layers=5, drop_path_rate=0.2))
    assert [layer.drop_path.p for layer in model.layers] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.filterwarnings("ignore")
def test_a_tower_with_temporal_blocks_is_one_graph():
    """Catches a pattern that reads numbers off tensors, which torch.compile and torch.export cannot follow."""
    model, clips = tiny_vision_model(**TEMPORAL), tiny_clips(3)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(clips).pooler_output, model(clips).pooler_output)
    torch._dynamo.reset()


def test_motion_keeps_the_patches_that_move_and_needs_two_frames():
    """Catches scores of another sign, and places compared with other places."""
    clips = tiny_clips(1)[:, :1].repeat(1, 4, 1, 1, 1)
    model = tiny_vision_model(keep_strategy="motion", keep_rate=0.25, prune_layers=[0], num_random_blocks=None)
    size = model.config.patch_size
    clips[:, 2, :, :size, size : 2 * size] = -1.0  # place 1 of the third frame
    with torch.no_grad():
        kept = model(clips).token_ids[0][0].tolist()
    per_frame = model.config.patches_per_frame
    assert 2 * per_frame + 1 in kept
    with pytest.raises(ValueError, match="compares frames, and these clips have one"):
        model(clips[:, :1])
