"""EK-100 retrieval by dual softmax and by re-ranking, and the challenge's file."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_svitt_ego import SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.evaluation.ek100 import EK100Evaluator
from modeling_svitt_ego.evaluation.ek100_submission import write_submission
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.evaluation.rescoring import dual_softmax
from modeling_svitt_ego.weights.loading import load_checkpoint, load_processor
from tests.data.test_relevance import CLIPS, write_ek100
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("ek100")
    write_video(root / "videos" / "P01_01.mp4", 80, noise=40)
    texts = ("open cup", "take box", "take cup", "shut cup", "wash box")  # the tiny tokenizer spells
    write_ek100(
        root, [(text, *clip[1:]) for text, clip in zip(texts, [*CLIPS[:4], CLIPS[5]])], name="EPIC_100_retrieval_test"
    )
    names = "EPIC_100_retrieval_test.csv", "EPIC_100_retrieval_test_sentence.csv"
    folder = save_tiny_folder(root / "model", SViTTEgoForVideoTextRetrieval)
    return SimpleNamespace(root=root, files=[root / name for name in names], videos=root / "videos", model=folder)


def make(world, **fields):
    return EK100Evaluator(*world.files, world.videos, load_processor(world.model), 4, batch_size=4, **fields)


def test_dual_softmax_is_that_of_the_cosines(world):
    model = load_checkpoint(world.model, "dual")
    dual, found = make(world).scores(model), make(world, scoring="dual-softmax", temperature=0.1).scores(model)
    np.testing.assert_allclose(found.per_video, dual_softmax(dual.per_video, 0.1))
    report = make(world, scoring="dual-softmax")(model)
    assert report.scoring_mode == "dual-softmax" and report.details["temperature"] == 0.05


def test_reranking_orders_the_best_by_the_matching_head(world):
    """Against the fusion tower called pair by pair; catches texts and clips exchanged, and one direction for both."""
    model, evaluator = load_checkpoint(world.model, "fusion"), make(world, scoring="rerank", top_k=2)
    dual, found = make(world).scores(model), evaluator.scores(model)
    processor, texts = evaluator.processor, list(evaluator.sentences["clip_text"])

    @torch.no_grad()
    def odds(clip, text):
        video = evaluator.dataset[clip]["video"]
        still = {"do_sample_frames": False, "do_random_resized_crop": False, "do_random_flip": False}
        pixels = processor(videos=[video], return_tensors="pt", **still)["pixel_values_videos"]
        inputs = processor(text=[texts[text]], return_tensors="pt")
        logits = model(pixels, inputs["input_ids"], inputs["attention_mask"]).vtm_logits[0]
        return float(logits[1] - logits[0])

    for scores, ranked, pair in (
        (dual.per_video, found.per_video, odds),
        (dual.per_text, found.per_text, lambda t, c: odds(c, t)),
    ):
        for row in range(len(scores)):
            first, second, *rest = np.argsort(-scores[row], kind="stable")
            best = sorted((first, second), key=lambda column: -pair(row, column))
            assert np.argsort(-ranked[row], kind="stable").tolist() == [*best, *rest]
    report = evaluator(model)
    assert report.scoring_mode == "rerank" and report.details["top_k"] == 2 and "2 best" in report.scoring_rule


def test_reranking_needs_the_fusion_tower(world, tmp_path):
    dual_only = save_tiny_folder(tmp_path / "dual", SViTTEgoModel)
    with pytest.raises(ValueError, match="matching head"):
        make(world, scoring="rerank").scores(load_checkpoint(world.model, "dual"))
    arguments = [
        "--annotations",
        str(world.files[0]),
        "--sentences",
        str(world.files[1]),
        "--videos",
        str(world.videos),
    ]
    assert main(["evaluate", "ek100", str(dual_only), *arguments, "--scoring", "rerank", "--num-workers", "0"]) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": "best"}, "scoring"),
        ({"scoring": "rerank", "top_k": 0}, "top_k"),
        ({"submission": "a.pkl"}, "declares its supervision"),
        ({"submission": "a.pkl", "scoring": "rerank", "supervision": (2, 3, 3)}, "one matrix"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(world, fields, message):
    with pytest.raises(ValueError, match=message):
        make(world, **fields)


def test_the_command_writes_views_mode_and_submission(world, tmp_path):
    """Catches a submission in another order than the csv files, and views that the JSON does not name."""
    output, submission = tmp_path / "ek.json", tmp_path / "submission.pkl"
    arguments = [
        "--annotations",
        str(world.files[0]),
        "--sentences",
        str(world.files[1]),
        "--videos",
        str(world.videos),
    ]
    arguments += ["--num-workers", "0", "--flip", "--num-frames", "8", "--output", str(output)]
    arguments += ["--submission", str(submission), "--supervision", "2", "3", "3"]
    assert main(["evaluate", "ek100", str(world.model), *arguments]) == 0
    report = EvaluationReport.load(output)
    assert report.num_frames == 8 and report.details["views"].startswith("2 views")
    with open(submission, "rb") as file:
        content = pickle.load(file)
    assert content["challenge"] == "multi_instance_retrieval" and content["version"] == 0.1
    assert (content["sls_pt"], content["sls_tl"], content["sls_td"]) == (2, 3, 3)
    assert content["vis_ids"] == content["txt_ids"] == [f"P01_01_{i}" for i in range(5)]
    assert content["sim_mat"].shape == (5, 5)


def test_a_submission_with_missing_clips_or_levels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 clips have scores that are not finite"):
        write_submission(tmp_path / "s.pkl", np.array([[0.0], [-np.inf]]), ["a", "b"], ["t"], (2, 3, 3))
    with pytest.raises(ValueError, match="0 to 5"):
        write_submission(tmp_path / "s.pkl", np.zeros((1, 1)), ["a"], ["t"], (2, 3, 9))
    with pytest.raises(ValueError, match=r"\(1, 1\) for 2 clips"):
        write_submission(tmp_path / "s.pkl", np.zeros((1, 1)), ["a", "b"], ["t"], (2, 3, 3))
