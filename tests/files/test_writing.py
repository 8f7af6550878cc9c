"""Files that appear whole or not at all, locks that name their holder, and splits on which all shards agree."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modeling_svitt_ego.files import writing
from modeling_svitt_ego.files.folder_lock import FolderInUse, locked
from modeling_svitt_ego.files.plain_names import check_plain_name, file_inside, name_fault, shown
from modeling_svitt_ego.files.sharding import Shard
from modeling_svitt_ego.files.writing import (
    append_json_line,
    aside,
    folder_aside,
    is_whole,
    make_cache_folder,
    read_json_lines,
)


def test_no_two_writers_share_a_temporary_name(tmp_path):
    """Catches the second of two runs that writes into the file of the first."""
    with aside(tmp_path / "file") as one, aside(tmp_path / "file") as other:
        assert one != other and one.name.startswith(".") and len(one.name) < 60
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_the_content_is_flushed_before_the_name_appears(tmp_path, monkeypatch):
    """Catches a rename without fsync, after which a power cut leaves an empty file of the right name."""
    done = []
    monkeypatch.setattr(writing.os, "fsync", lambda descriptor: done.append("flush"))
    replace = os.replace
    monkeypatch.setattr(writing.os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    writing.write_json(tmp_path / "file.json", {})
    assert done == ["flush", "rename", "flush"]
    append_json_line(tmp_path / "lines.jsonl", {})
    assert done[3:] == ["flush"]


def test_a_folder_takes_the_place_of_the_older_one_or_leaves_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder_aside(tmp_path / "out") as part:
        (part / "new").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with folder_aside(tmp_path / "out") as part:
        (part / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_cache_folder_is_made_or_its_remedy_is_said(tmp_path, monkeypatch):
    """Catches a raw PermissionError in the middle of the work, from a home folder that is read-only."""
    assert make_cache_folder(tmp_path / "a" / "b", "Set HF_HOME.").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"The cache '.*file.cache' cannot be written: Not a directory. Set HF_HOME\."):
        make_cache_folder(tmp_path / "file" / "cache", "Set HF_HOME.")
    monkeypatch.setattr(writing.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match=r"cannot be written: there is no permission. Set HF_HOME\."):
        make_cache_folder(tmp_path / "a", "Set HF_HOME.")


def test_lines_that_a_kill_cut_short_are_dropped_and_others_are_errors(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2, "b')
    assert read_json_lines(path) == [{"a": 1}]
    append_json_line(path, {"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}] and read_json_lines(tmp_path / "absent") == []
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(ValueError, match="lines.jsonl', line 2 is not a JSON object"):
        read_json_lines(path)


def test_whole_means_size_and_hash(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    digest = writing.file_hash(path)
    assert is_whole(path, 7, digest) and not is_whole(path, 8, digest) and not is_whole(tmp_path / "absent", 7, digest)
    path.write_bytes(b"contenT")
    assert not is_whole(path, 7, digest)


HOLD = """
import sys, time
from modeling_svitt_ego.files.folder_lock import locked
from modeling_svitt_ego.files.sharding import Shard
shard = Shard.parse(sys.argv[2]) if len(sys.argv) > 2 else None
with locked(sys.argv[1], shard):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """`hold("0/2")`: another process that holds the folder, or a shard of it, until the test ends."""
    processes = []

    def hold(*shard):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *shard]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_and_told_by_whom(tmp_path, hold):
    process = hold()
    with pytest.raises(FolderInUse, match=f"{tmp_path.name}' is being written by process {process.pid} on "):
        with locked(tmp_path):
            pass
    process.kill()  # as the system does it: nothing can be tidied up
    process.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_shards_share_a_folder_and_exclude_all_else(tmp_path, hold, monkeypatch):
    monkeypatch.setattr("modeling_svitt_ego.files.folder_lock.START_SECONDS", 0.2)
    process = hold("0/2")
    with locked(tmp_path, Shard(1, 2)):
        pass
    for shard in (None, Shard(0, 2), Shard(1, 3)):
        with pytest.raises(FolderInUse, match=f"process {process.pid} on"), locked(tmp_path, shard):
            pass
    process.kill()
    process.wait()
    hold()
    begin = time.monotonic()
    with pytest.raises(FolderInUse), locked(tmp_path, Shard(1, 2)):
        pass
    assert time.monotonic() - begin < 600


def test_the_lock_of_a_file_is_next_to_it(tmp_path):
    with locked(tmp_path / "out.csv"):
        with pytest.raises(FolderInUse), locked(tmp_path / "out.csv"):
            pass
        with locked(tmp_path / "other.csv"):
            pass


def test_every_item_belongs_to_exactly_one_shard():
    keys = [f"video-{i}" for i in range(200)]
    for count in (1, 2, 7):
        owners = [[shard.owns(key) for shard in (Shard(i, count) for i in range(count))] for key in keys]
        assert all(sum(row) == 1 for row in owners)
        assert min(sum(column) for column in zip(*owners)) > 0.5 * 200 / count
    assert [Shard(i, 3).owns("video-0") for i in range(3)] == [True, False, False]  # the same on every machine
    assert str(Shard.parse("2/8")) == "2/8" and Shard.parse("2/8").name == "shard-00002-of-00008"
    for text in ("8/8", "1", "-1/2", "a/b", "1/0"):
        with pytest.raises(ValueError, match="shard"):
            Shard.parse(text)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "C:x", "a\0b", "x\n", "\u202egpj", "\u2066x", "é" * 101, "\ud800", None, 7, "\x9b"],
)
def test_names_that_are_no_plain_file_names(name):
    assert name_fault(name)
    with pytest.raises(ValueError, match="video_uid .* is not a plain file name") as error:
        check_plain_name(name, "video_uid")
    assert str(error.value).isascii()


def test_plain_names_and_files_inside(tmp_path):
    """Catches a link that leads out of the folder, and a cache of the Hub that is refused."""
    for name in ("a.b c-é", "é" * 100, "P01_11", "…"):
        assert check_plain_name(name, "name") == name
    folder = tmp_path / "models--user--name" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    blobs = tmp_path / "models--user--name" / "blobs"
    blobs.mkdir()
    (blobs / "abcd").write_text("x")
    (folder / "model.safetensors").symlink_to("../../blobs/abcd")
    assert file_inside(folder, "model.safetensors", "weights").read_text() == "x"
    (tmp_path / "secret").write_text("x")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="config.json' is a link to .*secret.*outside its folder"):
        file_inside(folder, "config.json", "configuration")
    with pytest.raises(FileNotFoundError, match="absent"):
        file_inside(folder, "absent", "weights")
    assert shown(os.fsdecode(b"/a\xe9/\xe2\x80\xaex\n")) == "/a\\udce9/\\u202ex\\n"
