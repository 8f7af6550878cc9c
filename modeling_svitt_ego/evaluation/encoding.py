"""Clips and texts to vectors, each once: sharded over processes, cached on disk, failures counted.

A clip is decoded once, whatever it is used for: its embedding, and the matching logits of the texts it is paired with.
Clips are divided into one contiguous run per process (neighbours share files); a run is neither padded nor repeated,
so every item counts once under any division.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.clips import EgoClipDataset
from ..data.frame_order import check_frame_order, ordered_frames
from ..files.processes import leave_signals_to_the_parent, workers_ignore_interrupts
from ..files.sharding import Shard
from ..model.clip_reading import ClipReadError
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..weights.fingerprint import model_fingerprint, text_fingerprint, video_fingerprint
from .vector_cache import VectorCache
from .views import Views

ON_ERROR = ("raise", "wrong")
WRITE_EVERY = 30.0  # seconds between two files of the cache: what a killed run loses


@dataclass(frozen=True)
class EncodedClips:
    """
    Args:
        embeds (`np.ndarray` of shape `(num_clips, projection_dim)`): normalised; nan for a clip that failed.
        match_logits (`np.ndarray` of shape `(num_pairs,)`, *optional*): log odds of a match; nan if the clip failed.
        failures (`list[dict]`): row, video_uid, start, end (seconds), path and reason of each clip that failed.
    """

    embeds: np.ndarray
    match_logits: np.ndarray | None
    failures: list[dict]

    @property
    def failed(self) -> np.ndarray:
        """`(num_clips,)`, bool."""
        return np.isnan(self.embeds).any(axis=1)


@dataclass(frozen=True)
class EncoderSettings:
    """
    How clips are read and embedded, the same for every benchmark.

    Args:
        batch_size (`int`): clips embedded at once.
        num_workers (`int`): processes that decode clips; 0 decodes in this one.
        on_error (`str`): `"raise"` at a clip that cannot be read, or `"wrong"`: go on, and what needs the clip counts
            as wrong. Never a black frame, never a smaller denominator.
        cache (`str`, *optional*): folder for vectors by (weights, clip, transform); a stopped run goes on from it.
        layout (`str`, *optional*): layout of the video folder; found by looking otherwise.
        frame_order (`str`): one of `natural`, `shuffled`, `reversed`, `repeated`, see [`frame_order`].
        views ([`Views`]): what of a clip is seen; vectors, logits and log odds are averaged over the views.
        shard ([`Shard`], *optional*): embed this part of the clips only, into `cache`, then raise [`ShardFinished`].
        merge (`bool`): embed no clip; a clip that no shard has embedded is an error.
    """

    batch_size: int = 32
    num_workers: int = 0
    on_error: str = "raise"
    cache: str | os.PathLike | None = None
    layout: str | None = None
    frame_order: str = "natural"
    views: Views = Views()
    shard: Shard | None = None
    merge: bool = False

    def __post_init__(self):
        if (self.shard or self.merge) and self.cache is None:
            raise ValueError("A shard leaves its vectors in a cache, and a merge reads them: give a cache folder.")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error ({self.on_error!r}) must be one of {ON_ERROR}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size ({self.batch_size}) must be at least 1.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers ({self.num_workers}) must be at least 0.")
        check_frame_order(self.frame_order)


class ShardFinished(Exception):
    """The vectors of one shard are in the cache; the message says how many clips it has. There is no score yet."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; afterwards it is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class Encoder:
    """
    Embeds clips and texts for an evaluator.

    Args:
        processor ([`SViTTEgoProcessor`]): of the model.
        settings ([`EncoderSettings`]): how clips are read and embedded.
        accelerator (`Accelerator`, *optional*): divides the work over its processes; all get the whole result.
    """

    def __init__(
        self,
        processor: SViTTEgoProcessor,
        settings: EncoderSettings = EncoderSettings(),
        accelerator: Accelerator | None = None,
    ):
        self.processor = processor
        self.settings = settings
        self.accelerator = accelerator
        self._is_merged = False

    def clips(
        self,
        model: nn.Module,
        clips: EgoClipDataset,
        *,
        texts: Sequence[str] = (),
        pairs: np.ndarray | None = None,
        head: bool = False,
        desc: str = "clips",
    ) -> EncodedClips:
        """
        Args:
            model: with `get_video_features`; for `pairs` also `text_model` and `match`.
            clips ([`EgoClipDataset`]): with `on_error="raise"`, because a replacement would be another clip.
            head (`bool`): take the classifier's logits, as they are, in the place of the embeddings.
            texts, pairs (`np.ndarray` of shape `(num_pairs, 2)`): rows of `clips` and of `texts` to match.
        """
        if clips.on_error != "raise":
            raise ValueError(
                f"Evaluation needs clips with on_error='raise', not {clips.on_error!r}: it would be another clip."
            )
        keys = self._clip_keys(clips)
        order, views = self.settings.frame_order, self.settings.views
        batch_size, num_workers = self.settings.batch_size, self.settings.num_workers
        made_by = self._made_by(
            model,
            kind="clip logits" if head else "clip embedding",
            transform=video_fingerprint(self.processor),
            frames=f"{clips.num_frames} {clips.sampling}{'' if order == 'natural' else f', {order}'}"
            + ("" if len(views) == 1 else f", {views}"),
        )
        embeds = VectorCache(self.settings.cache, made_by)
        pairs = np.empty((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs)
        matches = VectorCache(
            self.settings.cache if len(pairs) else None,
            made_by | {"kind": "matching logit", "text": text_fingerprint(self.processor) if len(pairs) else ""},
        )
        pair_keys = [f"{keys[clip]}\n{texts[text]}" for clip, text in pairs]
        pairs_of: dict[int, list[int]] = {}
        for number, (clip, _) in enumerate(pairs):
            if pair_keys[number] not in matches:
                pairs_of.setdefault(int(clip), []).append(number)
        missing = [row for row in range(len(clips)) if keys[row] not in embeds or row in pairs_of]
        if self.settings.shard is not None:
            missing = [row for row in missing if self.settings.shard.owns(keys[row])]
        if self.settings.merge and not self._is_merged:
            self._check_complete(clips, missing)
        failures: list[dict] = []

        def compute(rows: np.ndarray) -> None:
            loader = DataLoader(
                _Rows(clips, rows, self.settings.on_error),
                batch_size=batch_size,
                num_workers=num_workers,
                collate_fn=_Collate(self.processor, order, views),
                worker_init_fn=start_worker if num_workers else None,
            )
            parameter = next(model.parameters())
            with workers_ignore_interrupts():
                batches = iter(loader)
            hidden = self._hidden or not len(rows)
            written = time.monotonic()
            for read, pixels, failed in tqdm(batches, desc=desc, unit="batch", total=len(loader), disable=hidden):
                failures.extend(failed)
                if not read:
                    continue
                wanted = [(i, p) for i, row in enumerate(read) for p in pairs_of.get(row, ())]
                vectors: list[torch.Tensor] = []
                odds: list[np.ndarray] = []
                for view in pixels:
                    view = view.to(parameter.device, parameter.dtype)
                    if head:
                        vectors.append(model(view, return_dict=True).logits.float().cpu())
                        continue
                    outputs = model.get_video_features(view, return_dict=True)
                    vectors.append(F.normalize(outputs.pooler_output.float(), dim=-1).cpu())
                    if wanted:
                        states, wanted_texts = outputs.last_hidden_state, [texts[pairs[p, 1]] for _, p in wanted]
                        odds.append(self._match_all(model, wanted_texts, states, [i for i, _ in wanted]))
                mean = torch.stack(vectors).mean(0)
                embeds.add([keys[row] for row in read], mean.numpy() if head else _unit(mean))
                if wanted:
                    matches.add([pair_keys[p] for _, p in wanted], np.mean(odds, axis=0)[:, None])
                if time.monotonic() - written > WRITE_EVERY:
                    embeds.write()
                    matches.write()
                    written = time.monotonic()

        try:
            with evaluating(model):
                failures = self._divide(missing, compute, [embeds, matches], failures)
        finally:
            # Also after an error or Ctrl-C: the next run goes on from here.
            matches.write()
            embeds.write()
        if self.settings.shard is not None:
            num_clips = sum(self.settings.shard.owns(key) for key in keys)
            raise ShardFinished(
                f"shard {self.settings.shard}: {num_clips} of {len(keys)} clips, {len(failures)} failed"
            )
        bad = {failure["row"] for failure in failures}
        rows = _stack(embeds, [None if row in bad else key for row, key in enumerate(keys)])
        if not len(pairs):
            return EncodedClips(rows, None, failures)
        logits = _stack(matches, [None if clip in bad else key for (clip, _), key in zip(pairs, pair_keys)])[:, 0]
        return EncodedClips(rows, logits, failures)

    def _check_complete(self, clips: EgoClipDataset, missing: list[int]) -> None:
        """Refuse clips that no shard has embedded. With `on_error="wrong"` those that cannot be read are no holes."""
        self._is_merged = True
        rows = _Rows(clips, missing, self.settings.on_error)
        holes = missing if self.settings.on_error == "raise" else [row for row, video, _ in rows if video is not None]
        if holes:
            raise ValueError(
                f"{len(holes)} of {len(clips)} clips are not in the cache {str(self.settings.cache)!r}, the first in "
                f"row {holes[0]}: run the missing shards with the same arguments."
            )

    def texts(self, model: nn.Module, texts: Sequence[str], desc: str = "texts") -> np.ndarray:
        """Normalised embeddings `(num_texts, projection_dim)`; of equal texts one is computed."""
        made_by = self._made_by(model, kind="text embedding", text=text_fingerprint(self.processor))
        embeds = VectorCache(self.settings.cache, made_by)
        missing = [text for text in dict.fromkeys(texts) if text not in embeds]

        def compute(mine) -> None:
            device = next(model.parameters()).device
            for first in tqdm(
                range(0, len(mine), 256), desc=desc, unit="batch", disable=self._hidden or len(mine) < 2560
            ):
                chunk = list(mine[first : first + 256])
                inputs = self.processor(text=chunk, return_tensors="pt").to(device)
                outputs = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], return_dict=True)
                embeds.add(chunk, _unit(outputs.pooler_output))

        with evaluating(model):
            self._divide(missing, compute, [embeds], [])
        return _stack(embeds, texts)

    def _match_all(
        self, model: nn.Module, texts: list[str], video_states: torch.Tensor, clips: list[int]
    ) -> np.ndarray:
        """Log odds `(pairs,)` that text i describes clip `clips[i]`, `batch_size` pairs at a time."""
        size = self.settings.batch_size
        parts = [
            self._match(model, texts[first : first + size], video_states[clips[first : first + size]])
            for first in range(0, len(texts), size)
        ]
        return np.concatenate(parts)

    def _match(self, model: nn.Module, texts: list[str], video_states: torch.Tensor) -> np.ndarray:
        """Log odds `(pairs,)` that text i describes clip i."""
        inputs = self.processor(text=texts, return_tensors="pt").to(video_states.device)
        mask = inputs["attention_mask"]
        text_states = model.text_model(inputs["input_ids"], attention_mask=mask, return_dict=True).last_hidden_state
        logits = model.match(text_states, mask, video_states).float()
        return (logits[:, 1] - logits[:, 0]).cpu().numpy()

    def _divide(self, missing: list, compute: Callable, caches: list[VectorCache], failures: list[dict]) -> list[dict]:
        """Run `compute` on this process's part of `missing`; then every process has what all computed."""
        accelerator = self.accelerator
        if accelerator is None or accelerator.num_processes == 1:
            compute(missing)
            for cache in caches:
                cache.write()
            return failures
        bounds = np.linspace(0, len(missing), accelerator.num_processes + 1).round().astype(int)
        rank = accelerator.process_index
        known = [set(cache.keys()) for cache in caches]
        compute(missing[bounds[rank] : bounds[rank + 1]])
        own = []
        for cache, before in zip(caches, known):
            cache.write()
            new = [key for key in cache.keys() if key not in before]
            own.append((new, _stack(cache, new) if new else None))
        everyone = gather_object([(own, failures)])
        for other, (parts, _) in enumerate(everyone):
            for cache, (new, rows) in zip(caches, parts):
                if new and other != rank:
                    cache.merge(new, rows)
        return [failure for _, found in everyone for failure in found]

    @property
    def _hidden(self) -> bool:
        return self.accelerator is not None and not self.accelerator.is_main_process

    def _made_by(self, model: nn.Module, **rest: str) -> dict[str, str]:
        from .. import __version__

        if self.settings.cache is None:  # a fingerprint reads all weights
            return {}
        return {"weights": model_fingerprint(model), "package": __version__, **rest}

    def _clip_keys(self, clips: EgoClipDataset) -> list[str]:
        """Video, window, and size and time of the file that the window starts in: a replaced video is another clip."""
        if self.settings.cache is None:
            return [str(row) for row in range(len(clips))]
        columns = (clips.table[name] for name in ("video_uid", "clip_start", "clip_end"))
        stamps: dict[str, str] = {}
        keys = []
        for uid, start, end in zip(*columns):
            path = str(clips.store.path(uid, start))
            if path not in stamps:
                stat = os.stat(path) if os.path.isfile(path) else None
                stamps[path] = f"{path} {stat.st_size} {stat.st_mtime_ns}" if stat else path
            keys.append(f"{uid} {start!r} {end!r} {stamps[path]}")
        return keys


