"""The index of a tar of clips: an Arrow stream, followed by the SHA-256 of its bytes.

Arrow readers stop at the end of the stream and ignore the 32 bytes behind it. Without them, an index that was cut
between two record batches would load as a shorter table without an error. The head of the stream holds the size and
the hash of the tar, and the clips that were left out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from ..files.plain_names import name_fault
from ..files.writing import aside, file_hash, is_whole
from ..model.clip_reading import ClipReadError
from .egoclip import EGOCLIP_FEATURES

SETTINGS_NAME = "settings.json"
INDEX_PATTERN = "clips-*.index"
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
_DIGEST_BYTES = 32
_ACCOUNT = b"account"


@dataclass(frozen=True)
class ShardAccount:
    """
    Args:
        num_clips (`int`): in the tar.
        tar_bytes (`int`), tar_sha256 (`str`): of the tar.
        failures (list of `dict`): clips that were left out: row, video_uid, start, path, reason.
    """

    num_clips: int
    tar_bytes: int
    tar_sha256: str
    failures: list[dict]

    def matches(self, tar: Path) -> bool:
        """Whether the tar has exactly these bytes; reads all of it."""
        return is_whole(tar, self.tar_bytes, self.tar_sha256)


def write_index(path: Path, rows: list[dict], failures: list[dict], tar: Path) -> None:
    """Write the index of a finished `tar`; a shard is finished when its index exists."""
    account = {
        "num_clips": len(rows),
        "tar_bytes": tar.stat().st_size,
        "tar_sha256": file_hash(tar),
        "failures": failures,
    }
    schema = INDEX_FEATURES.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), _ACCOUNT: json.dumps(account).encode()})
    with aside(path) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema))
        with open(part, "ab") as file:
            file.write(bytes.fromhex(file_hash(part)))


def read_account(path: Path) -> ShardAccount:
    """The account in an index, after checking the index.

    Raises:
        ClipReadError: The index is damaged, cut short, or was not written by `svitt-ego prepare`.
    """
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(content) <= _DIGEST_BYTES or hashlib.sha256(body).digest() != digest:
        raise ClipReadError(
            f"{path}: the index of {len(content)} bytes is damaged, cut short, or of an older version. "
            "`svitt-ego prepare … --clip-shards` with the same arguments writes it again."
        )
    try:
        with pa.ipc.open_stream(body) as reader:
            account = ShardAccount(**json.loads(reader.schema.metadata[_ACCOUNT]))
            num_rows = sum(batch.num_rows for batch in reader)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ClipReadError(f"{path}: not an index of clips ({error}).") from error
    if num_rows != account.num_clips:
        raise ClipReadError(f"{path}: {num_rows} rows instead of {account.num_clips}.")
    return account


def read_index(path: Path) -> tuple[datasets.Dataset, ShardAccount]:
    """The rows of an index, memory-mapped, and its account.

    Raises:
        ClipReadError: The index is damaged, or a row names a tar that is not `<stem>.tar` of the index: an index of a
            stranger must not lead to other files.
    """
    account = read_account(path)
    table = datasets.Dataset.from_file(str(path))
    if missing := set(INDEX_FEATURES) - set(table.column_names):
        raise ClipReadError(f"{path}: the index lacks the column(s) {sorted(missing)}.")
    expected = f"{path.stem}.tar"
    for name in table.unique("shard"):
        if name_fault(name) or name != expected:
            raise ClipReadError(f"{path}: names the shard {ascii(name):.200}, expected {expected!r}.")
    return table, account
