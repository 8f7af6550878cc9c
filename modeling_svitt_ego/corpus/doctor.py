"""Check a corpus before a long run: what would fail after hours of training, or silently make it worse.

Every row of the annotations is checked against the folder. Files are opened, and `sample` limits how many.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from tqdm.auto import tqdm

from ..data.clips import NUM_NOUNS, NUM_VERBS
from ..data.egoclip import load_egoclip
from ..data.egomcq import questions, read_question
from ..data.layouts import Layout, VideoStore
from ..data.sampling import SCENE_SECONDS, SceneIndex
from ..files.arrow_cache import rejected_lines
from ..model.clip_reading import ClipReadError, VideoInfo, probe_video

MAX_EXAMPLES = 20
DURATION_TOLERANCE = 1.0  # seconds by which video_dur may differ from the file


@dataclasses.dataclass
class Finding:
    """The outcome of one check.

    Args:
        name (`str`): What was looked for.
        level (`str`): `"error"` (clips that cannot be read, tags that do not fit), `"warning"` or `"info"`.
        count (`int`), total (`int`): How many items show it, and of how many.
        unit (`str`): What the items are.
        examples (`list[str]`): The first of them, at most 20.
    """

    name: str
    level: str
    count: int
    total: int
    unit: str
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_problem(self) -> bool:
        return self.level != "info" and self.count > 0


@dataclasses.dataclass
class Report:
    """All findings on one corpus."""

    csv: str
    video_root: str
    layout: str
    num_clips: int
    num_videos: int
    num_probed: int
    num_files: int
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0, or 1 if anything was found that makes clips unreadable or stops a run."""
        return int(any(finding.level == "error" and finding.count for finding in self.findings))

    def as_dict(self) -> dict:
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}

    def table(self, num_examples: int = 3) -> str:
        """The report as text, one line per check, the problems with their first examples."""
        lines = [
            f"{self.csv}: {self.num_clips:,} clips of {self.num_videos:,} videos",
            f"{self.video_root}: layout {self.layout}, {self.num_probed:,} of {self.num_files:,} files opened",
            "",
        ]
        width = max(len(finding.name) for finding in self.findings)
        for finding in self.findings:
            mark = finding.level if finding.is_problem else ("ok" if finding.level != "info" else "")
            share = finding.count / max(finding.total, 1)
            lines.append(
                f"{mark:8}{finding.name:{width}}  {finding.count:,} of {finding.total:,} {finding.unit} ({share:.2%})"
            )
            if finding.is_problem:
                lines += [f"{'':10}{example}" for example in finding.examples[:num_examples]]
                if finding.count > num_examples:
                    lines.append(f"{'':10}…")
        return "\n".join(lines)


def diagnose(
    csv: str | os.PathLike,
    video_root: str | os.PathLike,
    layout: str | Layout | None = None,
    egomcq: str | os.PathLike | None = None,
    sample: int | None = None,
    num_frames: int = 4,
    num_verbs: int = NUM_VERBS,
    num_nouns: int = NUM_NOUNS,
    num_workers: int = 2,
    seed: int = 0,
    cache_dir: str | None = None,
) -> Report:
    """Check an EgoClip file and its videos.

    Args:
        csv (`str`): The annotations; a file that is not an EgoClip file raises, as in `load_egoclip`.
        video_root (`str`): Folder of the videos.
        layout (`str` or `Layout`, *optional*): Found by looking if not given.
        egomcq (`str`, *optional*): `egomcq.json`; its questions are checked too.
        sample (`int`, *optional*): Open at most this many files, drawn with `seed`; all if not given.
        num_frames (`int`): Frames per clip in training; a shorter clip repeats frames.
        num_verbs (`int`), num_nouns (`int`): Sizes of the taxonomies.
        num_workers (`int`): Files opened at the same time.

    Returns:
        `Report`: `table()` as text, `as_dict()` for JSON, `exit_code`.
    """
    table = load_egoclip(csv, cache_dir=cache_dir, num_verbs=None, num_nouns=None)  # `_check_tags` counts them
    store = VideoStore(video_root, layout)
    clips = _Clips(table)
    findings = [_check_lines(table)]
    files, incomplete, missing = _find_files(store, clips)
    findings.append(missing)
    infos, unreadable = _probe(sorted(files.values()), sample, num_workers, seed)
    findings.append(unreadable)
    complete = {key: path for key, path in files.items() if key[0] not in incomplete}
    findings += _check_windows(store, clips, complete, infos, num_frames)
    findings += _check_tags(table, num_verbs, num_nouns)
    findings.append(_check_open_gops(infos))
    if len(table) > 1:
        index = SceneIndex(table)
        alone = int((index.scene_end - index.scene_start == 1).sum())
        findings.append(Finding(f"alone in its {SCENE_SECONDS:.0f}-s scene", "info", alone, len(table), "clips"))
    if egomcq is not None:
        findings += _check_egomcq(os.fspath(egomcq), store)
    return Report(
        csv=os.fspath(csv),
        video_root=str(store.video_root),
        layout=store.layout.name,
        num_clips=len(table),
        num_videos=len(clips.uids),
        num_probed=len(infos) + unreadable.count,
        num_files=len(files),
        findings=findings,
    )


