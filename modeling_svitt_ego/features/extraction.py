"""`svitt-ego extract`: a resumable folder of features of videos and of EgoNLQ queries, all with the same settings.

OUT/manifest.json           checkpoint, transforms and settings, which all files of the folder share
    videos.jsonl            one line per finished video: uid, duration, num_windows, sizes, hash of its features
    failures.json           videos that could not be read, with the reason; empty if none
    <video_uid>.pt          one row per cell of [0, duration), the last one included
    clips/<clip_uid>.pt     rows of the clip as VSLNet cuts them, and `feature_shapes.json`   (with `nlq`)
    text/<annotation_uid>_<query_idx>.pt    "features" and "token_features" of a query        (with `nlq`)
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import __version__
from ..data.egonlq import read_queries
from ..files.folder_lock import locked
from ..files.json_records import read_json
from ..files.resumable_folder import begin_folder, differences, is_foreign
from ..files.sharding import Shard, file_name, shard_files
from ..files.writing import (
    append_json_line,
    file_hash,
    is_whole,
    read_json_lines,
    remove_temporary_files,
    write_json,
    write_text,
)
from ..model.clip_reading import ClipReadError
from ..model.modeling_svitt_ego import SViTTEgoModel
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..weights.fingerprint import model_fingerprint, text_fingerprint, video_fingerprint
from .files import SUFFIXES, h5py, link_features, load_features, save_features
from .source_videos import SourceVideo, find_videos
from .windows import VideoFeatures, WindowSettings, cells, embed_texts, embed_video

logger = logging.getLogger(__name__)

MANIFEST, VIDEOS, FAILURES = "manifest.json", "videos.jsonl", "failures.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Extraction:
    """
    Args:
        finished (`dict`): Line of `videos.jsonl` for each video uid, including videos of earlier runs.
        num_reused (`int`): Number of these videos that are from earlier runs.
        failures (`dict`): For each unreadable video uid, the reason.
        num_texts (`int`): Number of queries with text features.
        num_without_text (`int`): Number of queries without a text, which have no features.
    """

    finished: dict[str, dict]
    num_reused: int
    failures: dict[str, str]
    num_texts: int = 0
    num_without_text: int = 0


def extract(
    model: SViTTEgoModel,
    processor: SViTTEgoProcessor,
    source: str | os.PathLike,
    output: str | os.PathLike,
    settings: WindowSettings | None = None,
    layout: str = "pt",
    dtype: str = "float32",
    nlq: Sequence[str | os.PathLike] = (),
    batch_size: int = 32,
    shard: Shard | None = None,
    merge: bool = False,
) -> Extraction:
    """
    Writes the features of a video, or of all videos in a folder, to `output`. Finished videos are skipped.

    Args:
        source: a video file, or a folder; see [`find_videos`].
        layout (`str`): file format, `"pt"`, `"npz"` or `"hdf5"`, see `features/files.py`.
        dtype (`str`): `"float32"` or `"float16"`, of the video features; texts are always float32.
        nlq (list of paths): EgoNLQ annotation files. Only their videos are taken; their clips are cut out and their
            queries are embedded too.
        shard ([`Shard`], *optional*): embed this part of the videos and queries only. Shards may run at the same time
            on one folder; `merge` completes it.
        merge (`bool`): Do not embed anything, but check that the shards are complete and write the files that cover
            all videos.

    Raises:
        ValueError: `output` contains features of another checkpoint or of other settings, which are listed, or
            (`merge`) something is missing.
        FileExistsError: Another run is writing to `output`.
    """
    settings, output = settings or WindowSettings(), Path(output)
    _check_options(layout, dtype, shard, merge)
    queries = [row for path in nlq for row in read_queries(os.fspath(path))]
    failures: dict[str, str] = {}
    videos = find_videos(source, {row["video_uid"] for row in queries} if queries else None, failures)
    texts = [row for row in queries if row["query"] is not None]
    own_texts = texts
    if shard is not None:
        videos = [video for video in videos if shard.owns(video.uid)]
        failures = {path: reason for path, reason in failures.items() if shard.owns(path)}
        own_texts = [row for row in texts if shard.owns(query_key(row))]
    with _claimed(output, _manifest(model, processor, settings, layout, dtype), shard):
        folder = _Finished(output, layout, shard)
        reused = _unchanged(videos, folder.rows, output)
        waiting = [video for video in videos if video.uid not in reused]
        missing_texts = _missing_texts(output / "text", own_texts, layout)
        if merge:
            failures |= _check_complete(output, waiting, missing_texts)
        else:
            embed = functools.partial(embed_video, model, processor)
            failures |= _embed_videos(embed, waiting, folder, settings, batch_size, DTYPES[dtype])
            _write_texts(model, processor, output / "text", missing_texts, layout)
        write_json(output / file_name(FAILURES, shard), failures)
        if shard is None:
            _complete(output, folder, queries, settings, layout)
    uids = {video.uid for video in videos}
    finished = folder.rows if shard is None else {uid: row for uid, row in folder.rows.items() if uid in uids}
    return Extraction(finished, len(reused), failures, len(own_texts), len(queries) - len(texts))


def _complete(output: Path, folder: "_Finished", queries: list[dict], settings: WindowSettings, layout: str) -> None:
    """Writes the files that cover all videos: one manifest, the links of HDF5, and the clips of the queries."""
    folder.merge()
    if layout == "hdf5":
        link_features(output, folder.rows)
    if queries:
        _cut_clips(output, queries, folder.rows, settings, layout)


def _check_options(layout: str, dtype: str, shard: Shard | None, merge: bool) -> None:
    if layout not in SUFFIXES:
        raise ValueError(f"layout ({layout!r}) must be one of {', '.join(SUFFIXES)}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}.")
    if layout == "hdf5":
        h5py()  # a missing library is reported before the work
    if shard is not None and merge:
        raise ValueError("A merge joins all shards: give either a shard or merge.")


def _embed_videos(embed, videos, folder: "_Finished", settings, batch_size: int, dtype: torch.dtype) -> dict[str, str]:
    """Embeds the videos one by one. Returns the unreadable ones with the reason."""
    failures = {}
    for video in tqdm(videos, desc="videos", unit="video"):
        try:
            with tqdm(desc=video.uid, unit="window", leave=False) as bar:

                def show(done: int, total: int, bar=bar) -> None:
                    bar.total = total
                    bar.update(done)

                result = embed(video, settings, batch_size, dtype, show)
        except (ClipReadError, OSError) as error:
            failures[video.uid] = str(error)
            logger.info("No features of %s: %s", video.uid, error)
            continue
        folder.add(video, result)
    return failures


def query_key(row: dict) -> str:
    """The name of a query's text features, as GroundNLQ names it."""
    return f"{row['annotation_uid']}_{row['query_idx']}"


