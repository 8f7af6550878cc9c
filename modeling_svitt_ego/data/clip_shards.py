"""Clips as tar shards of JPEG frames: training without a video decoder, from a disk or from the Hub.

A shard is a WebDataset tar (`load_dataset("webdataset", data_files="OUT/*.tar")` reads it): per clip `frames_per_clip`
frames, each from the middle of one of as many equal parts of the clip's window, and a json with the annotation.
Beside it lies `<shard>.index` (Arrow): the annotations once more, and where in the tar each frame lies. So
[`ClipShardDataset`] reads any clip at once, and the batch samplers, the seeds and the exact resume of
[`EgoClipDataset`] work on it unchanged.

The bytes of a shard depend on the clips and the settings only. A shard is written aside, read back, and renamed; its
index comes last, so an index means a finished shard, and after a kill the same command goes on with the next.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..files.arrow_cache import content_hash
from ..files.resumable_folder import FolderReport, claim_folder, num_cores, run_jobs
from ..model.clip_reading import ClipReadError, clip_times, frame_indices
from .clips import EgoClipDataset
from .egoclip import EGOCLIP_FEATURES, load_egoclip
from .layouts import VideoStore

SETTINGS_NAME, FAILURES_NAME = "settings.json", "failures.jsonl"
INDEX_FEATURES = datasets.Features(
    {
        **EGOCLIP_FEATURES,
        "start": datasets.Value("float64"),  # seconds, after clamping to the video
        "end": datasets.Value("float64"),
        "shard": datasets.Value("string"),  # file name of the tar
        "offsets": datasets.List(datasets.Value("int64")),  # of each frame's bytes in the tar
        "sizes": datasets.List(datasets.Value("int32")),
    }
)


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """
    Args:
        frames_per_clip (`int`): Frames kept of each clip; a multiple of the frames per clip in training, whose random
            choice they are.
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
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [{lowest}, {highest}].")


@dataclasses.dataclass
class ShardReport(FolderReport):
    """What the folder holds, over all runs."""

    output: str
    num_clips: int = 0
    num_shards: int = 0
    output_bytes: int = 0
    seconds_elapsed: float = 0.0
    clips_this_run: int = 0
    failures: list[dict] = dataclasses.field(default_factory=list)  # row, video_uid, start, path, reason

    def table(self) -> str:
        lines = [
            f"{self.output}: {self.num_clips:,} clips in {self.num_shards:,} shards, "
            f"{self.output_bytes / 1e6:,.1f} MB",
            f"this run: {self.clips_this_run:,} clips in {self.seconds_elapsed:.0f} s",
        ]
        if self.failures:
            lines.append(f"{len(self.failures)} clips LEFT OUT, listed in {Path(self.output) / FAILURES_NAME}:")
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
) -> ShardReport:
    """Write the clips of an EgoClip file as shards, in the order of the table.

    Clips that cannot be read are left out and listed in the report and in `failures.jsonl`.

    Raises:
        FileExistsError: The folder was made from another table or with other settings, or holds something else.
    """
    settings, root = settings or ShardSettings(), Path(output)
    table, store = load_egoclip(csv, cache_dir=cache_dir), VideoStore(video_root, layout)
    claim_folder(root, SETTINGS_NAME, {**dataclasses.asdict(settings), "csv_sha256": content_hash(csv).hex()})
    began = time.monotonic()
    num_workers = num_workers or num_cores()
    num_shards = math.ceil(len(table) / settings.clips_per_shard)
    names = [f"clips-{number:06d}" for number in range(num_shards)]
    jobs = []
    for first, name in zip(range(0, len(table), settings.clips_per_shard), names):
        if not (root / f"{name}.index").is_file():
            part = table.select(range(first, min(first + settings.clips_per_shard, len(table))))
            jobs.append((part, first, store, root / name, settings))
    report = ShardReport(str(root))
    finished = len(table) - sum(len(part) for part, *_ in jobs)
    with tqdm(total=len(table), initial=finished, desc="Writing shards", unit="clip") as bar:
        for (part, *_), written in run_jobs(write_shard, jobs, num_workers):
            report.clips_this_run += written
            bar.update(len(part))
    for name in names:
        num_clips, failures = _read_account(root / f"{name}.index")
        report.num_clips += num_clips
        report.output_bytes += (root / f"{name}.tar").stat().st_size + (root / f"{name}.index").stat().st_size
        report.failures += failures
    report.num_shards, report.seconds_elapsed = num_shards, round(time.monotonic() - began, 2)
    (root / FAILURES_NAME).unlink(missing_ok=True)
    if report.failures:
        (root / FAILURES_NAME).write_text("".join(json.dumps(f) + "\n" for f in report.failures), encoding="utf-8")
    return report


