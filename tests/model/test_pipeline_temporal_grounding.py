"""`pipeline("temporal-grounding")` on a tiny head and a tiny encoder."""

import subprocess
import sys

import pytest
import torch
from transformers import pipeline

from modeling_svitt_ego import SViTTEgoForTemporalGrounding, SViTTEgoModel, SViTTEgoTemporalGroundingConfig
from modeling_svitt_ego.features.windows import embed_texts
from modeling_svitt_ego.weights.loading import load_processor
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