def _check_lines(table) -> Finding:
    rejected = rejected_lines(table)
    examples = [f"line {line.line}: {line.reason}" for line in rejected[:MAX_EXAMPLES]]
    total = len(rejected) + len(table)
    return Finding("malformed lines left out", "warning", len(rejected), total, "lines", examples)


def _check_open_gops(infos: dict[Path, VideoInfo]) -> Finding:
    hevc = [path for path, info in infos.items() if info.codec in ("hevc", "h265")]
    found = [str(path) for path in tqdm(hevc, desc="Looking for open GOPs", disable=not hevc) if has_open_gop(path)]
    # Not an error: the default reader is exact on them; decord would give wrong frames.
    return Finding("HEVC with open GOPs (never force decord)", "info", len(found), len(infos), "files", found)


class _Clips:
    """The columns that the checks need, as arrays over the rows; `video` are positions in `uids`."""

    def __init__(self, table) -> None:
        columns = table.select_columns(["video_uid", "clip_start", "clip_end", "video_dur"]).with_format("arrow")[:]
        encoded = columns["video_uid"].dictionary_encode().combine_chunks()
        self.uids: list[str] = encoded.dictionary.to_pylist()
        self.video = encoded.indices.to_numpy()
        self.start = columns["clip_start"].to_numpy()
        self.end = columns["clip_end"].to_numpy()
        self.duration = columns["video_dur"].to_numpy()  # as the annotations have it

    def __len__(self) -> int:
        return len(self.start)

    def describe(self, row: int) -> str:
        return f"row {row}: {self.uids[self.video[row]]}, {self.start[row]:.3f} to {self.end[row]:.3f} s"


def _chunk_numbers(store: VideoStore, times: np.ndarray) -> np.ndarray:
    """`layout.chunk_of` for an array of seconds."""
    return np.floor(np.maximum(times, 0) / store.layout.chunk_seconds).astype(np.int64)


