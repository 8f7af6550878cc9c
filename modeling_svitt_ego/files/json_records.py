"""Checked reading of JSON annotation files: every error names the file, the place in it and the value."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_TAGS = re.compile(r"\s*\[\s*(\d+\s*(,\s*\d+\s*)*)?\]\s*", re.ASCII)
_INT32_MAX = 2**31 - 1


def read_json(path: str) -> Any:
    """Parse a JSON file; the same key twice in one object is an error, where `json` would keep the last in silence."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_pairs_hook=_object_without_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}.") from None
    except RecursionError:
        raise ValueError(f"{path!r} is nested too deeply to be an annotation file.") from None
    except ValueError as error:  # json.JSONDecodeError is one
        raise ValueError(f"{path!r} is not valid JSON: {error}.") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r:.100} occurs twice in one object")
    return result


def record(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {_short(value)}.")
    return value


def array(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, got {_short(value)}.")
    return value


def integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _INT32_MAX:
        raise ValueError(f"{where}: expected a whole number, got {_short(value)}.")
    return value


def seconds(value: Any, where: str) -> float:
    """A finite number of seconds; some files have them as strings."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a number of seconds, got {_short(value)}.")
    return number


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text, got {_short(value)}.")
    return check_encodable(value, where)


def check_encodable(value: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half a surrogate pair in {_short(value)}.") from None
    return value


def tags(value: Any, where: str) -> list[int]:
    """A list of group numbers; some files have it as a string. An absent list is empty."""
    if value is None:
        return []
    if isinstance(value, str) and _TAGS.fullmatch(value):
        value = [int(number) if len(number) <= 10 else _INT32_MAX + 1 for number in re.findall(r"\d+", value)]
    if not isinstance(value, list) or any(
        isinstance(tag, bool) or not isinstance(tag, int) or not 0 <= tag <= _INT32_MAX for tag in value
    ):
        raise ValueError(f"{where}: expected a list of integers >= 0, got {_short(value)}.")
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:100] + "…"
