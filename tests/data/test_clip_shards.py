"""Clips as tar shards: the same frames as from the videos, the same bytes twice, readable by datasets, resumable."""

import json
import pickle

import datasets
import numpy as np
import pytest
import torch

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.data import clip_shards
from modeling_svitt_ego.data.clip_shards import ClipShardDataset, ShardSettings, write_clip_shards
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex
from modeling_svitt_ego.model.clip_reading import ClipReadError
from tests.helpers.tiny_data import egoclip_row, frame_numbers, write_egoclip, write_video

SETTINGS = ShardSettings(frames_per_clip=8, clips_per_shard=5, short_side=32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / uid / "0.mp4", 200, first=5 * first, size=(64, 96))
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(12)]
    rows[0] = egoclip_row(0, clip_start=-0.6, clip_end=0.4)
    write_egoclip(root / "e.csv", rows)
    return root


@pytest.fixture(scope="module")
def shards(corpus):
    folder = corpus / "shards"
    report = write_clip_shards(
        corpus / "e.csv", corpus / "videos", folder, SETTINGS, num_workers=1, cache_dir=str(corpus / "c")
    )
    assert (report.num_clips, report.num_shards, report.exit_code) == (12, 3, 0)
    return folder


def write(corpus, folder, settings=SETTINGS):
    return write_clip_shards(
        corpus / "e.csv", corpus / "videos", folder, settings, num_workers=1, cache_dir=str(corpus / "c")
    )


def test_frames_and_annotations_are_those_of_the_videos(corpus, shards):
    """Catches frames of another moment, an index that is off, and tags or texts of another clip."""
    table = load_egoclip(corpus / "e.csv", cache_dir=str(corpus / "c"))
    videos = EgoClipDataset(table, VideoStore(corpus / "videos"), num_frames=8, sampling="middle")
    clips = ClipShardDataset(shards, num_frames=8, sampling="middle")
    assert len(clips) == len(videos)
    for i in range(len(videos)):
        expected, got = videos[i], clips[i]
        assert got["video"].shape == (8, 32, 48, 3) and got["video"].dtype == np.uint8
        assert frame_numbers(got["video"]) == frame_numbers(expected["video"])
        assert {k: v for k, v in got.items() if k != "video"} == {k: v for k, v in expected.items() if k != "video"}


def test_training_draws_one_frame_of_each_group(shards):
    dataset = ClipShardDataset(shards, num_frames=2, seed=1)
    stored = frame_numbers(ClipShardDataset(shards, num_frames=8, sampling="middle")[4]["video"])
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        first, second = frame_numbers(dataset[4]["video"])
        assert first in stored[:4] and second in stored[4:]
        seen.add((first, second))
    assert len(seen) > 3
    dataset.set_epoch(0)
    assert np.array_equal(dataset[4]["video"], ClipShardDataset(shards, num_frames=2, seed=1)[4]["video"])
    views = ClipShardDataset(shards, num_frames=2, num_views=3)[4]["video"]
    assert views.shape == (6, 32, 48, 3)
    with pytest.raises(ValueError, match=r"num_frames \(3\) must divide the 8"):
        ClipShardDataset(shards, num_frames=3)


def test_samplers_workers_and_the_collator_work_as_on_videos(shards):
    """Catches a data set that the trainer would not take for an EgoClipDataset."""
    dataset = ClipShardDataset(shards, num_frames=4)
    assert isinstance(dataset, EgoClipDataset)
    sampler = SceneAwareBatchSampler(SceneIndex(dataset.table), 4, follow=dataset)

    def processor(videos, text, **kwargs):
        return {"shown": [frame_numbers(video) for video in videos], "text": text}

    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=1, collate_fn=list)
    rows = [example["index"] for batch in loader for example in batch]
    assert sorted(rows[::4] + rows[1::4]) == list(range(12))
    batch = ClipCollator(processor)([dataset[1], dataset[2]])
    assert batch["text"] == ["#C C picks item 1", "#C C picks item 2"] and batch["verb_tags"].shape == (2, 118)
    assert len(pickle.dumps(dataset)) < 60_000


def test_datasets_reads_them_as_a_webdataset(shards, tmp_path):
    """Catches a tar that only we can read."""
    files = sorted(str(path) for path in shards.glob("*.tar"))
    for streaming in (False, True):
        rows = list(
            datasets.load_dataset(
                "webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path)
            )
        )
        assert len(rows) == 12 and rows[3]["json"]["clip_text"] == "#C C picks item 3"
        assert rows[3]["json"]["tag_noun"] == [3, 10] and rows[3]["007.jpg"].size == (48, 32)
    assert rows[0]["json"]["start"] == 0.0 and rows[0]["json"]["clip_start"] == -0.6


def test_two_runs_are_byte_identical_and_a_stopped_one_goes_on(corpus, shards, tmp_path, monkeypatch):
    """Catches clocks and names in the tar, half shards taken for whole, and work done twice."""
    real, done = clip_shards.write_shard, []

    def stops(part, first, *rest):
        if first == 5:
            (tmp_path / "s" / ".clips-000001.tar.incomplete").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(first)
        return real(part, first, *rest)

    monkeypatch.setattr(clip_shards, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        write(corpus, tmp_path / "s")
    assert done == [0]
    monkeypatch.setattr(clip_shards, "write_shard", lambda *job: done.append(job[1]) or real(*job))
    report = write(corpus, tmp_path / "s")
    assert done == [0, 5, 10] and report.num_clips == 12 and report.clips_this_run == 7
    files = {path.name for path in shards.iterdir()}
    assert {path.name for path in (tmp_path / "s").iterdir()} == files
    for name in files:
        assert (tmp_path / "s" / name).read_bytes() == (shards / name).read_bytes(), name


def test_unreadable_clips_are_left_out_and_listed(corpus, tmp_path, capsys):
    videos = tmp_path / "videos"
    (videos / "video-b").mkdir(parents=True)
    (videos / "video-b" / "0.mp4").write_bytes(b"this is not a video" * 50)
    (videos / "video-a").symlink_to(corpus / "videos" / "video-a")
    options = ["--clip-shards", str(corpus / "e.csv"), "--frames-per-clip", "8", "--clips-per-shard", "5"]
    options += ["--num-workers", "1", "--json", str(tmp_path / "r.json"), "--short-side", "32"]
    assert main(["prepare", str(videos), str(tmp_path / "out"), *options]) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert [failure["row"] for failure in report["failures"]] == [1, 3, 5, 7, 9, 11] and report["num_clips"] == 6
    assert all(failure["path"].endswith("video-b/0.mp4") and failure["reason"] for failure in report["failures"])
    assert "clips LEFT OUT" in capsys.readouterr().out
    dataset = ClipShardDataset(tmp_path / "out")
    assert len(dataset) == report["num_clips"] and {dataset[i]["video_uid"] for i in range(len(dataset))} == {
        "video-a"
    }


def test_other_settings_and_damage_are_errors(corpus, shards, tmp_path):
    with pytest.raises(FileExistsError, match="jpeg_quality: 90 there, 50 asked for"):
        write(corpus, shards, ShardSettings(8, 5, 32, 50))
    with pytest.raises(ValueError, match=r"jpeg_quality \(0\)"):
        ShardSettings(jpeg_quality=0)
    with pytest.raises(FileNotFoundError, match="No clip shards"):
        ClipShardDataset(tmp_path)
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "clips-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    dataset = ClipShardDataset(tmp_path, num_frames=8)
    assert dataset[0]["video"].any()
    with pytest.raises(ClipReadError, match="clips-000001.tar: frame"):
        dataset[6]
