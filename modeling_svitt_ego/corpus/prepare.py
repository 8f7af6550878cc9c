"""Raw videos → a folder of chunks that `VideoStore` reads; many videos at a time, resumable at any moment.

The unit of work is about ten minutes of one video. A file gets its final name only after it was decoded again (see
`transcoding`), and each finished unit is a line of `manifest.jsonl` with the hashes of its files. A later run compares
the hashes and resumes with what is missing or damaged. `settings.json` records how the folder was made, so that two
settings are never mixed; a lock keeps a second run out. `shard` divides the videos over several machines.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from ..data.layouts import LAYOUTS, Layout
from ..data.video_files import VIDEO_SUFFIXES, walk_videos
from ..files.plain_names import shown
from ..files.resumable_folder import FolderReport, claimed_folder, num_cores, run_jobs
from ..files.sharding import Shard, file_name
from ..files.writing import append_json_line, write_json_lines
from ..model.clip_reading import ClipReadError, probe_video
from .manifest import (
    FAILURES_NAME,
    MANIFEST_NAME,
    Job,
    check_sources,
    entry_of,
    holes,
    merge_manifests,
    missing_shards,
    read_manifest,
    recorded_failures,
    unfinished,
)
from .transcoding import Encoding, TranscodeError, transcode

SETTINGS_NAME = "settings.json"
JOB_SECONDS = 600.0  # of video per unit of work: a kill costs at most this much per process
_PUBLISHED = ("egovlp", "lavila", "avion")


def layout_for(chunk_seconds: float) -> Layout:
    """The published layout with chunks of this length: 600 EgoVLP, 300 LaViLa, other AVION, 0 or `inf` undivided."""
    if chunk_seconds == 0 or math.isinf(chunk_seconds):
        return LAYOUTS["undivided"]
    if not math.isfinite(chunk_seconds) or chunk_seconds != int(chunk_seconds) or chunk_seconds < 1:
        raise ValueError(f"chunk_seconds ({chunk_seconds}) must be a whole number of seconds, or 0 for no chunks.")
    published = {LAYOUTS[name].chunk_seconds: LAYOUTS[name] for name in _PUBLISHED}
    return published.get(chunk_seconds) or dataclasses.replace(LAYOUTS["avion"], chunk_seconds=float(chunk_seconds))


@dataclasses.dataclass
class PrepareReport(FolderReport):
    """What the folder holds after all runs, or what belongs to one shard (`seconds_elapsed`: of this run)."""

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
    shard: str | None = None

    def table(self) -> str:
        share = self.output_bytes / max(self.source_bytes, 1)
        part = f"shard {self.shard}, " if self.shard else ""
        lines = [
            f"{self.output}: {part}layout {self.layout}, {self.num_videos:,} videos in {self.num_chunks:,} chunks, "
            f"{self.video_seconds / 3600:.2f} h",
            f"{self.source_bytes / 1e6:,.1f} MB became {self.output_bytes / 1e6:,.1f} MB ({share:.1%})",
            f"this run: {self.video_seconds_this_run / 3600:.2f} h of video in {self.seconds_elapsed:.0f} s",
        ]
        if self.failures:
            shard = Shard.parse(self.shard) if self.shard else None
            listed = Path(self.output) / file_name(FAILURES_NAME, shard)
            lines.append(f"{len(self.failures)} FAILED, listed in {listed}:")
            lines += [f"  {failure['path']}: {failure['reason']}" for failure in self.failures[:10]]
            lines += ["  …"] if len(self.failures) > 10 else []
        return "\n".join(lines)


def prepare_videos(
    video_root: str | os.PathLike,
    output: str | os.PathLike,
    chunk_seconds: float = 600.0,
    encoding: Encoding | None = None,
    num_workers: int | None = None,
    shard: Shard | None = None,
    merge: bool = False,
) -> PrepareReport:
    """Re-encode every video of a folder, and of the folders in it, into chunks.

    Args:
        video_root: Folder of `<uid>.mp4` (or mov, mkv, …) files; EPIC-KITCHENS' tree is one.
        output: Folder for the chunks: new, or begun with the same settings.
        chunk_seconds: Length of a chunk; see `layout_for`.
        encoding: Size, key frames and quality.
        num_workers: Processes; one per core by default.
        shard: Prepare this part of the videos only. Shards may run at the same time on one folder.
        merge: Encode nothing: check that the shards have done everything, and join their manifests.

    Returns:
        `PrepareReport`. Videos that cannot be read are in `failures` and do not stop the others; they are tried again
        by the next run. The chunks of such a video that were finished before the damage stay.

    Raises:
        FileNotFoundError: The folder is missing or contains no video.
        FileExistsError: The output folder was made with other settings, contains something else, or another run is
            writing to it.
        ValueError: Two files have the same uid, a source changed since it was prepared, or (`merge`) something is
            missing.
    """
    encoding, layout = encoding or Encoding(), layout_for(chunk_seconds)
    if shard is not None and merge:
        raise ValueError("A merge joins all shards: give either a shard or merge.")
    root = Path(output)
    if root.resolve() == Path(video_root).resolve():
        raise ValueError(f"The output folder {str(root)!r} must not be the folder of the raw videos.")
    failures: list[dict] = []
    sources = find_sources(video_root, failures, exclude=root)
    if shard is not None:
        sources = {uid: path for uid, path in sources.items() if shard.owns(uid)}
        failures = [failure for failure in failures if shard.owns(failure["path"])]
    settings = {"layout": layout.name, "chunk_seconds": str(layout.chunk_seconds), **dataclasses.asdict(encoding)}
    num_workers = num_workers or num_cores()
    report = PrepareReport(str(root), layout.name, failures=failures, shard=None if shard is None else str(shard))
    began = time.monotonic()
    with claimed_folder(root, SETTINGS_NAME, settings, shard):
        jobs = _plan(sources, root, layout, encoding, num_workers, failures)
        manifest = read_manifest(root)
        check_sources(jobs, manifest)
        waiting = unfinished(jobs, manifest, num_workers)
        if merge:
            _merge(root, jobs, waiting, manifest, report)
        else:
            _encode(root / file_name(MANIFEST_NAME, shard), jobs, waiting, manifest, report, num_workers)
        failures.sort(key=lambda failure: (failure["path"], failure["reason"]))
        write_json_lines(root / file_name(FAILURES_NAME, shard), failures)
    _count(report, jobs, sources, manifest)
    report.seconds_elapsed = round(time.monotonic() - began, 2)
    return report


def _encode(path: Path, jobs: list[Job], waiting: list[Job], manifest: dict, report: PrepareReport, num_workers: int):
    """Do the waiting jobs; each finished one becomes a line of the manifest `path`."""
    path.touch()
    total = round(sum(job.seconds for job in jobs))
    with tqdm(total=total, desc="Preparing", unit="s of video") as bar:
        bar.update(total - round(sum(job.seconds for job in waiting)))
        for (job,), (chunks, reason) in run_jobs(_work, [(job,) for job in waiting], num_workers):
            if reason is None:
                entry = manifest[job.key] = entry_of(job, chunks)
                append_json_line(path, entry)
                report.video_seconds_this_run += sum(chunk["duration"] for chunk in entry["chunks"])
            else:
                report.failures.append({"path": job.source, "reason": reason})
            bar.update(round(job.seconds))


def _merge(root: Path, jobs: list[Job], waiting: list[Job], manifest: dict, report: PrepareReport) -> None:
    failed = recorded_failures(root)
    if missing := holes(waiting, failed):
        videos = sorted({job.uid for job in missing})
        raise ValueError(
            f"{str(root)!r} is not complete: {len(missing)} of {len(jobs)} jobs are missing or damaged, of the videos "
            f"{', '.join(videos[:5])}{', …' if len(videos) > 5 else ''}.{missing_shards(root)} Run their shards again."
        )
    unreadable = {failure["path"] for failure in report.failures}
    still = {job.source for job in waiting} - unreadable
    report.failures += [failure for failure in failed if failure["path"] in still]
    keys = {job.key for job in jobs}
    merge_manifests(root, [entry for key, entry in manifest.items() if key in keys])


def _count(report: PrepareReport, jobs: list[Job], sources: dict[str, Path], manifest: dict) -> None:
    # A video that is longer than its container says has more chunks than planned; the last entry lists them.
    chunks = {
        (job.uid, chunk["number"]): chunk for job in jobs for chunk in manifest.get(job.key, {}).get("chunks", ())
    }
    finished = {uid for uid, _ in chunks}
    report.num_videos, report.num_chunks = len(finished), len(chunks)
    report.video_seconds = round(sum(chunk["duration"] for chunk in chunks.values()), 3)
    report.output_bytes = sum(chunk["bytes"] for chunk in chunks.values())
    report.source_bytes = sum(source.stat().st_size for uid, source in sources.items() if uid in finished)


def find_sources(
    video_root: str | os.PathLike, failures: list[dict] | None = None, exclude: Path | None = None
) -> dict[str, Path]:
    """video_uid → file of every video below the folder.

    Args:
        failures: Files whose name cannot be used as a uid are listed here; without it the first one raises.
        exclude: The output folder, if it is inside `video_root`.
    """
    skipped: dict[str, str] | None = None if failures is None else {}
    output = None if exclude is None else exclude.resolve()
    sources: dict[str, Path] = {}
    for video in walk_videos(video_root, skipped):
        if output is not None and output in video.path.resolve().parents:
            continue
        if len(video.chunks) > 1:
            raise ValueError(f"{str(video.path)!r} is in chunks already ({len(video.chunks)} files).")
        (path,) = video.chunks.values()
        if video.uid in sources:
            raise ValueError(f"{str(sources[video.uid])!r} and {str(path)!r} would both become video {video.uid!r}.")
        sources[video.uid] = path
    if failures is not None:
        failures += [{"path": path, "reason": reason} for path, reason in skipped.items()]
    if not sources:
        raise FileNotFoundError(
            f"No video in {shown(video_root)!r}: expected <uid>.mp4, or {', '.join(VIDEO_SUFFIXES[1:])}."
        )
    return sources


def _durations(sources: dict[str, Path], num_workers: int):
    """(uid, file, seconds or the reason why they are not known) of every source."""

    def probe(path: Path) -> float | str:
        try:
            return probe_video(path, "pyav").duration
        except (ClipReadError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(num_workers) as pool:  # the decoder releases the GIL
        found = pool.map(probe, sources.values())
        found = tqdm(found, total=len(sources), desc="Opening videos", unit="video")
        return [(uid, path, duration) for (uid, path), duration in zip(sources.items(), found)]


def _plan(
    sources, root: Path, layout: Layout, encoding: Encoding, num_workers: int, failures: list[dict]
) -> list[Job]:
    """The jobs of all sources; those that do not open are added to `failures`."""
    jobs = []
    for uid, source, duration in _durations(sources, num_workers):
        if isinstance(duration, str):
            failures.append({"path": str(source), "reason": duration})
        else:
            jobs += _split(uid, source, duration, root, layout, encoding)
    return jobs


def _split(uid: str, source: Path, duration: float, root: Path, layout: Layout, encoding: Encoding) -> list[Job]:
    length = layout.chunk_seconds
    num_chunks = 1 if math.isinf(length) else max(1, math.ceil(duration / length))
    per_job = 1 if math.isinf(length) else max(1, int(JOB_SECONDS // length))
    jobs = []
    for first in range(0, num_chunks, per_job):
        after = first + per_job if first + per_job < num_chunks else None  # the last one ends with the video
        begins = layout.start_of(first)
        seconds = (duration if after is None else layout.start_of(after)) - begins
        jobs.append(Job(uid, str(source), str(root), layout, encoding, first, after, seconds))
    return jobs


def _work(job: Job):
    try:
        return transcode(job.source, job.path, job.layout.chunk_seconds, job.first, job.after, job.encoding), None
    except (TranscodeError, OSError) as error:
        return [], str(error)