# ----------------------------------------------------------------------------------------------- what is there already


def _manifest(
    model: SViTTEgoModel, processor: SViTTEgoProcessor, settings: WindowSettings, layout: str, dtype: str
) -> dict:
    return {
        "checkpoint": model_fingerprint(model),
        "video_transform": video_fingerprint(processor),
        "text_transform": text_fingerprint(processor),
        "settings": settings.recorded(),
        "layout": layout,
        "dtype": dtype,
    }


@contextmanager
def _claimed(output: Path, manifest: dict, shard: Shard | None) -> Iterator[None]:
    """Locks the folder; writes its manifest, or compares it with the existing one."""
    foreign = f"{str(output)!r} is not empty and has no {MANIFEST}: use another folder."
    if is_foreign(output, MANIFEST):
        raise ValueError(foreign)
    output.mkdir(parents=True, exist_ok=True)

    def claim() -> None:
        notes = {"package_version": __version__, "command": os.path.basename(sys.argv[0])}
        there = begin_folder(output, MANIFEST, manifest, notes)
        if there is None:
            raise ValueError(foreign)
        if different := differences(there, manifest, "now"):
            raise ValueError(f"{str(output)!r} holds other features ({different}). Use another folder.")

    with locked(output, shard, claim):
        if shard is None:
            remove_temporary_files(output)
        yield


