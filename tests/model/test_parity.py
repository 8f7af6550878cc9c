"""The published SViTT code's tensors (random weights, every intermediate; float32) against ours.

Ours run in float32 and in float64. The tolerance is 1e-5 absolute; MLM logits in float32 get 2e-5, because their own
float32 rounding in the reference is already 0.8e-5 (`fp32_vs_fp64_max_abs` in the recordings).
"""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from modeling_svitt_ego.model.losses import ego_nce, masked_language_modeling, video_text_matching
from modeling_svitt_ego.weights.released_checkpoint import load_original_checkpoint

CASES = ["A_dense", "B_dense_prune", "C_edge_1_3", "F_image_dense", "F_image_edge_duplicate"]


class Golden:
    """One reference case: the converted model and the recorded tensors."""

    def __init__(self, folder, name, dtype):
        spec = json.loads((folder / f"{name}.json").read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        self.name, self.spec, self.dtype = name, spec, dtype
        self.input = {key[6:]: t for key, t in tensors.items() if key.startswith("input.")}
        self.input["video"] = self.input["video"].to(dtype)
        self.output = {key[7:]: t for key, t in tensors.items() if key.startswith("output.")}
        state = {key[11:]: t for key, t in tensors.items() if key.startswith("state_dict.")}

        vision, text = spec["vision_config"], spec["text_config"]
        sparsity = ("token_keep_rate", "token_keep_strategy", "token_drop_loc")
        edges = ("sparse_random_attn", "sparse_local_attn", "attn_block_size")
        settings = {  # as in a YAML of the SViTT code
            "vision_encoder_args": {key: vision[key] for key in sparsity + edges},
            "text_encoder_args": {key: text[key] for key in sparsity},
            "embed_dim": spec["embed_dim"],
            "image_res": vision["image_size"],
        }
        ids = {"text_cls_token_id": spec["tokenizer"]["cls"], "text_mask_token_id": spec["tokenizer"]["mask"]}
        self.model = load_original_checkpoint(state, num_frames=spec["num_frames"], settings=settings, **ids)
        self.model.to(dtype)

        patterns = [self.output.get(f"random_pattern.{i}") for i in range(vision["num_hidden_layers"])]
        self.patterns = None if patterns[0] is None else patterns

    @torch.no_grad()
    def encode(self, implementation="eager"):
        self.model.set_attn_implementation(implementation)
        return self.model(
            self.input["video"],
            self.input["input_ids"],
            self.input["attention_mask"],
            random_patterns=self.patterns,
            output_hidden_states=True,
        )

    def check(self, value, key):
        atol = 2e-5 if key == "mlm.logits" and self.dtype == torch.float32 else 1e-5
        expected = self.output[key].to(self.dtype)
        torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=lambda m: f"{self.name} {key}: {m}")


@pytest.fixture(scope="module", params=[(c, d) for c in CASES for d in ("float32", "float64")], ids="-".join)
def golden(request, shared_dir):
    name, dtype = request.param
    return Golden(shared_dir / "golden", name, getattr(torch, dtype))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_vision_tower_equals_the_published_code(golden, implementation):
    """Every layer's hidden states, the tokens kept, the last state and the pooled vector."""
    vision = golden.encode(implementation).vision_model_output
    layers = golden.spec["vision_config"]["num_hidden_layers"]
    assert len(vision.hidden_states) == layers + 1
    for i, state in enumerate(vision.hidden_states):
        golden.check(state, f"vision.hidden_states.{i}")
    golden.check(vision.last_hidden_state, "vision.last_hidden_state")
    recorded = sorted(key for key in golden.output if key.startswith("vision.token_idx"))
    assert len(recorded) == len(vision.token_ids)
    for key, ids in zip(recorded, vision.token_ids):
        assert torch.equal(ids, golden.output[key]), key


def test_cls_attention_equals_the_published_code(golden):
    golden.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = golden.model.vision_model(golden.input["video"], golden.patterns, output_attentions=True)
    for i, attention in enumerate(out.attentions):
        golden.check(attention[:, :, :1], f"vision.cls_attention.{i}")


def test_text_projections_and_similarities_equal_the_published_code(golden):
    out = golden.encode()
    golden.check(out.text_model_output.last_hidden_state, "text.last_hidden_state")
    golden.check(F.normalize(out.video_embeds, dim=-1), "proj.image_feat")
    golden.check(F.normalize(out.text_embeds, dim=-1), "proj.text_feat")
    golden.check(out.logits_per_video * golden.model.temperature, "sim.i2t_t1")
    golden.check(out.logits_per_video, "sim.i2t")


def test_pooled_vector_equals_the_published_code(golden):
    with torch.no_grad():
        out = golden.model.vision_model(golden.input["video"], golden.patterns)
    golden.check(out.pooler_output, "vision.pooler_output")


@torch.no_grad()
def test_fusion_and_all_three_losses_equal_the_published_code(golden):
    """Contrastive (half of our sup_con sum), matching on the recorded negatives, masked language modelling."""
    model, given = golden.model, golden.input
    out = golden.encode()
    mask = given["attention_mask"]
    texts, videos = out.text_model_output.last_hidden_state, out.vision_model_output.last_hidden_state

    positives = given["idx"][:, None] == given["idx"][None]
    contrastive = ego_nce(out.logits_per_video, out.logits_per_text, positives, "sup_con") / 2
    golden.check(contrastive, "loss.itc")

    fused = model.fusion_model(texts, videos, mask, output_attentions=True)
    golden.check(fused.last_hidden_state, "fusion.last_hidden_state")
    for i, attention in enumerate(fused.cross_attentions):
        golden.check(attention, f"fusion.cross_attention.{i}")
    for i, kept in enumerate(fused.token_positions):
        assert torch.equal(kept, golden.output[f"fusion.token_idx.{i}"])

    v_neg, t_neg = given["itm_img_neg"], given["itm_txt_neg"]
    logits = model.match(
        torch.cat([texts, texts, texts[t_neg]]),
        torch.cat([mask, mask, mask[t_neg]]),
        torch.cat([videos, videos[v_neg], videos]),
    )
    golden.check(logits, "itm.logits")
    labels = torch.tensor([1] * len(texts) + [0] * 2 * len(texts))
    golden.check(video_text_matching(logits, labels), "loss.itm")

    mlm_logits = model.predict_masked(given["mlm_input_ids"], mask, videos)
    golden.check(mlm_logits, "mlm.logits")
    golden.check(masked_language_modeling(mlm_logits, given["mlm_labels"]), "loss.mlm")
