"""The evaluators on tiny models and videos: each clip and question counts once, cached, sharded or broken."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import modeling_svitt_ego.evaluation.encoding as encoding
from modeling_svitt_ego import SViTTEgoForVideoClassification, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from modeling_svitt_ego.evaluation.egonlq import evaluate_egonlq, read_predictions
from modeling_svitt_ego.evaluation.ek100 import EK100Evaluator, EK100Scores
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.evaluation.vector_cache import VectorCache
from modeling_svitt_ego.hub.card import render_model_card
from modeling_svitt_ego.model.clip_reading import ClipReadError
from modeling_svitt_ego.weights.loading import load_checkpoint, load_processor
from tests.helpers.tiny_data import egomcq_item, write_json, write_video
from tests.helpers.tiny_folder import save_tiny_folder
from tests.helpers.tiny_model import tiny_model
from tests.helpers.tiny_pretraining import free_port

VIDEOS = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six videos of 8 s and seven questions over 13 clips, so that no division into shards is even."""
    root = tmp_path_factory.mktemp("world")
    for number, uid in enumerate(VIDEOS):
        write_video(root / "videos" / f"{uid}.mp4", 80, first=3 * number)
    items = [egomcq_item(VIDEOS[:5], answer=i, text=f"#C C opens the box {i}", start=float(i % 2)) for i in range(3)]
    items += [egomcq_item(["f"] * 5, answer=i, text=f"#C C picks up the cup {i}", start=0.5 * i) for i in range(4)]
    write_json(root / "egomcq.json", {str(i): item for i, item in enumerate(items)})
    folder = save_tiny_folder(root / "model", SViTTEgoForVideoTextRetrieval)
    return SimpleNamespace(root=root, json=root / "egomcq.json", videos=root / "videos", model=folder)


def make_evaluator(world, **settings):
    return EgoMCQEvaluator(world.json, world.videos, load_processor(world.model), 4, batch_size=4, **settings)