def _find_files(store: VideoStore, clips: _Clips) -> tuple[dict[tuple[int, int], Path], set[int], Finding]:
    """The files that the clips need and that exist, by (video, chunk); the videos that lack some; the finding."""
    # A window outside its video needs no file, and of one that reaches past the end the rest is cut.
    rows = np.flatnonzero((clips.end > np.maximum(clips.start, 0)) & (clips.start < clips.duration))
    first = _chunk_numbers(store, clips.start[rows])
    last = _chunk_numbers(store, np.minimum(clips.end, np.nextafter(clips.duration, 0))[rows])
    span = int(max(first.max(initial=0), last.max(initial=0))) + 1
    first, last = clips.video[rows] * span + first, clips.video[rows] * span + last
    files, absent, examples = {}, [], []
    for key in tqdm(np.union1d(first, last).tolist(), desc="Looking for files", unit="file"):
        video, chunk = divmod(key, span)
        path = store.file(clips.uids[video], chunk)
        if path.is_file():
            files[video, chunk] = path
        else:
            absent.append(key)
            examples.append(str(path))
    lost = int((np.isin(first, absent) | np.isin(last, absent)).sum())
    name = f"clips of {len(absent)} missing files"
    incomplete = {key // span for key in absent}
    return files, incomplete, Finding(name, "error", lost, len(clips), "clips", examples[:MAX_EXAMPLES])


def _probe(
    paths: Sequence[Path], sample: int | None, num_workers: int, seed: int
) -> tuple[dict[Path, VideoInfo], Finding]:
    """Open files; what they say, and those that do not open."""
    if sample is not None and sample < len(paths):
        chosen = np.random.default_rng(seed).choice(len(paths), size=sample, replace=False)
        paths = [paths[i] for i in sorted(chosen)]

    def attempt(path: Path) -> VideoInfo | str:
        try:
            return probe_video(path)
        except (ClipReadError, OSError) as error:
            return str(error)

    infos, unreadable = {}, []
    with ThreadPoolExecutor(num_workers) as pool:  # the decoders release the GIL
        outcomes = tqdm(pool.map(attempt, paths), total=len(paths), desc="Opening files", unit="file")
        for path, outcome in zip(paths, outcomes):
            if isinstance(outcome, str):
                unreadable.append(outcome)
            else:
                infos[path] = outcome
    return infos, Finding(
        "unreadable files", "error", len(unreadable), len(paths), "opened files", unreadable[:MAX_EXAMPLES]
    )


def _check_windows(store, clips: _Clips, files, infos: dict[Path, VideoInfo], num_frames: int) -> list[Finding]:
    total = len(clips)
    reversed_ = ~(clips.end > clips.start)
    # The true length is known where a complete video's last file was opened; elsewhere the annotation's is taken.
    duration, stated = clips.duration.copy(), {}
    last_file: dict[int, int] = {}
    for video, chunk in files:
        last_file[video] = max(chunk, last_file.get(video, 0))
    measured = np.full(len(clips.uids), np.nan)
    for video, chunk in last_file.items():
        info = infos.get(files[video, chunk])
        if info is not None and store.chunks(clips.uids[video])[-1][1] == files[video, chunk]:
            measured[video] = store.layout.start_of(chunk) + info.duration
    known = np.isfinite(measured[clips.video])
    duration[known] = measured[clips.video][known]
    outside = ~reversed_ & ((clips.start >= duration) | (clips.end <= 0))
    clamped = ~reversed_ & ~outside & ((clips.start < 0) | (clips.end > duration))
    differs = np.flatnonzero(known & (np.abs(clips.duration - duration) > DURATION_TOLERANCE))
    for row in differs:
        stated.setdefault(
            int(clips.video[row]),
            f"{clips.uids[clips.video[row]]}: {duration[row]:.2f} s, video_dur says {clips.duration[row]:.2f} s",
        )
    fps = float(np.median([info.fps for info in infos.values()])) if infos else 30.0
    length = np.minimum(clips.end, duration) - np.maximum(clips.start, 0)
    short = ~reversed_ & ~outside & (length * fps < num_frames)

    def finding(name, level, mask):
        rows = np.flatnonzero(mask)
        return Finding(name, level, len(rows), total, "clips", [clips.describe(row) for row in rows[:MAX_EXAMPLES]])

    return [
        finding("window empty or reversed", "error", reversed_),
        finding("window outside the video", "error", outside),
        finding("window reaches past the video (cut there)", "info", clamped),
        Finding(
            f"length differs from video_dur by more than {DURATION_TOLERANCE:g} s",
            "warning",
            len(stated),
            int(np.isfinite(measured).sum()),
            "videos",
            list(stated.values())[:MAX_EXAMPLES],
        ),
        finding(f"shorter than {num_frames} frames at {fps:g} fps (frames repeat)", "info", short),
    ]


def _check_tags(table, num_verbs: int, num_nouns: int) -> list[Finding]:
    columns = table.select_columns(["tag_verb", "tag_noun"]).with_format("arrow")[:]
    bad = np.zeros(len(table), dtype=bool)
    empty = np.zeros(len(table), dtype=bool)
    for name, size in (("tag_verb", num_verbs), ("tag_noun", num_nouns)):
        column = columns[name]
        lengths = pc.list_value_length(column).to_numpy()
        rows = np.repeat(np.arange(len(table)), lengths)  # of each item of each list
        bad[rows[pc.list_flatten(column).to_numpy() >= size]] = True
        empty |= lengths == 0
    examples = []
    for row in np.flatnonzero(bad)[:MAX_EXAMPLES]:
        tags = table[int(row)]
        examples.append(f"row {row}: tag_verb {tags['tag_verb']}, tag_noun {tags['tag_noun']}")
    return [
        Finding(
            f"tags past {num_verbs} verbs or {num_nouns} nouns", "error", int(bad.sum()), len(table), "clips", examples
        ),
        Finding("no verb or no noun (positive with nothing else)", "info", int(empty.sum()), len(table), "clips"),
    ]


def _check_egomcq(path: str, store: VideoStore) -> list[Finding]:
    """Check each question separately, to list all faults and not only the first."""
    items = questions(path)
    faults, lost = [], []
    for key, item in tqdm(items, desc="Checking EgoMCQ", unit="question"):
        try:
            row = read_question(key, item, path)
        except ValueError as error:
            faults.append(str(error))
            continue
        paths = [store.path(clip["video_uid"], clip["clip_start"]) for clip in row["choices"]]
        absent = [str(file) for file in paths if not file.is_file()]
        if absent:
            lost.append(f"question {key}: {absent[0]}")
    return [
        Finding(name, "error", len(bad), len(items), "questions", bad[:MAX_EXAMPLES])
        for name, bad in (("EgoMCQ malformed, or types wrong", faults), ("EgoMCQ clip without a file", lost))
    ]


def has_open_gop(path: str | os.PathLike, num_packets: int = 600) -> bool:
    """Whether a frame that is shown before a key frame is stored after it: it may refer to pictures before both."""
    import av

    with av.open(os.fspath(path)) as container:
        key_time, num_keys = None, 0
        for number, packet in enumerate(container.demux(video=0)):
            if number == num_packets or packet.pts is None:
                break
            if packet.is_keyframe:
                key_time, num_keys = packet.pts, num_keys + 1
            elif num_keys > 1 and packet.pts < key_time:
                return True
    return False
