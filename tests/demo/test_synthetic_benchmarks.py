"""The synthetic world as the downstream benchmarks: the package's loaders read every file, and the clips decode."""

import csv
from collections import Counter

import numpy as np
import pytest

from modeling_svitt_ego import load_epic_kitchens
from modeling_svitt_ego.data.charades_ego import load_charades_ego
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.egtea import load_egtea
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.relevance import RelevantSentences, training_table
from modeling_svitt_ego.data.taxonomy import read_taxonomy
from modeling_svitt_ego.demo.synthetic_benchmarks import (
    read_actions,
    write_charades_ego,
    write_egtea,
    write_epic_kitchens,
)
from modeling_svitt_ego.demo.synthetic_world import VERB_TAXONOMY, build_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "demo"
    return build_world(root, {"train": 3, "test": 2}, seconds_per_video=24.0, seed=5, height=48, fps=6, num_workers=1)


def test_epic_kitchens_files_are_read_by_the_loader(world, tmp_path):
    """Catches sentences without a clip, a comma that splits a narration, and kitchens in both splits."""
    root = write_epic_kitchens(world, tmp_path, fps=6)
    kitchens, texts = {}, []
    for split in ("train", "test"):
        files = root / f"EPIC_100_retrieval_{split}.csv", root / f"EPIC_100_retrieval_{split}_sentence.csv"
        clips, sentences = load_epic_kitchens(files[0]), load_epic_kitchens(*files)
        with open(files[0], newline="", encoding="utf-8") as file:
            kitchens[split] = {row["participant_id"] for row in csv.DictReader(file)}
        assert len(set(sentences["clip_text"])) == len(sentences) and {*sentences["clip_text"]} == {
            *clips["clip_text"]
        }
        texts += clips["clip_text"]
        store = VideoStore(root / "videos", "epic")
        dataset = EgoClipDataset(training_table(clips), store, texts=RelevantSentences(clips, sentences))
        assert dataset[len(dataset) - 1]["video"].shape == (4, 48, 48, 3)
    assert not kitchens["train"] & kitchens["test"] and kitchens["train"] == {"P01", "P02", "P03"}
    assert any("," in text for text in texts) and not any("#C" in text for text in texts)
    assert read_taxonomy(root / "EPIC_100_verb_classes.csv").labels == VERB_TAXONOMY.labels
    assert len(load_epic_kitchens(root / "EPIC_100_validation.csv")) == len(clips)
    unlabelled = load_epic_kitchens(root / "EPIC_100_test_timestamps.csv", labelled=False)
    assert list(unlabelled["clip_start"]) == list(clips["clip_start"]) and set(unlabelled["verb_class"]) == {-1}
    with pytest.raises(ValueError, match="labelled=False"):
        load_epic_kitchens(root / "EPIC_100_test_timestamps.csv")


def test_later_classes_are_rarer(world):
    """The world draws all verbs about equally often; what is kept of them has a long tail."""
    kept = Counter(action.verb for seed in range(30) for part in read_actions(world, seed).values() for action in part)
    truth = read_actions(world, 0)
    assert read_actions(world, 0) == truth
    early, late = (np.mean([kept[verb] for verb in verbs]) for verbs in (range(2), range(6, 10)))
    assert early > 1.2 * late


def test_egtea_and_charades_files_are_read_by_the_loaders(world, tmp_path):
    """Catches clips cut at the wrong frames: the first and last frames are those of the whole video's window."""
    root = write_egtea(world, tmp_path / "egtea", fps=6)
    clips = load_egtea(root / "test_split1.txt")
    assert clips.class_names("verb") == list(VERB_TAXONOMY.labels) and clips.num_classes("action") > 5
    assert len(clips.table) == len(read_actions(world)["test"])
    dataset = EgoClipDataset(clips.table, VideoStore(root / "cropped_clips", "egtea"), sampling="middle")
    example, action = dataset[0], read_actions(world)["test"][0]
    assert example["end"] == pytest.approx(action.end - action.start, abs=0.2)
    assert clips.classes["verb"][0] == action.verb

    root = write_charades_ego(world, tmp_path / "charades")
    videos = load_charades_ego(root / "CharadesEgo_v1_test_only1st.csv")
    assert videos.classes["label"].shape[0] == 2 and videos.classes["label"].any(1).all()
    moments = load_charades_ego(root / "CharadesEgo_v1_train_only1st.csv", by="moment")
    assert len(moments.table) == len(read_actions(world)["train"])
    assert EgoClipDataset(videos.table, VideoStore(root / "videos"), sampling="middle")[1]["video"].shape[0] == 4
