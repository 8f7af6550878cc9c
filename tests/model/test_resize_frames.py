"""Bias tables for other lengths and picture sizes: the published code's own results, and a symmetric alternative."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_svitt_ego.model.configuration_svitt_ego import SViTTEgoConfig
from modeling_svitt_ego.model.modeling_svitt_ego import (
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoTextModel,
    SViTTEgoVisionModel,
)
from modeling_svitt_ego.model.resampling import (
    cubic_spline_matrix,
    resample_relative_position_bias,
    resize_relative_position_bias,
)

CASES = ["1x6_to_4x6", "4x6_to_8x6", "1x6_to_8x6", "8x6_to_4x6", "4x6_to_6x6", "4x6_to_12x6"]
SPATIAL_CASES = ["1x14_to_1x16", "1x14_to_1x24", "1x14_to_1x12", "1x6_to_4x8", "1x14_to_4x16"]

LAYER = dict(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=2)


def tiny_config(**vision):
    sparsity = dict(num_random_blocks=1, block_size=8, keep_rate=0.7, prune_layers=[0])
    return SViTTEgoConfig(
        vision_config=LAYER | sparsity | dict(image_size=32, patch_size=8, num_frames=4) | vision,
        text_config=LAYER | dict(vocab_size=99, cls_token_id=2, mask_token_id=4),
        cross_modal_config=LAYER | dict(encoder_hidden_size=32, num_hidden_layers=1),
        projection_dim=16,
    )


def with_random_tables(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def tables(model):
    return [p.detach().clone() for n, p in model.named_parameters() if n.endswith("relative_position_bias_table")]


@pytest.mark.parametrize("case", CASES + SPATIAL_CASES)
def test_bias_inflation_equals_the_published_code(case, shared_dir):
    """Golden H (to the bit where written): bicubic spline in space (scipy there, ours here), nearest in time."""
    folder = shared_dir / "golden"
    spec = json.loads((folder / "H_bias_inflation.json").read_text())["cases"][case]
    recorded = load_file(folder / "H_bias_inflation.safetensors")
    table, size = recorded[f"{case}.src"], spec["dst_window"]
    table = resize_relative_position_bias(table, spec["src_frames"], spec["src_window"], size)
    table = resample_relative_position_bias(table, spec["src_frames"], spec["dst_frames"], size, "released")
    torch.testing.assert_close(table, recorded[f"{case}.dst"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("points", [4, 5, 27])
def test_cubic_spline_equals_scipy(points):
    """Uneven points, values inside and beyond the ends; 4 is a single cubic."""
    interpolate = pytest.importorskip("scipy.interpolate")
    generator = torch.Generator().manual_seed(points)
    x = (0.3 + torch.rand(points, generator=generator, dtype=torch.float64)).cumsum(0)
    z = torch.randn(points, points, generator=generator, dtype=torch.float64)
    at = torch.linspace(float(x[0]) - 1, float(x[-1]) + 1, 31, dtype=torch.float64)
    matrix = cubic_spline_matrix(x, at)
    clipped = at.clamp(x[0], x[-1]).numpy()
    expected = interpolate.RectBivariateSpline(x.numpy(), x.numpy(), z.numpy())(clipped, clipped)
    torch.testing.assert_close(matrix @ z @ matrix.T, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_too_few_offsets_for_a_spline_are_refused():
    with pytest.raises(ValueError, match="4 values or more, not 3"):
        resize_relative_position_bias(torch.zeros(9 + 3, 2), 1, 2, 4)


def test_resizing_in_space_works_on_each_offset_in_time():
    """The release raises for a spatial change of a table with several frames."""
    table = torch.randn(3 * 11**2 + 3, 4)
    resized = resize_relative_position_bias(table, 2, 6, 8)
    for i in range(3):
        alone = torch.cat([table[i * 121 : (i + 1) * 121], table[-3:]])
        expected = resize_relative_position_bias(alone, 1, 6, 8)
        torch.testing.assert_close(resized[i * 225 : (i + 1) * 225], expected[:225])
    assert torch.equal(resized[-3:], table[-3:])


@pytest.mark.parametrize("frames,new_frames", [(4, 8), (4, 16), (4, 6), (8, 4), (4, 1), (3, 7)])
def test_symmetric_resampling_is_symmetric_in_time(frames, new_frames):
    """Playing clips backwards and resampling commute. The release's rule fails this (next test)."""
    table = torch.randn((2 * frames - 1) * 9 + 3, 4)

    def backwards(table, frames):
        return torch.cat([table[:-3].view(2 * frames - 1, 9, -1).flip(0).flatten(0, 1), table[-3:]])

    there = resample_relative_position_bias(table, frames, new_frames, 2)
    back = resample_relative_position_bias(backwards(table, frames), frames, new_frames, 2)
    torch.testing.assert_close(back, backwards(there, new_frames))
    assert len(there) == (2 * new_frames - 1) * 9 + 3


