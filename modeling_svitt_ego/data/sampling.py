"""Scene-aware negatives (EgoVLP, arXiv:2206.01670): each clip gets a partner of the same place and time.

A scene is a 60-second window of narration_time in one video. A batch has N clips and N partners, one from the scene of
each clip: same kitchen, same light, same hands, other action. The index over the scenes is built once, vectorised; a
batch is a function of (seed, epoch, number of the batch), so every process can name every batch and a resumed run
continues with the very next one.

With `accelerate` (and so with `transformers.Trainer`) build the sampler for one replica on every process and pass it
to `accelerator.prepare(DataLoader(clips, batch_sampler=sampler))`: accelerate distributes whole batches over the
processes in turn. Without accelerate give `num_replicas` and `rank`, as to `DistributedSampler`; the batches are the
same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
from torch.utils.data import Sampler

SCENE_SECONDS = 60.0
NUM_DRAWS = 8  # random draws before a small scene is searched, or before the video and then the table are used


class SceneIndex:
    """Which rows share a scene, and which share a video.

    Args:
        table (`datasets.Dataset`): Rows with `video_uid` and `narration_time` (seconds).
        scene_seconds (`float`): Length of a scene.

    Attributes:
        order (`np.ndarray` of shape `(num_rows,)`, int32): Rows sorted by video, then scene.
        place (`np.ndarray` of shape `(num_rows,)`, int32): Position of a row in `order`.
        scene_start, scene_end, video_start, video_end (`np.ndarray` of shape `(num_rows,)`, int32):
            By position, the part of `order` that its scene and its video occupy.
    """

    def __init__(self, table, scene_seconds: float = SCENE_SECONDS) -> None:
        missing = {"video_uid", "narration_time"} - set(table.column_names)
        if missing:
            raise ValueError(f"Scenes need the column(s) {sorted(missing)}; the table has {table.column_names}.")
        if len(table) < 2:
            raise ValueError(f"Scenes need at least 2 clips, the table has {len(table)}.")
        columns = table.select_columns(["video_uid", "narration_time"]).with_format("arrow")[:]
        video = columns["video_uid"].dictionary_encode().combine_chunks().indices.to_numpy()
        window = np.floor(columns["narration_time"].to_numpy() / scene_seconds)
        if not np.isfinite(window).all():
            row = int(np.flatnonzero(~np.isfinite(window))[0])
            raise ValueError(f"narration_time of row {row} is not a finite number.")
        window = (window - window.min()).astype(np.int64)
        key = video.astype(np.int64) * (int(window.max()) + 1) + window
        self.order = np.argsort(key, kind="stable").astype(np.int32)
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(self.order), dtype=np.int32)
        self.scene_start, self.scene_end, self.num_scenes = _runs(key[self.order])
        self.video_start, self.video_end, self.num_videos = _runs(video[self.order])

    def __len__(self) -> int:
        return len(self.order)

    def draw_partners(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each row another row of its scene, uniformly; -1 where it is alone in its scene."""
        return self._draw_other(rows, self.scene_start, self.scene_end, rng)

    def draw_from_video(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each row another row of its video, uniformly; -1 where the video has no other."""
        return self._draw_other(rows, self.video_start, self.video_end, rng)

    def scene(self, row: int) -> np.ndarray:
        """All rows of the scene of `row`, itself included."""
        place = self.place[row]
        return self.order[self.scene_start[place] : self.scene_end[place]]

    def same_scene(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.scene_start[self.place[a]] == self.scene_start[self.place[b]]

    def same_video(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.video_start[self.place[a]] == self.video_start[self.place[b]]

    def _draw_other(self, rows, starts, ends, rng) -> np.ndarray:
        place = self.place[rows]
        start, end = starts[place], ends[place]
        alone = end - start < 2
        # One of the size - 1 others: draw below size - 1 and skip the row itself.
        drawn = rng.integers(start, np.where(alone, start + 1, end - 1))
        drawn += drawn >= place
        return np.where(alone, -1, self.order[np.minimum(drawn, len(self.order) - 1)])


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """For each element of a sorted array the start and the end of its run of equal keys, and the number of runs."""
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    lengths = np.diff(np.r_[starts, len(keys)])
    begin = np.repeat(starts, lengths).astype(np.int32)
    return begin, (begin + np.repeat(lengths, lengths)).astype(np.int32), len(starts)


class TagPairs:
    """Counts EgoNCE positives of a batch from the tags: pairs with a verb group and a noun group in common.

    Args:
        table (`datasets.Dataset`): Rows with `tag_verb` and `tag_noun`.
    """

    def __init__(self, table) -> None:
        columns = table.select_columns(["tag_verb", "tag_noun"]).with_format("arrow")[:]
        self._lists = [_ragged(columns[name]) for name in ("tag_verb", "tag_noun")]

    def count(self, rows: np.ndarray) -> int:
        """Number of ordered pairs (i, j), i != j, of positives among `rows`."""
        shared = [_multi_hot(rows, *lists) for lists in self._lists]
        positive = np.logical_and(*((hot @ hot.T) > 0 for hot in shared))
        np.fill_diagonal(positive, False)
        return int(positive.sum())


def _ragged(column) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, values) of a column of lists."""
    lengths = pc.list_value_length(column).to_numpy()
    return np.r_[0, np.cumsum(lengths)].astype(np.int64), pc.list_flatten(column).to_numpy().astype(np.int32)


def _multi_hot(rows: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    tags = [values[offsets[row] : offsets[row + 1]] for row in rows]
    flat = np.concatenate(tags)
    result = np.zeros((len(rows), int(flat.max(initial=0)) + 1), dtype=np.float32)
    result[np.repeat(np.arange(len(rows)), [len(tag) for tag in tags]), flat] = 1
    return result


@dataclasses.dataclass
class SamplerStatistics:
    """What the batches contained so far. DataLoader workers prefetch, so a few batches may not be used yet."""

    batches: int = 0
    clips: int = 0  # rows, partners included
    scene_partners: int = 0  # from the clip's own scene
    video_partners: int = 0  # from its video, because the scene had no other clip to give
    random_partners: int = 0  # from anywhere, because the video had none either
    repeated: int = 0  # rows that occur twice in a batch (only in tables smaller than two batches)
    positive_pairs: int | None = None  # ordered pairs; None without tags

    @property
    def positives_per_clip(self) -> float | None:
        """Mean number of other clips in the batch that EgoNCE counts as positives."""
        return None if self.positive_pairs is None else self.positive_pairs / max(self.clips, 1)

    def as_dict(self) -> dict[str, float]:
        return {**dataclasses.asdict(self), "positives_per_clip": self.positives_per_clip}

    def summary(self) -> str:
        """One line for the training log."""
        text = f"{self.batches} batches of {self.clips // max(self.batches, 1)} clips"
        partners = self.scene_partners + self.video_partners + self.random_partners
        if partners:
            text += (
                f"; of {partners} partners {self.scene_partners} from the same scene, {self.video_partners} from the "
                f"same video, {self.random_partners} from elsewhere; {self.repeated} repeated"
            )
        if self.positive_pairs is not None:
            text += f"; {self.positives_per_clip:.2f} further positives per clip"
        return text


class SeededBatchSampler(Sampler[list[int]]):
    """Shuffled batches that depend on (seed, epoch) alone; the last, smaller batch is left out.

    Args:
        num_rows (`int`): Length of the data set.
        batch_size (`int`): Rows per batch.
        seed (`int`), epoch (`int`): Decide the order.
        num_replicas (`int`), rank (`int`):
            This process takes batch `rank` of every `num_replicas`. Leave them at 1 and 0 under accelerate.
        follow (*optional*):
            An object with an `epoch`, usually the `EgoClipDataset`. Its epoch is then used: when accelerate resumes
            with several processes, `set_epoch` reaches the data set but not a wrapped batch sampler.
        tags (`TagPairs`, *optional*): If given, positives are counted in `statistics`.
    """

    drop_last = True  # read by accelerate

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        follow=None,
        tags: TagPairs | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank ({rank}) must be in [0, num_replicas = {num_replicas}).")
        if num_rows < self._clips_per_batch(batch_size) * num_replicas:
            raise ValueError(
                f"{num_rows} clips do not fill one batch of {self._clips_per_batch(batch_size)} on each of "
                f"{num_replicas} process(es)."
            )
        self.num_rows = num_rows
        self.batch_size = batch_size  # read by accelerate
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.follow = follow
        self.tags = tags
        self._epoch = 0
        self.reset_statistics()

    @staticmethod
    def _clips_per_batch(batch_size: int) -> int:
        return batch_size

    @property
    def epoch(self) -> int:
        return self._epoch if self.follow is None else self.follow.epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if self.follow is not None:
            self.follow.set_epoch(epoch)

    def reset_statistics(self) -> None:
        self.statistics = SamplerStatistics(positive_pairs=None if self.tags is None else 0)

    def __len__(self) -> int:
        """Batches per epoch on this process."""
        return self.num_rows // (self._clips_per_batch(self.batch_size) * self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        rng = np.random.default_rng([self.seed, epoch])
        clips = rng.permutation(self.num_rows)
        partners = self._draw_partners(clips, rng)
        size = self._clips_per_batch(self.batch_size)
        for number in range(self.rank, len(self) * self.num_replicas, self.num_replicas):
            part = slice(number * size, (number + 1) * size)
            batch = self._batch(clips[part], None if partners is None else partners[part], (epoch, number))
            self.statistics.batches += 1
            self.statistics.clips += len(batch)
            if self.tags is not None:
                self.statistics.positive_pairs += self.tags.count(batch)
            yield batch.tolist()

    def _draw_partners(self, clips: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        return None

    def _batch(self, clips: np.ndarray, partners: np.ndarray | None, number: tuple[int, int]) -> np.ndarray:
        return clips


class SceneAwareBatchSampler(SeededBatchSampler):
    """Batches of N clips and N partners from their scenes: rows 0 … N-1 are the clips, N … 2N-1 their partners.

    An epoch shows each clip once as a clip (but for the last N * num_replicas - 1 at most), and so decodes twice as
    many clips as the table has. A partner is never the clip itself, and no row occurs twice in a batch if the
    table has enough rows. A clip alone in its scene gets a partner from its video, or else from anywhere;
    `statistics` counts the three kinds.

    Args:
        index (`SceneIndex`): Over the same table as the data set.
        batch_size (`int`): Rows per batch, 2N; even.
        kwargs: As for `SeededBatchSampler`.
    """

    def __init__(self, index: SceneIndex, batch_size: int, **kwargs) -> None:
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size ({batch_size}) must be even: half of it are partners.")
        self.index = index
        super().__init__(len(index), batch_size, **kwargs)

    @staticmethod
    def _clips_per_batch(batch_size: int) -> int:
        return batch_size // 2

    def _draw_partners(self, clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.index.draw_partners(clips, rng)  # for the whole epoch at once: 3.85 million in a second

    def _batch(self, clips: np.ndarray, partners: np.ndarray, number: tuple[int, int]) -> np.ndarray:
        batch = np.concatenate([clips, partners])
        if partners.min() < 0 or len(np.unique(batch)) < len(batch):
            rng = np.random.default_rng([self.seed, *number])
            taken = set(clips.tolist())
            partners = partners.copy()
            for i, partner in enumerate(partners.tolist()):
                if partner < 0 or partner in taken:
                    partners[i] = self._replace(clips[i], taken, rng)
                taken.add(int(partners[i]))
            batch = np.concatenate([clips, partners])
        statistics = self.statistics
        in_scene = self.index.same_scene(clips, partners)
        in_video = self.index.same_video(clips, partners)
        statistics.scene_partners += int(in_scene.sum())
        statistics.video_partners += int((in_video & ~in_scene).sum())
        statistics.random_partners += int((~in_video).sum())
        statistics.repeated += len(batch) - len(np.unique(batch))
        return batch

    def _replace(self, clip: int, taken: set[int], rng: np.random.Generator) -> int:
        """A partner not yet in the batch: from the scene, else from the video, else from anywhere."""
        rows = np.full(NUM_DRAWS, clip)
        scene = self.index.scene(clip)
        # All of a small scene is tried, so that a free clip in it is found; a large one has many free clips.
        in_scene = rng.permutation(scene) if len(scene) <= 4 * NUM_DRAWS else self.index.draw_partners(rows, rng)
        for candidates in (
            in_scene,
            self.index.draw_from_video(rows, rng),
            rng.integers(len(self.index), size=NUM_DRAWS),
            rng.permutation(len(self.index)) if len(self.index) <= 4 * self.batch_size else (),
        ):
            for candidate in candidates:
                if candidate >= 0 and int(candidate) not in taken:
                    return int(candidate)
        # The table is smaller than two batches: repeat a row, but never the clip itself.
        return int((clip + rng.integers(1, len(self.index))) % len(self.index))


class SharedNounBatchSampler(SeededBatchSampler):
    """Shuffled batches, a share of which holds clips of one noun only, so that it is the verb that tells them apart.

    Args:
        table (`datasets.Dataset`): Rows with `tag_noun`; the same rows as the data set.
        batch_size (`int`): Rows per batch.
        share (`float`): Share of the batches that is replaced by clips with a noun of the batch's first clip. Where
            fewer than `batch_size` clips have it, or the clip has none, the batch stays as it is.
        kwargs: As for `SeededBatchSampler`.
    """

    def __init__(self, table, batch_size: int, share: float = 0.5, **kwargs) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share ({share}) must be in [0, 1].")
        super().__init__(len(table), batch_size, **kwargs)
        self.share = share
        offsets, nouns = _ragged(table.select_columns(["tag_noun"]).with_format("arrow")[:]["tag_noun"])
        rows = np.repeat(np.arange(len(table)), np.diff(offsets))
        order = np.argsort(nouns, kind="stable")
        self.offsets, self.nouns, self.rows_by_noun = offsets, nouns, rows[order]
        self.noun_start = np.searchsorted(nouns[order], np.arange(int(nouns.max(initial=0)) + 2))

    def _batch(self, clips: np.ndarray, partners: np.ndarray | None, number: tuple[int, int]) -> np.ndarray:
        rng = np.random.default_rng([self.seed, *number])
        nouns = self.nouns[self.offsets[clips[0]] : self.offsets[clips[0] + 1]]
        if len(nouns) == 0 or rng.random() >= self.share:
            return clips
        noun = rng.choice(nouns)
        rows = np.unique(self.rows_by_noun[self.noun_start[noun] : self.noun_start[noun + 1]])
        return clips if len(rows) < len(clips) else rng.choice(rows, len(clips), replace=False)
