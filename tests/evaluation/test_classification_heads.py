"""Several heads, actions from pairs and multi-label precision against slow definitions; EGTEA and Charades-Ego."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from modeling_svitt_ego import SViTTEgoForVideoClassification
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.evaluation.classification_metrics import pair_hits
from modeling_svitt_ego.evaluation.multilabel_metrics import (
    average_precision_of_classes,
    mean_average_precision,
    mean_average_precision_intervals,
)
from modeling_svitt_ego.evaluation.report import EvaluationReport
from tests.data.test_labelled_clips import CHARADES, EGTEA, INDICES
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder


def test_the_action_is_ranked_among_all_pairs():
    """Against the product of the probabilities of every pair; catches ranks of verb and noun simply added."""
    rng = np.random.default_rng(0)
    verb_scores, noun_scores = rng.normal(size=(200, 4)), rng.normal(size=(200, 6))
    verbs, nouns = rng.integers(0, 4, 200), rng.integers(0, 6, 200)
    verb_scores[7], noun_scores[7] = -np.inf, -np.inf
    top1, top5 = pair_hits(verb_scores, noun_scores, verbs, nouns)

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    for i in range(200):
        if i == 7:
            assert not top1[i] and not top5[i]
            continue
        product = np.outer(softmax(verb_scores[i]), softmax(noun_scores[i]))
        better = (product > product[verbs[i], nouns[i]]).sum()
        assert (top1[i], top5[i]) == (better < 1, better < 5)
        assert top1[i] == (verb_scores[i].argmax() == verbs[i] and noun_scores[i].argmax() == nouns[i])


def test_average_precision_by_hand():
    """Class 0 is found at ranks 1 and 3, class 1 at rank 2, class 2 never occurs; ties and -inf are losses."""
    scores = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.0], [0.4, 0.7, 0.0]])
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    precision, counts = average_precision_of_classes(scores, labels)
    assert counts.tolist() == [2, 1, 0]
    np.testing.assert_allclose(precision[:2], [(1 + 2 / 3) / 2, 1 / 2])
    found = mean_average_precision(scores, labels)
    assert found["map"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert found["map_weighted"] == pytest.approx(100 * (2 * 5 / 6 + 1 / 2) / 3)
    assert (found["num_classes_seen"], found["num_without_label"]) == (2, 1)
    tied = average_precision_of_classes(np.zeros((2, 1)), np.array([[True], [False]]))[0]
    assert tied.tolist() == [0.5]
    unread = np.array([[-np.inf], [0.1]])
    assert average_precision_of_classes(unread, np.array([[True], [True]]))[0].tolist() == [0.5]
    with pytest.raises(ValueError, match="No class occurs"):
        mean_average_precision(scores, np.zeros_like(labels))


def test_the_bootstrap_counts_a_video_as_often_as_it_is_drawn():
    """Weights must equal repeated rows."""
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(6, 2)), rng.random((6, 2)) < 0.5
    weights = np.array([2, 0, 1, 3, 1, 1])
    repeated = average_precision_of_classes(np.repeat(scores, weights, 0), np.repeat(labels, weights, 0))
    weighted = average_precision_of_classes(scores, labels, weights)
    np.testing.assert_allclose(weighted[1], repeated[1])
    # Inside a run of equal rows the repeated form rises step by step, so only the ranking's end agrees in general.
    assert np.all(np.abs(weighted[0] - repeated[0]) < 0.35)
    low, high = mean_average_precision_intervals(scores, labels, list("aabbcc"))["map"]
    assert 0 <= low <= high <= 100


def run(folder, annotations, videos, output, *more):
    arguments = ["--annotations", str(annotations), "--videos", str(videos), "--output", str(output)]
    return main(["evaluate", "video-classification", str(folder), *arguments, "--num-workers", "0", *more])


def egtea_world(root):
    (root / "test_split1.txt").write_text(EGTEA)
    for name, content in INDICES.items():
        # The tiny tokenizer spells what it does not know.
        short = content.replace("Inspect/Read recipe", "Pick cup").replace("fridge", "box").replace("bread", "box")
        (root / name).write_text(short)
    for line in EGTEA.split("\n")[:2]:
        clip = line.split()[0]
        write_video(root / "videos" / "-".join(clip.split("-")[:3]) / f"{clip}.mp4", 20, noise=40)
    return root / "test_split1.txt", root / "videos"


def test_egtea_by_three_heads_and_zero_shot(tmp_path):
    """Catches mean class accuracy and top-1 confused, and a head's logits that are another's."""
    annotations, videos = egtea_world(tmp_path)
    heads = {"noun": 2, "action": 3, "verb": 2}  # in another order than the clips'
    folder = save_tiny_folder(tmp_path / "heads", SViTTEgoForVideoClassification, classifier_heads=heads, num_labels=7)
    model = SViTTEgoForVideoClassification.from_pretrained(folder)
    with torch.no_grad():  # always noun 1, action 2, verb 1: right for the first clip only
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1, 0, 0, 1, 0, 1]))
    model.save_pretrained(folder)
    output = tmp_path / "egtea.json"
    assert run(folder, annotations, videos, output, "--layout", "egtea") == 0
    report = EvaluationReport.load(output)
    assert report.benchmark == "egtea" and report.primary_metrics == ["action_mean_class", "action_top1"]
    assert report.metrics["action_top1"] == 50.0 and report.metrics["verb_top1"] == 50.0
    assert report.metrics["noun_top1"] == 50.0 and report.counts["action_num_classes"] == 3
    zero_shot = save_tiny_folder(tmp_path / "dual")
    short = ["--label-template", "{label}", "--verb-template", "{verb}", "--noun-template", "{noun}"]
    assert run(zero_shot, annotations, videos, output, "--layout", "egtea", *short) == 0
    report = EvaluationReport.load(output)
    assert report.scoring_mode == "zero-shot" and {"verb_top1", "noun_top1", "action_mean_class"} <= {*report.metrics}


def test_charades_ego_is_scored_by_mean_average_precision(tmp_path):
    for name in ("AAAAAEGO", "BBBBBEGO"):
        write_video(tmp_path / "videos" / f"{name}.mp4", 40, noise=40)
    (tmp_path / "test.csv").write_text(CHARADES)
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 hold\nc001 put\nc002 take\n")
    output = tmp_path / "charades.json"
    names = {"id2label": {0: "take", 1: "put", 2: "hold"}, "label2id": {"take": 0, "put": 1, "hold": 2}}
    folder = save_tiny_folder(tmp_path / "head", SViTTEgoForVideoClassification, **names)
    for model in (folder, save_tiny_folder(tmp_path / "dual")):
        assert run(model, tmp_path / "test.csv", tmp_path / "videos", output, "--label-template", "{label}") == 0
        report = EvaluationReport.load(output)
        assert report.benchmark == "charades-ego" and report.primary_metrics == ["map"]
        assert report.counts["num_without_label"] == 1 and report.metrics["map"] in (50.0, 100.0, 75.0)


def test_verb_and_noun_heads_give_the_action(tmp_path):
    """EPIC-KITCHENS' csv has no action classes: the pair decides."""
    from tests.data.test_relevance import write_ek100

    write_video(tmp_path / "videos" / "P01_01.mp4", 80, noise=40)
    write_ek100(tmp_path, name="EPIC_100_validation")
    fields = {"classifier_heads": {"verb": 10, "noun": 300}, "num_labels": 310}
    folder = save_tiny_folder(tmp_path / "heads", SViTTEgoForVideoClassification, **fields)
    output = tmp_path / "ek.json"
    assert run(folder, tmp_path / "EPIC_100_validation.csv", tmp_path / "videos", output) == 0
    report = EvaluationReport.load(output)
    assert report.benchmark == "ek100-cls" and report.primary_metrics == ["action_top1"]
    assert report.metrics["action_top1"] <= min(report.metrics["verb_top1"], report.metrics["noun_top1"])
    assert report.counts["action_num_classes"] == 3000 and "product" in report.scoring_rule