class _Finished:
    """The lines of `videos.jsonl`, also of shards, whose files have the recorded size and hash."""

    def __init__(self, output: Path, layout: str, shard: Shard | None):
        self.output, self.layout, self.path = output, layout, output / file_name(VIDEOS, shard)
        self.rows: dict[str, dict] = {}
        for path in (output / VIDEOS, *shard_files(output, VIDEOS)):
            for row in read_json_lines(path):
                uid = row.get("video_uid")
                is_own = isinstance(uid, str) and (shard is None or shard.owns(uid))
                if is_own and is_whole(self._file(uid), row.get("file_bytes", -1), row.get("file_sha256", "")):
                    self.rows[uid] = row

    def _file(self, uid: str) -> Path:
        return self.output / f"{uid}{SUFFIXES[self.layout]}"

    def add(self, video: SourceVideo, result: VideoFeatures) -> None:
        """Write the features of a video, then its line."""
        path = save_features(self.output, video.uid, self.layout, features=result.features)
        self.rows[video.uid] = {
            "video_uid": video.uid,
            "num_windows": len(result.features),
            "duration": float(result.cells[-1, 1]),
            "bytes": _bytes_of(video),
            "file_bytes": path.stat().st_size,
            "file_sha256": file_hash(path),
        }
        append_json_line(self.path, self.rows[video.uid])

    def merge(self) -> None:
        """Write all lines into `videos.jsonl`; the files of the shards are no longer needed."""
        write_text(self.output / VIDEOS, "".join(json.dumps(row) + "\n" for row in self.rows.values()))
        for name in (VIDEOS, FAILURES):
            for path in shard_files(self.output, name):
                path.unlink()


def _check_complete(output: Path, waiting: Sequence[SourceVideo], missing_texts: list[dict]) -> dict[str, str]:
    """The videos that the shards could not read. Raises an error if anything else is missing."""
    failed = {}
    for path in shard_files(output, FAILURES):
        failed |= json.loads(path.read_text(encoding="utf-8"))
    holes = [video.uid for video in waiting if video.uid not in failed]
    if holes or missing_texts:
        raise ValueError(
            f"{str(output)!r} is not complete: {len(holes)} videos ({', '.join(holes[:3])}) and {len(missing_texts)} "
            "queries are missing or damaged. Run their shards again."
        )
    return failed


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


def _missing_texts(folder: Path, rows: list[dict], layout: str) -> list[dict]:
    """The queries whose features do not exist or cannot be read."""

    def is_there(row: dict) -> bool:
        try:
            return bool(load_features(folder, query_key(row), layout))
        except (ValueError, OSError):
            return False

    return [row for row in tqdm(rows, desc="Checking texts", disable=not folder.is_dir()) if not is_there(row)]


def _write_texts(
    model: SViTTEgoModel, processor: SViTTEgoProcessor, folder: Path, rows: list[dict], layout: str
) -> None:
    folder.mkdir(exist_ok=True)
    for first in tqdm(range(0, len(rows), 256), desc="texts", unit="batch", disable=not rows):
        some = rows[first : first + 256]
        for row, text in zip(some, embed_texts(model, processor, [row["query"] for row in some])):
            save_features(folder, query_key(row), layout, features=text.features, token_features=text.token_features)


# ------------------------------------------------------------------------------------------------------------- reading


class FeatureFolder:
    """
    A folder that [`extract`] wrote.
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
            raise FileNotFoundError(f"{str(self.path)!r} is not a folder of features: it has no {MANIFEST}.")
        self.manifest = read_json(str(manifest))
        self.settings = WindowSettings(**self.manifest["settings"])
        self.layout = self.manifest["layout"]
        if not (self.path / VIDEOS).is_file():
            raise FileNotFoundError(f"{str(self.path)!r} has no {VIDEOS}: run `svitt-ego extract … --merge` first.")
        self.videos = {row["video_uid"]: row for row in read_json_lines(self.path / VIDEOS)}

    def video(self, uid: str) -> np.ndarray:
        features = load_features(self.path, uid, self.layout)["features"]
        expected = self.videos.get(uid, {}).get("num_windows", len(features))
        if len(features) != expected:
            raise ValueError(
                f"The features of {uid!r} in {str(self.path)!r} have {len(features)} windows, but {VIDEOS} says "
                f"{expected}. Run `svitt-ego extract` again."
            )
        return features

    def cells(self, uid: str) -> np.ndarray:
        if uid not in self.videos:
            raise FileNotFoundError(f"There are no features of {uid!r} in {str(self.path)!r}.")
        return cells(self.videos[uid]["duration"], self.settings)

    def text(self, key: str) -> dict[str, np.ndarray]:
        return load_features(self.path / "text", key, self.layout)
