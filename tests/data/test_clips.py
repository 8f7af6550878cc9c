"""Training examples: the right frames, the same in every worker and after a resume, and no failure in silence."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_svitt_ego import data
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset, derive_seed, multi_hot
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.egomcq import EgoMCQClips, load_egomcq
from modeling_svitt_ego.data.failures import FailureLog, TooManyClipFailures
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.model.clip_reading import ClipReadError
from tests.helpers.tiny_data import egoclip_row, egomcq_item, frame_numbers, write_egoclip, write_json, write_video

NUM_CLIPS = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two videos of 20 s at 10 fps in EgoVLP's layout; 16 clips of one second, one of them starting before 0."""
    root = tmp_path_factory.mktemp("corpus")
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / uid / "0.mp4", 200, first=5 * first)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(NUM_CLIPS)]
    rows[0] = egoclip_row(0, clip_start=-0.6, clip_end=0.4)
    rows[3] = egoclip_row(3, clip_start=19.5, clip_end=23.0)
    table = load_egoclip(write_egoclip(root / "e.csv", rows), cache_dir=str(root / "c"))
    return table, VideoStore(root / "videos")


@pytest.fixture
def broken(corpus, tmp_path):
    """The same clips where video-b is no video, so that every second clip fails."""
    table, store = corpus
    root = tmp_path / "videos"
    (root / "video-b").mkdir(parents=True)
    (root / "video-b" / "0.mp4").write_bytes(b"this is not a video" * 50)
    os.symlink(store.video_root / "video-a", root / "video-a")
    return table, VideoStore(root)


def shown(dataset, indices=range(NUM_CLIPS)):
    return [(dataset[i]["index"], frame_numbers(dataset[i]["video"])) for i in indices]


def test_example_has_the_middle_frame_of_each_segment(corpus):
    example = EgoClipDataset(*corpus, num_frames=4, sampling="middle")[5]
    # 6 to 7 s of video-b (first level 5) at 10 fps: the middles of the quarters are 6.125, 6.375, 6.625, 6.875 s
    assert frame_numbers(example["video"]) == [(5 + frame) % 28 for frame in (61, 63, 66, 68)]
    assert example["video"].dtype == np.uint8 and example["video"].shape == (4, 32, 48, 3)
    assert example["text"] == "#C C picks item 5" and example["verb_tags"] == [0] and example["noun_tags"] == [5, 12]
    assert (example["video_uid"], example["start"], example["end"], example["index"]) == ("video-b", 6.0, 7.0, 5)


def test_repr_says_what_is_in_it(corpus):
    text = repr(EgoClipDataset(*corpus, num_frames=4))
    assert text.startswith("EgoClipDataset(16 clips, num_frames=4") and "VideoStore(" in text and "random" in text


def test_windows_are_clamped_to_the_video(corpus):
    """Nothing before the first frame or after the last is ever asked for."""
    dataset = EgoClipDataset(*corpus, num_frames=2, sampling="middle")
    assert (dataset[0]["start"], dataset[0]["end"]) == (0.0, 0.4) and frame_numbers(dataset[0]["video"]) == [1, 3]
    assert (dataset[3]["start"], dataset[3]["end"]) == (19.5, pytest.approx(20.0))


def test_random_frames_stay_in_their_segments_and_change_with_the_epoch(corpus):
    dataset = EgoClipDataset(*corpus, num_frames=4, sampling="random")
    seen = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        frames = frame_numbers(dataset[2]["video"])  # 3 to 4 s of video-a: frames 30 to 39, modulo 28
        assert frames == sorted(frames) and all(30 - 28 <= frame <= 39 - 28 for frame in frames)
        for segment, frame in enumerate(frames):
            assert 2 + 2.5 * segment - 1 < frame < 2 + 2.5 * (segment + 1)
        seen.append(tuple(frames))
    assert len(set(seen)) > 2
    dataset.set_epoch(0)
    assert tuple(frame_numbers(dataset[2]["video"])) == seen[0]
    assert shown(dataset) != shown(EgoClipDataset(*corpus, num_frames=4, seed=1))


