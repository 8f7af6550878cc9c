"""One job split over several processes or machines: `--shard I/N`.

The split depends on the content only (a hash of each item's name), never on the order of a listing or on what is
finished already. So all shards agree on it without talking to one another.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shard:
    """
    Part `index` of `count`.

    Args:
        index (`int`): from 0 to `count` - 1, as SLURM numbers array tasks.
        count (`int`): number of shards.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= 100_000:
            raise ValueError(f"shard {self.index}/{self.count}: I must be from 0 to N - 1.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`"2/8"` → the third of eight shards."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        if match is None:
            raise ValueError(f"shard {text!r} must be I/N with I from 0 to N - 1, such as 0/8.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """For file names: `"shard-00002-of-00008"`."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"

    def owns(self, key: str) -> bool:
        """Whether the item of this name belongs to this shard; exactly one shard of each count owns it."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index


def file_name(name: str, shard: Shard | None) -> str:
    """`manifest.jsonl`, or that of one shard: `manifest.shard-00002-of-00008.jsonl`."""
    stem, suffix = os.path.splitext(name)
    return name if shard is None else f"{stem}.{shard.name}{suffix}"


def shard_files(folder: Path, name: str) -> list[Path]:
    """The files of this name that shards have written into `folder`."""
    stem, suffix = os.path.splitext(name)
    return sorted(folder.glob(f"{stem}.shard-*-of-*{suffix}"))
