"""`svitt-ego extract`: a folder of features of videos and of EgoNLQ queries, resumable and never of two minds.

OUT/manifest.json           checkpoint, transforms and settings: what every file of the folder has in common
    videos.jsonl            a line per finished video: uid, duration, num_windows, bytes of its files
    failures.json           videos that could not be read, with the reason; empty if none
    <video_uid>.pt          one row per cell of [0, duration), the last one included
    clips/<clip_uid>.pt     rows of the clip as VSLNet cuts them, and `feature_shapes.json`   (with `nlq`)
    text/<annotation_uid>_<query_idx>.pt    "features" and "token_features" of a query        (with `nlq`)
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import __version__
from ..data.egonlq import read_queries
from ..files.resumable_folder import aside, begin_folder, differences, write_json
from ..model.clip_reading import ClipReadError
from ..weights.fingerprint import model_fingerprint, text_fingerprint, video_fingerprint
from .files import SUFFIXES, h5py, link_features, load_features, save_features
from .windows import SourceVideo, WindowSettings, cells, embed_texts, embed_video, find_videos

logger = logging.getLogger(__name__)

MANIFEST, VIDEOS, FAILURES = "manifest.json", "videos.jsonl", "failures.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Extraction:
    """
    Args:
        finished (`dict`): by video uid, its line of `videos.jsonl`, those of earlier runs included.
        num_reused (`int`): of these, how many were there before.
        failures (`dict`): by video uid, why it could not be read.
        num_texts (`int`): queries with text features.
        num_without_text (`int`): queries that have no text, and so no features.
    """

    finished: dict[str, dict]
    num_reused: int
    failures: dict[str, str]
    num_texts: int = 0
    num_without_text: int = 0


def extract(
    model,
    processor,
    source: str | os.PathLike,
    output: str | os.PathLike,
    settings: WindowSettings | None = None,
    layout: str = "pt",
    dtype: str = "float32",
    nlq: Sequence[str | os.PathLike] = (),
    batch_size: int = 32,
) -> Extraction:
    """
    Features of a video, or of all videos of a folder, into `output`; what is finished there is kept.

    Args:
        source: a video file, or a folder in any layout that `find_layout` knows.
        layout (`str`): `"pt"`, `"npz"` or `"hdf5"`, see [`feature_files`].
        dtype (`str`): `"float32"` or `"float16"`, of the video features; texts are always float32.
        nlq (list of paths): EgoNLQ annotation files. Only their videos are taken; their clips are cut out and their
            queries are embedded too.

    Raises:
        ValueError: `output` holds features of another checkpoint or of other settings; the message lists them.
    """
    settings, output = settings or WindowSettings(), Path(output)
    if layout not in SUFFIXES:
        raise ValueError(f"layout ({layout!r}) must be one of {', '.join(SUFFIXES)}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}.")
    if layout == "hdf5":
        h5py()  # missing: said before the work, not after
    queries = [row for path in nlq for row in read_queries(os.fspath(path))]
    videos = find_videos(source, {row["video_uid"] for row in queries} if queries else None)
    _check_manifest(output, _manifest(model, processor, settings, layout, dtype))

    finished = _finished(output, layout)
    reused = _unchanged(videos, finished, output)
    failures: dict[str, str] = {}
    for video in tqdm([video for video in videos if video.uid not in reused], desc="videos", unit="video"):
        try:
            with tqdm(desc=video.uid, unit="window", leave=False) as bar:

                def show(done: int, total: int, bar=bar) -> None:
                    bar.total = total
                    bar.update(done)

                result = embed_video(model, processor, video, settings, batch_size, DTYPES[dtype], show)
                duration = float(result.cells[-1, 1])
        except (ClipReadError, OSError) as error:
            failures[video.uid] = str(error)
            logger.warning("No features of %s: %s", video.uid, error)
            continue
        save_features(output, video.uid, layout, features=result.features)
        finished[video.uid] = {
            "video_uid": video.uid,
            "num_windows": len(result.features),
            "duration": duration,
            "bytes": _bytes_of(video),
        }
        with open(output / VIDEOS, "a", encoding="utf-8") as file:
            file.write(json.dumps(finished[video.uid]) + "\n")
    write_json(output / FAILURES, failures)
    if layout == "hdf5":
        link_features(output, finished)

    texts = [row for row in queries if row["query"] is not None]
    if queries:
        _cut_clips(output, queries, finished, settings, layout)
        _write_texts(model, processor, output / "text", texts, layout)
    return Extraction(finished, len(reused), failures, len(texts), len(queries) - len(texts))


def query_key(row: dict) -> str:
    """The name of a query's text features, as GroundNLQ names it."""
    return f"{row['annotation_uid']}_{row['query_idx']}"


# ----------------------------------------------------------------------------------------------- what is there already


