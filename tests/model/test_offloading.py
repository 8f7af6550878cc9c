"""accelerate's offloading: weights that are on the meta device between calls."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from modeling_svitt_ego import SViTTEgoTextModel, SViTTEgoVisionModel
from tests.helpers.tiny_model import HEADS, tiny_batch, tiny_config, tiny_model, with_weights

TOWERS = {SViTTEgoVisionModel: "vision_config", SViTTEgoTextModel: "text_config"}


def model_and_inputs(cls):
    batch = tiny_batch(2)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    clips = {"pixel_values_videos": batch["pixel_values_videos"]}
    if cls in TOWERS:
        torch.manual_seed(0)
        config = getattr(tiny_config(), TOWERS[cls])
        model = with_weights(cls._from_config(config, attn_implementation="sdpa")).eval()
        return model, clips if cls is SViTTEgoVisionModel else text
    model = tiny_model(cls)
    if cls.__name__.endswith("VideoClassification"):
        return model, clips
    if cls.__name__.endswith("MultipleChoice"):
        text = {name: x[:1] for name, x in text.items()}
        return model, text | {"pixel_values_videos": batch["pixel_values_videos"][None]}  # two clips to choose from
    return model, clips | text


def tensors(output) -> list[torch.Tensor]:
    return [x for x in output.values() if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("cls", [*HEADS, *TOWERS], ids=lambda cls: cls.__name__)
def test_an_offloaded_model_computes_what_the_model_computes(cls, where, tmp_path):
    """Catches a module that is passed to another module's call: accelerate moves it, and its weights are on meta."""
    model, inputs = model_and_inputs(cls)
    with torch.no_grad():
        expected = tensors(model(**inputs))
        if where == "cpu":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        found = tensors(model(**inputs))
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
