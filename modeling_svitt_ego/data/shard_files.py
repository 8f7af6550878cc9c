"""The files of a folder of shards, wherever it is: bytes of a tar from a disk or from the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files.plain_names import file_inside
from ..model.clip_reading import ClipReadError
from .shard_index import INDEX_PATTERN, SETTINGS_NAME

HUB_PREFIX = "hf://"
# Frames of a clip are stored one after the other; a gap of less than this is read rather than asked for separately.
_MAX_GAP = 1 << 16


class ShardFolder:
    """
    A local folder, or a data set repository of the Hub.

    Keeps no open file and no connection, so it can be pickled and is safe in forked and in spawned workers.

    Args:
        folder: A path, or `hf://datasets/USER/REPO[@REVISION][/FOLDER]`. A branch is resolved to its newest commit
            once, so that a run never mixes two versions.

    Attributes:
        local (`Path`): where the indices and the settings are.
        remote (`str`, *optional*): where the tars are, if not in `local`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.remote: str | None = None
        text = os.fspath(folder)
        if text.startswith(HUB_PREFIX):
            self.remote, self.local = _open_on_hub(text)
        elif "://" in text:
            raise ValueError(f"{text!r}: shards are read from a folder or from hf://datasets/USER/REPO.")
        else:
            self.local = Path(text)
        self._file_system = None

    def __str__(self) -> str:
        return self.remote or str(self.local)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file_system": None}

    def path(self, name: str) -> str:
        """Where a tar is; for messages."""
        return f"{self.remote}/{name}" if self.remote else str(self.local / name)

    def check_sizes(self, num_bytes: Mapping[str, int]) -> None:
        """Compare the sizes of the tars, by name, with those in their indices.

        Raises:
            FileNotFoundError: A tar is missing.
            ClipReadError: A tar has another size.
        """
        listed = self._list_remote() if self.remote else {}
        for name, expected in num_bytes.items():
            if self.remote and not (self.local / name).is_file():
                if name not in listed:
                    raise FileNotFoundError(f"There is no shard {self.path(name)!r}.")
                found = listed[name]
            else:
                found = file_inside(self.local, name, "shard").stat().st_size
            if found != expected:
                raise ClipReadError(f"{self.path(name)}: {found} bytes, but its index says {expected}: truncated?")

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of a tar at each (offset, size); neighbours are read together.

        Raises:
            OSError: The file cannot be read.
        """
        begin = min(offset for offset, _ in spans)
        end = max(offset + size for offset, size in spans)
        if end - begin > sum(size for _, size in spans) + _MAX_GAP * len(spans):
            return [self._bytes(name, offset, offset + size) for offset, size in spans]
        content = self._bytes(name, begin, end)
        return [content[offset - begin : offset - begin + size] for offset, size in spans]

    def _bytes(self, name: str, begin: int, end: int) -> bytes:
        if self.remote and not (self.local / name).is_file():
            # Without fsspec's cache, which would read blocks of 5 MB for every clip.
            with self._hub().open(self.path(name), "rb", cache_type="none") as file:
                file.seek(begin)
                content = file.read(end - begin)
        else:
            with open(self.local / name, "rb") as file:
                file.seek(begin)
                content = file.read(end - begin)
        if len(content) != end - begin:
            raise ClipReadError(f"{self.path(name)}: {len(content)} of {end - begin} bytes at {begin}: truncated?")
        return content

    def _hub(self):
        from huggingface_hub import HfFileSystem

        if self._file_system is None:
            self._file_system = HfFileSystem()
        return self._file_system

    def _list_remote(self) -> dict[str, int]:
        entries = self._hub().ls(self.remote, detail=True)
        return {os.path.basename(entry["name"]): entry["size"] for entry in entries if entry["type"] == "file"}


def _open_on_hub(url: str) -> tuple[str, Path]:
    """(`url` with its commit, the folder in the cache that has the indices and the settings)."""
    from huggingface_hub import HfApi, HfFileSystem, snapshot_download

    place = HfFileSystem().resolve_path(url)
    if place.repo_type != "dataset":
        raise ValueError(f"{url!r} is not a data set: expected hf://datasets/USER/REPO.")
    commit = HfApi().repo_info(place.repo_id, repo_type="dataset", revision=place.revision).sha
    inside = f"{place.path_in_repo}/" if place.path_in_repo else ""
    root = snapshot_download(
        place.repo_id,
        repo_type="dataset",
        revision=commit,
        allow_patterns=[f"{inside}{SETTINGS_NAME}", f"{inside}{INDEX_PATTERN}"],
    )
    remote = f"{HUB_PREFIX}datasets/{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")
    return remote, Path(root) / place.path_in_repo
