"""Sentences drawn by relevance for EPIC-KITCHENS-100 clips, from csv files with the published files' traps."""

import csv

import numpy as np
import pytest

from modeling_svitt_ego import load_epic_kitchens
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.epic_kitchens import REQUIRED
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.relevance import RelevantSentences, RetrievalCollator, training_table
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.evaluation.ek100_metrics import ek100_relevance
from tests.helpers.tiny_data import write_video

# Narrations with commas, one noun in two clips, several nouns, a noun-free row, a verb of several words.
CLIPS = [
    ("open door", "open", 3, ["door"], [8]),
    ("take plate, knife", "take", 0, ["plate", "knife"], [2, 4]),
    ("pick up knife", "pick-up", 0, ["knife"], [4]),
    ("close door", "close", 4, ["door"], [8]),
    ("stir", "stir", 9, [], []),
    ("wash the pan:dust", "wash", 2, ["pan:dust"], [296]),
]


def write_ek100(root, clips=CLIPS, name="EPIC_100_retrieval_train"):
    """The two csv files as published: lists as Python text, narrations with commas in quotes."""
    with open(root / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(REQUIRED)
        for i, (text, verb, verb_class, nouns, noun_classes) in enumerate(clips):
            times = f"00:00:{i:02d}.00", f"00:00:{i + 1:02d}.50"
            first = (nouns[0], noun_classes[0]) if nouns else ("", 0)
            writer.writerow(
                [f"P01_01_{i}", "P01_01", *times, text, verb, verb_class, *first, str(nouns), str(noun_classes)]
            )
    with open(root / f"{name}_sentence.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["narration_id", "narration"])
        writer.writerows([f"P01_01_{i}", clip[0]] for i, clip in enumerate(clips))
    csv_path, sentences = root / f"{name}.csv", root / f"{name}_sentence.csv"
    return load_epic_kitchens(csv_path, split="train"), load_epic_kitchens(csv_path, sentences, split="train")


def test_relevance_of_a_row_equals_the_matrix(tmp_path):
    """Catches another IoU in the sampler than in the metric."""
    clips, sentences = write_ek100(tmp_path)
    found = RelevantSentences(clips, sentences)
    classes = [list(table[name]) for table in (clips, sentences) for name in ("verb_class", "all_noun_classes")]
    expected = ek100_relevance(*classes)
    np.testing.assert_allclose([found.relevance(i) for i in range(len(clips))], expected)


def test_only_relevant_sentences_are_drawn_and_all_of_them(tmp_path):
    """Catches the threshold taken the wrong way round, and classes of the clip in the place of the sentence's."""
    clips, sentences = write_ek100(tmp_path)
    texts = RelevantSentences(clips, sentences, threshold=0.1)
    drawn = [texts.draw(1, seed) for seed in range(60)]
    assert {d["text"] for d in drawn} == {"take plate, knife", "pick up knife"}
    by_text = {d["text"]: (d["text_verb_tags"], d["text_noun_tags"]) for d in drawn}
    assert by_text["take plate, knife"] == ([0], [2, 4]) and by_text["pick up knife"] == ([0], [4])
    assert texts.draw(1, 7) == texts.draw(1, 7)
    # "open door" and "close door" share the noun: relevance 0.5, and only 0.5.
    assert {RelevantSentences(clips, sentences, 0.5).draw(0, seed)["text"] for seed in range(40)} == {"open door"}
    assert {texts.draw(4, seed)["text"] for seed in range(20)} == {"stir"}
    assert RelevantSentences(clips, sentences, template="#C C {}").draw(4, 0)["text"] == "#C C stir"
    for wrong, message in (({"threshold": 1.0}, "threshold"), ({"template": "#C C"}, "template")):
        with pytest.raises(ValueError, match=message):
            RelevantSentences(clips, sentences, **wrong)


def test_a_clip_without_a_relevant_sentence_keeps_its_own(tmp_path):
    clips, sentences = write_ek100(tmp_path)
    texts = RelevantSentences(clips, sentences.select([0, 3]))
    assert texts.draw(5, 0) == {"text": "wash the pan:dust", "text_verb_tags": [2], "text_noun_tags": [296]}


def test_batches_carry_the_classes_of_clip_and_sentence(tmp_path):
    """Catches texts that change with the worker and not with (seed, epoch, row)."""
    clips, sentences = write_ek100(tmp_path)
    write_video(tmp_path / "videos" / "P01_01.mp4", 100)
    table = training_table(clips)
    assert table[1]["tag_verb"] == [0] and table[1]["tag_noun"] == [2, 4] and table[1]["narration_time"] == 1.75
    store, texts = VideoStore(tmp_path / "videos"), RelevantSentences(clips, sentences)
    dataset = EgoClipDataset(table, store, texts=texts)
    first, again = dataset[1], EgoClipDataset(table, store, texts=texts)[1]
    assert first["text"] == again["text"] and first["text_noun_tags"] == again["text_noun_tags"]
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        seen.add(dataset[1]["text"])
    assert seen == {"take plate, knife", "pick up knife"}

    collator = RetrievalCollator(build_processor(list(sentences["clip_text"])))
    batch = collator([dataset[0], dataset[1]])
    assert batch["verb_tags"].shape == (2, 97) and batch["text_noun_tags"].shape == (2, 300)
    assert batch["verb_tags"].argmax(1).tolist() == [3, 0] and batch["noun_tags"][1].nonzero().tolist() == [[2], [4]]
    assert batch["text_noun_tags"][1].sum() in (1, 2) and batch["text_noun_tags"][1, 4] == 1
    with pytest.raises(ValueError, match="6 rows"):
        EgoClipDataset(table.select([0]), store, texts=texts)


def test_a_class_beyond_the_list_of_classes_is_named(tmp_path):
    clips, sentences = write_ek100(tmp_path, [("fly kite", "fly", 97, ["kite"], [1])])
    write_video(tmp_path / "videos" / "P01_01.mp4", 60)
    dataset = EgoClipDataset(training_table(clips), VideoStore(tmp_path / "videos"))
    with pytest.raises(ValueError, match="verb tag 97 is not below num_verbs"):
        RetrievalCollator(build_processor(["fly kite"]))([dataset[0]])


def test_a_file_without_labels_is_read_only_if_asked(tmp_path):
    """The published test timestamps have no narration and no classes; they must not be taken for a benchmark."""
    path = tmp_path / "EPIC_100_test_timestamps.csv"
    path.write_text(
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame\nP01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.890,1,113\n"
    )
    with pytest.raises(ValueError, match="labelled=False"):
        load_epic_kitchens(path)
    (row,) = load_epic_kitchens(path, labelled=False)
    assert row["video_uid"] == "P01_11" and row["clip_end"] == 1.89
    assert row["verb_class"] == row["noun_class"] == -1 and row["all_noun_classes"] == [] and row["clip_text"] == ""


def test_a_missing_class_is_named(tmp_path):
    clips = [("open door", "open", "", ["door"], [8])]
    with pytest.raises(ValueError, match="line 2: '' is not a class number"):
        write_ek100(tmp_path, clips)


def test_lists_of_phrases_are_read(tmp_path):
    """Cells such as "['picking up', 'cup, small']" are lists with commas inside of words."""
    clips = [("pick up cup, small", "picking up", 0, ["picking up", "cup, small"], [1, 2])]
    assert write_ek100(tmp_path, clips)[0][0]["all_nouns"] == ["picking up", "cup, small"]
