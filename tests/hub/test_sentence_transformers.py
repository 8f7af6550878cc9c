"""A saved folder in sentence-transformers, by its own documented calls; the folder needs no extra files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor
from tests.helpers.hub_double import WRITE_TOKEN, HubDouble
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import NARRATIONS, save_tiny_folder

sentence_transformers = pytest.importorskip("sentence_transformers")
datasets = pytest.importorskip("datasets")

REPO = Path(__file__).resolve().parents[2]
OPEN_FROM_HUB = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from tests.helpers.block_modules import block
block({"modeling_svitt_ego"})
import numpy as np
from sentence_transformers import SentenceTransformer
name, out, *inputs = sys.argv[1:]
encoder = SentenceTransformer(name, trust_remote_code=True, device="cpu")
np.savez(out, *[encoder.encode([value])[0] for value in inputs])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("model"), text={"max_position_embeddings": 32})


@pytest.fixture(scope="module")
def encoder(folder):
    return sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name, num_frames in (("a", 40), ("b", 27)):
        write_video(root / f"{name}.mp4", num_frames)
    return [str(root / "a.mp4"), str(root / "b.mp4")]


@pytest.fixture(scope="module")
def expected(folder):
    """`expected(videos=…)` or `expected(text=…)`: the embeddings that the model itself gives."""
    model, processor = SViTTEgoModel.from_pretrained(folder).eval(), SViTTEgoProcessor.from_pretrained(folder)

    def embed(**inputs):
        features = model.get_text_features if "text" in inputs else model.get_video_features
        with torch.no_grad():
            return features(**processor(**inputs, return_tensors="pt")).pooler_output.numpy()

    return embed


def test_texts_are_the_models_own_embeddings(encoder, expected):
    """Catches another pooling, a prompt in front of the text, or another truncation."""
    np.testing.assert_allclose(encoder.encode(NARRATIONS), expected(text=NARRATIONS), atol=1e-6)


def test_a_text_longer_than_the_text_tower_is_truncated(encoder, expected):
    """Catches a text that reaches the tower with more tokens than it has positions."""
    long = " ".join(["picks up the cup"] * 40)
    np.testing.assert_allclose(encoder.encode([long]), expected(text=[long]), atol=1e-6)


def test_videos_by_path_window_and_array(encoder, expected, videos):
    """Catches a kind of video that sentence-transformers hands over in another form than the processor takes."""
    np.testing.assert_allclose(encoder.encode(videos), expected(videos=videos), atol=1e-6)
    window = {"path": videos[0], "start": 1.0, "end": 2.0}
    given = {"array": window, "video_metadata": None}
    np.testing.assert_allclose(encoder.encode([{"video": given}]), expected(videos=[window]), atol=1e-6)
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 50, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode([frames]), expected(videos=[frames]), atol=1e-6)


def test_videos_by_decoder(encoder, expected, videos):
    """Catches a torchcodec VideoDecoder, what `datasets.Video` columns give, that is taken for something else."""
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    given = [decoders.VideoDecoder(path) for path in videos]
    np.testing.assert_allclose(encoder.encode(given), expected(videos=videos), atol=1e-6)


def test_similarity_is_the_cosine(encoder, expected, videos):
    """Catches dot products of embeddings that are not of unit length."""
    similarity = encoder.similarity(encoder.encode(videos), encoder.encode(NARRATIONS))
    rows, columns = (torch.tensor(x) for x in (expected(videos=videos), expected(text=NARRATIONS)))
    cosine = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(columns).T
    torch.testing.assert_close(similarity, cosine, atol=1e-5, rtol=1e-5)


def test_an_evaluator_of_the_library_ranks_videos_for_texts(encoder, videos):
    """Catches embeddings that the library's retrieval evaluator cannot use."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        queries={"q0": NARRATIONS[0], "q1": NARRATIONS[1]},
        corpus={"a": videos[0], "b": videos[1]},
        relevant_docs={"q0": {"a"}, "q1": {"b"}},
        accuracy_at_k=[1, 2], precision_recall_at_k=[1], map_at_k=[2], mrr_at_k=[2], ndcg_at_k=[2],
    )  # fmt: skip
    results = evaluator(encoder)
    assert results["cosine_accuracy@2"] == 1.0 and 0.5 <= results["cosine_mrr@2"] <= 1.0


def test_a_loss_of_the_library_trains_both_towers(folder, videos, tmp_path):
    """Catches a tower that gets no gradient, and a trained folder that no longer opens."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    before = {name: x.clone() for name, x in encoder.named_parameters()}
    pairs = datasets.Dataset.from_dict({"anchor": NARRATIONS[:2], "positive": videos})
    arguments = Arguments(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=2, learning_rate=0.1, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(
        encoder, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(encoder)
    ).train()
    changed = {name for name, x in encoder.named_parameters() if not torch.equal(x, before[name])}
    for tower in ("vision_model", "text_model", "video_projection", "text_projection"):
        assert any(f".{tower}." in name for name in changed), tower
    encoder.save(str(tmp_path / "saved"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(NARRATIONS), encoder.encode(NARRATIONS), atol=1e-6)


def test_a_pushed_folder_opens_where_the_package_is_not_installed(folder, expected, videos, tmp_path):
    """Catches a push that leaves out what sentence-transformers asks the Hub for, and code that needs the package."""
    name = "someone/svitt-ego-tiny"
    with HubDouble() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITE_TOKEN}
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPO)}

        def run(*arguments):
            command = [sys.executable, *arguments]
            done = subprocess.run(command, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]

        run("-m", "modeling_svitt_ego.cli", "push", str(folder), name)
        settings["PYTHONPATH"] = ""
        run("-c", OPEN_FROM_HUB, str(REPO), name, str(tmp_path / "vectors.npz"), NARRATIONS[0], videos[0])
    text, video = np.load(tmp_path / "vectors.npz").values()
    np.testing.assert_allclose(text, expected(text=NARRATIONS[:1])[0], atol=1e-6)
    np.testing.assert_allclose(video, expected(videos=videos[:1])[0], atol=1e-6)