def test_the_two_modes_read_the_offsets_they_say():
    """Table value = dt. From 4 to 8 frames the symmetric rule reads dt / 2; the release 0 for +1, but -1 for -1."""
    table = torch.cat([torch.arange(-3.0, 4.0), torch.zeros(3)])[:, None]
    symmetric = resample_relative_position_bias(table, 4, 8, 1)[:-3, 0]
    torch.testing.assert_close(symmetric, (torch.arange(-7.0, 8.0) / 2).clamp(-3, 3))
    released = resample_relative_position_bias(table, 4, 8, 1, "released")[:-3, 0]
    assert released[7 + 1] == 0 and released[7 - 1] == -1
    with pytest.raises(ValueError, match="symmetric, released"):
        resample_relative_position_bias(table, 4, 8, 1, "linear")


@torch.no_grad()
def test_resized_model_gives_what_it_gave_for_such_clips_before():
    """Resizing writes down what the forward does on the fly for a clip of another length."""
    model = with_random_tables(SViTTEgoForPreTraining(tiny_config()))
    video, ids = torch.randn(2, 8, 3, 32, 32), torch.randint(5, 99, (2, 7))
    before = model(video, ids).logits_per_video
    assert model.resize_frames(8) is model
    assert model.config.vision_config.num_frames == model.vision_model.config.num_frames == 8
    torch.testing.assert_close(model(video, ids).logits_per_video, before, rtol=0, atol=1e-6)
    assert all(len(table) == 15 * 49 + 3 for table in tables(model))


@torch.no_grad()
def test_temporal_expansion_is_one_call_and_survives_saving(tmp_path):
    """Frames up, keep rate down; config and weights agree on disk."""
    model = with_random_tables(SViTTEgoForPreTraining(tiny_config()))
    model.resize_frames(8, mode="released", keep_rate=0.4)
    model.save_pretrained(tmp_path)
    loaded = SViTTEgoForPreTraining.from_pretrained(tmp_path).eval()
    assert (loaded.config.vision_config.num_frames, loaded.config.vision_config.keep_rate) == (8, 0.4)
    video = torch.randn(1, 8, 3, 32, 32)
    out = loaded.vision_model(video)
    assert out.token_ids[0].shape == (1, 52)  # ceil(0.4 * 128)
    assert torch.equal(out.pooler_output, model.vision_model(video).pooler_output)


def test_resized_tables_are_trained():
    model = SViTTEgoVisionModel(tiny_config().vision_config).resize_frames(6)
    model(torch.randn(1, 6, 3, 32, 32)).pooler_output.sum().backward()
    for parameter in (layer.attention.relative_position_bias_table for layer in model.layers):
        assert parameter.requires_grad and parameter.grad is not None and len(parameter) == 11 * 49 + 3


def test_frozen_tables_stay_frozen():
    model = SViTTEgoVisionModel(tiny_config().vision_config).requires_grad_(False).resize_frames(6)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("arguments", [dict(num_frames=0), dict(num_frames=8, mode="cubic"),
                                       dict(num_frames=8, keep_rate=1.5)], ids=str)  # fmt: skip
def test_a_refused_resize_leaves_the_model_as_it_was(arguments):
    model = with_random_tables(SViTTEgoForVideoClassification(tiny_config()))
    before, config = tables(model), model.config.to_dict()
    with pytest.raises(Exception, match="num_frames|mode|keep_rate"):
        model.resize_frames(**arguments)
    assert all(map(torch.equal, before, tables(model))) and model.config.to_dict() == config


def test_a_model_without_video_tower_says_so():
    with pytest.raises(ValueError, match="SViTTEgoTextModel has no video tower"):
        SViTTEgoTextModel(tiny_config().text_config).resize_frames(8)