def write_shard(table, first_row: int, store: VideoStore, stem: Path, settings: ShardSettings) -> int:
    """`<stem>.tar` and `<stem>.index` of all rows of `table`. Returns the number of clips in it."""
    rows, failures = [], []
    aside, tar_path = stem.with_name(f".{stem.name}.tar.incomplete"), stem.with_name(f"{stem.name}.tar")
    with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, annotation in enumerate(table):
            uid, window = annotation["video_uid"], (annotation["clip_start"], annotation["clip_end"])
            try:
                frames, start, end = store.read_window(
                    uid, *window, lambda start, end: clip_times(start, end, settings.frames_per_clip)
                )
            except (ClipReadError, OSError) as error:
                path = str(store.path(uid, max(0.0, window[0])))
                failures.append(
                    {
                        "row": first_row + place,
                        "video_uid": uid,
                        "start": window[0],
                        "path": path,
                        "reason": str(error),
                    }
                )
                continue
            key = f"{first_row + place:09d}"
            places = [_add(tar, f"{key}.{i:03d}.jpg", _jpeg(frame, settings)) for i, frame in enumerate(frames)]
            _add(tar, f"{key}.json", json.dumps({**annotation, "start": start, "end": end}).encode())
            offsets, sizes = zip(*places)
            rows.append(
                {**annotation, "start": start, "end": end, "shard": tar_path.name, "offsets": offsets, "sizes": sizes}
            )
    _verify(aside, rows, settings)
    os.replace(aside, tar_path)
    schema = INDEX_FEATURES.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), b"failures": json.dumps(failures).encode()})
    index = stem.with_name(f".{stem.name}.index.incomplete")
    with pa.OSFile(str(index), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    os.replace(index, stem.with_name(f"{stem.name}.index"))
    return len(rows)


def _jpeg(frame: np.ndarray, settings: ShardSettings) -> bytes:
    picture = Image.fromarray(frame)
    scale = settings.short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=settings.jpeg_quality)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Where the content stands in the tar, and its size. The time is fixed: equal clips, equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), 0, 0o644
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    tar.addfile(member, io.BytesIO(content))
    return offset, len(content)


def _verify(path: Path, rows: list[dict], settings: ShardSettings) -> None:
    """Every frame lies where the index says and is a whole JPEG."""
    num_files = len(rows) * (settings.frames_per_clip + 1)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        if len(members) != num_files:
            raise ValueError(f"{path}: {len(members)} files read back, {num_files} were written.")
    with open(path, "rb") as file:
        for row in rows:
            for offset, size in zip(row["offsets"], row["sizes"]):
                file.seek(offset)
                content = file.read(size)
                if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
                    raise ValueError(f"{path}: no JPEG of {size} bytes at byte {offset}.")


def _read_index(path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_file(str(path))


def _read_account(path: Path) -> tuple[int, list[dict]]:
    """Clips of a shard, and those left out of it, which stand in the head of its index."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return sum(batch.num_rows for batch in reader), json.loads(reader.schema.metadata[b"failures"])


class ClipShardDataset(EgoClipDataset):
    """Clips from tar shards: an [`EgoClipDataset`] that needs no video and no decoder but JPEG's.

    Args:
        folder (`str`): What `svitt-ego prepare --clip-shards` wrote.
        num_frames (`int`): Frames per clip; must divide the frames that the shards hold of each. `"random"` draws one
            of each group of neighbours, `"middle"` takes the group's middle one.
        kwargs: Others as for [`EgoClipDataset`].
    """

    COLUMNS = (*EgoClipDataset.COLUMNS, "start", "end", "shard", "offsets", "sizes")

    def __init__(self, folder: str | os.PathLike, num_frames: int = 4, **kwargs) -> None:
        self.folder = Path(folder)
        indices = sorted(self.folder.glob("clips-*.index"))
        if not indices:
            raise FileNotFoundError(
                f"No clip shards in {str(self.folder)!r}: expected clips-000000.index and its tar."
            )
        settings = json.loads((self.folder / SETTINGS_NAME).read_text(encoding="utf-8"))
        stored = settings["frames_per_clip"]
        if num_frames < 1 or stored % num_frames:
            raise ValueError(f"num_frames ({num_frames}) must divide the {stored} frames per clip of {self.folder}.")
        table = datasets.concatenate_datasets([_read_index(path) for path in indices])
        super().__init__(table, store=None, num_frames=num_frames, **kwargs)

    def _path(self, annotation: dict[str, Any]) -> str:
        return str(self.folder / annotation["shard"])

    def _read(self, annotation: dict[str, Any], seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        places = []
        for _ in range(self.num_views):
            places += frame_indices(len(annotation["offsets"]), self.num_frames, self.sampling, generator)
        path = self._path(annotation)
        with open(path, "rb") as file:
            frames = {place: self._frame(file, annotation, place) for place in sorted(set(places))}
        return self._example(
            annotation, np.stack([frames[place] for place in places]), annotation["start"], annotation["end"]
        )

    def _frame(self, file, annotation: dict[str, Any], place: int) -> np.ndarray:
        file.seek(annotation["offsets"][place])
        content = file.read(annotation["sizes"][place])
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
                return np.asarray(picture.convert("RGB"))
        except OSError as error:  # PIL's for what is no picture, or cut off
            raise ClipReadError(
                f"{file.name}: frame {place} at byte {annotation['offsets'][place]}: {error}"
            ) from error
