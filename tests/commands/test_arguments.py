"""Arguments of the commands: a wrong value is one line at once, and --help tells everything."""

import argparse
import os
from pathlib import Path

import pytest
import torch

from modeling_svitt_ego import __version__
from modeling_svitt_ego.cli import COMMANDS, main
from modeling_svitt_ego.commands.arguments import check_output_file, device

CLIPS = ["evaluate", "egomcq", "model", "--annotations", "a", "--videos", "v"]
WINDOWS = ["search", "videos", "query", "--model", "m"]


@pytest.mark.parametrize(
    "line, message",
    [
        ([*CLIPS, "--num-frames", "0"], "--num-frames (0) must be at least 1"),
        ([*CLIPS, "--batch-size", "0"], "--batch-size (0) must be at least 1"),
        ([*CLIPS, "--batch-size", "two"], "--batch-size: 'two' is not a whole number"),
        ([*CLIPS, "--num-workers", "-1"], "--num-workers (-1) must be at least 0"),
        ([*CLIPS, "--frame-order", "backwards"], "--frame-order: invalid choice: 'backwards'"),
        ([*WINDOWS, "--top-k", "0"], "--top-k (0) must be at least 1"),
        ([*WINDOWS, "--device", "foo"], "--device: 'foo' is not a device"),
        ([*WINDOWS, "--windows-per-second", "nan"], "--windows-per-second (nan) must be a finite number above 0"),
        ([*WINDOWS, "--window-seconds", "0"], "--window-seconds (0) must be a finite number above 0"),
        (["ground", "h", "f", "n", "o", "--batch-size", "0"], "--batch-size (0) must be at least 1"),
        (["prepare", "in", "out", "--chunk-seconds", "nan"], "--chunk-seconds (nan) must be a finite number of at"),
        (["prepare", "in", "out", "--num-workers", "0"], "--num-workers (0) must be at least 1"),
        (["prepare", "in", "out", "--preset", "turbo"], "--preset: invalid choice: 'turbo'"),
        (["prepare", "in", "out", "--crf", "99"], "--crf (99) must be between 0 and 51"),
        (["doctor", "csv", "videos", "--num-workers", "0"], "--num-workers (0) must be at least 1"),
        (["plan", "--reserve", "inf"], "--reserve (inf) must be a finite number of at least 0"),
        (["convert", "in", "out", "--keep-rate", "1.5"], "--keep-rate (1.5) must be above 0 and at most 1"),
        (["export", "in", "out", "--num-frames", "0"], "--num-frames (0) must be at least 1"),
        (["demo", "--seed", "-1"], "--seed (-1) must be at least 0"),
        (["evaluate", "nothing"], "invalid choice: 'nothing'"),
        (["prepare"], "the following arguments are required"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_one_line(capsys, line, message):
    """Catches a value that is found after the weights were loaded, and a page of usage around one sentence."""
    assert main(line) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("svitt-ego ") and len(error.splitlines()) == 1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_device_that_is_not_there_is_refused_before_the_work():
    with pytest.raises(argparse.ArgumentTypeError, match="'cuda:1' is not available.*no accelerator"):
        device("cuda:1")
    assert device("cpu") == "cpu"


def test_version_and_help(capsys):
    """Catches a command without description, a default that --help hides, and an undocumented variable."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"svitt-ego {__version__}"
    for command in COMMANDS:
        assert main([command.name, "--help"]) == 0
        text = "".join(capsys.readouterr().out.split())
        if command.name == "pretrain":  # its options are the Trainer's, with the Trainer's own help
            assert "--egoclip" in text
            continue
        assert "".join(command.description[1:].split()) in text
        assert "SVITT_EGO_DEBUG=1" in text
    assert main(["evaluate", "egomcq", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "number of clips embedded at once (default: 32)" in text and "(default: None)" not in text
    assert main(["demo", "--help"]) == 0
    assert "order of the clips (default: 0)" in " ".join(capsys.readouterr().out.split())  # 0 == False


def test_every_argument_has_a_help_text():
    from modeling_svitt_ego.commands.arguments import CommandParser

    for command in COMMANDS:
        parser = CommandParser()
        command.add_arguments(parser)
        parsers = [parser]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        for some in parsers:
            for action in some._actions:
                if not isinstance(action, argparse._SubParsersAction):
                    assert action.help, (command.name, action.dest)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    check_output_file(None, "--json")
    check_output_file(tmp_path / "new" / "deep" / "x.json", "--json")
    with pytest.raises(IsADirectoryError, match="--json.*is a folder; name a file"):
        check_output_file(tmp_path, "--json")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        check_output_file(tmp_path / "file" / "x.json", "--json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="no permission to write"):
        check_output_file(tmp_path / "x.json", "--json")


@pytest.mark.parametrize(
    "line",
    [
        ["evaluate", "egonlq", "--annotations", "no.json", "--predictions", "no.json", "--output", "OUT"],
        ["ground", "no-head", "no-features", "no.json", "OUT"],
        ["build-egoclip", "no.json", "OUT", "--verb-taxonomy", "v", "--noun-taxonomy", "n", "--durations", "d"],
        ["doctor", "no.csv", "no-videos", "--json", "OUT"],
        ["prepare", "no-videos", "prepared", "--json", "OUT"],
    ],
    ids=lambda line: line[0],
)
def test_commands_check_their_output_first(line, tmp_path, capsys):
    """Catches hours of work that end at a path which is a folder."""
    assert main([str(tmp_path) if word == "OUT" else word for word in line]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    assert not Path("prepared").exists()