def reference_scores(world, evaluator, model):
    """Cosines and matching logits one question and one clip at a time."""
    questions, processor = evaluator.questions, evaluator.processor
    cosines, odds = np.zeros((len(questions), 5)), np.zeros((len(questions), 5))
    with torch.no_grad():
        for q in range(len(questions)):
            text = processor(text=[questions.texts[questions.text_of[q]]], return_tensors="pt")
            for c in range(5):
                video = evaluator.dataset[int(questions.choices[q, c])]["video"]
                pixels = processor(videos=[video], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
                outputs = model(pixel_values_videos=pixels, **text)
                cosines[q, c] = F.cosine_similarity(outputs.video_embeds, outputs.text_embeds)
                odds[q, c] = outputs.vtm_logits[0, 1] - outputs.vtm_logits[0, 0]
    return {"dual": cosines, "fusion": odds, "ensemble": cosines + 1 / (1 + np.exp(-odds))}


def test_each_scoring_mode_equals_the_model_asked_pair_by_pair(world):
    """Catches modes that are mixed up, pairs scored with another text, and embeddings in the wrong row."""
    model = load_checkpoint(world.model, "fusion")
    expected = reference_scores(world, make_evaluator(world), model)
    assert np.abs(expected["fusion"] - expected["dual"]).max() > 0.01
    for scoring, scores in expected.items():
        ours, failures = make_evaluator(world, scoring=scoring).scores(model)
        np.testing.assert_allclose(ours, scores, atol=1e-4)
        assert not failures


@pytest.mark.parametrize("scoring", ["dual", "ensemble"])
def test_cache_gives_the_same_scores_without_decoding_again(world, tmp_path, monkeypatch, scoring):
    model = load_checkpoint(world.model, scoring)
    first, _ = make_evaluator(world, scoring=scoring, cache=tmp_path).scores(model)
    monkeypatch.setattr(encoding.ClipRows, "__getitem__", lambda *_: pytest.fail("decoded again"))
    again, _ = make_evaluator(world, scoring=scoring, cache=tmp_path).scores(model)
    np.testing.assert_array_equal(first, again)


def test_cache_knows_weights_frames_and_files(world, tmp_path):
    """Catches embeddings of another model, of shuffled frames or of a replaced video taken for one's own."""
    model = load_checkpoint(world.model, "dual")
    evaluator = make_evaluator(world, cache=tmp_path)
    plain, _ = evaluator.scores(model)
    shuffled, _ = evaluator.with_settings(frame_order="shuffled").scores(model)
    assert np.abs(plain - shuffled).max() > 1e-6
    with torch.no_grad():
        model.video_projection.bias.add_(1.0)
    other, _ = evaluator.scores(model)
    assert np.abs(plain - other).max() > 1e-3
    keys = evaluator.encoder._clip_keys(evaluator.dataset)
    path = world.videos / "a.mp4"
    path.touch()
    changed = evaluator.encoder._clip_keys(evaluator.dataset)
    assert {new.split()[0] for old, new in zip(keys, changed) if old != new} == {"a"}


def test_stopped_run_goes_on_where_it_was(world, tmp_path, monkeypatch):
    """Catches a cache that is written only at the end."""
    model = load_checkpoint(world.model, "dual")
    expected, _ = make_evaluator(world).scores(model)
    read = encoding.ClipRows.__getitem__
    seen = []

    def stop_after_nine(self, index):
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(self.rows[index])
        return read(self, index)

    monkeypatch.setattr(encoding.ClipRows, "__getitem__", stop_after_nine)
    with pytest.raises(KeyboardInterrupt):
        make_evaluator(world, cache=tmp_path).scores(model)
    rest = []
    monkeypatch.setattr(encoding.ClipRows, "__getitem__", lambda s, i: rest.append(s.rows[i]) or read(s, i))
    scores, _ = make_evaluator(world, cache=tmp_path).scores(model)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert not set(rest) & set(seen[:8])  # two whole batches of four were kept


def test_shards_on_machines_of_their_own_give_the_score_of_one_run(world, tmp_path, capsys):
    """Catches clips that no shard embeds, and a merge that embeds the rest itself or passes over it."""
    command = ["evaluate", "egomcq", str(world.model), "--annotations", str(world.json), "--videos", str(world.videos)]
    command += ["--scoring", "ensemble", "--num-workers", "0", "--num-frames", "4", "--batch-size", "4"]
    assert main([*command, "--output", str(tmp_path / "whole.json")]) == 0
    command += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "merged.json")]
    assert main([*command, "--shard", "0/2"]) == 0 and "shard 0/2: " in capsys.readouterr().out
    assert main([*command, "--merge"]) == 2 and "clips are not in the cache" in capsys.readouterr().err
    assert main([*command, "--shard", "1/2"]) == 0
    assert not (tmp_path / "merged.json").exists()
    assert main([*command, "--merge"]) == 0
    whole, merged = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "merged.json"))
    assert merged["metrics"] == whole["metrics"]
    assert main([*command[:-4], "--shard", "0/2"]) == 2 and "give a cache folder" in capsys.readouterr().err


def test_damaged_cache_file_is_named_and_computed_again(tmp_path, caplog):
    cache = VectorCache(tmp_path, {"weights": "x"})
    cache.add(["k"], np.ones((1, 3)))
    cache.write()
    (path,) = cache.folder.glob("*.npz")
    path.write_bytes(path.read_bytes()[:40])
    with caplog.at_level("WARNING"):
        again = VectorCache(tmp_path, {"weights": "x"})
    assert len(again) == 0 and not path.exists() and path.name in caplog.text
    assert len(VectorCache(tmp_path, {"weights": "y"})) == 0


