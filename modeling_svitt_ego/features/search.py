"""Finds moments in your own videos with a sentence.

```python
index = VideoIndex.build(model, processor, "videos/")
moments = index.search("where did I put the keys?")
write_page("found.html", "where did I put the keys?", moments, index)  # of search_page.py
```

A video is embedded once, in windows (`windows.py`), and kept on disk. A search is one text embedding and one matrix
product over all windows.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from tqdm.auto import tqdm

from ..files.resumable_folder import aside
from ..model.clip_reading import ClipReadError
from ..weights.fingerprint import model_fingerprint, video_fingerprint
from .index_cache import cache_path, make_index_cache, read_cache, write_cache
from .source_videos import SourceVideo, find_videos
from .windows import WindowSettings, embed_texts, embed_video

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path(constants.HF_HOME) / "svitt_ego" / "video_index"


@dataclass(frozen=True)
class Moment:
    """
    Args:
        video ([`SourceVideo`]): The video; `video.uid` is its name.
        start, end (`float`): Start and end in seconds of the video.
        peak (`float`): Second with the highest score.
        score (`float`): Cosine of the query and the window at the peak, in [-1, 1].
    """

    video: SourceVideo
    start: float
    end: float
    peak: float
    score: float

    def __str__(self) -> str:
        return f"{self.video.shown}  {clock(self.start)} – {clock(self.end)}  ({self.score:.3f})"


@dataclass(frozen=True)
class IndexedVideo:
    source: SourceVideo
    cells: np.ndarray  # (num_cells, 2), seconds
    embeds: np.ndarray  # (num_cells, projection_dim), normalised


class VideoIndex:
    """
    Videos that can be searched; made by [`VideoIndex.build`].

    Attributes:
        videos (list of [`IndexedVideo`]): The indexed videos in the order in which they were added.
        failures (`dict[str, str]`): Path of each video that could not be read, with the reason.
        vectors (`np.ndarray` of shape `(num_windows, projection_dim)`): Unit vectors of all windows in float32; the
            rows of a video are consecutive.
    """

    def __init__(self, model, processor, videos: Sequence[IndexedVideo], failures: dict[str, str]):
        self.model = model
        self.processor = processor
        self.videos = list(videos)
        self.failures = failures
        self.vectors = np.concatenate([video.embeds for video in self.videos]).astype(np.float32, copy=False)
        # Rows first[i] to first[i + 1] of `vectors` are those of video i.
        self.first = np.cumsum([0, *(len(video.embeds) for video in self.videos)])

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        seconds = sum(float(video.cells[-1, 1]) for video in self.videos)
        return (
            f"VideoIndex({len(self.videos)} videos, {clock(seconds)}, {len(self)} windows, "
            f"{len(self.failures)} unreadable)"
        )

    @classmethod
    def build(
        cls,
        model,
        processor,
        videos: str | os.PathLike | Sequence[str | os.PathLike],
        settings: WindowSettings | None = None,
        cache_dir: str | os.PathLike | None = DEFAULT_CACHE,
        batch_size: int = 32,
    ) -> "VideoIndex":
        """
        Args:
            model: [`SViTTEgoModel`] or another with its two towers and projections.
            videos: video files and folders of videos.
            settings ([`WindowSettings`], *optional*): windows; of kind "projected".
            cache_dir (*optional*): Folder that keeps the features by checkpoint, transform, file and settings; with
                `None` they are not kept.

        Raises:
            ClipReadError: None of the videos could be read.
        """
        settings = settings or WindowSettings()
        if settings.kind != "projected":
            raise ValueError(f"A search compares clips with texts: kind must be 'projected', not {settings.kind!r}.")
        if cache_dir is not None:
            make_index_cache(cache_dir)
        paths = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
        # A video that is given twice, also through its folder, is searched once.
        failures: dict[str, str] = {}
        found = [video for path in paths for video in find_videos(path, skipped=failures, unique=False)]
        sources = list({video.files: video for video in found}.values())
        maker = [model_fingerprint(model), video_fingerprint(processor), settings.recorded()]
        indexed = []
        with tqdm(desc="index", unit="window") as bar:
            for number, source in enumerate(sources, 1):
                bar.set_postfix_str(f"video {number} of {len(sources)}")
                path = None if cache_dir is None else cache_path(Path(cache_dir), maker, source)
                try:
                    cells, features = _embedded(model, processor, source, settings, batch_size, path, bar)
                except ClipReadError as error:
                    # The command prints it after the path, so it is not logged as well.
                    failures[source.shown] = str(error).removeprefix(f"{source.shown}: ")
                    logger.info("Not searched: %s", error)
                    continue
                indexed.append(IndexedVideo(source, cells, _normalised(features)))
        if not indexed:
            first = next(iter(failures.values()), "none was found")
            raise ClipReadError(f"None of {len(sources)} videos could be read; the first: {first}")
        return cls(model, processor, indexed, failures)

    def rows(self) -> list[dict]:
        """One `dict` per window, in the order of `vectors`: `video`, `path`, and `start` and `end` in seconds."""
        return [
            {"video": video.source.uid, "path": str(video.source.files[0][1]), "start": float(a), "end": float(b)}
            for video in self.videos
            for a, b in video.cells
        ]

    def to_parquet(self, path: str | os.PathLike) -> Path:
        """Writes `rows` and their vectors as a table that `datasets`, pandas and every vector store read."""
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(self.rows()).append_column("embedding", pyarrow.array(list(self.vectors)))
        with aside(Path(path)) as part:
            pyarrow.parquet.write_table(table, part)
        return Path(path)

    def to_faiss(self):
        """A `faiss.IndexFlatIP` of `vectors`: inner products with a unit query are cosines. Needs `faiss-cpu`."""
        try:
            import faiss
        except ImportError as error:
            raise ImportError("VideoIndex.to_faiss needs the package 'faiss': pip install faiss-cpu") from error
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        return index

    def embed_query(self, query: str) -> np.ndarray:
        """The embedding of a sentence, of unit length, `(projection_dim,)`."""
        if not query.strip():
            raise ValueError("The query has no words.")
        return _normalised(embed_texts(self.model, self.processor, [query])[0].features[None])[0].astype(np.float32)

    def scores(self, query: str) -> list[np.ndarray]:
        """For each video the cosine of `query` with each of its cells."""
        return np.split(self.vectors @ self.embed_query(query), self.first[1:-1])

    def search(self, query: str, top_k: int = 5) -> list[Moment]:
        """The `top_k` best moments over all videos, best first; moments of a video do not overlap."""
        if top_k < 1:
            raise ValueError(f"top_k ({top_k}) must be at least 1.")
        scores = self.scores(query)
        best = np.array([video_scores.max() for video_scores in scores])
        moments = []
        # A moment of another video cannot be among the best top_k: each of these has one that is at least as good.
        for number in np.argsort(-best, kind="stable")[:top_k]:
            video = self.videos[number]
            for first, last, peak, score in peaks(scores[number], top_k):
                start, end = float(video.cells[first, 0]), float(video.cells[last, 1])
                moments.append(Moment(video.source, start, end, float(video.cells[peak].mean()), score))
        return sorted(moments, key=lambda moment: -moment.score)[:top_k]


def _embedded(model, processor, source: SourceVideo, settings: WindowSettings, batch_size: int, path, bar):
    """Cells and features of a video, from the cache file `path` if possible, else computed and written to it."""
    found = None if path is None else read_cache(path)
    if found is not None:
        bar.update(len(found[1]))
        return found
    embedded = embed_video(model, processor, source, settings, batch_size, progress=lambda done, _: bar.update(done))
    if path is not None:
        write_cache(path, embedded.cells, embedded.features)
    return embedded.cells, embedded.features


def peaks(scores: np.ndarray, count: int) -> list[tuple[int, int, int, float]]:
    """
    The `count` highest peaks of a curve as (first cell, last cell, cell of the peak, its score), highest first.

    A moment extends from its peak in both directions while the scores are above the middle between the median of the
    video and the peak (width at half height). It does not extend into a moment that was found before.
    """
    free = np.ones(len(scores), dtype=bool)
    floor, found = float(np.median(scores)), []
    for peak in np.argsort(-scores, kind="stable"):
        if len(found) == count:
            break
        if not free[peak]:
            continue
        high = free & (scores >= (scores[peak] + floor) / 2)
        first = last = int(peak)
        while first > 0 and high[first - 1]:
            first -= 1
        while last + 1 < len(scores) and high[last + 1]:
            last += 1
        free[first : last + 1] = False
        # The cells next to a moment belong to its slope and are not peaks.
        free[max(0, first - 1) : last + 2] = False
        found.append((first, last, int(peak), float(scores[peak])))
    return found


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def clock(seconds: float) -> str:
    """1:02.5 or 1:00:02.5"""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest // 10:02d}.{rest % 10}"
