"""Clips kept decoded: the frames of the videos, decoded once, and again when the video changes."""

import os

import numpy as np
import pytest

from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.decoded_clips import DecodedClips
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from tests.helpers.tiny_data import egoclip_row, frame_numbers, write_egoclip, write_video


@pytest.fixture
def corpus(tmp_path):
    """A video of 10 s at 10 fps; 4 clips of one second, the first of which begins before the video does."""
    write_video(tmp_path / "videos" / "video-a" / "0.mp4", 100)
    rows = [egoclip_row(i, video_uid="video-a") for i in range(4)]
    rows[0] = egoclip_row(0, video_uid="video-a", clip_start=-0.6, clip_end=0.4)
    table = load_egoclip(write_egoclip(tmp_path / "e.csv", rows), cache_dir=str(tmp_path / "c"))
    return table, VideoStore(tmp_path / "videos"), tmp_path / "decoded"


def epochs(dataset, count):
    for epoch in range(count):
        dataset.set_epoch(epoch)
        yield dataset


def test_frames_are_those_of_the_video_and_decoded_once(corpus, monkeypatch):
    """Catches another frame than the file's, a window that is not clamped, and decoding in every epoch."""
    table, store, folder = corpus
    kept, direct = DecodedClips(*corpus, num_frames=4), EgoClipDataset(table, store, 8, "middle")
    all_frames = [direct[row] for row in range(4)]
    for epoch in range(3):
        kept.set_epoch(epoch)
        for row in range(4):
            example, whole = kept[row], all_frames[row]
            numbers, every = frame_numbers(example["video"]), frame_numbers(whole["video"])
            assert all(number in every[2 * i : 2 * i + 2] for i, number in enumerate(numbers))
            assert {k: v for k, v in example.items() if k not in ("video", "seed")}.items() <= whole.items()
        if epoch == 0:
            monkeypatch.setattr(VideoStore, "read_window", lambda *_: pytest.fail("decoded again"))
    assert len(list(folder.iterdir())) == 4
    assert len({tuple(frame_numbers(kept[row]["video"])) for kept in epochs(kept, 4) for row in [2]}) > 1
    same = DecodedClips(*corpus, num_frames=4, sampling="middle", frames_per_clip=4)
    with pytest.raises(pytest.fail.Exception):
        same[0]  # other frames than those kept


def test_a_changed_video_is_decoded_again(corpus):
    """Catches frames of a file that has been replaced."""
    table, store, folder = corpus
    before = DecodedClips(*corpus, num_frames=2, sampling="middle")[1]["video"]
    file = store.path("video-a", 1.0)
    write_video(file, 100, first=9)
    os.utime(file, ns=(1, 1))
    after = DecodedClips(*corpus, num_frames=2, sampling="middle")[1]["video"]
    assert not np.array_equal(before, after)
    direct = EgoClipDataset(table, store, 4, "middle")[1]["video"]
    assert all(any(np.array_equal(frame, one) for one in direct) for frame in after)


def test_a_truncated_file_is_decoded_again(corpus, caplog):
    """Catches an error of zipfile without the path, and half a file that is taken for the frames."""
    _, _, folder = corpus
    dataset = DecodedClips(*corpus, num_frames=2, sampling="middle")
    before = dataset[1]["video"]
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert np.array_equal(dataset[1]["video"], before)
    assert str(file) in caplog.text and "damaged" in caplog.text
    caplog.clear()
    assert np.array_equal(dataset[1]["video"], before) and not caplog.text


def test_frames_per_clip_must_fit(corpus):
    with pytest.raises(ValueError, match=r"frames_per_clip \(5\) must be a multiple of num_frames \(4\)"):
        DecodedClips(*corpus, frames_per_clip=5, num_frames=4)