@pytest.mark.parametrize("num_processes", [2, 3, 20])
def test_shards_cover_every_clip_once_under_uneven_division(world, monkeypatch, num_processes):
    """Threads as processes; catches padded, repeated and dropped clips, and ranks that see only theirs."""
    model = load_checkpoint(world.model, "ensemble")
    expected, _ = make_evaluator(world, scoring="ensemble").scores(model)
    decoded, read = [], encoding.ClipRows.__getitem__
    monkeypatch.setattr(encoding.ClipRows, "__getitem__", lambda s, i: decoded.append(s.rows[i]) or read(s, i))
    barrier, parts, here = threading.Barrier(num_processes, timeout=600), [None] * num_processes, threading.local()

    def gather(mine):
        parts[here.rank] = mine[0]
        barrier.wait()
        everyone = list(parts)
        barrier.wait()
        return everyone

    monkeypatch.setattr(encoding, "gather_object", gather)
    evaluators = [
        make_evaluator(
            world,
            scoring="ensemble",
            accelerator=SimpleNamespace(num_processes=num_processes, process_index=rank, is_main_process=rank == 0),
        )
        for rank in range(num_processes)
    ]

    def run(rank):
        here.rank = rank
        return evaluators[rank].scores(model)[0]

    with ThreadPoolExecutor(num_processes) as pool:
        results = list(pool.map(run, range(num_processes)))
    assert sorted(decoded) == list(range(len(evaluators[0].dataset)))
    for scores in results:
        np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_two_real_processes_give_the_numbers_of_one(world, tmp_path):
    files = []
    for number in (1, 2):
        files.append(tmp_path / f"{number}.json")
        # accelerate starts several processes only for --multi_gpu, and joins them on a CPU only if told to use it.
        kind = "--multi_gpu" if number > 1 else "--cpu"
        command = ["-m", "accelerate.commands.launch", kind, "--num_machines", "1", "--mixed_precision", "no"]
        command += ["--main_process_port", free_port()]
        command += ["--dynamo_backend", "no", "--num_processes", str(number), "--num_cpu_threads_per_process", "1"]
        command += ["-m", "modeling_svitt_ego.cli", "evaluate", "egomcq", str(world.model), "--num-workers", "0"]
        command += ["--annotations", str(world.json), "--videos", str(world.videos), "--output", str(files[-1])]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (EvaluationReport.load(path) for path in files)
    assert one.metrics == two.metrics and one.counts == two.counts
    assert (one.details["num_processes"], two.details["num_processes"]) == (1, 2)


@pytest.fixture
def broken_world(world, tmp_path):
    """The same questions, with one video of six destroyed."""
    for path in world.videos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() if path.stem != "c" else b"no video at all")
    return SimpleNamespace(json=world.json, videos=tmp_path, model=world.model)


def test_unreadable_clip_ends_the_run_or_makes_its_questions_wrong(broken_world):
    """Catches black frames, and questions that leave the denominator."""
    model = load_checkpoint(broken_world.model, "dual")
    with pytest.raises(ClipReadError, match="c.mp4"):
        make_evaluator(broken_world).scores(model)
    report = make_evaluator(broken_world, on_error="wrong")(model)
    assert report.counts["num_inter"] == 3 and report.metrics["inter"] == 0.0
    assert report.num_items == 7 and report.failures["num_items_affected"] == 3
    assert {entry["video_uid"] for entry in report.failures["first"]} == {"c"}
    assert "2 clips could not be read; 3 items count as wrong" in report.table()


def test_checkpoint_without_matching_head_is_refused_by_name(world, tmp_path):
    """Catches re-ranking with random weights, which would look like a result."""
    folder = save_tiny_folder(tmp_path / "dual")
    with pytest.raises(ValueError, match="no trained fusion_model, vtm_head .* 'ensemble' .* SViTTEgoModel"):
        load_checkpoint(folder, "ensemble")
    with pytest.raises(ValueError, match="matching head.*SViTTEgoModel has none"):
        make_evaluator(world, scoring="fusion").scores(load_checkpoint(folder, "dual"))
    with pytest.raises(ValueError, match="'rerank'.*dual, fusion, ensemble"):
        make_evaluator(world, scoring="rerank")


def test_command_writes_a_report_that_the_card_reads(world, tmp_path, capsys):
    output = tmp_path / "out.json"
    arguments = ["--annotations", str(world.json), "--videos", str(world.videos), "--num-workers", "0"]
    code = main(
        ["evaluate", "egomcq", str(world.model), *arguments, "--scoring", "fusion", "--output", str(output)]
        + ["--dataset", "grey videos", "--num-frames", "2"]
    )
    printed = capsys.readouterr().out
    assert code == 0 and "published by others" in printed and "not measured here" in printed
    report = EvaluationReport.load(output)
    assert report.benchmark == "egomcq" and report.primary_metrics == ["inter", "intra"]
    assert (report.num_items, report.num_frames, report.scoring_mode) == (7, 2, "fusion")
    assert report.crop.startswith("resized to 32 x 32") and "2 equal segments" in report.window_rule
    assert report.command and report.package_version and report.date and len(report.checkpoint_sha256) == 64
    assert report.dataset == "grey videos"
    assert "grey videos" in str(render_model_card(world.model, [output]))
    # A single video has no spread over videos, the inter questions have.
    assert set(report.intervals) <= set(report.metrics)