def test_more_frames_than_the_clip_has_repeat_frames(corpus):
    """A 1-s clip at 10 fps has 10 frames; 16 are asked for. The upstream's "lax" sampler gives black here."""
    frames = frame_numbers(EgoClipDataset(*corpus, num_frames=16, sampling="middle")[2]["video"])
    assert len(frames) == 16 and set(frames) == set(range(2, 12)) and frames == sorted(frames)


@pytest.mark.parametrize("context, num_workers", [("fork", 2), ("spawn", 1)])  # a spawned worker imports torch
def test_workers_give_what_the_main_process_gives_in_every_epoch(corpus, context, num_workers):
    """Persistent workers hold a copy made in epoch 0; the epoch must reach them, or epochs repeat frames."""
    dataset = EgoClipDataset(*corpus, num_frames=4)
    loader = DataLoader(
        dataset,
        3,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        before = dataset.failures.num_reads
        got = [(e["index"], frame_numbers(e["video"])) for batch in loader for e in batch]
        assert dataset.failures.num_reads == before + NUM_CLIPS, "counted in the worker, seen here"
        assert got == shown(dataset)
        epochs.append(got)
    assert epochs[0] != epochs[1]


def test_resume_is_exact(corpus):
    """A run that stopped after row 5 continues with the frames that the whole run shows."""
    whole, resumed = (EgoClipDataset(*corpus, num_frames=4, seed=3) for _ in range(2))
    for dataset in (whole, resumed):
        dataset.set_epoch(2)
    everything = [whole[i] for i in range(NUM_CLIPS)]
    for i in range(6, NUM_CLIPS):
        again = resumed[i]
        assert np.array_equal(again["video"], everything[i]["video"]) and again["seed"] == everything[i]["seed"]


def test_dataset_is_small_to_pickle(corpus):
    assert len(pickle.dumps(EgoClipDataset(*corpus))) < 30_000


def test_scenes_can_be_indexed_over_the_rows_of_the_data_set(corpus):
    """The trainer builds its sampler from `dataset.table`, so the columns of the scenes must survive there."""
    from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex, TagPairs

    dataset = EgoClipDataset(*corpus)
    sampler = SceneAwareBatchSampler(SceneIndex(dataset.table), 8, follow=dataset, tags=TagPairs(dataset.table))
    for batch in sampler:
        assert all(dataset.table[c]["video_uid"] == dataset.table[p]["video_uid"] for c, p in zip(batch, batch[4:]))
    assert sampler.statistics.scene_partners == sampler.statistics.clips // 2 == 16
    sampler.set_epoch(3)
    assert dataset.epoch == sampler.epoch == 3


def test_bad_arguments_are_refused(corpus):
    table, store = corpus
    for arguments, error in (
        (dict(num_frames=0), r"num_frames \(0\)"),
        (dict(sampling="uniform"), "sampling"),
        (dict(on_error="ignore"), "on_error"),
        (dict(max_failure_share=1.5), r"max_failure_share \(1.5\)"),
    ):
        with pytest.raises(ValueError, match=error):
            EgoClipDataset(table, store, **arguments)
    with pytest.raises(ValueError, match="lacks.*clip_end"):
        EgoClipDataset(table.remove_columns("clip_end"), store)
    with pytest.raises(IndexError):
        EgoClipDataset(table, store)[NUM_CLIPS]


# ---- failures -------------------------------------------------------------------------------------------------------


def test_raise_is_the_default(broken):
    with pytest.raises(ClipReadError, match="video-b/0.mp4"):
        EgoClipDataset(*broken)[1]


def test_skip_puts_another_clip_in_the_slot_and_lists_the_failure(broken, tmp_path):
    dataset = EgoClipDataset(*broken, on_error="skip", max_failure_share=1, failure_log=tmp_path / "failures.jsonl")
    example = dataset[1]
    assert example["video_uid"] == "video-a" and example["index"] != 1 and example["video"].max() > 0
    assert example["text"] == f"#C C picks item {example['index']}", "text and tags must be those of the new clip"
    entries = dataset.failures.entries()
    assert entries[0]["row"] == 1 and entries[0]["path"].endswith("video-b/0.mp4") and entries[0]["reason"]
    assert (entries[0]["start"], entries[0]["end"]) == (2.0, 3.0)
    assert dataset.failures.num_failures == len(entries) and dataset.failures.num_reads == len(entries) + 1
    assert f"{len(entries)} of {len(entries) + 1} clips" in dataset.failures.summary()
    again = EgoClipDataset(*broken, on_error="skip", max_failure_share=1)[1]
    assert again["index"] == example["index"] and np.array_equal(again["video"], example["video"])


def test_missing_file_can_be_skipped_too(corpus, tmp_path):
    table, store = corpus
    (tmp_path / "videos").mkdir()
    os.symlink(store.video_root / "video-a", tmp_path / "videos" / "video-a")
    dataset = EgoClipDataset(table, VideoStore(tmp_path / "videos"), on_error="skip", max_failure_share=1)
    assert dataset[1]["video_uid"] == "video-a"
    assert "videos/video-b" in dataset.failures.entries()[0]["reason"]
    with pytest.raises(FileNotFoundError, match="videos/video-b"):
        EgoClipDataset(table, VideoStore(tmp_path / "videos"))[1]


def test_failures_in_workers_are_counted_in_the_main_process(broken):
    """The worker's copy of the data set dies with it; its counts and list must not."""
    dataset = EgoClipDataset(*broken, on_error="skip", max_failure_share=1)
    loader = DataLoader(dataset, 4, num_workers=2, collate_fn=list)
    rows = [e["index"] for batch in loader for e in batch]
    failures = dataset.failures
    assert len(rows) == NUM_CLIPS and all(row % 2 == 0 or row == 3 for row in rows)
    assert failures.num_reads == NUM_CLIPS + failures.num_failures
    assert len(failures.entries()) == failures.num_failures >= NUM_CLIPS // 2 - 1


def test_too_many_failures_stop_the_run(broken):
    dataset = EgoClipDataset(*broken, on_error="skip", max_failure_share=0.02)
    with pytest.raises(TooManyClipFailures, match=r"3 of \d+ clips could not be read.*max_failure_share=0.02.*0.mp4"):
        for i in range(1, NUM_CLIPS, 2):
            dataset[i]
    loader = DataLoader(EgoClipDataset(*broken, on_error="skip", max_failure_share=0.0), 4, num_workers=2)
    with pytest.raises(TooManyClipFailures, match="max_failure_share=0"):
        list(loader)


def test_share_is_taken_of_all_reads():
    """One bad clip among the first two is no 50 %; three bad among 400 are 0.75 %."""
    log = FailureLog(max_share=0.01)
    for reads in (2, 398):
        for _ in range(reads):
            log.count_read()
        log.record(0, "v", 0.0, 1.0, "v.mp4", "why")
    for _ in range(2):
        log.record(0, "v", 0.0, 1.0, "v.mp4", "why")
    with pytest.raises(TooManyClipFailures, match="5 of 400"):
        log.record(0, "v", 0.0, 1.0, "v.mp4", "why")


def test_a_replacement_is_of_the_same_scene_if_one_there_can_be_read(corpus, tmp_path):
    """Catches a stand-in that is no longer the scene partner that the other half of the batch counts on."""
    from modeling_svitt_ego.data.sampling import SceneIndex

    _, store = corpus
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(NUM_CLIPS)]
    for i in (4, 5):
        rows[i] = egoclip_row(i, video_uid=rows[i]["video_uid"], clip_start=90.0, clip_end=91.0)  # past the end
    table = load_egoclip(write_egoclip(tmp_path / "e.csv", rows), cache_dir=str(tmp_path / "c"))
    alone = {
        EgoClipDataset(table, store, seed=s, on_error="skip", max_failure_share=1)[4]["video_uid"] for s in range(9)
    }
    assert alone == {"video-a", "video-b"}, "without scenes anything may come"
    for seed in range(9):
        dataset = EgoClipDataset(table, store, seed=seed, on_error="skip", max_failure_share=1)
        dataset.scenes = SceneIndex(dataset.table)
        assert [dataset[i]["video_uid"] for i in (4, 5)] == ["video-a", "video-b"]
        assert dataset.failures.num_moved == 0 and dataset[4]["index"] == dataset[4]["index"] != 4


