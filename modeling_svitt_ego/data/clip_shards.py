"""Clips as tar shards of JPEG frames: training without a video decoder, from a disk or from the Hub.

A shard is a WebDataset tar (`load_dataset("webdataset", data_files="OUT/*.tar")` reads it): per clip `frames_per_clip`
frames, each from the middle of one of as many equal parts of the clip's window, and a json with the annotation. Next
to it, `<shard>.index` (Arrow) holds the annotations again and the place of each frame in the tar. So
[`ClipShardDataset`] reads any clip directly, and the batch samplers, the seeds and the exact resume of
[`EgoClipDataset`] work on it unchanged.

The bytes of a shard depend on the clips and the settings only. The tar is written first, under a temporary name, and
checked; the index is written last and holds the hash of the tar. A later run with the same arguments compares the
hashes, writes again what is missing or damaged, and retries the clips that could not be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import tarfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..files.resumable_folder import FolderReport, claimed_folder, num_cores, run_jobs
from ..files.sharding import Shard, file_name, shard_files
from ..files.writing import aside, file_hash, write_json_lines
from ..model.clip_reading import ClipReadError, clip_times
from .egoclip import load_egoclip
from .layouts import VideoStore
from .shard_dataset import ClipShardDataset
from .shard_index import SETTINGS_NAME, ShardAccount, read_account, write_index

__all__ = ["ClipShardDataset", "ShardReport", "ShardSettings", "write_clip_shards", "write_shard"]

FAILURES_NAME = "failures.jsonl"
MAX_FAILURE_SHARE = 0.05
MIN_FAILURES = 20  # fewer never stop a run


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """
    Args:
        frames_per_clip (`int`): Frames stored of each clip; a multiple of the frames per clip in training, which are
            drawn from them.
        clips_per_shard (`int`): Rows of the table per tar.
        short_side (`int`): Pixels of the shorter side; smaller videos keep their size.
        jpeg_quality (`int`): 1 to 95.
    """

    frames_per_clip: int = 16
    clips_per_shard: int = 1000
    short_side: int = 256
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("frames_per_clip", 1, 1000),
            ("clips_per_shard", 1, 10**6),
            ("short_side", 16, 10**5),
            ("jpeg_quality", 1, 95),
        ):
            if not lowest <= getattr(self, name) <= highest:
                raise ValueError(f"{name} ({getattr(self, name)}) must be in [{lowest}, {highest}].")


@dataclasses.dataclass
class ShardReport(FolderReport):
    """What the folder holds after all runs, or what belongs to one shard of the job."""

    output: str
    num_clips: int = 0
    num_shards: int = 0
    output_bytes: int = 0
    seconds_elapsed: float = 0.0
    clips_this_run: int = 0
    failures: list[dict] = dataclasses.field(default_factory=list)  # row, video_uid, start, path, reason
    part: str | None = None  # I/N

    def table(self) -> str:
        lines = [
            f"{self.output}: {f'part {self.part}, ' if self.part else ''}{self.num_clips:,} clips in "
            f"{self.num_shards:,} shards, "
            f"{self.output_bytes / 1e6:,.1f} MB",
            f"this run: {self.clips_this_run:,} clips in {self.seconds_elapsed:.0f} s",
        ]
        if self.failures:
            listed = Path(self.output) / _failures_name(self.part)
            lines.append(f"{len(self.failures)} clips LEFT OUT, listed in {listed}; the next run tries them again:")
            lines += [f"  {failure['path']}: {failure['reason']}" for failure in self.failures[:10]]
        return "\n".join(lines)


def write_clip_shards(
    csv: str | os.PathLike,
    video_root: str | os.PathLike,
    output: str | os.PathLike,
    settings: ShardSettings | None = None,
    layout: str | None = None,
    num_workers: int | None = None,
    cache_dir: str | None = None,
    shard: Shard | None = None,
    merge: bool = False,
    max_failure_share: float = MAX_FAILURE_SHARE,
) -> ShardReport:
    """Write the clips of an EgoClip file as shards, in the order of the table.

    Clips that cannot be read are left out and listed in the report and in `failures.jsonl`. The next run tries them
    again, and writes their shard again if one of them can be read.

    Args:
        shard: Write this part of the tars only. Several parts may be written at the same time into one folder.
        merge: Write no tar: check that all parts are complete, and join their lists of failures.
        max_failure_share: Share of unreadable clips (if more than 20) above which the run stops; the tar that it was
            writing is discarded. More usually means that a disk is not mounted.

    Raises:
        FileExistsError: The folder was made from another table or from other videos or with other settings, holds
            something else, or another run is writing to it.
        OSError: Too many clips cannot be read.
        ValueError: (`merge`) A tar is missing or damaged.
    """
    if shard is not None and merge:
        raise ValueError("A merge joins all shards: give either a shard or merge.")
    if not 0 <= max_failure_share <= 1:
        raise ValueError(f"max_failure_share ({max_failure_share}) must be in [0, 1].")
    settings, root = settings or ShardSettings(), Path(output)
    table, store = load_egoclip(csv, cache_dir=cache_dir), VideoStore(video_root, layout)
    began, num_workers = time.monotonic(), num_workers or num_cores()
    size = settings.clips_per_shard
    numbers = [n for n in range(math.ceil(len(table) / size)) if shard is None or n % shard.count == shard.index]
    stems = {number: root / f"clips-{number:06d}" for number in numbers}
    report = ShardReport(str(root), num_shards=len(stems), part=None if shard is None else str(shard))
    with claimed_folder(root, SETTINGS_NAME, _folder_settings(settings, csv, store), shard):
        accounts = _whole_shards(stems.values(), num_workers)
        if merge:
            _check_complete(root, stems.values(), accounts)
        jobs = []
        for number, stem in stems.items():
            if not merge and (stem not in accounts or accounts[stem].failures):
                rows = table.select(range(number * size, min((number + 1) * size, len(table))))
                jobs.append((rows, number * size, store, stem, settings, max_failure_share))
        _write_all(
            jobs, sum(min(size, len(table) - n * size) for n in numbers), report, num_workers, max_failure_share
        )
        _count(stems.values(), report)
        write_json_lines(root / _failures_name(report.part), report.failures)
        if merge:
            for path in shard_files(root, FAILURES_NAME):
                path.unlink()
    report.seconds_elapsed = round(time.monotonic() - began, 2)
    return report


def _count(stems: Iterable[Path], report: ShardReport) -> None:
    for stem in stems:
        account = read_account(_index(stem))
        report.num_clips += account.num_clips
        report.output_bytes += account.tar_bytes + _index(stem).stat().st_size
        report.failures += account.failures


def _failures_name(part: str | None) -> str:
    return file_name(FAILURES_NAME, Shard.parse(part) if part else None)


def _index(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.index")


def _tar(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.tar")


def _folder_settings(settings: ShardSettings, csv: str | os.PathLike, store: VideoStore) -> dict:
    """What must be equal for two runs on one folder.

    The folder may be published, so of the video root only the last name and a hash of the full path are stored.
    """
    root = store.video_root.resolve()
    layout = f"{store.layout.name}, {store.layout.chunk_seconds:g} s"
    place = f"{root.name} ({hashlib.sha256(os.fsencode(root)).hexdigest()[:12]})"
    return {
        **dataclasses.asdict(settings),
        "csv_sha256": file_hash(csv),
        "video_root": place,
        "layout": layout,
    }


def _whole_shards(stems, num_workers: int) -> dict[Path, ShardAccount]:
    """The shards that exist with the right hashes; the others are written again."""

    def check(stem: Path) -> ShardAccount | None:
        try:
            account = read_account(_index(stem))
        except (ClipReadError, OSError):
            return None
        return account if account.matches(_tar(stem)) else None

    there = [stem for stem in stems if _index(stem).is_file()]
    with ThreadPoolExecutor(num_workers) as pool:  # hashing releases the GIL
        found = tqdm(pool.map(check, there), total=len(there), desc="Checking shards", disable=not there)
        return {stem: account for stem, account in zip(there, found) if account is not None}


def _check_complete(root: Path, stems, accounts: dict[Path, ShardAccount]) -> None:
    missing = [stem.name for stem in stems if stem not in accounts]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(
            f"{str(root)!r} is not complete: {len(missing)} of {len(missing) + len(accounts)} tars are missing or "
            f"damaged ({shown}). Run their parts again: with --shard I/N, tar number n belongs to part n modulo N."
        )


def _write_all(jobs: list, num_clips: int, report: ShardReport, num_workers: int, max_share: float) -> None:
    num_read = num_failed = 0
    finished = num_clips - sum(len(rows) for rows, *_ in jobs)
    with tqdm(total=num_clips, initial=finished, desc="Writing shards", unit="clip") as bar:
        for (rows, _, _, stem, *_), written in run_jobs(write_shard, jobs, num_workers):
            report.clips_this_run += written
            bar.update(len(rows))
            if written:
                failures = read_account(_index(stem)).failures
                num_read, num_failed = num_read + len(rows), num_failed + len(failures)
                if failures:
                    _check_share(num_failed, num_read, max_share, failures[-1])


def _check_share(num_failed: int, num_read: int, max_share: float, last: dict) -> None:
    if num_failed > max(MIN_FAILURES, max_share * num_read):
        raise OSError(
            f"{num_failed} of {num_read} clips could not be read, more than max_failure_share ({max_share:g}) allows. "
            f"Is a disk not mounted? The last: {last['reason']}"
        )


def write_shard(
    table,
    first_row: int,
    store: VideoStore,
    stem: Path,
    settings: ShardSettings,
    max_failure_share: float = 1.0,
) -> int:
    """Write `<stem>.tar` and `<stem>.index` with the clips of all rows of `table`.

    Returns:
        `int`: The number of clips written; 0 if the shard exists and none of its failures can be read now.

    Raises:
        OSError: Too many clips cannot be read; nothing is written.
    """
    if not _has_news(table, first_row, store, stem, settings):
        return 0
    rows, failures = [], []
    with aside(_tar(stem)) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, annotation in enumerate(table):
                try:
                    frames, start, end = _read(store, annotation, settings)
                except (ClipReadError, OSError) as error:
                    failures.append(_failure(first_row + place, annotation, store, error))
                    continue
                key = f"{first_row + place:09d}"
                places = [_add(tar, f"{key}.{i:03d}.jpg", _jpeg(frame, settings)) for i, frame in enumerate(frames)]
                _add(tar, f"{key}.json", json.dumps({**annotation, "start": start, "end": end}).encode())
                offsets, sizes = zip(*places)
                found = {"start": start, "end": end, "shard": _tar(stem).name, "offsets": offsets, "sizes": sizes}
                rows.append({**annotation, **found})
        if failures:
            _check_share(len(failures), len(table), max_failure_share, failures[-1])
        _verify(part, rows, settings)
    write_index(_index(stem), rows, failures, _tar(stem))
    return len(rows)


def _has_news(table, first_row: int, store: VideoStore, stem: Path, settings: ShardSettings) -> bool:
    """Whether the shard is missing or damaged, or one of the clips that it lacks can be read now."""
    try:
        account = read_account(_index(stem))
    except (ClipReadError, OSError):
        return True
    if not account.matches(_tar(stem)):
        return True
    for failure in account.failures:
        try:
            _read(store, table[failure["row"] - first_row], settings)
            return True
        except (ClipReadError, OSError):
            continue
    return False


def _read(store: VideoStore, annotation: dict, settings: ShardSettings) -> tuple[np.ndarray, float, float]:
    return store.read_window(
        annotation["video_uid"],
        annotation["clip_start"],
        annotation["clip_end"],
        lambda start, end: clip_times(start, end, settings.frames_per_clip),
    )


def _failure(row: int, annotation: dict, store: VideoStore, error: Exception) -> dict:
    """Paths are relative to the video root, because the index may be published."""
    path = store.path(annotation["video_uid"], max(0.0, annotation["clip_start"]))
    return {
        "row": row,
        "video_uid": annotation["video_uid"],
        "start": annotation["clip_start"],
        "path": os.path.relpath(path, store.video_root),
        "reason": str(error).replace(f"{store.video_root}{os.sep}", ""),
    }


def _jpeg(frame: np.ndarray, settings: ShardSettings) -> bytes:
    picture = Image.fromarray(frame)
    scale = settings.short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=settings.jpeg_quality)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """The offset of the content in the tar, and its size. Times are fixed, so that equal clips give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), 0, 0o644
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    tar.addfile(member, io.BytesIO(content))
    return offset, len(content)


def _verify(path: Path, rows: list[dict], settings: ShardSettings) -> None:
    """Check that every frame is where the index says and is a whole JPEG."""
    num_files = len(rows) * (settings.frames_per_clip + 1)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        if len(members) != num_files:
            raise ValueError(f"{path}: {len(members)} files instead of {num_files}.")
    with open(path, "rb") as file:
        for row in rows:
            for offset, size in zip(row["offsets"], row["sizes"]):
                file.seek(offset)
                content = file.read(size)
                if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
                    raise ValueError(f"{path}: no JPEG of {size} bytes at byte {offset}.")
