"""Embeds clips and texts for an evaluation: divided over processes, cached on disk, with failures counted.

A clip is decoded once, both for its embedding and for the matching logits of the texts that it is paired with. The
clips are divided into one contiguous part per process, because neighbours share files. A part is neither padded nor
repeated, so every clip counts once for any number of processes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.clips import EgoClipDataset
from ..data.frame_order import check_frame_order
from ..data.workers import start_worker
from ..files.processes import workers_ignore_interrupts
from ..files.sharding import Shard
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..weights.fingerprint import model_fingerprint, text_fingerprint, video_fingerprint
from .clip_rows import ClipRows, CollateViews
from .vector_cache import VectorCache
from .views import Views

ON_ERROR = ("raise", "wrong")
WRITE_EVERY = 30.0  # seconds between two writes of the cache; a killed run loses at most this much work


@dataclass(frozen=True)
class EncodedClips:
    """
    Args:
        embeds (`np.ndarray` of shape `(num_clips, projection_dim)`): Embeddings of unit length; nan for a clip that
            failed.
        match_logits (`np.ndarray` of shape `(num_pairs,)`, *optional*): Log odds of a match; nan if the clip failed.
        failures (`list[dict]`): Row, video_uid, start and end (seconds), path and reason of each clip that failed.
    """

    embeds: np.ndarray
    match_logits: np.ndarray | None
    failures: list[dict]

    @property
    def failed(self) -> np.ndarray:
        """Whether each clip failed, a `bool` array of shape `(num_clips,)`."""
        return np.isnan(self.embeds).any(axis=1)


@dataclass(frozen=True)
class EncoderSettings:
    """
    Settings for reading and embedding clips, which all benchmarks share.

    Args:
        batch_size (`int`): Number of clips embedded at once.
        num_workers (`int`): Number of processes that decode clips; 0 decodes in the main process.
        on_error (`str`): For a clip that cannot be read, `"raise"` raises an error, and `"wrong"` counts every item
            that needs the clip as wrong. The clip is never replaced by black frames or left out of the denominator.
        cache (`str`, *optional*): Folder for vectors by weights, clip and transform; an interrupted run continues
            from it.
        layout (`str`, *optional*): Layout of the video folder; recognised from the folder if not given.
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
            raise ValueError("A shard writes its vectors to a cache, and a merge reads them: give a cache folder.")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error ({self.on_error!r}) must be one of {ON_ERROR}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size ({self.batch_size}) must be at least 1.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers ({self.num_workers}) must be at least 0.")
        check_frame_order(self.frame_order)