def test_a_replacement_from_another_scene_is_counted(broken):
    """Catches partners that are counted and are none: here the whole scene is unreadable."""
    from modeling_svitt_ego.data.sampling import SceneIndex

    dataset = EgoClipDataset(*broken, on_error="skip", max_failure_share=1)
    dataset.scenes = SceneIndex(dataset.table)
    assert dataset[1]["video_uid"] == "video-a" and dataset.failures.num_moved == 1
    assert "1 replaced by clips of another scene" in dataset.failures.summary()
    files = [line for line in dataset.failures.report().splitlines() if line.startswith("  ")]
    assert len(files) == 1 and files[0].startswith(f"  {dataset.failures.num_failures} x ")
    assert "video-b/0.mp4: " in files[0]


def test_many_failures_are_a_few_lines_and_all_in_the_file(tmp_path, caplog):
    """Catches a line in the log for each of thousands of unreadable clips."""
    failures = FailureLog(1.0, tmp_path / "failures.jsonl")
    for number in range(50):
        failures.count_read()
        failures.record(number, f"v{number}", 0.0, 1.0, f"v{number}.mp4", "it is cut")
    assert [record.getMessage()[:6] for record in caplog.records] == ["Clip 0", "Clip 1", "Clip 2", "Furthe"]
    assert str(failures.path) in caplog.text and len(failures.entries()) == 50
    lines = failures.report().splitlines()
    assert lines[0].startswith("50 of 50 clips") and len(lines) == 7 and lines[-1] == "  and 45 more files"