def _manifest(model, processor, settings: WindowSettings, layout: str, dtype: str) -> dict:
    return {
        "checkpoint": model_fingerprint(model),
        "video_transform": video_fingerprint(processor),
        "text_transform": text_fingerprint(processor),
        "settings": asdict(settings),
        "layout": layout,
        "dtype": dtype,
    }


def _check_manifest(output: Path, manifest: dict) -> None:
    """Makes the folder and its manifest, or compares it with the one that is there."""
    notes = {"package_version": __version__, "command": shlex.join(sys.argv)}
    there = begin_folder(output, MANIFEST, manifest, notes)
    if there is None:
        raise ValueError(f"{str(output)!r} is not empty and has no {MANIFEST}: use another folder.")
    if different := differences(there, manifest, "now"):
        raise ValueError(f"{str(output)!r} holds other features ({different}). Use another folder.")


def _finished(output: Path, layout: str) -> dict[str, dict]:
    """The lines of `videos.jsonl` whose features are there; a line that an interrupted run left half written goes."""
    path, rows = output / VIDEOS, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s: an unfinished line is dropped: %.100r", path, line)
            continue
        if (output / f"{row['video_uid']}{SUFFIXES[layout]}").is_file():
            rows[row["video_uid"]] = row
    with aside(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    return rows


def _unchanged(videos: Sequence[SourceVideo], finished: dict[str, dict], output: Path) -> set[str]:
    """Names of the videos that need no work."""
    there = [video for video in videos if video.uid in finished]
    for video in there:
        if _bytes_of(video) != finished[video.uid]["bytes"]:
            raise ValueError(
                f"{str(video.files[0][1])!r} has {_bytes_of(video)} bytes, but the features of {video.uid!r} in "
                f"{str(output)!r} were made of {finished[video.uid]['bytes']} bytes: it is another video by that name."
            )
    return {video.uid for video in there}


def _bytes_of(video: SourceVideo) -> int:
    return sum(path.stat().st_size for _, path in video.files)


# ----------------------------------------------------------------------------------------------------- clips and texts


def _cut_clips(output: Path, queries: list[dict], finished: dict, settings: WindowSettings, layout: str) -> None:
    """Rows int(start * rate) to int(end * rate), both included: VSLNet's `prepare_ego4d_dataset.py`."""
    folder, shapes = output / "clips", {}
    folder.mkdir(exist_ok=True)
    clips: dict[str, dict[str, dict]] = {}
    for row in queries:
        clips.setdefault(row["video_uid"], {})[row["clip_uid"]] = row
    for video_uid, rows in tqdm(clips.items(), desc="clips", unit="video"):
        if video_uid not in finished:
            continue  # a failure, listed as such
        features = load_features(output, video_uid, layout)["features"]
        for clip_uid, row in rows.items():
            first, last = (int(row[name] * settings.windows_per_second) for name in ("clip_start", "clip_end"))
            cut = features[first : last + 1]
            if len(cut) == 0:
                raise ValueError(
                    f"Clip {clip_uid!r} is [{row['clip_start']}, {row['clip_end']}) s of video {video_uid!r}, which "
                    f"is {finished[video_uid]['duration']:.3f} s long."
                )
            save_features(folder, clip_uid, layout, features=cut)
            shapes[clip_uid] = len(cut)
    write_json(folder / "feature_shapes.json", shapes)


def _write_texts(model, processor, folder: Path, rows: list[dict], layout: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = [row for row in rows if not (folder / f"{query_key(row)}{SUFFIXES[layout]}").is_file()]
    for first in tqdm(range(0, len(rows), 256), desc="texts", unit="batch"):
        some = rows[first : first + 256]
        for row, text in zip(some, embed_texts(model, processor, [row["query"] for row in some])):
            save_features(folder, query_key(row), layout, features=text.features, token_features=text.token_features)


# ------------------------------------------------------------------------------------------------------------- reading


class FeatureFolder:
    """
    What [`extract`] made.

    ```python
    folder = FeatureFolder("features")
    folder.video("uid")        # (num_cells, dim)
    folder.cells("uid")        # (num_cells, 2), seconds of the video
    folder.text("annotation_0")["token_features"]
    ```
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            raise FileNotFoundError(f"{str(self.path)!r} is no folder of features: it has no {MANIFEST}.")
        self.manifest = json.loads(manifest.read_text(encoding="utf-8"))
        self.settings = WindowSettings(**self.manifest["settings"])
        self.layout = self.manifest["layout"]
        lines = (self.path / VIDEOS).read_text(encoding="utf-8").splitlines()
        self.videos = {row["video_uid"]: row for row in map(json.loads, lines)}

    def video(self, uid: str) -> np.ndarray:
        return load_features(self.path, uid, self.layout)["features"]

    def cells(self, uid: str) -> np.ndarray:
        if uid not in self.videos:
            raise FileNotFoundError(f"There are no features of {uid!r} in {str(self.path)!r}.")
        return cells(self.videos[uid]["duration"], self.settings)

    def text(self, key: str) -> dict[str, np.ndarray]:
        return load_features(self.path / "text", key, self.layout)
