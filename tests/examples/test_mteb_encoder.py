"""examples/mteb_encoder.py, run by mteb's own `evaluate` on tasks that are built on the spot."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import NARRATIONS, save_tiny_folder

mteb = pytest.importorskip("mteb")
datasets = pytest.importorskip("datasets")
pytest.importorskip("torchcodec", exc_type=ImportError)  # `datasets.Video` decodes with it

from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mteb_encoder.py"
RELEVANT = {"0": {"1": 1}, "1": {"2": 1}, "2": {"0": 1}}  # query: the document that answers it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny", text={"max_position_embeddings": 32})


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_video(root / f"{number}.mp4", 30, first=20 * number)
    return [str(root / f"{number}.mp4") for number in range(3)]


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def cosines(folder, videos):
    """Of the three narrations (rows) with the three videos, by the model itself."""
    model, processor = SViTTEgoModel.from_pretrained(folder).eval(), SViTTEgoProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(videos=videos, text=NARRATIONS, return_tensors="pt"))
    return (outputs.logits_per_text * model.temperature).detach().numpy()


def retrieval_task(category: str, videos: list[str]) -> AbsTaskRetrieval:
    """A task of mteb between three narrations and three videos; `category` is "t2v" or "v2t"."""
    identifiers = [str(number) for number in range(3)]
    texts = datasets.Dataset.from_dict({"id": identifiers, "text": NARRATIONS})
    clips = datasets.Dataset.from_dict({"id": identifiers, "video": videos}).cast_column("video", datasets.Video())

    class Task(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"Toy{category}", description="Videos and texts.", dataset={"path": "local/toy", "revision": "1"},
            type="Any2AnyRetrieval", eval_langs=["eng-Latn"], eval_splits=["test"], main_score="ndcg_at_10",
            category=category, modalities=["text", "video"] if category == "t2v" else ["video", "text"],
            reference=None, date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
            dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, num_proc=None, **options):
            queries, corpus = (texts, clips) if category == "t2v" else (clips, texts)
            data = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=RELEVANT, top_ranked=None)
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    return Task()


@pytest.mark.parametrize("category", ["t2v", "v2t"])
def test_mteb_ranks_as_the_models_own_cosines_do(example, folder, videos, cosines, category, tmp_path):
    """Catches a video that reaches the model with other frames, swapped towers and vectors that are not compared by
    the cosine."""
    cache = mteb.ResultCache(tmp_path)
    meta = example["model_meta"](str(folder))
    result = mteb.evaluate(meta, retrieval_task(category, videos), cache=cache, show_progress_bar=False)
    scores = cosines if category == "t2v" else cosines.T
    ranks = [int((scores[query] > scores[query, (query + 1) % 3]).sum()) for query in range(3)]
    assert result.task_results[0].get_score() == pytest.approx(
        np.mean([1 / np.log2(rank + 2) for rank in ranks]), abs=1e-4
    )
    (file,) = tmp_path.rglob("Toy*.json")
    assert "local__tiny" in str(file)


def test_the_meta_data_describe_the_model(example, folder):
    """Catches numbers of parameters, tokens or dimensions that are not the model's."""
    meta, model = example["model_meta"](str(folder)), SViTTEgoModel.from_pretrained(folder)
    assert (meta.n_parameters, meta.embed_dim) == (model.num_parameters(), model.config.projection_dim)
    assert meta.max_tokens == 32 and set(meta.modalities) == {"video", "text"}


def test_a_modality_without_a_tower_is_refused(example, folder):
    encoder = example["model_meta"](str(folder)).load_model()
    with pytest.raises(ValueError, match=r"encodes text and video; this task gives \['audio'\]"):
        encoder.encode([{"audio": [0]}], task_metadata=None, hf_split="test", hf_subset="default")