def test_nothing_but_bad_clips_ends_with_an_error(corpus, tmp_path):
    table, _ = corpus
    for uid in ("video-a", "video-b"):
        (tmp_path / uid).mkdir()
        (tmp_path / uid / "0.mp4").write_bytes(b"")
    dataset = EgoClipDataset(table, VideoStore(tmp_path), on_error="skip", max_failure_share=1)
    with pytest.raises(TooManyClipFailures, match="in the place of row 4"):
        dataset[4]


# ---- collator -------------------------------------------------------------------------------------------------------


class StandInProcessor:
    """Keeps what it is given; the real processor has tests of its own."""

    def __call__(self, videos, text, return_tensors, do_sample_frames, generator, **kwargs):
        assert return_tensors == "pt" and do_sample_frames is False
        self.kwargs = kwargs
        self.draws = [torch.rand(3, generator=g).tolist() for g in generator]
        pixels = torch.stack([torch.from_numpy(video).permute(0, 3, 1, 2).float() for video in videos])
        ids = torch.tensor([[101, len(t), 102] for t in text])
        return {"pixel_values_videos": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_collator_makes_one_batch(corpus):
    dataset = EgoClipDataset(*corpus, num_frames=4)
    processor = StandInProcessor()
    batch = ClipCollator(processor, max_length=32)([dataset[i] for i in range(3)])
    assert sorted(batch) == ["attention_mask", "input_ids", "noun_tags", "pixel_values_videos", "verb_tags"]
    assert batch["pixel_values_videos"].shape == (3, 4, 3, 32, 48) and processor.kwargs == {"max_length": 32}
    assert batch["verb_tags"].shape == (3, 118) and batch["noun_tags"].shape == (3, 582)
    assert batch["verb_tags"].nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert batch["noun_tags"].nonzero().tolist() == [[0, 0], [0, 10], [1, 1], [1, 11], [2, 2], [2, 12]]


def test_augmentations_are_seeded_by_clip_and_epoch(corpus):
    """A crop that depended on the neighbours in the batch would change after a resume with another batch size."""
    dataset, processor = EgoClipDataset(*corpus, num_frames=4), StandInProcessor()
    collator = ClipCollator(processor)
    collator([dataset[1], dataset[2]])
    one, two = processor.draws
    collator([dataset[2]])
    assert processor.draws == [two] != [one]
    dataset.set_epoch(1)
    collator([dataset[2]])
    assert processor.draws != [two]


def test_tag_out_of_range_names_the_row():
    rows = [{"index": 7, "video_uid": "v", "text": "#C C"}]
    with pytest.raises(ValueError, match=r"verb tag 118 is not below num_verbs \(118\), in .*'index': 7"):
        multi_hot([[118]], 118, "verb", rows)
    with pytest.raises(ValueError, match="noun tag -1"):
        multi_hot([[-1]], 582, "noun", rows)
    assert multi_hot([[], [0, 2, 2]], 3, "verb", rows * 2).tolist() == [[0, 0, 0], [1, 0, 1]]


def test_collator_feeds_the_real_processor(corpus):
    """The keyword names of the real processor: a stand-in would not notice a change there."""
    video_processing = pytest.importorskip("modeling_svitt_ego.model.video_processing_svitt_ego")
    processing = pytest.importorskip("modeling_svitt_ego.model.processing_svitt_ego")
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "#", "c", "picks", "item"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    processor = processing.SViTTEgoProcessor(video_processing.SViTTEgoVideoProcessor(), tokenizer)
    dataset = EgoClipDataset(*corpus, num_frames=4)
    batch = ClipCollator(processor)([dataset[i] for i in range(3)])
    assert batch["pixel_values_videos"].shape[:3] == (3, 4, 3) and batch["pixel_values_videos"].isfinite().all()
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 3
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


def test_egomcq_clips_are_read_by_the_same_data_set(corpus, tmp_path):
    _, store = corpus
    path = write_json(tmp_path / "q.json", {"0": egomcq_item(["video-a"] * 5), "1": egomcq_item(["video-b"] * 5)})
    view = EgoMCQClips(load_egomcq(path, cache_dir=str(tmp_path)))
    clips = EgoClipDataset(view.clips, store, num_frames=2, sampling="middle")
    assert len(clips) == 10
    # question 1, choice 3: 4 to 5 s of video-b
    assert frame_numbers(clips[view.choices[1, 3]]["video"]) == [(5 + 42) % 28, (5 + 47) % 28]


def test_seeds_of_near_inputs_differ():
    seeds = {derive_seed(a, b, c, d) for a in range(4) for b in range(4) for c in range(40) for d in range(2)}
    assert len(seeds) == 4 * 4 * 40 * 2 and all(0 <= seed < 2**63 for seed in seeds)


def test_views_of_a_clip_are_drawn_apart_and_each_becomes_a_row(corpus):
    """Catches views that repeat the same frames, or rows whose text and tags belong to another clip."""
    one, two = (EgoClipDataset(*corpus, num_frames=4, seed=3, num_views=n) for n in (1, 2))
    examples = [two[4], two[5]]
    first, second = (frame_numbers(part) for part in np.split(examples[0]["video"], 2))
    assert first == frame_numbers(one[4]["video"]) and second != first

    def processor(videos, text, **kwargs):
        return {"shown": [frame_numbers(video) for video in videos], "text": text}

    batch = ClipCollator(processor, num_views=2)(examples)
    assert batch["text"] == ["#C C picks item 4", "#C C picks item 5"] * 2
    assert batch["shown"][0] == first and batch["shown"][2] == second
    assert batch["noun_tags"].shape[0] == 4 and torch.equal(batch["noun_tags"][:2], batch["noun_tags"][2:])


def test_what_the_sub_package_names_is_there():
    """Catches a name in its table that has moved to another module."""
    for name in data.__all__:
        assert getattr(data, name).__name__ == name
    assert not hasattr(data, "load_ego4d")
