"""Tiny models and batches for the model tests: 64 patch tokens in 8 blocks of 8, weights large enough to matter."""

import torch

from modeling_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoForMultipleChoice,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
    SViTTEgoVisionConfig,
    SViTTEgoVisionModel,
)

# Every class that is saved and loaded by itself.
HEADS = [
    SViTTEgoModel,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoForMultipleChoice,
    SViTTEgoForVideoClassification,
]

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37, "initializer_range": 0.2}
VISION = SIZES | {
    "num_hidden_layers": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "layer_scale_init_value": 1.0,
    "block_size": 8,
    "num_local_blocks": 1,
    "num_random_blocks": 3,
    "keep_rate": 0.7,
    "prune_layers": [1],
}
# Three layers of 64, 45 and 32 tokens: in the second the last block holds 5 tokens and 3 of padding.
RAGGED = {"num_hidden_layers": 3, "prune_layers": [0, 1]}
TEXT = SIZES | {
    "num_hidden_layers": 2,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "cls_token_id": 1,
    "mask_token_id": 2,
}
FUSION = SIZES | {"encoder_hidden_size": 32, "num_hidden_layers": 2, "keep_rate": 0.5}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Nothing random in training: every layer is kept, and the 7 blocks beyond the local one are all that there are.
STILL = {"vision": {"drop_path_rate": 0.0, "num_random_blocks": 7}, "text": NO_DROPOUT, "fusion": NO_DROPOUT}


def tiny_vision_config(**fields) -> SViTTEgoVisionConfig:
    return SViTTEgoVisionConfig(**(VISION | fields))


def tiny_config(vision=(), text=(), fusion=(), **fields) -> SViTTEgoConfig:
    return SViTTEgoConfig(
        vision_config=VISION | dict(vision),
        text_config=TEXT | dict(text),
        cross_modal_config=FUSION | dict(fusion),
        **({"projection_dim": 16, "initializer_range": 0.2} | fields),
    )


def with_weights(model, seed=0):
    """Random bias tables too: they start at zero, and a test that needs them would pass without."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_table" in name or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def tiny_vision_model(implementation="sdpa", **fields) -> SViTTEgoVisionModel:
    torch.manual_seed(0)
    config = tiny_vision_config(**fields)
    return with_weights(SViTTEgoVisionModel._from_config(config, attn_implementation=implementation)).eval()


def tiny_model(cls=SViTTEgoForPreTraining, implementation="sdpa", **fields):
    torch.manual_seed(0)
    return with_weights(cls._from_config(tiny_config(**fields), attn_implementation=implementation)).eval()


def tiny_clips(batch_size=2, num_frames=4, seed=1) -> torch.Tensor:
    return torch.randn(batch_size, num_frames, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def tiny_batch(batch_size=4, num_frames=4, seed=1) -> dict[str, torch.Tensor]:
    """Clips and narrations of 4 to 7 tokens, padded; clips 0 and 1 share an action."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 4, 6, 5]).repeat(batch_size)[:batch_size]
    attention_mask = (torch.arange(7) < lengths[:, None]).long()
    input_ids = torch.randint(5, 99, (batch_size, 7), generator=generator)
    input_ids[:, 0] = 1
    actions = torch.arange(batch_size).clamp(min=1) - 1
    return {
        "pixel_values_videos": tiny_clips(batch_size, num_frames, seed),
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "verb_tags": torch.eye(batch_size)[actions],
        "noun_tags": torch.eye(batch_size)[actions],
    }


def gradients(model) -> dict[str, torch.Tensor]:
    """A copy of every gradient, by name, and the model's cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, **tolerance, msg=lambda m, name=name: f"{name}: {m}")
