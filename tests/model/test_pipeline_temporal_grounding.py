"""`pipeline("temporal-grounding")` on a tiny head and a tiny encoder."""

import subprocess
import sys

import pytest
import torch
from transformers import pipeline

from modeling_svitt_ego import SViTTEgoForTemporalGrounding, SViTTEgoModel, SViTTEgoTemporalGroundingConfig
from modeling_svitt_ego.features.source_videos import find_videos
from modeling_svitt_ego.features.windows import WindowSettings, embed_texts, embed_video
from modeling_svitt_ego.weights.loading import load_processor
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder

SIZES = {"video_dim": 16, "text_dim": 32, "hidden_size": 16, "num_attention_heads": 2, "windows_per_second": 2.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding")
    torch.manual_seed(0)
    head = SViTTEgoForTemporalGrounding(SViTTEgoTemporalGroundingConfig(**SIZES)).eval()
    head.save_pretrained(folder / "head")
    encoder = SViTTEgoModel.from_pretrained(save_tiny_folder(folder / "encoder")).eval()
    return folder, head, encoder, load_processor(folder / "encoder")


def test_spans_are_those_of_the_head_in_seconds(parts):
    """Catches cells taken for seconds, an end that is the last cell's start, and texts of another form."""
    _, head, encoder, processor = parts
    find = pipeline("temporal-grounding", model=head, encoder=encoder, processor=processor)
    cells = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    (text,) = embed_texts(encoder, processor, ["#C C opens the box"])
    tokens, embeds = torch.tensor(text.token_features), torch.tensor(text.features)
    with torch.no_grad():
        expected = head.spans(head(cells[None], tokens[None], embeds[None]), 3)[0]
    found = find({"video_features": cells.numpy(), "query": "#C C opens the box"}, top_k=3)
    assert len(found) == len(expected) >= 1
    for span, (first, last, score) in zip(found, expected):
        assert (span["start"], span["end"]) == (first / 2, (last + 1) / 2)
        assert span["score"] == pytest.approx(score, rel=1e-4)
    direct = {"video_features": cells, "text_features": tokens, "text_embeds": embeds}
    assert find([direct, direct], top_k=3)[1][0]["start"] == found[0]["start"]


@pytest.mark.parametrize("kind", ["projected", "pooled"])
@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_video_and_a_question_give_what_extracted_features_give(parts, tmp_path, kind, form):
    """Catches windows of another length, place or number of frames than in training, and an end past the video's."""
    _, _, encoder, processor = parts
    write_video(tmp_path / "v.mp4", 27)  # 2.7 s: the last of 6 cells is shorter
    settings = WindowSettings(2.0, 0.9, 3, kind)
    fields = {"window_seconds": 0.9, "num_frames": 3, "feature_kind": kind, "use_similarity": kind == "projected"}
    sizes = SIZES | fields | ({"video_dim": 32} if kind == "pooled" else {})
    torch.manual_seed(1)
    head = SViTTEgoForTemporalGrounding(SViTTEgoTemporalGroundingConfig(**sizes)).eval()
    find = pipeline("temporal-grounding", model=head, encoder=encoder, processor=processor)
    features = embed_video(encoder, processor, find_videos(tmp_path / "v.mp4")[0], settings)
    expected = find({"video_features": features.features, "query": "#C C opens the box"}, top_k=20)
    video = tmp_path / "v.mp4" if form == "path" else (tmp_path / "v.mp4").read_bytes()
    found = find({"video": str(video) if form == "path" else video, "query": "#C C opens the box"}, top_k=20)
    assert len(found) == len(expected) > 1 and len(features.cells) == 6
    assert max(span["end"] for span in found) == pytest.approx(2.7)
    for span, wanted in zip(found, expected):
        assert span["start"] == wanted["start"] and span["end"] == min(wanted["end"], features.cells[-1, 1])
        assert span["score"] == pytest.approx(wanted["score"], rel=1e-3)


def test_the_saved_folder_brings_the_pipeline(parts):
    """In a process without the package: the folder's own code must be enough."""
    code = (
        "import sys, torch; from transformers import pipeline\n"
        f"find = pipeline('temporal-grounding', model={str(parts[0] / 'head')!r}, trust_remote_code=True)\n"
        "print(len(find({'video_features': torch.zeros(4, 16), 'text_features': torch.zeros(3, 32), "
        "'text_embeds': torch.zeros(16)}, top_k=1)), 'modeling_svitt_ego' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=parts[0], env=_clean())
    assert done.stdout.split() == ["1", "False"], done.stderr[-2000:]


def _clean():
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"query": "a"}, "video_features"),
        ({"query": "a", "video": "v.mp4", "video_features": torch.zeros(3, 16)}, "either video or video_features"),
        ({"query": "a", "video": "v.mp4"}, "A video needs encoder="),
        ({"video_features": torch.zeros(3, 5), "query": "a"}, r"\(num_cells, 16\)"),
        ({"video_features": torch.zeros(3, 16), "query": "a"}, "needs encoder="),
        ({"video_features": torch.zeros(3, 16), "text_features": torch.zeros(2, 32)}, "needs text_embeds"),
    ],
)
def test_inputs_that_lack_something_are_refused(parts, inputs, message):
    find = pipeline("temporal-grounding", model=parts[1])
    with pytest.raises(ValueError, match=message):
        find(inputs)


def test_other_models_and_arguments_are_refused(parts):
    with pytest.raises(TypeError, match="grounding head"):
        pipeline("temporal-grounding", model=parts[2])
    with pytest.raises(ValueError, match="together"):
        pipeline("temporal-grounding", model=parts[1], encoder=parts[2])
    with pytest.raises(ValueError, match="top_k"):
        pipeline("temporal-grounding", model=parts[1])({"video_features": torch.zeros(3, 16)}, top_k=0)