def test_report_keeps_to_its_schema(tmp_path):
    report = EvaluationReport("egomcq", {"inter": 1.0}, ["inter"], 1, "dual", intervals={"inter": [0.5, 2.0]})
    report.save(tmp_path / "r.json")
    assert EvaluationReport.load(tmp_path / "r.json") == report
    content = json.loads((tmp_path / "r.json").read_text())
    write_json(tmp_path / "typo.json", content | {"num_frame": 4})
    with pytest.raises(ValueError, match="typo.json.*unknown field.*num_frame"):
        EvaluationReport.load(tmp_path / "typo.json")
    with pytest.raises(ValueError, match="'inter' must be a finite number"):
        EvaluationReport("egomcq", {"inter": float("nan")}, [], 1, "dual")
    with pytest.raises(ValueError, match="outer"):
        EvaluationReport("egomcq", {"inter": 1.0}, ["outer"], 1, "dual")


def test_command_answers_bad_input_with_one_line(world, tmp_path, capsys):
    arguments = ["--annotations", str(world.json), "--videos", str(tmp_path / "nowhere")]
    assert main(["evaluate", "egomcq", str(world.model), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "nowhere" in error and len(error.splitlines()) == 1


# ── EgoNLQ ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nlq(tmp_path):
    def clip(uid, answers):
        queries = [
            {"query": f"Where is it {i}?", "clip_start_sec": s, "clip_end_sec": e} for i, (s, e) in enumerate(answers)
        ]
        notes = [{"annotation_uid": f"note-{uid}", "language_queries": queries}]
        return {"clip_uid": f"clip-{uid}", "video_start_sec": 0, "video_end_sec": 60, "annotations": notes}

    videos = [
        {"video_uid": "v1", "clips": [clip("v1", [(0.0, 10.0), (20.0, 30.0)])]},
        {"video_uid": "v2", "clips": [clip("v2", [(5.0, 5.0), (50.0, 60.0)])]},
    ]
    return write_json(tmp_path / "nlq_val.json", {"version": "1", "videos": videos})


def prediction(uid, query, *windows):
    return {
        "clip_uid": f"clip-{uid}",
        "annotation_uid": f"note-{uid}",
        "query_idx": query,
        "predicted_times": [list(window) for window in windows],
    }


def write_predictions(path, *results):
    return write_json(path, {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": list(results)})


def test_egonlq_command_counts_all_queries_and_the_given_ones(nlq, tmp_path, capsys):
    """The numbers of test_egonlq_recall_by_hand, through the files."""
    results = [
        prediction("v1", 0, (0.0, 4.0), (0.0, 9.0)),
        prediction("v1", 1, (20.0, 23.0), *[(90.0, 95.0)] * 4, (20.0, 30.0)),
        prediction("v2", 0, (5.0, 5.0)),
    ]
    path = write_predictions(tmp_path / "p.json", *results)
    output = tmp_path / "nlq.json"
    arguments = ["--annotations", str(nlq), "--predictions", str(path), "--output", str(output)]
    assert main(["evaluate", "egonlq", *arguments]) == 0
    report = EvaluationReport.load(output)
    assert report.metrics["r1_iou0.3"] == 25.0 and report.metrics["r1_iou0.3_given"] == pytest.approx(100 / 3)
    assert report.metrics["mean_r1_given_with_length"] == 25.0 and report.counts["num_queries_given"] == 3
    assert report.failures["num_items_affected"] == 1 and report.num_items == 4
    assert "VSLNet" in capsys.readouterr().out


def test_egonlq_refuses_predictions_of_other_queries(nlq, tmp_path):
    path = write_predictions(tmp_path / "p.json", prediction("v3", 0, (0.0, 1.0)))
    with pytest.raises(ValueError, match="clip-v3"):
        evaluate_egonlq(nlq, read_predictions(path))
    path = write_predictions(tmp_path / "q.json", *[prediction("v1", 0, (0.0, 1.0))] * 2)
    with pytest.raises(ValueError, match="result 1.*twice"):
        read_predictions(path)


# ── EPIC-KITCHENS-100 ──────────────────────────────────────────────────────────────────────────────────────────────


EPIC_HEADER = (
    "narration_id,video_id,start_timestamp,stop_timestamp,narration,verb,verb_class,noun,noun_class,all_nouns,"
    "all_noun_classes"
)


@pytest.fixture
def epic(tmp_path):
    rows = [("cup", 0, 3, "open"), ("box", 1, 5, "close"), ("cup", 0, 3, "open"), ("box", 0, 5, "open")]
    lines = [
        f"n{i},{VIDEOS[i]},00:00:0{i}.00,00:00:0{i + 1}.00,{verb} {noun},{verb},{v},{noun},{n},['{noun}'],[{n}]"
        for i, (noun, v, n, verb) in enumerate(rows)
    ]
    csv = tmp_path / "EPIC_100_retrieval_test.csv"
    csv.write_text("\n".join([EPIC_HEADER, *lines]) + "\n")
    sentences = tmp_path / "EPIC_100_retrieval_test_sentence.csv"
    sentences.write_text("narration_id,narration\nn0,open cup\nn1,close box\nn3,open box\n")
    return csv, sentences


def test_ek100_from_the_two_files(world, epic, tmp_path, monkeypatch):
    """A model that knows the answers gets 100; catches rows and columns exchanged, and sentences out of order."""
    evaluator = EK100Evaluator(*epic, world.videos, load_processor(world.model), 4, batch_size=4)
    model = load_checkpoint(world.model, "dual")
    report = evaluator(model)
    assert report.num_items == 4 and report.counts["num_texts"] == 3 and report.primary_metrics == ["map", "ndcg"]
    assert 0 < report.metrics["map_strict"] <= 100 and report.intervals["map"][0] <= report.intervals["map"][1]
    perfect = np.array([[1, 0, 0.5], [0, 1, 0.5], [1, 0, 0.5], [0.5, 0.5, 1]])
    monkeypatch.setattr(evaluator, "scores", lambda model: EK100Scores(perfect, perfect.T, []))
    assert evaluator(model).metrics["ndcg"] == pytest.approx(100.0)
    assert evaluator(model).metrics["map_strict"] == pytest.approx(100.0)


def test_ek100_command_counts_an_unreadable_clip_as_wrong(broken_world, epic, tmp_path):
    arguments = ["--annotations", str(epic[0]), "--sentences", str(epic[1]), "--videos", str(broken_world.videos)]
    output = tmp_path / "ek.json"
    common = ["evaluate", "ek100", str(broken_world.model), *arguments, "--num-workers", "0", "--output", str(output)]
    assert main(common) == 2
    assert main([*common, "--on-error", "wrong", "--template", "#C C {}"]) == 0
    report = EvaluationReport.load(output)
    assert report.failures["num_failed"] == 1 and report.details["template"] == "#C C {}"
    # One clip of four finds nothing.
    assert report.metrics["map_video_to_text"] <= 75.0


# ── models without text tower ──────────────────────────────────────────────────────────────────────────────────────


def test_classification_head_is_evaluated_by_label_name(world, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [(uid, start, "cd" if i % 2 else "ab") for i, uid in enumerate(VIDEOS) for start in (0.0, 2.0)]
    lines = [f"{uid},{start},{start + 1},{label}" for uid, start, label in rows]
    labels.write_text("\n".join(["video_uid,clip_start,clip_end,label", *lines]) + "\n")
    names = {"id2label": {0: "cd", 1: "ab", 2: "other"}, "label2id": {"cd": 0, "ab": 1, "other": 2}}
    folder = save_tiny_folder(tmp_path / "head", SViTTEgoForVideoClassification, **names)
    output = tmp_path / "head.json"
    arguments = ["--annotations", str(labels), "--videos", str(world.videos), "--num-workers", "0"]
    assert main(["evaluate", "video-classification", str(folder), *arguments, "--output", str(output)]) == 0
    report = EvaluationReport.load(output)
    assert report.scoring_mode == "head" and report.num_items == 12 and report.counts["num_classes"] == 3
    model, processor = load_checkpoint(folder, "head"), load_processor(folder)
    right = 0
    for uid, start, label in rows:
        clip = {"path": str(world.videos / f"{uid}.mp4"), "start": start, "end": start + 1}
        with torch.no_grad():
            logits = model(**processor(videos=[clip], return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == label
    assert report.metrics["top1"] == pytest.approx(100 * right / 12)
    # The same clips, with a class that the head does not know.
    labels.write_text(labels.read_text().replace(",cd", ",xy"))
    assert main(["evaluate", "video-classification", str(folder), *arguments, "--output", str(output)]) == 2


def test_evaluation_leaves_the_model_in_its_mode(world):
    model = tiny_model(SViTTEgoModel).train()
    make_evaluator(world).scores(model)
    assert model.training
