"""Starts from CLIP and SigLIP: equal to both encoders with one frame, inflated in time, saved and loaded."""

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from modeling_svitt_ego import SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.weights.image_text_start import from_image_text_encoder

TEXT = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "eos_token_id": 98,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 41,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
DENSE = {"num_random_blocks": None, "keep_rate": 1.0}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request, tmp_path_factory):
    """A folder and its model, with random weights large enough to matter, biases of keys and norms included."""
    torch.manual_seed(0)
    text = TEXT | ({} if request.param == "clip" else {"hidden_size": 32, "projection_size": 32})
    config, cls = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[request.param]
    fields = {"projection_dim": 20} if request.param == "clip" else {}
    model = cls(config(text_config=text, vision_config=VISION, **fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3 + ("norm" in name and name.endswith("weight")))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def texts():
    ids = torch.randint(3, 97, (3, 16), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 98
    return ids


@torch.no_grad()
def test_one_frame_and_all_edges_equal_the_image_model(encoder):
    """Catches a norm, a projection or a position in the wrong place, a [CLS] that disturbs, and keys without bias."""
    folder, source = encoder
    model = from_image_text_encoder(SViTTEgoModel, str(folder), num_frames=4, **DENSE).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = source.get_image_features(pixel_values=pixels).pooler_output
    found = model.get_video_features(pixels[:, None]).pooler_output
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected = source.get_text_features(input_ids=texts()).pooler_output
    assert_close(model.get_text_features(texts()).pooler_output, expected, rtol=1e-5, atol=1e-5)
    assert_close(model.temperature, (-source.logit_scale).exp().view(1).clamp(0.001, 0.5))
    still = model.get_video_features(pixels[:, None].repeat(1, 4, 1, 1, 1)).pooler_output
    # Four equal frames: each patch sees four equal copies of every other one.
    assert_close(torch.nn.functional.cosine_similarity(still, found), torch.ones(2), rtol=0, atol=0.2)
    new = [name for name in model.new_parameters if name.startswith(("vision_model", "text_model"))]
    assert new == ["vision_model.embeddings.positions.frame_embedding"]


@torch.no_grad()
def test_a_sparse_clip_trains_and_survives_saving(encoder, tmp_path):
    """Catches a text tower that comes back as BERT, and parameters that get no gradient."""
    folder, _ = encoder
    sparse = {
        "block_size": 8,
        "num_random_blocks": 3,
        "keep_rate": 0.7,
        "contrastive_loss": "info_nce",
        "vtm_weight": 0,
    }
    model = from_image_text_encoder(SViTTEgoModel, str(folder), num_frames=4, **sparse)
    clips = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.enable_grad():
        outputs = model.train()(clips, texts(), torch.ones(3, 16, dtype=torch.long), return_loss=True)
        outputs.loss.backward()
    unreached = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all("layernorm" in name or "frame" in name for name in unreached), unreached
    assert model.vision_model.embeddings.positions.frame_embedding.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = SViTTEgoModel.from_pretrained(tmp_path).eval()
    assert type(again.text_model) is type(model.text_model) and again.config.vision_config.pooling != "mean"
    assert_close(again(clips, texts()).logits_per_video, model(clips, texts()).logits_per_video)


@torch.no_grad()
def test_other_numbers_of_frames(encoder):
    """Frames' vectors are resampled on the fly as `resize_frames` does for good."""
    folder, _ = encoder
    model = from_image_text_encoder(SViTTEgoModel, str(folder), num_frames=4, **DENSE).eval()
    model.vision_model.embeddings.positions.frame_embedding.normal_(generator=torch.Generator().manual_seed(0))
    clips = torch.randn(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    before = model.get_video_features(clips).pooler_output
    model.resize_frames(6)
    assert model.vision_model.embeddings.positions.frame_embedding.shape == (6, 32)
    assert_close(model.get_video_features(clips).pooler_output, before)


def test_the_fusion_tower_continues_the_text_tower(encoder):
    folder, _ = encoder
    model = SViTTEgoForVideoTextRetrieval.from_image_text_encoder(str(folder), num_frames=2, **DENSE).eval()
    assert "vtm_head.weight" in model.new_parameters
    with torch.no_grad():
        outputs = model(torch.randn(3, 2, 3, 32, 32), texts(), torch.ones(3, 16, dtype=torch.long))
    assert outputs.vtm_logits.shape == (3, 2)


def test_what_cannot_be_started_from_is_refused(encoder):
    folder, _ = encoder
    with pytest.raises(ValueError, match="text tower is that of the encoder"):
        from_image_text_encoder(SViTTEgoModel, str(folder), text_num_hidden_layers=1)
    with pytest.raises(ValueError, match="patch_size is 8"):
        from_image_text_encoder(SViTTEgoModel, str(folder), patch_size=16)


def test_other_kinds_of_models_are_refused(tmp_path):
    from transformers import Siglip2Config, ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="'vit' model; this needs one of clip, siglip"):
        from_image_text_encoder(SViTTEgoModel, str(tmp_path / "vit"))
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    with pytest.raises(ValueError, match="fixed resolution, such as google/siglip2-base-patch16-224"):
        from_image_text_encoder(SViTTEgoModel, str(tmp_path / "naflex"))