class ShardFinished(Exception):
    """Raised when the vectors of one shard are in the cache; the message has the number of clips."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode without gradients, and restores its mode afterwards."""
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
        processor ([`SViTTEgoProcessor`]): Processor of the model.
        settings ([`EncoderSettings`]): Settings for reading and embedding clips.
        accelerator (`Accelerator`, *optional*): Divides the work over its processes, which all receive the result.
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
            model: Model with `get_video_features`; for `pairs`, also with `text_model` and `match`.
            clips ([`EgoClipDataset`]): Clips with `on_error="raise"`, because a replacement would be another clip.
            head (`bool`): Whether to return the logits of the classifier instead of embeddings.
            texts (sequence of `str`), pairs (`np.ndarray` of shape `(num_pairs, 2)`): Texts, and the rows of `clips`
                and of `texts` to match.
        """
        if clips.on_error != "raise":
            raise ValueError(
                f"Evaluation needs clips with on_error='raise', not {clips.on_error!r}: it would be another clip."
            )
        work = self._work(model, clips, texts, pairs, head)
        missing = self._missing(work)
        failures: list[dict] = []

        def compute(rows: np.ndarray) -> None:
            self._embed(model, work, rows, failures, desc)

        try:
            with evaluating(model):
                failures = self._divide(missing, compute, [work.embeds, work.matches], failures)
        finally:
            # Also after an error or Ctrl-C: the next run continues from here.
            work.write()
        if self.settings.shard is not None:
            num_clips = sum(self.settings.shard.owns(key) for key in work.keys)
            raise ShardFinished(
                f"shard {self.settings.shard}: {num_clips} of {len(work.keys)} clips, {len(failures)} failed"
            )
        return work.results(failures)

    def _work(
        self, model: nn.Module, clips: EgoClipDataset, texts: Sequence[str], pairs: np.ndarray | None, head: bool
    ) -> "_Work":
        """The clips with the caches that their results come from and go to."""
        order, views = self.settings.frame_order, self.settings.views
        made_by = self._made_by(
            model,
            kind="clip logits" if head else "clip embedding",
            transform=video_fingerprint(self.processor),
            frames=f"{clips.num_frames} {clips.sampling}{'' if order == 'natural' else f', {order}'}"
            + ("" if len(views) == 1 else f", {views}"),
        )
        pairs = np.empty((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs)
        matches_made_by = made_by | {
            "kind": "matching logit",
            "text": text_fingerprint(self.processor) if len(pairs) else "",
        }
        keys = self._clip_keys(clips)
        return _Work(
            clips=clips,
            texts=texts,
            pairs=pairs,
            head=head,
            keys=keys,
            pair_keys=[f"{keys[clip]}\n{texts[text]}" for clip, text in pairs],
            embeds=VectorCache(self.settings.cache, made_by),
            matches=VectorCache(self.settings.cache if len(pairs) else None, matches_made_by),
        )

    def _missing(self, work: "_Work") -> list[int]:
        """The rows to embed now: those that are not in the cache, of this shard."""
        for number, (clip, _) in enumerate(work.pairs):
            if work.pair_keys[number] not in work.matches:
                work.pairs_of.setdefault(int(clip), []).append(number)
        keys = work.keys
        missing = [row for row in range(len(keys)) if keys[row] not in work.embeds or row in work.pairs_of]
        if self.settings.shard is not None:
            missing = [row for row in missing if self.settings.shard.owns(keys[row])]
        if self.settings.merge and not self._is_merged:
            self._check_complete(work.clips, missing)
        return missing

    def _embed(self, model: nn.Module, work: "_Work", rows: np.ndarray, failures: list[dict], desc: str) -> None:
        """Reads and embeds some rows; writes the caches every `WRITE_EVERY` seconds."""
        num_workers = self.settings.num_workers
        loader = DataLoader(
            ClipRows(work.clips, rows, self.settings.on_error),
            batch_size=self.settings.batch_size,
            num_workers=num_workers,
            collate_fn=CollateViews(self.processor, self.settings.frame_order, self.settings.views),
            worker_init_fn=start_worker if num_workers else None,
        )
        with workers_ignore_interrupts():
            batches = iter(loader)
        hidden = self._hidden or not len(rows)
        written = time.monotonic()
        for read, pixels, failed in tqdm(batches, desc=desc, unit="batch", total=len(loader), disable=hidden):
            failures.extend(failed)
            if not read:
                continue
            self._embed_batch(model, work, read, pixels)
            if time.monotonic() - written > WRITE_EVERY:
                work.write()
                written = time.monotonic()

    def _embed_batch(self, model: nn.Module, work: "_Work", read: list[int], pixels: torch.Tensor) -> None:
        """Adds the results of one batch, averaged over its views, to the caches."""
        parameter = next(model.parameters())
        wanted = [(i, p) for i, row in enumerate(read) for p in work.pairs_of.get(row, ())]
        vectors: list[torch.Tensor] = []
        odds: list[np.ndarray] = []
        for view in pixels:
            view = view.to(parameter.device, parameter.dtype)
            if work.head:
                vectors.append(model(view, return_dict=True).logits.float().cpu())
                continue
            outputs = model.get_video_features(view, return_dict=True)
            vectors.append(F.normalize(outputs.pooler_output.float(), dim=-1).cpu())
            if wanted:
                states, wanted_texts = outputs.last_hidden_state, [work.texts[work.pairs[p, 1]] for _, p in wanted]
                odds.append(self._match_all(model, wanted_texts, states, [i for i, _ in wanted]))
        mean = torch.stack(vectors).mean(0)
        work.embeds.add([work.keys[row] for row in read], mean.numpy() if work.head else _unit(mean))
        if wanted:
            work.matches.add([work.pair_keys[p] for _, p in wanted], np.mean(odds, axis=0)[:, None])

    def _check_complete(self, clips: EgoClipDataset, missing: list[int]) -> None:
        """Raises an error for clips that no shard has embedded, except for unreadable ones with `on_error="wrong"`."""
        self._is_merged = True
        rows = ClipRows(clips, missing, self.settings.on_error)
        holes = missing if self.settings.on_error == "raise" else [row for row, video, _ in rows if video is not None]
        if holes:
            raise ValueError(
                f"{len(holes)} of {len(clips)} clips are not in the cache {str(self.settings.cache)!r}, the first in "
                f"row {holes[0]}: run the missing shards with the same arguments."
            )

    def texts(self, model: nn.Module, texts: Sequence[str], desc: str = "texts") -> np.ndarray:
        """Normalised embeddings `(num_texts, projection_dim)`; equal texts are embedded once."""
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
        """Runs `compute` on the part of this process, and gathers the results of all processes in each of them."""
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
        """
        A key for each clip, made of its video, its window, and the size and time of the file that the window starts
        in: if the file is replaced, the clip is another one.
        """
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


@dataclass
class _Work:
    """
    A set of clips to embed, and the caches of the results.

    Args:
        clips ([`EgoClipDataset`]): The clips.
        texts, pairs (`np.ndarray` of shape `(num_pairs, 2)`): Rows of `clips` and of `texts` to match.
        head (`bool`): Whether the results are the logits of the classifier.
        keys (`list[str]`): Key of each clip in `embeds`.
        pair_keys (`list[str]`): Key of each pair in `matches`.
        embeds, matches ([`VectorCache`]): Results.
        pairs_of (`dict[int, list[int]]`): For each row, its pairs that are not in `matches` yet.
    """

    clips: EgoClipDataset
    texts: Sequence[str]
    pairs: np.ndarray
    head: bool
    keys: list[str]
    pair_keys: list[str]
    embeds: VectorCache
    matches: VectorCache
    pairs_of: dict[int, list[int]] = field(default_factory=dict)

    def write(self) -> None:
        """Writes the new results to the disk."""
        self.matches.write()
        self.embeds.write()

    def results(self, failures: list[dict]) -> EncodedClips:
        """The results of all clips in order; nan for a clip that failed."""
        bad = {failure["row"] for failure in failures}
        rows = _stack(self.embeds, [None if row in bad else key for row, key in enumerate(self.keys)])
        if not len(self.pairs):
            return EncodedClips(rows, None, failures)
        keys = [None if clip in bad else key for (clip, _), key in zip(self.pairs, self.pair_keys)]
        return EncodedClips(rows, _stack(self.matches, keys)[:, 0], failures)


def _unit(features: torch.Tensor) -> np.ndarray:
    return F.normalize(features.float(), dim=-1).cpu().numpy()


def _stack(cache: VectorCache, keys: Sequence[str | None]) -> np.ndarray:
    """`(len(keys), dim)`; a row of nan where the key is None."""
    known = next((cache[key] for key in keys if key is not None), None)
    if known is None:
        raise ValueError(f"None of the {len(keys)} clips could be read.")
    empty = np.full_like(known, np.nan)
    return np.stack([empty if key is None else cache[key] for key in keys])
