"""A user of the Hub who has torch, torchvision, transformers and av: every snippet that we print runs as printed.

torchvision is there because transformers' own video processors need it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForVideoClassification, AutoProcessor, pipeline

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoClassification
from tests.helpers import block_modules
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder

REPO = Path(__file__).resolve().parents[2]
# What setup.py installs and extras add, besides the four and what they depend on.
NOT_THERE = (
    "modeling_svitt_ego accelerate datasets evaluate peft pyarrow decord torchcodec triton cv2 scipy pandas einops "
    "h5py onnx onnxruntime matplotlib sentence_transformers"
).split()
PLACE = "svitt-ego-demo/model"  # in the snippets of README


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the models and the video that the snippets name."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_folder(home / PLACE, SViTTEgoForPreTraining)
    labels = {0: "opens the box", 1: "closes the box", 2: "waits"}
    torch.manual_seed(0)
    save_tiny_folder(home / "classifier", SViTTEgoForVideoClassification, num_labels=3, id2label=labels)
    write_video(home / "my_video.mp4", 150)
    return home


def snippets() -> dict[str, str]:
    """The Python of README and of the model card that loads a model with its own code."""
    found = {}
    for file in ("README.md", "MODEL_CARD.md"):
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", (REPO / file).read_text(), re.DOTALL)):
            if "trust_remote_code" in code:
                place = "classifier" if "ForVideoClassification" in code else PLACE
                found[f"{file}-{i}"] = code.replace("{{ repo_id }}", place)
    return found


def run(code: str, home: Path) -> str:
    """Output of `code` in a fresh process in which only the four packages can be imported."""
    blocked = Path(block_modules.__file__).read_text() + f"\nblock({set(NOT_THERE)!r})\n"
    environment = {"HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-I", "-c", blocked + code]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", snippets())
def test_printed_snippets_run_with_four_packages(home, name):
    """Catches an import that only developers have, and a snippet that has drifted from the code."""
    code = snippets()[name]
    if "print(" not in code:  # the last line is an expression, as in a notebook
        *lines, last = code.strip().splitlines()
        code = "\n".join([*lines, f"print({last})"])
    output = run(code, home)
    assert "box" in output or "#C C" in output, output


STOCK = """
import json
from transformers import pipeline
classify = pipeline("video-classification", model="classifier", trust_remote_code=True, device="cpu")
print(json.dumps([classify("my_video.mp4", top_k=3), classify("my_video.mp4", top_k=1, num_frames=2)]))
"""


def test_the_stock_pipeline_classifies_videos(home):
    """Catches a configuration without num_frames, which transformers' own pipeline reads."""
    video = str(home / "my_video.mp4")
    model = AutoModelForVideoClassification.from_pretrained(home / "classifier").eval()
    processor = AutoProcessor.from_pretrained(home / "classifier")
    assert model.config.num_frames == model.config.vision_config.num_frames == 4
    classify = pipeline("video-classification", model=model, video_processor=processor.video_processor, device="cpu")
    in_clean_process = json.loads(run(STOCK, home).splitlines()[-1])
    for num_frames, result, other in (
        (4, classify(video, top_k=3), in_clean_process[0]),
        (2, classify(video, top_k=1, num_frames=2), in_clean_process[1]),
    ):
        with torch.no_grad():
            inputs = processor(videos=[video], num_frames=num_frames, return_tensors="pt")
            scores = model(**inputs).logits[0].softmax(-1)
        best = scores.argsort(descending=True)[: len(result)].tolist()
        for entries in (result, other):
            assert [entry["label"] for entry in entries] == [model.config.id2label[i] for i in best]
            assert [e["score"] for e in entries] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_our_pipeline_takes_what_the_processor_takes(home):
    """Catches an address that is taken for a missing file, and windows that are for paths only."""
    video = home / "my_video.mp4"
    classify = pipeline(model=str(home / PLACE), trust_remote_code=True, device="cpu")
    labels = ["opens the box", "picks up the cup"]
    expected = classify(str(video), candidate_labels=labels, start=2.0, end=4.0)
    data = video.read_bytes()
    for clip in (data, {"bytes": data, "path": None}, {"path": str(video)}):
        assert classify(clip, candidate_labels=labels, start=2.0, end=4.0) == expected
    assert classify((data, 2.0, 4.0), candidate_labels=labels) == expected
    with pytest.raises(ValueError, match="https://example.org/v.mp4: is a URL.*allow_urls=True"):
        classify("https://example.org/v.mp4", candidate_labels=labels)
    with pytest.raises(ValueError, match="of a kind that is not read"):
        classify("hf://datasets/a/b/v.mp4", candidate_labels=labels, allow_urls=True)
