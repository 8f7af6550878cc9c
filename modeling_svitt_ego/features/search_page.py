"""The result of a search as one HTML page that opens without a server and plays each moment."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..files.resumable_folder import aside
from .search import IndexedVideo, Moment, VideoIndex, clock

_THUMBNAIL_WIDTH = 240  # pixels


def write_page(path: str | os.PathLike, query: str, moments: Sequence[Moment], index: VideoIndex) -> Path:
    """
    Writes a page with a player, three frames and the score over time for each moment.

    The pictures are part of the page. The players open the video files by their path relative to the page, so the page
    and the videos can be moved together; browsers do not play every format (.mkv and .avi rarely).

    Raises:
        ValueError: `path` is a directory, or its directory does not exist.
    """
    path = check_page_path(path)
    curves = {video.source: (video, scores) for video, scores in zip(index.videos, index.scores(query))}
    blocks = [_block(rank, moment, *curves[moment.video], path.parent) for rank, moment in enumerate(moments, 1)]
    page = _PAGE.format(
        query=html.escape(query),
        note=_note(moments, len(index.videos)),
        blocks="\n".join(blocks),
        unread=_unread(index.failures),
    )
    with aside(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def check_page_path(path: str | os.PathLike) -> Path:
    """Checks that a page can be written, before videos are indexed for an hour, and returns its path."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name the page itself, such as {path / 'found.html'}.")
    if not path.parent.is_dir():
        raise ValueError(f"The directory {path.parent} of the page {path.name} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The directory {path.parent} of the page {path.name} is not writable.")
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{query}</title><style>
:root {{ color-scheme: light dark; --line: #345; --mark: #ffd27f; --soft: #f4f4f4; --edge: #ccc; --text: #595959 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #9cf; --mark: #7a5a10; --soft: #222; --edge: #444; --text: #aaa }}
}}
body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }}
section {{ border-top: 1px solid var(--edge); padding: 1rem 0 }}
video {{ width: 100%; max-height: 60vh; background: #000; border-radius: 4px }}
.frames {{ display: flex; gap: 2%; margin: .5rem 0 }}
figure {{ margin: 0; flex: 1 }}
img {{ width: 100%; border-radius: 4px }}
figcaption, small, .axis {{ color: var(--text); font-size: .85rem; overflow-wrap: anywhere }}
svg {{ width: 100%; height: 48px; background: var(--soft); display: block }}
.axis {{ display: flex; justify-content: space-between }}
</style></head><body>
<main>
<h1>{query}</h1>
<p><small>{note}</small></p>
{blocks}
{unread}
</main>
</body></html>
"""


def _note(moments: Sequence[Moment], num_videos: int) -> str:
    videos = f"{num_videos} video" + ("s" if num_videos != 1 else "")
    text = f"Best moments of {videos} by cosine similarity. The curve is the similarity over the whole video."
    if moments and moments[0].score <= 0:
        text += " Nothing fits: even the best cosine is not above 0."
    return text


def _unread(failures: dict[str, str]) -> str:
    if not failures:
        return ""
    rows = "\n".join(f"<li>{html.escape(path)}: {html.escape(reason)}</li>" for path, reason in failures.items())
    return f"<section><h2>Not searched</h2>\n<ul>\n{rows}\n</ul></section>"


def _block(rank: int, moment: Moment, video: IndexedVideo, scores: np.ndarray, page_folder: Path) -> str:
    # The last frame of a moment is the one before its end, which may be the end of the video.
    times = np.array([moment.start, moment.peak, max(moment.peak, moment.end - 0.05)])
    frames = [_data_uri(frame) for frame in moment.video.frames(times)]
    captions = [f"{which} frame, {clock(time)}" for which, time in zip(("First", "Best", "Last"), times)]
    figures = "".join(
        f'<figure><img src="{frame}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        for frame, caption in zip(frames, captions)
    )
    source, where = _file_at(moment, page_folder)
    name = html.escape(moment.video.uid)
    return (
        f"<section><h2>{rank}. {clock(moment.start)} – {clock(moment.end)}</h2>\n"
        f"<p>{name} <small>{html.escape(str(where))}, cosine {moment.score:.3f}</small></p>\n"
        f'<video controls preload="none" src="{source}" poster="{frames[1]}" '
        f'aria-label="Moment {rank}: {name}, {clock(moment.start)} to {clock(moment.end)}"></video>\n'
        f'<div class="frames">{figures}</div>\n{_curve(moment, video.cells, scores)}</section>'
    )


def _file_at(moment: Moment, page_folder: Path) -> tuple[str, Path]:
    """The URL of a moment, relative to the page and with the media fragment `#t=start,end`, and its file."""
    start, path = max((file for file in moment.video.files if file[0] <= moment.start), default=moment.video.files[0])
    try:
        relative = os.path.relpath(path.resolve(), page_folder.resolve())
        url = quote(relative.replace(os.sep, "/"), errors="surrogateescape")
    except ValueError:  # the page and the video are on different drives of Windows
        url = path.resolve().as_uri()
    return f"{html.escape(url)}#t={moment.start - start:.2f},{moment.end - start:.2f}", path


def _curve(moment: Moment, cells: np.ndarray, scores: np.ndarray) -> str:
    """The scores of the video as a line, 1000 units wide, with the moment marked and the time below."""
    duration = float(cells[-1, 1])
    scale = 1000 / duration
    low, high = float(scores.min()), float(scores.max())
    heights = 46 - 44 * (scores - low) / max(high - low, 1e-12)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(cells.mean(1) * scale, heights))
    width = max((moment.end - moment.start) * scale, 2)
    label = f"Similarity over the video, from {low:.2f} to {high:.2f}; this moment is at {clock(moment.peak)}."
    ticks = "".join(f"<span>{clock(duration * part / 4)}</span>" for part in range(5))
    return (
        f'<svg viewBox="0 0 1000 48" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect x="{moment.start * scale:.1f}" width="{width:.1f}" height="48" fill="var(--mark)"/>'
        f'<polyline points="{points}" fill="none" stroke="var(--line)" vector-effect="non-scaling-stroke"/></svg>\n'
        f'<div class="axis" aria-hidden="true">{ticks}</div>'
    )


def _data_uri(frame: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((_THUMBNAIL_WIDTH, 4 * _THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