def test_a_joint_action_head_and_the_pair_are_both_scored(tmp_path):
    """Catches actions numbered otherwise than in training, and an action that the head never saw scored as another."""
    columns = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,verb_class,noun,"
    lines = [f"{columns}noun_class,all_nouns,all_noun_classes"]
    for i, (verb, noun) in enumerate([(0, 1), (1, 0), (0, 0), (0, 0)]):
        place = f"P01_01_{i},P01,P01_01,00:00:0{i}.0,00:00:0{i + 1}.0,a b"
        lines.append(f"{place},a,{verb},b,{noun},['b'],[{noun}]")
    annotations = tmp_path / "EPIC_100_validation.csv"
    annotations.write_text("\n".join(lines) + "\n")
    write_video(tmp_path / "videos" / "P01" / "videos" / "P01_01.MP4", 50, noise=40)
    heads, pairs = {"verb": 2, "noun": 2, "action": 2}, [[1, 0], [0, 1]]
    fields = {"classifier_heads": heads, "num_labels": 6, "action_pairs": pairs}
    folder = save_tiny_folder(tmp_path / "heads", SViTTEgoForVideoClassification, **fields)
    model = SViTTEgoForVideoClassification.from_pretrained(folder)
    assert model.config.action_pairs == pairs
    with torch.no_grad():  # always verb 0, noun 0, action (0, 1)
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0, 1, 0, 0, 1]))
    model.save_pretrained(folder)
    output = tmp_path / "epic.json"
    assert run(folder, annotations, tmp_path / "videos", output, "--layout", "epic") == 0
    report = EvaluationReport.load(output)
    assert report.metrics["action_top1"] == 25.0 and report.metrics["action_mean_class"] == pytest.approx(100 / 3)
    assert report.metrics["action_of_pair_top1"] == 50.0 and report.counts["action_num_classes"] == 3
    with pytest.raises(StrictDataclassClassValidationError, match="names 1 pairs .* has 2 classes"):
        save_tiny_folder(tmp_path / "x", SViTTEgoForVideoClassification, **fields | {"action_pairs": pairs[:1]})
