"""A folder that an earlier version saved still loads, with the same outputs."""

import json
import zipfile
from pathlib import Path

import torch

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoProcessor


def test_a_folder_saved_by_the_first_version_gives_the_same_outputs(tmp_path):
    """Catches a renamed weight, configuration field or processor field. The archive was written at commit 948a252."""
    with zipfile.ZipFile(Path(__file__).with_name("saved_at_948a252.zip")) as archive:
        archive.extractall(tmp_path)
    expected = json.loads((tmp_path / "expected.json").read_text())
    model, info = SViTTEgoForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    processor = SViTTEgoProcessor.from_pretrained(tmp_path)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]

    frames = torch.rand(2, 4, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    batch = processor(
        videos=list((frames * 255).to(torch.uint8)),
        text=["#C C picks up the cup", "#C C opens the box"],
        return_tensors="pt",
    )
    assert batch["input_ids"].tolist() == expected["input_ids"]
    assert abs(batch["pixel_values_videos"].double().mean().item() - expected["pixel_mean"]) < 1e-6
    with torch.no_grad():
        logits = model.eval()(**batch).logits_per_video
    torch.testing.assert_close(logits, torch.tensor(expected["logits_per_video"]), rtol=1e-4, atol=1e-4)
