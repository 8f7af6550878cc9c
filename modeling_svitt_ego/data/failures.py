"""Clips that could not be read: counted over all workers, listed in a file, and limited to a share of the reads.

A worker process cannot write to the log of the trainer, and its copy of the data set ends with it. Therefore the
counts are in shared memory, with one slot per worker, and the list is a file to which each worker appends whole lines.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import uuid
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)

NUM_SLOTS = 513  # slot 0 is the main process; workers beyond 512 share slots, which may lose a count but no entry
SHOWN = 3  # failures that are logged one by one; thousands of lines would hide everything else


class TooManyClipFailures(RuntimeError):
    """More clips failed than the run allows; the message lists the files at fault."""


class FailureLog:
    """Counts reads and failures of one data set over all its workers.

    Args:
        max_share (`float`): Share of failed reads, in [0, 1], above which `record` raises an error.
        path (`str`, *optional*): JSON-lines file for the list; a new file in the temporary folder if not given. It is
            created at the first failure.
        min_reads (`int`): Smallest number of reads that the share is computed from: one bad clip at the very start
            must not end a run.
    """

    def __init__(self, max_share: float, path: str | os.PathLike | None = None, min_reads: int = 100) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_failure_share ({max_share}) must be a share in [0, 1].")
        self.max_share = max_share
        self.min_reads = min_reads
        self.path = Path(path or os.path.join(tempfile.gettempdir(), f"clip-failures-{uuid.uuid4().hex}.jsonl"))
        self._path_given = path is not None
        self._counts = torch.zeros(NUM_SLOTS, 3, dtype=torch.int64).share_memory_()  # reads, failures, moved

    def keep_in(self, folder: str | os.PathLike) -> None:
        """Writes the list to `clip_failures.jsonl` in a folder, unless a path was given or the list has entries."""
        if not self._path_given and not self.path.exists():
            self.path = Path(folder) / "clip_failures.jsonl"
            self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def num_reads(self) -> int:
        """Number of clips requested so far, including the failed ones."""
        return int(self._counts[:, 0].sum())

    @property
    def num_failures(self) -> int:
        return int(self._counts[:, 1].sum())

    @property
    def num_moved(self) -> int:
        """Number of replacements from another scene than that of the clip that they replace."""
        return int(self._counts[:, 2].sum())

    def count_moved(self) -> None:
        self._counts[self._slot(), 2] += 1

    def count_read(self) -> None:
        self._counts[self._slot(), 0] += 1

    def record(self, index: int, video_uid: str, start: float, end: float, path: str, reason: str) -> None:
        """
        Counts and lists one failure.

        Raises:
            TooManyClipFailures: More than `max_share` of the reads have failed.
        """
        self._counts[self._slot(), 1] += 1
        entry = {"row": index, "video_uid": video_uid, "start": start, "end": end, "path": path, "reason": reason}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        failures, reads = self.num_failures, self.num_reads
        if failures <= SHOWN:
            logger.warning("Clip %d (%s, %.3f to %.3f s) is replaced: %s", index, path, start, end, reason)
        if failures == SHOWN:
            logger.warning("Further unreadable clips are counted in the log and listed in %s.", self.path)
        if failures > self.max_share * max(reads, self.min_reads):
            raise TooManyClipFailures(
                f"{failures} of {reads} clips could not be read, more than max_failure_share={self.max_share:g} "
                f"allows. The last: {path}: {reason}. All: {self.path}\n{self.report()}"
            )

    def entries(self) -> list[dict]:
        """All failures so far: row, video_uid, start and end (seconds), path and reason."""
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def summary(self) -> str:
        """One line for the training log."""
        failures, reads = self.num_failures, self.num_reads
        where = f", listed in {self.path}" if failures else ""
        moved = f", {self.num_moved} replaced by clips of another scene" if self.num_moved else ""
        return f"{failures} of {reads} clips ({failures / max(reads, 1):.2%}) could not be read{moved}{where}"

    def report(self, max_files: int = 5) -> str:
        """The summary, and the files with the most failures, each with its count and the last reason."""
        files: dict[str, list] = {}
        for entry in self.entries():
            files[entry["path"]] = [files.get(entry["path"], [0])[0] + 1, entry["reason"]]
        worst = sorted(files.items(), key=lambda item: (-item[1][0], item[0]))
        lines = [f"  {count} x {path}: {reason}" for path, (count, reason) in worst[:max_files]]
        more = [f"  and {len(worst) - max_files} more files"] if len(worst) > max_files else []
        return "\n".join([self.summary(), *lines, *more])

    @staticmethod
    def _slot() -> int:
        worker = get_worker_info()
        return 0 if worker is None else 1 + worker.id % (NUM_SLOTS - 1)
