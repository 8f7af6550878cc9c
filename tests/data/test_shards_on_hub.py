"""Shards on the Hub: the same clips as from the folder, in the same order, from few bytes; against a double."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfFileSystem, constants

from modeling_svitt_ego.data.clip_shards import ClipShardDataset, ShardSettings, write_clip_shards
from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex
from tests.helpers.hub_double import HubDouble
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video

REPO, URL = "datasets/user/clips", "hf://datasets/user/clips"
NUM_CLIPS = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / f"{uid}.mp4", 300, first=5 * first, size=(64, 96), noise=60)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(NUM_CLIPS)]
    settings = ShardSettings(frames_per_clip=4, clips_per_shard=7)
    csv = write_egoclip(root / "e.csv", rows)
    write_clip_shards(csv, root / "videos", root / "shards", settings, num_workers=1, cache_dir=str(root / "c"))
    return root / "shards"


@pytest.fixture
def hub(shards, monkeypatch, tmp_path):
    with HubDouble() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        HfFileSystem.clear_instance_cache()
        files = {path.name: path.read_bytes() for path in shards.iterdir() if path.is_file()}
        hub.create(REPO).commit("main", "shards", files)
        yield hub
        HfFileSystem.clear_instance_cache()


def read(folder, rank, world, epoch, skip, num_workers=0):
    """What one of `world` processes is shown in an epoch, from batch `skip` on, as after a resume."""
    dataset = ClipShardDataset(folder, num_frames=2, seed=3)
    dataset.set_epoch(epoch)
    split = {"seed": 3, "num_replicas": world, "rank": rank, "follow": dataset}
    batches = list(SceneAwareBatchSampler(SceneIndex(dataset.table), 4, **split))[skip:]
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    shown = [[(e["index"], e["text"], hashlib.sha256(e["video"]).hexdigest()) for e in batch] for batch in loader]
    return dataset, shown


def test_the_hub_and_a_folder_give_the_same_clips(hub, shards):
    """Catches another order, other frames, clips that two processes share, and a resume that starts elsewhere."""
    _, local = read(shards, 0, 1, 1, 0)
    rows = sorted(row for batch in local for row, *_ in batch[:2])
    assert len(local) == NUM_CLIPS // 2 and rows == [*range(NUM_CLIPS)]
    there, shown = read(URL, 0, 1, 1, 0, num_workers=2)
    assert shown == local and f"{URL}@{hub.repos[REPO].branches['main'][-1].sha}" in repr(there)
    assert read(URL, 0, 1, 1, 5)[1] == local[5:]
    for folder in (shards, URL):
        for rank in (0, 1):
            assert read(folder, rank, 2, 1, 0)[1] == local[rank::2]
            assert read(folder, rank, 2, 1, 2)[1] == local[rank::2][2:]
    assert len(pickle.dumps(there)) < 60_000


def test_only_the_bytes_of_the_frames_are_read(hub, shards):
    """Catches a whole tar that is downloaded for one clip, and a later commit that is mixed in."""
    before, shown = read(URL, 0, 1, 0, 0)
    sizes = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert {Path(path).suffix for path, *_ in hub.ranges} == {".tar"}
    assert max(size for *_, size in hub.ranges) < sizes / 8
    assert len(hub.ranges) == sum(len(batch) for batch in shown)  # one request per clip
    first = before[0]["video"]
    sha = hub.repos[REPO].branches["main"][-1].sha
    files = {path.name: path.read_bytes() for path in shards.iterdir() if path.is_file()}
    hub.repos[REPO].commit("main", "moved", {f"train/{name}": content for name, content in files.items()})
    assert (before[0]["video"] == first).all()
    assert read(f"{URL}@{sha}", 0, 1, 0, 0)[1] == shown == read(f"{URL}/train", 0, 1, 0, 0)[1]


def test_what_is_wrong_is_named(hub, shards):
    files = {path.name: path.read_bytes() for path in shards.iterdir() if path.is_file()}
    repo = hub.repos[REPO]
    repo.commit("main", "cut", files | {"clips-000001.tar": files["clips-000001.tar"][:5000]})
    with pytest.raises(ValueError, match="clips-000001.tar: 5000 bytes, but its index says"):
        ClipShardDataset(URL)
    del files["clips-000001.tar"]
    repo.commit("main", "lost", files)
    with pytest.raises(FileNotFoundError, match="clips-000001.tar"):
        ClipShardDataset(URL)
    with pytest.raises(ValueError, match="from a folder or from hf://"):
        ClipShardDataset("s3://bucket/clips")
    with pytest.raises(FileNotFoundError):
        ClipShardDataset("hf://datasets/user/absent")
