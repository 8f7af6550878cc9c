"""The grounding head: spans, loss, padding, saving, and EgoNLQ from annotation files to the prediction file."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import modeling_svitt_ego
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.corpus.narrations_as_queries import narrations_as_queries, write_narrations_as_queries
from modeling_svitt_ego.evaluation.egonlq_metrics import egonlq_recall
from modeling_svitt_ego.features.egonlq_features import EgoNLQFeatures, collate_egonlq, nearest_cells
from modeling_svitt_ego.features.extraction import extract
from modeling_svitt_ego.features.grounding import (
    config_for,
    constant_spans,
    ground,
    sliding_window_spans,
    write_predictions,
)
from modeling_svitt_ego.features.windows import WindowSettings
from modeling_svitt_ego.model.temporal_grounding_svitt_ego import (
    SViTTEgoForTemporalGrounding,
    SViTTEgoTemporalGroundingConfig,
    best_spans,
    cross_entropy_of_any,
    highlighting_loss,
    standardised,
    temporal_nms,
)
from tests.helpers.tiny_data import write_json, write_video
from tests.helpers.tiny_encoder import nlq_content, save_tiny_encoder, tiny_encoder

MODEL = Path(modeling_svitt_ego.__file__).parent / "model"
SIZES = {"video_dim": 16, "text_dim": 12, "hidden_size": 16, "num_attention_heads": 2}


def tiny_head(**fields):
    torch.manual_seed(0)
    return SViTTEgoForTemporalGrounding(SViTTEgoTemporalGroundingConfig(**(SIZES | fields))).eval()


def tiny_inputs(cells=(11, 7, 9), tokens=(5, 3, 4), seed=0):
    torch.manual_seed(seed)
    items = [
        {
            "video_features": torch.randn(t, 16),
            "text_features": torch.randn(l, 12),
            "text_embeds": torch.randn(16),
            "start_positions": torch.tensor(t // 3),
            "end_positions": torch.tensor(t // 2),
        }
        for t, l in zip(cells, tokens)
    ]
    return items, collate_egonlq(items)


# ---- the head -------------------------------------------------------------------------------------------------------


def test_a_video_does_not_depend_on_its_batch():
    """Catches padding that reaches the convolutions, the attention, the softmax or the standardised cosine."""
    head = tiny_head()
    items, batch = tiny_inputs()
    together = head(**batch)
    for i, item in enumerate(items):
        alone = head(**collate_egonlq([item]))
        n = len(item["video_features"])
        for name in ("start_logits", "end_logits", "highlight_logits"):
            torch.testing.assert_close(together[name][i, :n], alone[name][0], atol=1e-5, rtol=1e-5)
            assert (together[name][i, n:] == torch.finfo(torch.float32).min).all()


def test_loss_is_the_mean_over_queries_of_three_cross_entropies():
    head = tiny_head(highlight_weight=0.0)
    items, batch = tiny_inputs()
    outputs = head(**batch)
    expected = 0.0
    for i, item in enumerate(items):
        for name in ("start", "end"):
            expected -= outputs[f"{name}_logits"][i].log_softmax(-1)[item[f"{name}_positions"]] / len(items)
    torch.testing.assert_close(outputs.loss, expected)
    with_highlight = tiny_head(highlight_weight=2.0)(**batch)
    target = head.highlighted(batch["start_positions"], batch["end_positions"], 11)
    extra = highlighting_loss(with_highlight.highlight_logits, target, batch["video_mask"])
    torch.testing.assert_close(with_highlight.loss, expected + 2 * extra)


def test_highlighting_loss_by_hand():
    logits, target = torch.tensor([[0.0, 2.0, -1.0, 9.0]]), torch.tensor([[False, True, False, True]])
    mask = torch.tensor([[True, True, True, False]])
    log = torch.nn.functional.logsigmoid
    expected = -(log(torch.tensor(0.0)) + 2 * log(torch.tensor(2.0)) + log(torch.tensor(1.0))) / 3
    torch.testing.assert_close(highlighting_loss(logits, target, mask), expected)


def test_highlighted_cells_reach_a_margin_beyond_the_answer():
    head = tiny_head(highlight_margin=0.25)
    target = head.highlighted(torch.tensor([2, 5]), torch.tensor([2, 8]), 11)
    assert target[0].nonzero().flatten().tolist() == [2]
    assert target[1].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_each_answer_of_a_query_is_right():
    """Catches an answer counted twice, and filling that counts as one."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [3.0, 0.0, 0.5, 1.0]])
    probabilities = logits.softmax(-1)
    expected = -(torch.log(probabilities[0, 1] + probabilities[0, 3]) + torch.log(probabilities[1, 2])) / 2
    positions = torch.tensor([[1, 3, 1], [2, -100, -100]])
    torch.testing.assert_close(cross_entropy_of_any(logits, positions), expected)
    one = torch.tensor([1, 2])
    torch.testing.assert_close(cross_entropy_of_any(logits, one), torch.nn.functional.cross_entropy(logits, one))
    target = tiny_head().highlighted(torch.tensor([[1, 6], [3, -100]]), torch.tensor([[2, 6], [3, -100]]), 8)
    assert [row.nonzero().flatten().tolist() for row in target] == [[1, 2, 6], [3]]


