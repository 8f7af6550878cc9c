"""What `prepare` has finished: one line per unit of work, in one file, or in one per shard until they are merged."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from ..data.layouts import Layout
from ..files.sharding import shard_files
from ..files.writing import is_whole, read_json_lines, write_json_lines
from .transcoding import Chunk, Encoding

MANIFEST_NAME, FAILURES_NAME = "manifest.jsonl", "failures.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """Chunks [first, after) of one video; `after` is None for the part that ends with the video."""

    uid: str
    source: str
    output: str
    layout: Layout
    encoding: Encoding
    first: int
    after: int | None
    seconds: float  # of video, as far as is known before decoding

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.first

    def path(self, chunk: int) -> Path:
        return self.layout.path(self.output, self.uid, chunk)


def read_manifest(output: str | os.PathLike) -> dict[tuple[str, int], dict]:
    """(video_uid, first chunk) → entry of a finished unit, of all shards.

    Raises:
        ValueError: A line is not an entry; the message names the file.
    """
    output, entries = Path(output), {}
    for path in (output / MANIFEST_NAME, *shard_files(output, MANIFEST_NAME)):
        for row in read_json_lines(path):
            try:
                entries[row["video_uid"], row["first"]] = row
            except (KeyError, TypeError):
                raise ValueError(f"{str(path)!r} contains a line that is not an entry of the manifest.") from None
    return entries


def entry_of(job: Job, chunks: Iterable[Chunk]) -> dict:
    """The line of a finished job; paths are relative to the folder, so that it can be moved."""
    listed = [{**dataclasses.asdict(chunk), "path": os.path.relpath(chunk.path, job.output)} for chunk in chunks]
    return {
        "video_uid": job.uid,
        "first": job.first,
        "after": job.after,
        "source": os.path.basename(job.source),
        "source_bytes": os.path.getsize(job.source),
        "chunks": listed,
    }


def check_sources(jobs: Iterable[Job], manifest: dict) -> None:
    """Refuse a source that changed since it was prepared."""
    for job in jobs:
        entry, size = manifest.get(job.key), os.path.getsize(job.source)
        if entry and entry["source_bytes"] != size:
            raise ValueError(
                f"{job.source} has {size} bytes, but {job.output} was made when it had {entry['source_bytes']}. "
                f"Delete the files of video {job.uid!r} there and its lines of {MANIFEST_NAME}."
            )


def unfinished(jobs: list[Job], manifest: dict, num_workers: int) -> list[Job]:
    """The jobs that have no entry, or whose files differ from it: every file is read and its hash compared."""
    with ThreadPoolExecutor(num_workers) as pool:  # hashing releases the GIL
        done = pool.map(lambda job: is_done(job, manifest.get(job.key)), jobs)
        done = list(tqdm(done, total=len(jobs), desc="Checking", unit="job", disable=not manifest))
    return [job for job, is_finished in zip(jobs, done) if not is_finished]


def is_done(job: Job, entry: dict | None) -> bool:
    if entry is None or entry["after"] != job.after:
        return False
    return all(
        is_whole(Path(job.output) / chunk["path"], chunk["bytes"], chunk.get("sha256", ""))
        for chunk in entry["chunks"]
    )


def holes(waiting: list[Job], failures: list[dict]) -> list[Job]:
    """The unfinished jobs that no shard has reported as failed."""
    failed = {failure["path"] for failure in failures}
    return [job for job in waiting if job.source not in failed]


def recorded_failures(output: Path) -> list[dict]:
    """What the shards have reported."""
    return [row for path in shard_files(output, FAILURES_NAME) for row in read_json_lines(path)]


def missing_shards(output: Path) -> str:
    """Which shards have left no manifest, as a hint for an error; empty if that is not known."""
    names = [re.search(r"shard-(\d+)-of-(\d+)", path.name) for path in shard_files(output, MANIFEST_NAME)]
    counts = {int(match[2]) for match in names}
    if len(counts) != 1:
        return ""
    absent = sorted(set(range(count := counts.pop())) - {int(match[1]) for match in names})
    return f" Without a manifest: shard(s) {', '.join(map(str, absent[:20]))} of {count}." if absent else ""


def merge_manifests(output: Path, entries: Iterable[dict]) -> None:
    """Replace the manifests and failure lists of the shards by one manifest."""
    write_json_lines(output / MANIFEST_NAME, sorted(entries, key=lambda row: (row["video_uid"], row["first"])))
    for path in (*shard_files(output, MANIFEST_NAME), *shard_files(output, FAILURES_NAME)):
        path.unlink()
