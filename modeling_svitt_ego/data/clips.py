"""From a row of EgoClip to a training example: window, frame times, decoded frames, text and tags.

Every random choice is a function of (seed, epoch, row), not of the order in which workers get to it. So a resumed
run sees the very clips and frames that the uninterrupted run would have seen, with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..model.clip_reading import ClipReadError, clip_times
from .failures import FailureLog, TooManyClipFailures
from .layouts import VideoStore
from .sampling import SceneIndex

NUM_VERBS = 118  # verb groups of the EgoClip taxonomy
NUM_NOUNS = 582  # noun groups
MAX_REPLACEMENTS = 10  # bad clips in a row in one slot before it is given up
# Of them from the scene, and then as many from the video, where scenes are known. Few: if the file as a whole cannot
# be read, each is one more failure on the way to `max_failure_share`.
SCENE_REPLACEMENTS = 1
REPLACEMENT_DRAWS = 8
TEXT_STREAM = 1 << 20  # the seed of a drawn text, apart from those of crops and flips


class EgoClipDataset(Dataset):
    """Clips with their narrations, decoded when asked for.

    Stores paths, never an open reader: safe with forked and with spawned workers, and small to pickle.

    Args:
        table (`datasets.Dataset`):
            Rows with `video_uid`, `clip_start`, `clip_end` (seconds) and, if present, `clip_text`, `tag_verb`,
            `tag_noun`: from `load_egoclip`, or `EgoMCQClips.clips`.
        store (`VideoStore`): Where the videos are.
        num_views (`int`): Draws of frames per clip, from one decoding (repeated augmentation, arXiv:1901.09335). Where
            decoding is the bottleneck, two views cost little more than one; they are separate rows of the batch,
            and positives of each other by their tags.
        num_frames (`int`): Frames per clip. The window is split into as many equal segments, one frame of each.
        sampling (`str`): `"random"` frame of each segment (training) or the `"middle"` one (tests).
        seed (`int`): Together with the epoch and the row it decides the frames.
        on_error (`str`): `"raise"` at a clip that cannot be read, or `"skip"`: take another row in its place, drawn
            from (seed, epoch, row), count it and list it in `failures`. Never a black frame. Where `scenes` is set (as
            the trainer does with scene-aware batches), the replacement is of the same scene if one there can be read,
            so that the two halves of the batch stay partners; what had to come from elsewhere is counted.
        max_failure_share (`float`): With `"skip"`, `TooManyClipFailures` is raised above this share of failed reads
            (of at least 100 reads).
        failure_log (`str`, *optional*): File for the list of failures, JSON lines.
        texts (*optional*): Another text for a row each time it is drawn, such as [`RelevantSentences`] or
            [`Rephrasings`] over the same rows: `texts.draw(row, seed)` returns the entries of the example that it
            replaces.
    """

    COLUMNS = ("video_uid", "clip_start", "clip_end", "narration_time", "clip_text", "tag_verb", "tag_noun")

    def __init__(
        self,
        table,
        store: VideoStore,
        num_frames: int = 4,
        sampling: str = "random",
        seed: int = 0,
        on_error: str = "raise",
        max_failure_share: float = 0.05,
        failure_log: str | os.PathLike | None = None,
        num_views: int = 1,
        texts=None,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames ({num_frames}) must be at least 1.")
        if num_views < 1:
            raise ValueError(f"num_views ({num_views}) must be at least 1.")
        if sampling not in ("random", "middle"):
            raise ValueError(f'sampling ({sampling!r}) must be "random" or "middle".')
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error ({on_error!r}) must be "raise" or "skip".')
        missing = {"video_uid", "clip_start", "clip_end"} - set(table.column_names)
        if missing:
            raise ValueError(f"The table lacks the column(s) {sorted(missing)}; it has {table.column_names}.")
        if texts is not None and len(texts) != len(table):
            raise ValueError(f"The texts are for {len(texts)} rows, but the table has {len(table)}.")
        self.texts = texts
        self.table = table.select_columns([name for name in self.COLUMNS if name in table.column_names])
        self.store = store
        self.num_frames = num_frames
        self.num_views = num_views
        self.sampling = sampling
        self.seed = seed
        self.on_error = on_error
        self.failures = FailureLog(max_failure_share, failure_log)
        self.scenes: SceneIndex | None = None
        # Shared memory: persistent workers hold a copy of this object made before the epoch changes.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"EgoClipDataset({len(self):,} clips, num_frames={self.num_frames}, num_views={self.num_views}, "
            f"sampling={self.sampling!r}, on_error={self.on_error!r}, store={self.store!r})"
        )

    @property
    def epoch(self) -> int:
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Draw other random frames; also reaches workers that are already running."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example.

        Returns:
            `dict` with `video` (`np.ndarray` of shape `(num_views * num_frames, height, width, 3)`, uint8 RGB, native
            size; view after view),
            `text`, `verb_tags` and `noun_tags` (`list[int]`), `video_uid`, `start` and `end` (seconds, after clamping
            to the video), `index` (the row really read) and `seed` (for the augmentations of this example).
        """
        slot = range(len(self))[int(index)]  # a plain IndexError past the end
        epoch, row = self.epoch, slot
        tried, missing = {slot}, set()
        for attempt in range(MAX_REPLACEMENTS + 1):
            seed = derive_seed(self.seed, epoch, slot, attempt)
            annotation = self.table[row]
            self.failures.count_read()
            try:
                example = {**self._read(annotation, seed), "index": row, "seed": seed}
                if self.texts is not None:
                    example |= self.texts.draw(row, derive_seed(seed, TEXT_STREAM))
            except (ClipReadError, OSError) as error:
                if self.on_error == "raise":
                    raise
                uid, start, end = (annotation[name] for name in ("video_uid", "clip_start", "clip_end"))
                path = self._path(annotation)
                self.failures.record(row, uid, start, end, path, str(error))
                if isinstance(error, FileNotFoundError):
                    missing.add(path)
            else:
                if self.scenes is not None and not self.scenes.same_scene(slot, row):
                    self.failures.count_moved()
                return example
            row = self._replacement(slot, attempt, seed, tried, missing)
            tried.add(row)
        raise TooManyClipFailures(
            f"{MAX_REPLACEMENTS + 1} clips in a row could not be read in the place of row {slot}. "
            f"All: {self.failures.path}"
        )

    def _replacement(self, slot: int, attempt: int, seed: int, tried: set[int], missing: set[str]) -> int:
        """A row in place of an unreadable one: from its scene, else from its video, else from anywhere."""
        if self.scenes is not None and attempt < 2 * SCENE_REPLACEMENTS:
            rng = np.random.default_rng(seed)
            draws = [self.scenes.draw_partners] if attempt < SCENE_REPLACEMENTS else []
            for draw in (*draws, self.scenes.draw_from_video):
                for row in draw(np.full(REPLACEMENT_DRAWS, slot), rng).tolist():
                    if row >= 0 and row not in tried and (not missing or self._path(self.table[row]) not in missing):
                        return row
        return derive_seed(seed) % len(self)

    def _path(self, annotation: dict[str, Any]) -> str:
        """The file in which a clip begins; for messages."""
        return str(self.store.path(annotation["video_uid"], annotation["clip_start"]))

    def _read(self, annotation: dict[str, Any], seed: int) -> dict[str, Any]:
        uid = annotation["video_uid"]
        generator = torch.Generator().manual_seed(seed)

        def frame_times(start: float, end: float) -> list[float]:
            views = [clip_times(start, end, self.num_frames, self.sampling, generator) for _ in range(self.num_views)]
            return [time for view in views for time in view]

        # EgoClip's windows may start before the video does, or end after it.
        video, start, end = self.store.read_window(uid, annotation["clip_start"], annotation["clip_end"], frame_times)
        return self._example(annotation, video, start, end)

    @staticmethod
    def _example(annotation: dict[str, Any], video: np.ndarray, start: float, end: float) -> dict[str, Any]:
        return {
            "video": video,
            "text": annotation.get("clip_text", ""),
            "verb_tags": annotation.get("tag_verb", []),
            "noun_tags": annotation.get("tag_noun", []),
            "video_uid": annotation["video_uid"],
            "start": start,
            "end": end,
        }


