"""Raw videos → a folder of chunks that `VideoStore` reads, many videos at a time, resumable at any moment.

The unit of work is about ten minutes of one video. A finished file has its final name only after it was read back
(see `transcoding`), and each finished unit is a line of `manifest.jsonl`; so after a kill the same command goes on
with what is missing. `settings.json` says how the folder was made, so that two makings never mix.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from ..data.layouts import LAYOUTS, VIDEO_SUFFIXES, Layout
from ..data.video_uid import check_video_uid
from ..files.resumable_folder import FolderReport, claim_folder, num_cores, run_jobs
from ..model.clip_reading import ClipReadError, probe_video
from .transcoding import Encoding, TranscodeError, transcode

SETTINGS_NAME, MANIFEST_NAME, FAILURES_NAME = "settings.json", "manifest.jsonl", "failures.jsonl"
JOB_SECONDS = 600.0  # of video per unit of work: a kill costs at most so much per process


def layout_for(chunk_seconds: float) -> Layout:
    """The published layout with chunks of this length: 600 EgoVLP, 300 LaViLa, other AVION, 0 or `inf` undivided."""
    if chunk_seconds == 0 or math.isinf(chunk_seconds):
        return LAYOUTS["undivided"]
    if chunk_seconds != int(chunk_seconds) or chunk_seconds < 1:
        raise ValueError(f"chunk_seconds ({chunk_seconds}) must be a whole number of seconds, or 0 for no chunks.")
    published = {layout.chunk_seconds: layout for layout in LAYOUTS.values()}
    return published.get(chunk_seconds) or dataclasses.replace(LAYOUTS["avion"], chunk_seconds=float(chunk_seconds))


@dataclasses.dataclass(frozen=True)
class Job:
    """Chunks [first, after) of one video; up to its end if `after` is not given."""

    uid: str
    source: str
    output: str
    layout: Layout
    encoding: Encoding
    first: int
    after: int | None
    seconds: float  # of video, as far as is known beforehand

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.first

    def path(self, chunk: int) -> Path:
        return self.layout.path(self.output, self.uid, chunk)


@dataclasses.dataclass
class PrepareReport(FolderReport):
    """What was done, over all runs on this folder (`seconds_elapsed`: in this run)."""

    output: str
    layout: str
    num_videos: int = 0
    num_chunks: int = 0
    video_seconds: float = 0.0
    source_bytes: int = 0
    output_bytes: int = 0
    seconds_elapsed: float = 0.0
    video_seconds_this_run: float = 0.0
    failures: list[dict] = dataclasses.field(default_factory=list)  # path, reason

    def table(self) -> str:
        share = self.output_bytes / max(self.source_bytes, 1)
        lines = [
            f"{self.output}: layout {self.layout}, {self.num_videos:,} videos in {self.num_chunks:,} chunks, "
            f"{self.video_seconds / 3600:.2f} h",
            f"{self.source_bytes / 1e6:,.1f} MB became {self.output_bytes / 1e6:,.1f} MB ({share:.1%})",
            f"this run: {self.video_seconds_this_run / 3600:.2f} h of video in {self.seconds_elapsed:.0f} s",
        ]
        if self.failures:
            lines.append(f"{len(self.failures)} FAILED, listed in {Path(self.output) / FAILURES_NAME}:")
            lines += [f"  {failure['path']}: {failure['reason']}" for failure in self.failures[:10]]
            lines += ["  …"] if len(self.failures) > 10 else []
        return "\n".join(lines)


def prepare_videos(
    video_root: str | os.PathLike,
    output: str | os.PathLike,
    chunk_seconds: float = 600.0,
    encoding: Encoding | None = None,
    num_workers: int | None = None,
) -> PrepareReport:
    """Re-encode every video of a folder into chunks.

    Args:
        video_root: Folder of `<uid>.mp4` (or mov, mkv, …) files.
        output: Folder for the chunks: new, or one that the same settings began.
        chunk_seconds: Length of a chunk; see `layout_for`.
        encoding: Size, key frames and quality.
        num_workers: Processes; one per core by default.

    Returns:
        `PrepareReport`. Videos that cannot be read are in `failures` and do not stop the others; the chunks of such a
        video that were finished before the damage stay.

    Raises:
        FileNotFoundError: The folder is missing or holds no video.
        FileExistsError: The output folder was made with other settings, or holds something else.
        ValueError: Two files would have one uid, a name is no plain uid, or a source changed since it was prepared.
    """
    encoding, layout = encoding or Encoding(), layout_for(chunk_seconds)
    sources = find_sources(video_root)
    root = Path(output)
    if root.resolve() == Path(video_root).resolve():
        raise ValueError(f"The output folder {str(root)!r} must not be the folder of the raw videos.")
    settings = {"layout": layout.name, "chunk_seconds": str(layout.chunk_seconds), **dataclasses.asdict(encoding)}
    claim_folder(root, SETTINGS_NAME, settings)
    began = time.monotonic()
    num_workers = num_workers or num_cores()

    manifest = read_manifest(root)
    failures: list[dict] = []
    jobs: list[Job] = []
    for uid, source, duration in _durations(sources, num_workers):
        if isinstance(duration, str):
            failures.append({"path": str(source), "reason": duration})
        else:
            jobs += _split(uid, source, duration, root, layout, encoding)
    for job in jobs:
        entry, size = manifest.get(job.key), os.path.getsize(job.source)
        if entry and entry["source_bytes"] != size:
            raise ValueError(
                f"{job.source} has {size} bytes, but {root} was made when it had {entry['source_bytes']}. Delete the "
                f"files of video {job.uid!r} there and its lines of {MANIFEST_NAME}."
            )
    report = PrepareReport(str(root), layout.name)
    waiting = [job for job in jobs if not _is_done(job, manifest)]
    with open(root / MANIFEST_NAME, "a", encoding="utf-8") as log:
        bar = tqdm(total=round(sum(job.seconds for job in jobs)), desc="Preparing", unit="s of video")
        bar.update(round(sum(job.seconds for job in jobs) - sum(job.seconds for job in waiting)))
        with bar:
            for (job,), (chunks, reason) in run_jobs(_work, [(job,) for job in waiting], num_workers):
                if reason is None:
                    entry = _entry(job, chunks)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    manifest[job.key] = entry
                    report.video_seconds_this_run += sum(chunk["duration"] for chunk in entry["chunks"])
                else:
                    failures.append({"path": job.source, "reason": reason})
                bar.update(round(job.seconds))
    failures.sort(key=lambda failure: (failure["path"], failure["reason"]))
    (root / FAILURES_NAME).unlink(missing_ok=True)
    if failures:
        lines = "".join(json.dumps(failure) + "\n" for failure in failures)
        (root / FAILURES_NAME).write_text(lines, encoding="utf-8")

    # A video longer than its container says has chunks beyond the planned ones; they stand in the last entry.
    chunks = {
        (job.uid, chunk["number"]): chunk for job in jobs for chunk in manifest.get(job.key, {}).get("chunks", ())
    }
    finished = {uid for uid, _ in chunks}
    report.num_videos, report.num_chunks = len(finished), len(chunks)
    report.video_seconds = round(sum(chunk["duration"] for chunk in chunks.values()), 3)
    report.output_bytes = sum(chunk["bytes"] for chunk in chunks.values())
    report.source_bytes = sum(source.stat().st_size for uid, source in sources.items() if uid in finished)
    report.failures, report.seconds_elapsed = failures, round(time.monotonic() - began, 2)
    return report


def find_sources(video_root: str | os.PathLike) -> dict[str, Path]:
    """video_uid → file, for the videos that lie in the folder itself."""
    root = Path(video_root)
    if not root.is_dir():
        raise FileNotFoundError(f"The video root {str(root)!r} is not a folder.")
    sources: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
            continue
        uid = check_video_uid(path.stem)
        if uid in sources:
            raise ValueError(f"{str(sources[uid])!r} and {str(path)!r} would both become video {uid!r}.")
        sources[uid] = path
    if not sources:
        raise FileNotFoundError(f"No video in {str(root)!r}: expected <uid>.mp4, or {', '.join(VIDEO_SUFFIXES[1:])}.")
    return sources


def read_manifest(output: str | os.PathLike) -> dict[tuple[str, int], dict]:
    """(video_uid, first chunk) → entry of a finished unit; a line cut off by a kill counts for nothing."""
    path, entries = Path(output) / MANIFEST_NAME, {}
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            path.write_bytes(content)  # or the next entry would be glued to the torso
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries[entry["video_uid"], entry["first"]] = entry
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{str(path)!r}, line {number} is not an entry of the manifest.") from None
    return entries


def _durations(sources: dict[str, Path], num_workers: int):
    """(uid, file, seconds or why they are not known) of every source."""

    def probe(path: Path) -> float | str:
        try:
            return probe_video(path, "pyav").duration
        except (ClipReadError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(num_workers) as pool:  # the decoder releases the GIL
        found = pool.map(probe, sources.values())
        found = tqdm(found, total=len(sources), desc="Opening videos", unit="video")
        return [(uid, path, duration) for (uid, path), duration in zip(sources.items(), found)]


def _split(uid: str, source: Path, duration: float, root: Path, layout: Layout, encoding: Encoding) -> list[Job]:
    length = layout.chunk_seconds
    num_chunks = 1 if math.isinf(length) else max(1, math.ceil(duration / length))
    per_job = 1 if math.isinf(length) else max(1, int(JOB_SECONDS // length))
    jobs = []
    for first in range(0, num_chunks, per_job):
        after = first + per_job if first + per_job < num_chunks else None  # the last goes on to the true end
        begins = layout.start_of(first)
        seconds = (duration if after is None else layout.start_of(after)) - begins
        jobs.append(Job(uid, str(source), str(root), layout, encoding, first, after, seconds))
    return jobs


def _entry(job: Job, chunks) -> dict:
    """One line of the manifest; paths are relative to the folder, so that it can be moved."""
    listed = [{**dataclasses.asdict(chunk), "path": os.path.relpath(chunk.path, job.output)} for chunk in chunks]
    stat = os.stat(job.source)
    return {
        "video_uid": job.uid,
        "first": job.first,
        "after": job.after,
        "source": job.source,
        "source_bytes": stat.st_size,
        "chunks": listed,
    }


def _is_done(job: Job, manifest: dict) -> bool:
    """Whether the manifest has this unit, and its files are there at their size."""
    entry = manifest.get(job.key)
    if entry is None or entry["after"] != job.after:
        return False
    paths = [(Path(job.output) / chunk["path"], chunk["bytes"]) for chunk in entry["chunks"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _work(job: Job):
    try:
        return transcode(job.source, job.path, job.layout.chunk_seconds, job.first, job.after, job.encoding), None
    except (TranscodeError, OSError) as error:
        return [], str(error)
