"""Prompts, class embeddings and the files that labelled clips come from."""

import numpy as np
import pytest

from modeling_svitt_ego.data.labelled_files import load_labelled_clips
from modeling_svitt_ego.data.taxonomy import Taxonomy
from modeling_svitt_ego.evaluation.encoding import Encoder
from modeling_svitt_ego.evaluation.prompts import class_words, make_prompts, plain_words, third_person
from modeling_svitt_ego.evaluation.video_classification import ZeroShotEvaluator, class_embeddings, make_tasks
from modeling_svitt_ego.weights.loading import load_checkpoint, load_processor
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video
from tests.helpers.tiny_folder import save_tiny_folder

VERBS = Taxonomy(("take_(pick,_grab,_get)", "turn-on"), (("take", "pick_up", "grab"), ("turn-on",)))
NOUNS = Taxonomy(("cup", "board:chopping", "box"), (("cup", "mug"), ("board:chopping",), ("box",)))


def test_words_as_narrations_have_them():
    assert [third_person(verb) for verb in ("pick up", "wash", "carry", "play", "do", "mix", "turn on")] == [
        "picks up", "washes", "carries", "plays", "does", "mixes", "turns on",
    ]  # fmt: skip
    assert plain_words("board:chopping") == "chopping board" and plain_words("turn-on") == "turn on"
    assert class_words(VERBS) == [["take", "pick up", "grab"], ["turn on"]]


def test_prompts_by_hand():
    prompts = make_prompts(["#C C {verb} the {noun}", "{noun}"], verbs=["pick up", "take"], nouns=["cup"])
    assert prompts == ["#C C picks up the cup", "#C C takes the cup", "cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("zero-shot") / "model", text={"max_position_embeddings": 32})


def test_class_embedding_is_the_normalised_mean_of_its_prompts(folder):
    """Catches prompts counted to the neighbouring class."""
    model, encoder = load_checkpoint(folder, "zero-shot"), Encoder(load_processor(folder))
    prompts = [["#C C picks up the cup", "#C C opens the box"], ["#C C puts down the cup"]]
    embeds = class_embeddings(encoder, model, prompts)
    single = [encoder.texts(model, [text])[0] for group in prompts for text in group]
    mean = (single[0] + single[1]) / 2
    np.testing.assert_allclose(embeds, [mean / np.linalg.norm(mean), single[2]], atol=1e-5)


def test_egoclip_rows_without_one_verb_and_one_noun_are_left_out_and_counted(tmp_path):
    rows = [egoclip_row(0, tag_verb=[1], tag_noun=[2]), egoclip_row(1, tag_verb=[1], tag_noun=[0, 2])]
    rows += [egoclip_row(2, tag_verb=[], tag_noun=[1]), egoclip_row(3, tag_verb=[0], tag_noun=[0])]
    clips = load_labelled_clips(write_egoclip(tmp_path / "e.csv", rows))
    assert clips.num_left_out == 2
    assert clips.classes["verb"].tolist() == [1, 0] and clips.classes["noun"].tolist() == [2, 0]
    tasks = {task.name: task for task in make_tasks(clips, VERBS, NOUNS)}
    assert list(tasks) == ["verb", "noun", "action"] and tasks["action"].labels.tolist() == [1, 0]
    assert tasks["action"].prompts[1][0] == "#C C turns on the box"
    assert len(tasks["verb"].prompts[0]) == 3 * 3  # templates times words
    with pytest.raises(ValueError, match="verb class 1 occurs, but the taxonomy has 1"):
        make_tasks(clips, Taxonomy(("take",), (("take",),)))
    with pytest.raises(ValueError, match="taxonomy"):
        make_tasks(clips)


def test_a_file_of_no_known_kind_is_refused_with_its_header(tmp_path):
    (tmp_path / "x.csv").write_text("video,start\na,1\n")
    with pytest.raises(ValueError, match="header is 'video,start'"):
        load_labelled_clips(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("video_uid,clip_start,clip_end,label\na,one,2,cut\n")
    with pytest.raises(ValueError, match="line 2: clip_start"):
        load_labelled_clips(tmp_path / "y.csv")


def test_zero_shot_report_has_every_task(folder, tmp_path):
    for uid in ("video-a", "video-b"):
        write_video(tmp_path / "videos" / f"{uid}.mp4", 120)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", tag_verb=[i % 2], tag_noun=[i % 3]) for i in range(9)]
    clips = load_labelled_clips(write_egoclip(tmp_path / "e.csv", rows))
    tasks = make_tasks(clips, VERBS, NOUNS, {"noun": ["a {noun}"]})
    evaluator = ZeroShotEvaluator(clips, tasks, tmp_path / "videos", load_processor(folder), 4)
    report = evaluator(load_checkpoint(folder, "zero-shot"))
    assert evaluator.primary_metric == "action_top1"
    for task in ("verb", "noun", "action"):
        for metric in ("top1", "top5", "mean_class"):
            assert 0 <= report.metrics[f"{task}_{metric}"] <= 100
    assert report.primary_metrics == ["action_top1"] and report.counts["action_num_classes"] == 6
    assert report.metrics["verb_top5"] == 100.0 and report.details["prompts"]["noun"] == ["a cup", "a mug", "…"]