class _Rows(Dataset):
    """Some rows of the clips; an unreadable one gives its failure instead of frames."""

    def __init__(self, clips: EgoClipDataset, rows: Sequence[int], on_error: str):
        self.clips, self.rows, self.on_error = clips, [int(row) for row in rows], on_error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, dict | None]:
        row = self.rows[index]
        try:
            return row, self.clips[row]["video"], None
        except (ClipReadError, OSError) as error:
            if self.on_error == "raise":
                raise
            place = self.clips.table[row]
            uid, start, end = (place[name] for name in ("video_uid", "clip_start", "clip_end"))
            failure = {"row": row, "video_uid": uid, "start": start, "end": end}
            return row, None, failure | {"path": str(self.clips.store.path(uid, start)), "reason": str(error)}


class _Collate:
    """Rows → (rows read, pixels `(views, rows read, num_frames, channels, height, width)` or None, failures)."""

    def __init__(self, processor: Callable, frame_order: str, views: Views):
        self.processor = processor
        self.frame_order = frame_order
        self.views = views

    def __call__(self, examples: list[tuple]) -> tuple[list[int], torch.Tensor | None, list[dict]]:
        read = [(row, video) for row, video, failure in examples if failure is None]
        failures = [failure for _, _, failure in examples if failure is not None]
        if not read:
            return [], None, failures
        seen = [
            [view[ordered_frames(len(view), self.frame_order, seed=row)] for view in self.views.of_frames(video)]
            for row, video in read
        ]
        videos = [views[number] for number in range(len(seen[0])) for views in seen]  # view after view
        pixels = self.processor(
            videos=videos,
            return_tensors="pt",
            do_sample_frames=False,
            do_random_resized_crop=False,
            do_random_flip=False,
        )["pixel_values_videos"]
        pixels = self.views.of_pixels(pixels.unflatten(0, (-1, len(read))))
        return [row for row, _ in read], pixels, failures


def one_thread(worker: int) -> None:
    """Computes in one thread in a worker process, because there is a worker per core."""
    torch.set_num_threads(1)


def start_worker(worker: int, first: Callable[[int], None] | None = None) -> None:
    """
    Prepares a worker process: it computes in one thread and leaves signals to the main process.

    Args:
        worker (`int`): Its number.
        first (function of the number, *optional*): Called before, such as the `worker_init_fn` of a library.
    """
    if first is not None:
        first(worker)
    one_thread(worker)
    leave_signals_to_the_parent()


def _unit(features: torch.Tensor) -> np.ndarray:
    return F.normalize(features.float(), dim=-1).cpu().numpy()


def _stack(cache: VectorCache, keys: Sequence[str | None]) -> np.ndarray:
    """`(len(keys), dim)`; a row of nan where the key is None."""
    known = next((cache[key] for key in keys if key is not None), None)
    if known is None:
        raise ValueError(f"None of the {len(keys)} clips could be read.")
    empty = np.full_like(known, np.nan)
    return np.stack([empty if key is None else cache[key] for key in keys])
