"""Output where the terminal knows ASCII only."""

import io
import os
import sys

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.commands.terminal import make_printable


def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch):
    """Catches a UnicodeEncodeError that ends a search after all the work, and a file name that is no UTF-8."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    make_printable()
    print("0:01 – 0:02 … é 東", os.fsdecode(b"a\xe9"), flush=True)
    assert sys.stdout.buffer.getvalue() == b"0:01 - 0:02 ... \\xe9 \\u6771 a\\udce9\n"


def test_every_help_and_error_can_be_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["doctor", "öäü – 東.csv", "."]) == 2
    sys.stderr.flush()
    assert b"\\xf6\\xe4\\xfc - \\u6771.csv" in sys.stderr.buffer.getvalue()
