"""The result of a search as one HTML page that opens without a server."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..files.resumable_folder import aside
from .search import IndexedVideo, Moment, VideoIndex, clock

_THUMBNAIL_WIDTH = 240  # pixels


def write_page(path: str | os.PathLike, query: str, moments: Sequence[Moment], index: VideoIndex) -> Path:
    """One HTML file with the moments, their first, best and last frame, and the score over time; needs no server."""
    curves = {video.source: (video, scores) for video, scores in zip(index.videos, index.scores(query))}
    blocks = [_block(rank, moment, *curves[moment.video]) for rank, moment in enumerate(moments, 1)]
    page = _PAGE.format(query=html.escape(query), blocks="\n".join(blocks), count=len(index.videos))
    path = Path(path)
    with aside(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{query}</title><style>
body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }}
section {{ border-top: 1px solid #ccc; padding: 1rem 0 }}
img {{ width: 32%; border-radius: 4px }}
svg {{ width: 100%; height: 48px; background: #f4f4f4 }}
small {{ color: #666 }}
</style></head><body>
<h1>{query}</h1>
<p><small>Best moments of {count} video(s) by cosine similarity.
The curve is the similarity over the whole video.</small></p>
{blocks}
</body></html>
"""


def _block(rank: int, moment: Moment, video: IndexedVideo, scores: np.ndarray) -> str:
    # The last frame of a moment is the one before its end, which may be the end of the video.
    times = np.array([moment.start, moment.peak, max(moment.peak, moment.end - 0.05)])
    frames = list(moment.video.frames(times))
    images = "".join(f'<img src="{_data_uri(frame)}" alt="at {clock(t)}"> ' for frame, t in zip(frames, times))
    where = html.escape(str(moment.video.files[0][1]))
    return (
        f"<section><h2>{rank}. {clock(moment.start)} – {clock(moment.end)}</h2>\n"
        f"<p>{html.escape(moment.video.uid)} <small>{where}, cosine {moment.score:.3f}</small></p>\n"
        f"<p>{images}</p>\n{_curve(moment, video.cells, scores)}</section>"
    )


def _curve(moment: Moment, cells: np.ndarray, scores: np.ndarray) -> str:
    """The scores of the video as a line, 1000 units wide, with the moment marked."""
    scale = 1000 / cells[-1, 1]
    low, high = float(scores.min()), float(scores.max())
    heights = 46 - 44 * (scores - low) / max(high - low, 1e-12)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(cells.mean(1) * scale, heights))
    width = max((moment.end - moment.start) * scale, 2)
    return (
        '<svg viewBox="0 0 1000 48" preserveAspectRatio="none">'
        f'<rect x="{moment.start * scale:.1f}" width="{width:.1f}" height="48" fill="#ffd27f"/>'
        f'<polyline points="{points}" fill="none" stroke="#345" vector-effect="non-scaling-stroke"/></svg>'
    )


def _data_uri(frame: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((_THUMBNAIL_WIDTH, 4 * _THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
