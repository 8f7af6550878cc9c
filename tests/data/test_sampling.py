"""Scene-aware batches: partners from the same minute of the same video; the same batches on every rank and resume."""

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import DataLoader, Dataset

from modeling_svitt_ego.data.sampling import (
    SceneAwareBatchSampler,
    SceneIndex,
    SeededBatchSampler,
    SharedNounBatchSampler,
    TagPairs,
)


def table_of(videos, times, verbs=None, nouns=None):
    columns = {"video_uid": list(videos), "narration_time": [float(time) for time in times]}
    if verbs is not None:
        columns |= {"tag_verb": verbs, "tag_noun": nouns}
    features = {"video_uid": datasets.Value("string"), "narration_time": datasets.Value("float64")}
    if verbs is not None:
        features |= {name: datasets.List(datasets.Value("int32")) for name in ("tag_verb", "tag_noun")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module")
def many():
    """3,000 clips of 20 videos of 5 minutes, in no order."""
    rng = np.random.default_rng(0)
    videos = [f"v{n}" for n in rng.integers(20, size=3000)]
    table = table_of(videos, rng.uniform(0, 300, 3000))
    scene = list(zip(videos, np.floor(np.array(table["narration_time"][:]) / 60).tolist()))
    return SceneIndex(table), scene


def test_scenes_are_the_minutes_of_a_video():
    """By hand: rows 0, 2 and 5 share a minute; row 1 is alone; row 3 is the same minute of another video."""
    index = SceneIndex(table_of("aaabaa", [0, 60, 59.99, 30, 119.9 + 60, 30]))
    assert sorted(index.scene(0)) == sorted(index.scene(2)) == sorted(index.scene(5)) == [0, 2, 5]
    assert index.scene(1).tolist() == [1] and index.scene(3).tolist() == [3] and index.scene(4).tolist() == [4]
    assert index.num_scenes == 4 and index.num_videos == 2
    partners = np.stack([index.draw_partners(np.arange(6), np.random.default_rng(i)) for i in range(50)])
    assert set(partners[:, 0]) == {2, 5} and set(partners[:, 5]) == {0, 2} and set(partners[:, 1]) == {-1}
    same_video = np.stack([index.draw_from_video(np.arange(6), np.random.default_rng(i)) for i in range(80)])
    assert set(same_video[:, 1]) == {0, 2, 4, 5} and set(same_video[:, 3]) == {-1}


def test_partners_are_uniform_over_the_scene():
    """Stepping over the clip itself must favour no neighbour."""
    index = SceneIndex(table_of("a" * 5, range(5)))
    drawn = index.draw_partners(np.full(20_000, 2), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=5)
    assert counts[2] == 0 and (np.abs(counts[[0, 1, 3, 4]] - 5000) < 300).all()


def test_index_follows_a_shuffled_or_filtered_table():
    """A `Dataset` with an indices mapping shows other rows than its Arrow table."""
    table = table_of("aabb", [0, 1, 0, 1]).select([3, 0, 2, 1])  # b a b a
    index = SceneIndex(table)
    assert sorted(index.scene(0)) == [0, 2] and sorted(index.scene(1)) == [1, 3]


def test_every_partner_shares_the_scene_and_is_another_clip(many):
    index, scene = many
    sampler = SceneAwareBatchSampler(index, 32)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3000 // 16
    for batch in batches:
        assert len(batch) == len(set(batch)) == 32
        for clip, partner in zip(batch[:16], batch[16:]):
            assert clip != partner and scene[clip] == scene[partner]
    clips = [clip for batch in batches for clip in batch[:16]]
    assert len(set(clips)) == len(clips) == 3000 // 16 * 16, "each clip once per epoch"
    statistics = sampler.statistics
    assert statistics.batches == len(batches) and statistics.clips == 32 * len(batches)
    assert statistics.scene_partners == 16 * len(batches)
    assert statistics.video_partners == statistics.random_partners == statistics.repeated == 0
    assert "187 batches of 32 clips; of 2992 partners 2992 from the same scene, 0" in statistics.summary()


def test_lonely_clips_take_the_next_wider_circle_and_are_counted():
    """Video a: two clips in one minute and a lone one; video b: one clip only; c: a pair."""
    index = SceneIndex(table_of("aaabcc", [0, 1, 200, 0, 0, 1]))
    sampler = SceneAwareBatchSampler(index, 2)
    pairs = {batch[0]: batch[1] for epoch in range(30) for batch in (sampler.set_epoch(epoch), *sampler)[1:]}
    assert pairs[0] == 1 and pairs[1] == 0 and pairs[4] == 5 and pairs[5] == 4
    assert pairs[2] in (0, 1) and pairs[3] in (0, 1, 2, 4, 5)
    assert sampler.statistics.scene_partners == 30 * 4
    assert sampler.statistics.video_partners == sampler.statistics.random_partners == 30


def test_no_row_twice_where_it_can_be_avoided():
    """Scenes of two: the partner is often a clip of the batch already."""
    index = SceneIndex(table_of([f"v{i // 4}" for i in range(80)], [60 * (i // 2) for i in range(80)]))
    sampler = SceneAwareBatchSampler(index, 32)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert len(set(batch)) == 32
    assert sampler.statistics.repeated == 0 and sampler.statistics.video_partners > 0


def test_tiny_table_repeats_rows_but_never_pairs_a_clip_with_itself():
    index = SceneIndex(table_of("aaaab", [0, 1, 2, 3, 4]))
    sampler = SceneAwareBatchSampler(index, 10)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert all(clip != partner for clip, partner in zip(batch[:5], batch[5:]))
    assert sampler.statistics.repeated == 20 * 5


def test_batches_depend_on_seed_and_epoch_alone(many):
    index, _ = many
    one, two = SceneAwareBatchSampler(index, 32, seed=1), SceneAwareBatchSampler(index, 32, seed=1)
    first = list(one)
    assert first == list(one) == list(two)
    one.set_epoch(1)
    assert list(one) != first and list(SceneAwareBatchSampler(index, 32, seed=2)) != first
    one.set_epoch(0)
    assert list(one) == first


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_out_the_batches_as_accelerate_would(many, world):
    """Native ranks and accelerate's wrapper of a one-process sampler must give the same, or a run changes with it."""
    index, _ = many
    whole = list(SceneAwareBatchSampler(index, 32))
    for rank in range(world):
        native = SceneAwareBatchSampler(index, 32, num_replicas=world, rank=rank)
        wrapped = BatchSamplerShard(SceneAwareBatchSampler(index, 32), num_processes=world, process_index=rank)
        assert list(native) == list(wrapped) == whole[rank : len(whole) // world * world : world]
        assert len(native) == len(wrapped) == len(whole) // world


class Clips(Dataset):
    """A data set with an epoch, as `EgoClipDataset` has."""

    epoch = 0

    def __len__(self):
        return 3000

    def __getitem__(self, index):
        return index

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("world", [1, 2])
def test_resume_under_accelerate_continues_with_the_next_batch(many, world):
    """accelerate's `skip_first_batches` hides the batch sampler from `set_epoch`; `follow` finds the epoch anyway."""
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader

    Accelerator(cpu=True)
    index, _ = many

    def loader():
        clips = Clips()
        sampler = SceneAwareBatchSampler(index, 32, follow=clips)
        return prepare_data_loader(
            DataLoader(clips, batch_sampler=sampler), num_processes=world, process_index=world - 1
        )

    whole = loader()
    epochs = []
    for epoch in range(2):
        whole.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in whole])
    assert epochs[0] != epochs[1]
    resumed = skip_first_batches(loader(), 7)
    resumed.set_epoch(1)
    assert [batch.tolist() for batch in resumed] == epochs[1][7:]


def test_plain_shuffled_batches(many):
    sampler = SeededBatchSampler(100, 8, seed=3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 12 and len({row for batch in batches for row in batch}) == 96
    sampler.set_epoch(1)
    assert list(sampler) != batches
    wrapped = BatchSamplerShard(SeededBatchSampler(100, 8, seed=3), num_processes=2, process_index=1)
    assert list(wrapped) == batches[1::2] == list(SeededBatchSampler(100, 8, seed=3, num_replicas=2, rank=1))


def test_positives_are_counted_from_the_tags():
    """By hand: 0-1 share verb 1 and noun 2; 0-2 share a verb only; 3 has no verb; 4-5 share both."""
    table = table_of("aaaaaa", range(6), [[1], [1, 3], [1], [], [7], [7]], [[2], [2, 9], [8], [2], [5, 6], [6]])
    pairs = TagPairs(table)
    assert pairs.count(np.arange(6)) == 4  # ordered: 0-1, 1-0, 4-5, 5-4
    assert pairs.count(np.array([0, 2, 3])) == 0 and pairs.count(np.array([3])) == 0
    assert pairs.count(np.array([5, 1, 4])) == 2
    sampler = SceneAwareBatchSampler(SceneIndex(table), 6, tags=pairs)
    drawn = [np.array(batch) for batch in sampler]
    assert sampler.statistics.positive_pairs == sum(pairs.count(batch) for batch in drawn)
    assert sampler.statistics.as_dict()["positives_per_clip"] == sampler.statistics.positive_pairs / 12
    assert "positives per clip" in sampler.statistics.summary()
    filtered = TagPairs(table.select([4, 0, 5]))
    assert filtered.count(np.arange(3)) == 2


def test_bad_arguments_are_refused(many):
    index, _ = many
    with pytest.raises(ValueError, match=r"batch_size \(7\) must be even"):
        SceneAwareBatchSampler(index, 7)
    with pytest.raises(ValueError, match="rank"):
        SceneAwareBatchSampler(index, 8, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="3000 clips do not fill one batch of 4096"):
        SceneAwareBatchSampler(index, 8192)
    with pytest.raises(ValueError, match="narration_time"):
        SceneIndex(table_of("ab", [0, 1]).remove_columns("narration_time"))
    with pytest.raises(ValueError, match="row 1 is not a finite"):
        SceneIndex(table_of("ab", [0, float("nan")]))
    with pytest.raises(ValueError, match="at least 2"):
        SceneIndex(table_of("a", [0]))


def test_a_share_of_the_batches_holds_clips_of_one_noun():
    """Catches clips of another noun, repeated rows, and a share that is not kept."""
    nouns = [[i % 4] for i in range(400)]
    table = table_of("a" * 400, range(400), [[0]] * 400, nouns)
    sampler = SharedNounBatchSampler(table, 20, share=0.5, seed=1)
    single = 0
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert len(set(batch)) == 20
            single += len({nouns[row][0] for row in batch}) == 1
    assert 140 < single < 260  # of 400 batches, 200 expected
    assert list(sampler) == list(sampler)
