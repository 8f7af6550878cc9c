"""Output on terminals with ASCII only, and of file names that are not UTF-8, without a UnicodeEncodeError."""

import codecs
import sys

_ASCII = {"–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "±": "+-"}


def make_printable() -> None:
    """Makes standard output and error replace a character that they cannot encode by a similar one or its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a file object of a test or of a notebook
            stream.reconfigure(errors="svitt_ego_look_alike")


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error("svitt_ego_look_alike", _look_alike)