def test_every_parameter_is_trained():
    head = tiny_head().train()
    head(**tiny_inputs()[1]).loss.backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_text_embeds_there_is_no_similarity():
    _, batch = tiny_inputs()
    embeds = batch.pop("text_embeds")
    with pytest.raises(ValueError, match="needs text_embeds"):
        tiny_head()(**batch)
    without = tiny_head(use_similarity=False)
    torch.testing.assert_close(without(**batch).loss, without(**batch, text_embeds=embeds).loss)


def test_standardised_ignores_padding():
    values = torch.tensor([[1.0, 3.0, 100.0]])[..., None]
    mask = torch.tensor([[True, True, False]])[..., None]
    torch.testing.assert_close(standardised(values, mask)[0, :, 0], torch.tensor([-1.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_best_spans_are_those_of_the_product_in_order():
    torch.manual_seed(0)
    start, end = torch.randn(9).softmax(-1), torch.randn(9).softmax(-1)
    by_hand = sorted(((float(start[i] * end[j]), i, j) for i in range(9) for j in range(i, 9)), reverse=True)
    found = best_spans(start, end, 4, nms_threshold=1.0)
    assert [(i, j) for i, j, _ in found] == [(i, j) for _, i, j in by_hand[:4]]
    assert [p for _, _, p in found] == pytest.approx([p for p, _, _ in by_hand[:4]])
    assert len(best_spans(start[:1], end[:1], 5, 0.5)) == 1


def test_best_spans_are_found_where_ends_before_starts_are_likelier():
    """Catches impossible spans that crowd the possible ones out of the candidates."""
    rising = torch.arange(200, dtype=torch.float64)
    start, end = rising.softmax(-1), rising.flip(0).softmax(-1)
    found = best_spans(start, end, 5, nms_threshold=0.5)
    assert len(found) == 5 and all(first <= last for first, last, _ in found)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_nms_keeps_the_best_of_what_overlaps(threshold):
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 30, 60)
    spans = torch.from_numpy(np.stack([starts, starts + rng.integers(1, 9, 60)], 1)).float()
    scores = torch.from_numpy(rng.permutation(60)).float()
    kept = temporal_nms(spans, scores, threshold, 60).tolist()

    def iou(a, b):
        shared = max(0.0, float(min(spans[a, 1], spans[b, 1]) - max(spans[a, 0], spans[b, 0])))
        return shared / (float((spans[a, 1] - spans[a, 0]) + (spans[b, 1] - spans[b, 0])) - shared)

    assert all(iou(a, b) <= threshold for a, b in itertools.combinations(kept, 2))
    for i in set(range(60)) - set(kept):  # what is gone overlaps a better one
        assert any(iou(i, k) > threshold and scores[k] > scores[i] for k in kept)
    assert temporal_nms(spans, scores, threshold, 2).tolist() == kept[:2]


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 15}, {"conv_kernel_size": 4}, {"nms_threshold": 2}, {"hiden_size": 8}]
)
def test_config_refuses_nonsense(fields):
    with pytest.raises(Exception, match=next(iter(fields)).replace("hiden", "hidden")):
        SViTTEgoTemporalGroundingConfig(**(SIZES | fields))


# ---- saving ---------------------------------------------------------------------------------------------------------


def test_what_ships_with_the_head_is_its_own():
    """The base model's folder must not carry the head, and the head's folder not the towers."""
    files = {Path(f).name for f in get_relative_import_files(MODEL / "temporal_grounding_svitt_ego.py")}
    assert files == {"configuration_base.py", "feature_cells.py", "pipeline_temporal_grounding.py"}
    allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
    assert set(get_imports(MODEL / "temporal_grounding_svitt_ego.py")) <= allowed


