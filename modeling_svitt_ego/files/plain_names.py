"""Names from untrusted text that are about to become part of a path: video ids, shards, modules of a model's code.

One rule for all of them: a plain name is one component, so it cannot lead out of the folder that it is joined to; and
a file of that name must really be in the folder, not behind a link that leads elsewhere.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

MAX_NAME_BYTES = 200  # file systems allow 255, and suffixes are appended
# Characters that change the direction of the text around them: a name with them is shown as another name.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def name_fault(name: object) -> str | None:
    """Why `name` is not a plain file name; None if it is one."""
    if not isinstance(name, str):
        return f"it is not a text but {type(name).__name__}"
    if name in ("", ".", ".."):
        return "it is empty, . or .."
    try:
        num_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if num_bytes > MAX_NAME_BYTES:
        return f"it has {num_bytes} bytes, more than {MAX_NAME_BYTES}"
    if bad := next((c for c in name if c in "/\\:"), None):
        return f"it contains {bad!r}"
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _DIRECTION_MARKS for c in name):
        return "it contains control characters"
    return None


def check_plain_name(name: str, what: str, place: str = "its folder") -> str:
    """Return `name` if it is a plain file name.

    Raises:
        ValueError: It is not, so it could point outside of `place`; the message shows it escaped.
    """
    if fault := name_fault(name):
        raise ValueError(
            f"{what} {ascii(name):.220} is not a plain file name ({fault}), so it could point outside {place}."
        )
    return name


def file_inside(folder: str | os.PathLike, name: str, what: str) -> Path:
    """The file `name` of `folder`, which exists.

    A link may only lead to the blobs of the same repository in the cache of `huggingface_hub`
    (`models--USER--NAME/snapshots/REVISION/file` → `models--USER--NAME/blobs/HASH`).

    Raises:
        ValueError: The name is not plain, or the file is a link that leads out of the folder.
        FileNotFoundError: There is no such file.
    """
    folder = Path(folder)
    path = folder / check_plain_name(name, what, repr(str(folder)))
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {str(path)!r}.")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    if real.parent != home and real.parent != blobs:
        raise ValueError(f"{what} {str(path)!r} is a link to {str(real)!r}, outside its folder.")
    return path


def shown(path: str | os.PathLike) -> str:
    """A path for people: undecodable bytes, control characters and direction marks are escaped."""
    text = os.fspath(path)
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTION_MARKS
        else c
        for c in text
    )