class ClipCollator:
    """Examples of `EgoClipDataset` → one batch for the model.

    Args:
        processor (`SViTTEgoProcessor`): Resizes, augments and normalises the frames and tokenises the texts.
        num_verbs (`int`), num_nouns (`int`): Sizes of the tag vectors.
        num_views (`int`): As in the data set; the batch then has `num_views` rows per example, view after view.
        processor_kwargs: Passed to every call of the processor.

    Returns (of a call):
        `dict` with `pixel_values_videos` `(batch_size, num_frames, 3, height, width)`, `input_ids` and
        `attention_mask` `(batch_size, sequence_length)`, and float multi-hot `verb_tags` `(batch_size, num_verbs)` and
        `noun_tags` `(batch_size, num_nouns)`.
    """

    def __init__(
        self,
        processor,
        num_verbs: int = NUM_VERBS,
        num_nouns: int = NUM_NOUNS,
        num_views: int = 1,
        **processor_kwargs,
    ) -> None:
        self.processor = processor
        self.num_verbs = num_verbs
        self.num_nouns = num_nouns
        self.num_views = num_views
        self.processor_kwargs = processor_kwargs

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        verb_tags = multi_hot([e["verb_tags"] for e in examples], self.num_verbs, "verb", examples)
        noun_tags = multi_hot([e["noun_tags"] for e in examples], self.num_nouns, "noun", examples)
        views = range(self.num_views)
        batch = self.processor(
            videos=[np.split(e["video"], self.num_views)[view] for view in views for e in examples],
            text=[e["text"] for _ in views for e in examples],
            return_tensors="pt",
            do_sample_frames=False,
            # One generator per clip: its crop and flip do not depend on its neighbours in the batch.
            generator=[
                torch.Generator().manual_seed(derive_seed(e["seed"], 1 + view)) for view in views for e in examples
            ],
            **self.processor_kwargs,
        )
        return {
            **batch,
            "verb_tags": verb_tags.repeat(self.num_views, 1),
            "noun_tags": noun_tags.repeat(self.num_views, 1),
        }


def multi_hot(tags: Sequence[Sequence[int]], size: int, kind: str, examples: Sequence[dict]) -> torch.Tensor:
    """Lists of group numbers → float tensor `(len(tags), size)` of zeros and ones."""
    result = torch.zeros(len(tags), size)
    for row, numbers in enumerate(tags):
        for number in numbers:
            if not 0 <= number < size:
                where = {name: examples[row].get(name) for name in ("index", "video_uid", "text")}
                raise ValueError(f"{kind} tag {number} is not below num_{kind}s ({size}), in {where}.")
            result[row, number] = 1.0
    return result


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers >= 0; near inputs give unrelated outputs."""
    return int(np.random.SeedSequence([int(n) for n in numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))
