"""Clips as tar shards: the same frames as from the videos, the same bytes twice, readable by datasets, resumable."""

import io
import json
import pickle
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.data import clip_shards, shard_index
from modeling_svitt_ego.data.clip_shards import ClipShardDataset, ShardSettings, write_clip_shards
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex
from modeling_svitt_ego.data.shard_dataset import decode_frame
from modeling_svitt_ego.files.sharding import Shard
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
            (tmp_path / "s" / ".1-0123456789abcdef.part").write_bytes(b"half")
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


@pytest.fixture
def copy(shards, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(shards, folder)
    return folder


def edit_index(path, **changes):
    """Rewrite an index whose first row is changed, as a stranger could who also gives it a fitting hash."""
    rows = datasets.Dataset.from_file(str(path)).to_list()
    rows[0] |= changes
    shard_index.write_index(path, rows, [], path.with_suffix(".tar"))


def test_files_cut_short_are_refused_when_opened(copy):
    """Catches an index that was cut between two messages and loads as a shorter table, and half a tar."""
    tar, index = copy / "clips-000001.tar", copy / "clips-000001.index"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:3000])
    with pytest.raises(ClipReadError, match=f"clips-000001.tar: 3000 bytes, but its index says {len(whole)}"):
        ClipShardDataset(copy)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match="clips-000001.tar"):
        ClipShardDataset(copy)
    tar.write_bytes(whole)
    content = index.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 40, len(content) - 1):
        index.write_bytes(content[:length])
        with pytest.raises(ClipReadError, match="clips-000001.index: the index of"):
            ClipShardDataset(copy)


@pytest.mark.parametrize(
    "name, cut", [("clips-000001.tar", 3000), ("clips-000001.index", 500), ("clips-000002.tar", None)]
)
def test_a_damaged_shard_is_written_again(corpus, shards, copy, name, cut):
    """Catches a resume that compares no content: the damaged tar has its size, the others are cut short."""
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:cut] if cut else content[:2000] + b"?" + content[2001:])
    assert write(corpus, copy).clips_this_run == (5 if "1." in name else 2)
    assert (copy / name).read_bytes() == content and write(corpus, copy).clips_this_run == 0


def test_a_strangers_index_reads_nothing_but_its_own_tar(copy):
    """Catches paths out of the folder, also through a link."""
    index = copy / "clips-000000.index"
    for name in ("../secret.tar", "/etc/passwd", "clips-000001.tar", ""):
        edit_index(index, shard=name)
        with pytest.raises(ClipReadError, match="clips-000000.index: names the shard"):
            ClipShardDataset(copy)
    edit_index(index, shard="clips-000000.tar")
    tar = copy / "clips-000000.tar"
    shutil.move(tar, copy.parent / "elsewhere.tar")
    tar.symlink_to(copy.parent / "elsewhere.tar")
    with pytest.raises(ValueError, match="link to .*elsewhere.tar.*outside its folder"):
        ClipShardDataset(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": [-1] * 8},
        {"sizes": [2**30] * 8},
        {"offsets": [-5] * 8},
        {"offsets": [10**12] * 8},
        {"offsets": [], "sizes": []},
        {"sizes": [100]},
    ],
)
def test_nonsense_places_are_clip_errors(copy, changes):
    """Catches `read(-1)`, which reads a whole tar, and an index error that ends a run in spite of on_error="skip"."""
    edit_index(copy / "clips-000000.index", **changes)
    with pytest.raises(ClipReadError, match="clips-000000.tar: (frame 0 at byte|0 offsets|8 offsets)"):
        ClipShardDataset(copy, num_frames=8)[0]
    assert ClipShardDataset(copy, num_frames=8, on_error="skip")[0]["index"] != 0


def test_huge_pictures_are_clip_errors(monkeypatch):
    """Catches a JPEG of a few kB that fills the memory, and PIL's own error, which is not an OSError."""

    def jpeg(width, height):
        content = io.BytesIO()
        Image.new("L", (width, height)).save(content, "JPEG")
        return content.getvalue()

    assert decode_frame(jpeg(64, 32), "here").shape == (32, 64, 3)
    with pytest.raises(ClipReadError, match="here: 10000 x 5000 pixels are more than"):
        decode_frame(jpeg(10_000, 5000), "here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ClipReadError, match="here: .*decompression bomb"):
        decode_frame(jpeg(64, 32), "here")
    with pytest.raises(ClipReadError, match="here: "):
        decode_frame(b"\xff\xd8 no picture", "here")


def test_clips_that_could_not_be_read_are_tried_again(corpus, shards, tmp_path):
    """Catches a passing failure, such as a disk that was not mounted, that is recorded as final."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    (videos / "video-a").symlink_to(corpus / "videos" / "video-a")

    def run():
        return write_clip_shards(
            corpus / "e.csv", videos, out, SETTINGS, layout="egovlp", num_workers=1, cache_dir=str(corpus / "c")
        )

    first = run()
    assert (first.num_clips, len(first.failures), first.exit_code) == (6, 6, 1)
    assert run().clips_this_run == 0
    (videos / "video-b").symlink_to(corpus / "videos" / "video-b")
    second = run()
    assert (second.num_clips, second.failures, second.clips_this_run) == (12, [], 12)
    assert not (out / "failures.jsonl").exists()
    for path in shards.glob("clips-*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match=r"video_root: videos \(\w+\) there, videos \(\w+\) asked for"):
        write(corpus, out)


def test_many_failures_stop_the_run_before_anything_is_final(corpus, tmp_path):
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", clip_start=1, clip_end=2) for i in range(50)]
    csv = write_egoclip(tmp_path / "e.csv", rows)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "video-a").symlink_to(corpus / "videos" / "video-a")
    settings = ShardSettings(1, 50, 32)
    with pytest.raises(OSError, match="25 of 50 clips could not be read, more than max_failure_share"):
        write_clip_shards(csv, tmp_path / "videos", tmp_path / "out", settings, num_workers=1, cache_dir=str(tmp_path))
    assert not list((tmp_path / "out").glob("clips-*")) and not list((tmp_path / "out").glob(".*.part"))


def test_parts_together_are_the_whole(corpus, shards, tmp_path):
    """Catches tars that no part or two parts write, and a merge that passes over a hole."""

    def run(**options):
        return write_clip_shards(
            corpus / "e.csv", corpus / "videos", tmp_path / "s", SETTINGS, num_workers=1, cache_dir=str(corpus / "c"),
            **options,
        )  # fmt: skip

    assert run(shard=Shard(0, 2)).num_clips == 7
    with pytest.raises(ValueError, match=r"not complete: 1 of 3 tars are missing or damaged \(clips-000001\)"):
        run(merge=True)
    assert run(shard=Shard(1, 2)).num_clips == 5
    report = run(merge=True)
    assert (report.num_clips, report.num_shards, report.clips_this_run) == (12, 3, 0)
    for path in shards.glob("clips-*"):
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()
