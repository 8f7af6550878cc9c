"""Find moments in one's own videos by a sentence.

```python
index = VideoIndex.build(model, processor, "videos/")
moments = index.search("where did I put the keys?")
write_page("found.html", "where did I put the keys?", moments, index)
```

A video is embedded once, in windows (`features`), and kept on disk; a search is one text embedding and a product.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from tqdm.auto import tqdm

from ..model.clip_reading import ClipReadError
from ..weights.fingerprint import model_fingerprint, video_fingerprint
from .index_cache import cache_path, read_cache, write_cache
from .windows import SourceVideo, WindowSettings, embed_texts, embed_video, find_videos

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path(constants.HF_HOME) / "svitt_ego" / "video_index"


@dataclass(frozen=True)
class Moment:
    """
    Args:
        video ([`SourceVideo`]): where; `video.uid` is its name.
        start, end (`float`): seconds of the video.
        peak (`float`): the second that fits best.
        score (`float`): cosine of the query and the window there, in [-1, 1].
    """

    video: SourceVideo
    start: float
    end: float
    peak: float
    score: float

    def __str__(self) -> str:
        return f"{self.video.uid}  {clock(self.start)} – {clock(self.end)}  ({self.score:.3f})"


@dataclass(frozen=True)
class IndexedVideo:
    source: SourceVideo
    cells: np.ndarray  # (num_cells, 2), seconds
    embeds: np.ndarray  # (num_cells, projection_dim), normalised


class VideoIndex:
    """Videos that can be searched; made by [`VideoIndex.build`]. `failures` has the unreadable ones, with reasons."""

    def __init__(self, model, processor, videos: Sequence[IndexedVideo], failures: dict[str, str]):
        self.model = model
        self.processor = processor
        self.videos = list(videos)
        self.failures = failures

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
            cache_dir (*optional*): where the features of a video are kept, by checkpoint, transform, file and
                settings; `None` keeps nothing.

        Raises:
            ClipReadError: None of the videos could be read.
        """
        settings = settings or WindowSettings()
        if settings.kind != "projected":
            raise ValueError(f"A search compares clips with texts: kind must be 'projected', not {settings.kind!r}.")
        paths = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
        # By files: a video that is named twice, or lies in a named folder, is searched once.
        sources = list({video.files: video for path in paths for video in find_videos(path)}.values())
        maker = [model_fingerprint(model), video_fingerprint(processor), asdict(settings)]
        indexed, failures = [], {}
        for source in tqdm(sources, desc="index", unit="video"):
            path = None if cache_dir is None else cache_path(Path(cache_dir), maker, source)
            try:
                if path is not None and path.is_file():
                    cells, features = read_cache(path)
                else:
                    found = embed_video(model, processor, source, settings, batch_size)
                    cells, features = found.cells, found.features
                    if path is not None:
                        write_cache(path, cells, features)
            except ClipReadError as error:
                failures[str(source.files[0][1])] = str(error)
                logger.warning("Not searched: %s", error)
                continue
            indexed.append(IndexedVideo(source, cells, _normalised(features)))
        if not indexed:
            raise ClipReadError(
                f"None of {len(sources)} videos could be read; the first: {next(iter(failures.values()))}"
            )
        return cls(model, processor, indexed, failures)

    def scores(self, query: str) -> list[np.ndarray]:
        """For each video the cosine of `query` with each of its cells."""
        if not query.strip():
            raise ValueError("The query has no words.")
        text = _normalised(embed_texts(self.model, self.processor, [query])[0].features[None])[0]
        return [video.embeds @ text for video in self.videos]

    def search(self, query: str, top_k: int = 5) -> list[Moment]:
        """The `top_k` best moments over all videos, best first; moments of a video do not overlap."""
        if top_k < 1:
            raise ValueError(f"top_k ({top_k}) must be at least 1.")
        moments = [
            Moment(
                video.source, float(video.cells[a, 0]), float(video.cells[b, 1]), float(video.cells[i].mean()), score
            )
            for video, scores in zip(self.videos, self.scores(query))
            for a, b, i, score in peaks(scores, top_k)
        ]
        return sorted(moments, key=lambda moment: -moment.score)[:top_k]


def peaks(scores: np.ndarray, count: int) -> list[tuple[int, int, int, float]]:
    """
    The `count` highest peaks of a curve as (first cell, last cell, cell of the peak, its score), highest first.

    A moment reaches from its peak in both directions as far as the scores stay above halfway between the median of the
    video and the peak (width at half height), and not into a moment found before.
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
        # Beside a moment lies its own slope: not a peak of its own.
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
