"""A stopped run goes on with the exact next clip: the real Trainer on 1 and 2 processes, and torchdata's loader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from modeling_svitt_ego.data.clip_shards import ShardSettings, write_clip_shards
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex
from tests.helpers import recorded_run
from tests.helpers.hub_double import HubDouble
from tests.helpers.tiny_data import frame_numbers
from tests.helpers.tiny_pretraining import GENEROUS, free_port, make_corpus

HELPERS = Path(__file__).parents[1] / "helpers"
STEPS, STOP = 6, 5  # of 16 clips: an epoch has 8 steps on one process and 4 on two, so 5 is in the second epoch there


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def records(stem, rank):
    return json.loads(Path(f"{stem}-{rank}.json").read_text())


def test_one_process_continues_with_the_next_clip(corpus, tmp_path):
    """Catches a resume that restarts the epoch, skips or repeats a batch, or draws other frames and crops."""
    recorded_run.run(corpus, tmp_path / "run", tmp_path / "whole", max_steps=10, save_strategy="steps", save_steps=9)
    recorded_run.run(corpus, tmp_path / "again", tmp_path / "rest", str(tmp_path / "run/checkpoint-9"), max_steps=10)
    whole, rest = records(tmp_path / "whole", 0), records(tmp_path / "rest", 0)
    assert [step for step, *_ in rest] == [10]
    assert rest == whole[9:]
    assert len({json.dumps(entry[1:]) for entry in whole}) == len(whole), "every step must be recognisable"


def launch(corpus, output, record, *more, check=True, **environment):
    """Runs recorded_run.py on two processes of this machine."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        + [str(HELPERS / "recorded_run.py"), str(corpus), str(output), str(record), *more, f"max_steps={STEPS}"]
        + ['ddp_backend="gloo"'],
        check=check,
        capture_output=not check,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        timeout=GENEROUS,
    )


def check_two_processes(corpus, folder, *more, **environment):
    """A whole run and one that goes on from its checkpoint: the same steps, and in an epoch each clip once."""
    more = ('save_strategy="steps"', f"save_steps={STOP}", *more)
    launch(corpus, folder / "run", folder / "whole", *more, **environment)
    checkpoint = str(folder / f"run/checkpoint-{STOP}")
    launch(corpus, folder / "again", folder / "rest", checkpoint, *more, **environment)
    whole = [records(folder / "whole", rank) for rank in (0, 1)]
    for rank in (0, 1):
        assert records(folder / "rest", rank) == whole[rank][STOP:]
        assert len(whole[rank]) == STEPS
    clips = [row for rank in (0, 1) for _, rows, _ in whole[rank][:4] for row in rows[:2]]
    assert sorted(clips) == list(range(16)), "the first epoch must show each clip once, over both processes"


@pytest.mark.slow
def test_two_processes_continue_with_the_next_clip_each(corpus, tmp_path):
    """Catches an epoch that does not reach the sampler, or batches dealt to the ranks in another order."""
    check_two_processes(corpus, tmp_path)


def test_two_processes_do_not_continue_a_run_of_one_unless_asked_to(corpus, tmp_path):
    """Catches a resume that silently deals the clips of a step to another number of processes."""
    recorded_run.run(corpus, tmp_path / "run", tmp_path / "one", max_steps=5, save_strategy="steps", save_steps=5)
    checkpoint = str(tmp_path / "run/checkpoint-5")
    refused = launch(corpus, tmp_path / "two", tmp_path / "two", checkpoint, check=False)
    assert refused.returncode != 0 and "num_processes: 1 there, 2 now" in refused.stderr
    assert not (tmp_path / "two-0.json").exists()
    launch(corpus, tmp_path / "two", tmp_path / "two", checkpoint, "resume_changed=true")
    assert [[step for step, *_ in records(tmp_path / "two", rank)] for rank in (0, 1)] == [[6], [6]]


@pytest.mark.slow
def test_two_processes_with_two_workers_each_read_shards_of_the_hub(corpus, tmp_path):
    """Catches shards on the Hub that processes or workers share, and that do not continue where they stopped."""
    settings = ShardSettings(frames_per_clip=4, clips_per_shard=5)
    write_clip_shards(
        corpus / "e.csv", corpus / "videos", tmp_path / "shards", settings, num_workers=1, cache_dir=str(corpus / "c")
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir() if path.is_file()}
    with HubDouble() as hub:
        hub.create("datasets/user/clips").commit("main", "shards", files)
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        check_two_processes("hf://datasets/user/clips", tmp_path, "dataloader_num_workers=2", **settings)
        assert {Path(path).suffix for path, *_ in hub.ranges} == {".tar"} and len(hub.ranges) >= 2 * 4 * STEPS


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdatas_state_continues_with_the_next_batch(corpus, num_workers):
    """Catches an order or an epoch that torchdata's state does not carry, for those who do without the Trainer."""
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is an option of its users")
    table = load_egoclip(corpus / "e.csv", cache_dir=str(corpus / "c"))

    def loader(cls, **options):
        dataset = EgoClipDataset(table, VideoStore(corpus / "videos"), seed=3)
        sampler = SceneAwareBatchSampler(SceneIndex(dataset.table), 4, seed=3, follow=dataset)
        return cls(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=list, **options)

    def shown(batches):
        return [[(e["index"], e["seed"], frame_numbers(e["video"])) for e in batch] for batch in batches]

    plain = loader(DataLoader)
    plain.dataset.set_epoch(1)
    whole = shown(plain)
    stopped = loader(torchdata.StatefulDataLoader)
    stopped.dataset.set_epoch(1)
    batches = iter(stopped)
    for _ in range(3):
        next(batches)
    state = stopped.state_dict()
    resumed = loader(torchdata.StatefulDataLoader)
    resumed.load_state_dict(state)
    resumed.dataset.set_epoch(1)  # the epoch is the caller's, as with a DistributedSampler
    assert shown(resumed) == whole[3:]
