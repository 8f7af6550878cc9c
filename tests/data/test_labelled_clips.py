"""EGTEA Gaze+ and Charades-Ego from files of the published shape."""

import numpy as np
import pytest

from modeling_svitt_ego.data.charades_ego import load_charades_ego
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.egtea import load_egtea
from modeling_svitt_ego.data.labelled_clips import LabelledClips
from modeling_svitt_ego.data.layouts import VideoStore
from tests.helpers.tiny_data import frame_numbers, write_video

EGTEA = (
    "OP01-R01-PastaSalad-1002316-1004005-F024051-F024101 3 2 1 \n"
    "OP01-R02-TurkeySandwich-102320-105110-F002449-F002529 1 1 2 1\n\n"
)
INDICES = {
    "action_idx.txt": "Take cup 1\nOpen fridge 2\nInspect/Read recipe 3\n",
    "verb_idx.txt": "Take 1\nOpen 2\n",
    "noun_idx.txt": "cup 1\nbread 2\n",
}
CHARADES = (
    "id,subject,scene,quality,length,actions,egocentric\n"
    'AAAAAEGO,S1,"Kitchen, small",6,20.5,c002 1.00 5.00;c001 4.00 6.00,Yes\n'
    "BBBBBEGO,S2,Hall,6,10.0,,Yes\n"
)


def egtea(folder, text=EGTEA, indices=INDICES):
    (folder / "test_split1.txt").write_text(text)
    for name, content in indices.items():
        (folder / name).write_text(content)
    return folder / "test_split1.txt"


def test_egtea_numbers_start_at_zero_and_names_come_from_the_index_files(tmp_path):
    """Catches numbers taken as they are in the file, which would shift every class by one."""
    clips = load_egtea(egtea(tmp_path))
    assert {head: list(numbers) for head, numbers in clips.classes.items()} == {
        "verb": [1, 0],
        "noun": [0, 1],
        "action": [2, 0],
    }
    assert clips.class_names("action") == ["Take cup", "Open fridge", "Inspect/Read recipe"]
    assert clips.num_classes("action") == 3 and clips.metric == "mean_class" and not clips.is_multi_label
    assert load_egtea(egtea(tmp_path), tmp_path / "elsewhere").num_classes("verb") == 2  # without names: what occurs


def test_egtea_clips_are_whole_files_in_a_folder_of_their_session(tmp_path):
    """Catches a window in the session's time, which is past the end of the trimmed file."""
    clips = load_egtea(egtea(tmp_path))
    name = clips.table[0]["video_uid"]
    write_video(tmp_path / "cropped_clips" / "OP01-R01-PastaSalad" / f"{name}.mp4", 20)
    store = VideoStore(tmp_path / "cropped_clips", "egtea")
    example = EgoClipDataset(clips.table, store, num_frames=2, sampling="middle")[0]
    assert frame_numbers(example["video"]) == [5, 15] and example["end"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="not of the layout 'egtea'"):
        store.path("nodashes")
    assert VideoStore(tmp_path / "cropped_clips").layout == store.layout


def test_epic_kitchens_layouts(tmp_path):
    store = VideoStore(tmp_path, "epic")
    assert store.path("P01_11") == tmp_path / "P01" / "videos" / "P01_11.MP4"
    assert VideoStore(tmp_path, "epic-avion").path("P01_11", 31.0) == tmp_path / "P01" / "P01_11.MP4" / "30.MP4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a-b-c-d 1 1", "line 1"),
        ("a-b-c-d 1 x 1", "line 1"),
        ("a-b-c-d 0 1 1", "numbered from 1"),
        ("a-b-c-d 4 1 1", "action 4 is not in action_idx.txt"),
        ("../a 1 1 1", "plain file name"),
        ("\n", "no clip"),
    ],
)
def test_bad_egtea_lines_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_egtea(egtea(tmp_path, text))


def test_bad_egtea_index_is_named(tmp_path):
    for content, message in (("Take 1\nOpen 3\n", "1 to 2"), ("Take\n", "line 1"), ("Take 1\nOpen 1\n", "line 2")):
        with pytest.raises(ValueError, match=message):
            load_egtea(egtea(tmp_path, indices=INDICES | {"verb_idx.txt": content}))


def test_charades_ego_videos_have_all_their_actions(tmp_path):
    """Catches a video without actions that is dropped, and commas in quoted cells."""
    (tmp_path / "test.csv").write_text(CHARADES)
    clips = load_charades_ego(tmp_path / "test.csv")
    assert clips.classes["label"].shape == (2, 157) and clips.is_multi_label and clips.metric == "map"
    assert np.flatnonzero(clips.classes["label"][0]).tolist() == [1, 2] and not clips.classes["label"][1].any()
    assert clips.table[0] == {"video_uid": "AAAAAEGO", "clip_start": 0.0, "clip_end": 20.5}


def test_charades_ego_moments_have_what_happens_at_their_middle(tmp_path):
    (tmp_path / "train.csv").write_text(CHARADES.replace("4.00 6.00", "2.00 6.00"))
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding\nc001 Putting\nc002 Taking\n")
    clips = load_charades_ego(tmp_path / "train.csv", by="moment")
    assert clips.label_names == ["Holding", "Putting", "Taking"]
    assert list(clips.table["clip_start"]) == [1.0, 2.0]
    assert clips.classes["label"].tolist() == [[False, True, True], [False, True, True]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c002", "c157", "line 2.*c000 to c156"),
        ("c002 1.00 5.00", "c002 1.00", "line 2"),
        ("20.5", "long", "line 2.*seconds"),
        ("AAAAAEGO", "../A", "line 2.*plain"),
        (",actions", ",acts", "lacks the column"),
    ],
)
def test_bad_charades_ego_rows_are_named(tmp_path, old, new, message):
    (tmp_path / "test.csv").write_text(CHARADES.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_charades_ego(tmp_path / "test.csv")


def test_labels_must_be_as_many_as_clips(tmp_path):
    table = load_egtea(egtea(tmp_path)).table
    with pytest.raises(ValueError, match="3 labels of 'verb' for 2 clips"):
        LabelledClips(table, {"verb": np.zeros(3, dtype=int)})