def test_saved_head_loads_where_the_package_cannot_be_imported(tmp_path):
    head = tiny_head()
    _, batch = tiny_inputs()
    expected = head(**batch).start_logits
    head.save_pretrained(tmp_path / "head")
    assert sorted(p.name for p in (tmp_path / "head").glob("*.py")) == [
        "configuration_base.py",
        "feature_cells.py",
        "pipeline_temporal_grounding.py",
        "temporal_grounding_svitt_ego.py",
    ]
    torch.save(dict(batch), tmp_path / "batch.pt")
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'modeling_svitt_ego':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import torch\n"
        "from transformers import AutoModel\n"
        "head = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "outputs = head(**torch.load(sys.argv[2]))\n"
        "torch.save((outputs.start_logits.detach(), head.spans(outputs)), sys.argv[3])\n"
    )
    command = [sys.executable, str(script), *(str(tmp_path / name) for name in ("head", "batch.pt", "out.pt"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, spans = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(logits, expected)
    for found, wanted in zip(spans, head.spans(head(**batch)), strict=True):  # that process rounds with more threads
        assert [span[:2] for span in found] == [span[:2] for span in wanted]
        assert [span[2] for span in found] == pytest.approx([span[2] for span in wanted], rel=1e-4)


# ---- EgoNLQ ---------------------------------------------------------------------------------------------------------

PAN, BOX = "where did i put the pan?", "did i close the box?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Features of two videos, and five queries: v1's query without text and answer of zero length are among them."""
    root = tmp_path_factory.mktemp("nlq")
    write_video(root / "videos" / "a.mp4", 40)
    write_video(root / "videos" / "b.mp4", 27)
    content = nlq_content(
        {
            "a": [(1.0, 3.5, [(PAN, 0.5, 1.2), (None, 0.1, 0.4), (BOX, 1.0, 1.0)]), (0.0, 4.0, [(BOX, 2.0, 3.9)])],
            "b": [(0.0, 2.7, [(PAN, 1.7, 2.7)])],
        }
    )
    nlq = write_json(root / "nlq.json", content)
    extract(*tiny_encoder(), root / "videos", root / "features", WindowSettings(window_seconds=1.0), nlq=[nlq])
    return root, EgoNLQFeatures.from_json(nlq, root / "features")


def test_items_are_the_clips_cells_in_the_clips_time(made):
    _, data = made
    assert len(data) == 4 and data.num_without_text == 1
    # The clip [1.0, 3.5) touches cells 1 to 6 of the video: 0.533 … 3.733.
    item = data[0]
    np.testing.assert_array_equal(item["video_features"], data.folder.video("a")[1:7])
    cells = data.cells(0)
    np.testing.assert_allclose(cells[[0, -1]], [[0, 2 / 1.875 - 1], [6 / 1.875 - 1, 2.5]])
    assert item["text_embeds"].shape == (16,) and item["text_features"].shape[-1] == 32
    start, end = data.times(0, [(int(item["start_positions"]), int(item["end_positions"]))])[0]
    assert abs(start - 0.5) <= 0.27 and abs(end - 1.2) <= 0.27
    zero_length = data[1]
    assert zero_length["start_positions"] == zero_length["end_positions"]


def test_a_text_asked_twice_of_a_clip_has_two_answers(made):
    """Its own first; the same text in another clip is another query. Catches answers that leak between clips."""
    _, data = made
    row = next(row for row in data.rows if row["clip_uid"] == "a-clip1")
    again = row | {"answer_start": 0.3, "answer_end": 0.9}
    twice = EgoNLQFeatures([*data.rows, again], data.folder)
    first, last = (collate_egonlq([twice[i]]) for i in (data.rows.index(row), len(twice) - 1))
    cells = twice.cells(len(twice) - 1)
    expected = [nearest_cells(cells, 2.0, 3.9), nearest_cells(cells, 0.3, 0.9)]
    assert list(zip(first["start_positions"][0].tolist(), first["end_positions"][0].tolist())) == expected
    assert list(zip(last["start_positions"][0].tolist(), last["end_positions"][0].tolist())) == expected[::-1]
    assert [len(twice[i]["start_positions"]) for i in range(3)] == [1, 1, 2]
    batch = collate_egonlq([twice[0], twice[2]])
    assert batch["start_positions"][0, 1] == batch["end_positions"][0, 1] == -100


def test_kept_in_memory_gives_the_same_items_and_reads_once(made, monkeypatch):
    _, data = made
    kept = EgoNLQFeatures(data.rows, data.folder, keep_in_memory=True)
    for _ in range(2):
        for i in range(len(data)):
            torch.testing.assert_close(kept[i], data[i])
    monkeypatch.setattr("modeling_svitt_ego.features.extraction.load_features", None)
    kept[0]
    with pytest.raises(TypeError):
        data[0]


@pytest.mark.parametrize("start, end, expected", [(0.0, 1.0, (0, 1)), (0.9, 1.1, (2, 2)), (1.6, 9.0, (3, 3))])
def test_nearest_cells(start, end, expected):
    assert nearest_cells(np.array([[0.0, 0.5], [0.5, 1.0], [1.0, 1.5], [1.5, 2.0]]), start, end) == expected


def test_stock_trainer_learns_the_queries_by_heart(made, tmp_path):
    """End to end: features, collator, loss, Trainer, spans, prediction file; four queries must be learnable."""
    _, data = made
    torch.manual_seed(0)
    head = SViTTEgoForTemporalGrounding(
        config_for(data, hidden_size=16, num_attention_heads=2, hidden_dropout_prob=0.0)
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=80, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        save_strategy="no", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(head, arguments, data_collator=collate_egonlq, train_dataset=data).train()
    spans = ground(head, data)
    truth = [data.times(i, [(int(data[i]["start_positions"]), int(data[i]["end_positions"]))])[0] for i in range(4)]
    assert [found[0] for found in spans] == truth
    recall = egonlq_recall(spans, [(row["answer_start"], row["answer_end"]) for row in data.rows])
    assert recall["r1_iou0.3_with_length"] == 100.0

    written = json.loads(write_predictions(tmp_path / "p.json", data.rows, spans).read_text())
    assert (written["version"], written["challenge"]) == ("1.0", "ego4d_nlq_challenge")
    assert [sorted(entry) for entry in written["results"]] == [
        ["annotation_uid", "clip_uid", "predicted_times", "query_idx"]
    ] * 4
    assert [entry["query_idx"] for entry in written["results"]] == [0, 2, 0, 0]
    assert written["results"][0]["predicted_times"] == spans[0] and len(spans[0]) <= 5


@pytest.mark.parametrize("field, value", [("encoder_fingerprint", "other"), ("window_seconds", 1.5), ("video_dim", 8)])
def test_features_of_another_encoder_or_other_windows_are_refused(made, field, value):
    _, data = made
    config = config_for(data, hidden_size=16, num_attention_heads=2)
    setattr(config, field, value)
    with pytest.raises(
        ValueError, match=f"does not fit the features.*{field.replace('encoder_fingerprint', 'checkpoint')}"
    ):
        ground(SViTTEgoForTemporalGrounding(config), data)


def test_queries_of_unreadable_videos_are_counted(made, tmp_path):
    root, _ = made
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes((root / "videos" / "a.mp4").read_bytes())
    (tmp_path / "videos" / "b.mp4").write_bytes(b"no video")
    extract(*tiny_encoder(), tmp_path / "videos", tmp_path / "features", nlq=[root / "nlq.json"])
    data = EgoNLQFeatures.from_json(root / "nlq.json", tmp_path / "features")
    assert len(data) == 3 and data.num_without_features == 1


def test_baselines_by_construction(made):
    _, data = made
    spans = sliding_window_spans(data, 2)
    for i, found in enumerate(spans):
        item = data[i]
        means = (item["video_features"][1:] + item["video_features"][:-1]) / 2
        best = int(torch.nn.functional.cosine_similarity(means, item["text_embeds"][None]).argmax())
        assert found[0] == data.times(i, [(best, best + 1)])[0]
    others = [-data[i]["text_embeds"] for i in range(len(data))]
    for i, found in enumerate(sliding_window_spans(data, 1, text_embeds=others)):
        worst = torch.nn.functional.cosine_similarity(data[i]["video_features"], -others[i][None], dim=-1).argmin()
        assert found[0] == data.times(i, [(int(worst), int(worst))])[0]
    constant = constant_spans(data, data, lambda spans, answers: np.abs(spans[:, 0] - answers[:, 0]) < 0.2)
    assert len({json.dumps(found) for i, found in enumerate(constant) if data.rows[i]["clip_uid"] == "a-clip0"}) == 1
    for i, found in enumerate(constant):
        assert len(found) == 5 and all(0 <= start <= end <= data.cells(i)[-1, 1] + 1e-9 for start, end in found)


def test_narrations_as_queries(tmp_path):
    rows = [
        {"video_uid": "a", "video_dur": 4.0, "clip_start": -0.5, "clip_end": 0.5, "clip_text": "#C C opens the box"},
        {"video_uid": "a", "video_dur": 4.0, "clip_start": 3.5, "clip_end": 5.0, "clip_text": "#C C picks up the cup"},
        {"video_uid": "a", "video_dur": 4.0, "clip_start": 4.5, "clip_end": 5.0, "clip_text": "#C C leaves"},
        {"video_uid": "b", "video_dur": 2.7, "clip_start": 1.0, "clip_end": 2.0, "clip_text": " "},
    ]
    from modeling_svitt_ego.data.egonlq import read_queries

    found = list(read_queries(str(write_narrations_as_queries(rows, tmp_path / "naq.json"))))
    assert [(q["query"], q["answer_start"], q["answer_end"]) for q in found] == [
        ("#C C opens the box", 0.0, 0.5),
        ("#C C picks up the cup", 3.5, 4.0),
    ]
    assert {(q["clip_start"], q["clip_end"], q["video_uid"]) for q in found} == {(0.0, 4.0, "a")}
    assert len(narrations_as_queries(rows)["videos"]) == 1


def test_command_and_example(made, tmp_path, capsys):
    """The example trains and saves; the command predicts the same from what it saved."""
    import importlib.util

    root, _ = made
    spec = importlib.util.spec_from_file_location("train_egonlq", MODEL.parents[1] / "examples" / "train_egonlq.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, nlq, videos = str(save_tiny_encoder(tmp_path / "model")), str(root / "nlq.json"), str(root / "videos")
    report = example.main(
        ["--model", model, "--output", str(tmp_path / "run"), "--train-json", nlq, "--train-videos", videos]
        + ["--val-json", nlq, "--val-videos", videos, "--epochs", "1", "--hidden-size", "16"]
    )
    assert set(report["results"]) == {"grounding_head", "best_constant", "sliding_window_cosine"}
    assert report["results"]["grounding_head"]["num_queries"] == 5  # the one without text is a miss
    run = tmp_path / "run"
    assert main(["ground", str(run / "head"), str(run / "features-val"), nlq, str(tmp_path / "p.json")]) == 0
    assert "4 of 5 queries" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((run / "predictions.json").read_text())
    assert isinstance(AutoModel.from_pretrained(run / "head"), SViTTEgoForTemporalGrounding)

    # The defaults of `extract --nlq` are those of the example; other windows are refused with the option to give.
    extract = ["extract", videos, str(tmp_path / "f"), "--model", model, "--nlq", nlq]
    assert main(extract) == 0
    assert main(["ground", str(run / "head"), str(tmp_path / "f"), nlq, str(tmp_path / "q.json")]) == 0
    assert json.loads((tmp_path / "q.json").read_text()) == json.loads((tmp_path / "p.json").read_text())
    assert main([*extract[:2], str(tmp_path / "g"), *extract[3:], "--window-seconds", "stride"]) == 0
    assert main(["ground", str(run / "head"), str(tmp_path / "g"), nlq, str(tmp_path / "q.json")]) == 2
    assert "window_seconds 1.0 in training, None here" in (error := capsys.readouterr().err)
    assert "Extract them into another folder with --window-seconds 1.0." in error

    # Frames of another order are a control: the head takes them, and the report says so.
    assert main([*extract[:2], str(tmp_path / "h"), *extract[3:], "--frame-order", "shuffled"]) == 0
    evaluate = ["evaluate", "egonlq", str(run / "head"), "--annotations", nlq, "--output", str(tmp_path / "e.json")]
    shuffled = [*evaluate, "--features", str(tmp_path / "h")]
    assert main([*shuffled, "--frame-order", "shuffled"]) == main(shuffled) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["frame_order"], found["condition"]) == ("shuffled", "frames shuffled")
    assert main([*shuffled, "--frame-order", "natural"]) == 2
    assert "are of shuffled frames" in capsys.readouterr().err
    predictions = [*evaluate, "--predictions", str(tmp_path / "p.json")]
    assert main([*predictions, "--frame-order", "shuffled"]) == 2
    assert "no --frame-order" in capsys.readouterr().err
