"""Folders that a stopped command goes on with: whose they are, and the jobs that fill them."""

import json
import os
import threading
import time

import pytest

from modeling_svitt_ego.files.resumable_folder import (
    aside,
    begin_folder,
    claim_folder,
    claimed_folder,
    differences,
    run_jobs,
)
from modeling_svitt_ego.files.sharding import Shard


def test_a_folder_is_claimed_once_and_gone_on_with(tmp_path):
    folder, settings = tmp_path / "new" / "folder", {"crf": 23, "preset": "fast"}
    assert begin_folder(folder, "s.json", settings, {"command": "first"}) == settings
    assert [path.name for path in folder.iterdir()] == ["s.json"]
    claim_folder(folder, "s.json", settings)
    written = begin_folder(folder, "s.json", settings, {"command": "second"})
    assert written == json.loads((folder / "s.json").read_text()) == settings | {"command": "first"}


def test_another_making_and_a_foreign_folder_are_refused(tmp_path):
    """Catches a comparison that stops at the first difference, or that passes over a field the file does not have."""
    claim_folder(tmp_path / "ours", "s.json", {"crf": 23, "preset": "fast", "gop": 30})
    with pytest.raises(
        FileExistsError, match=r"ours' .*\(crf: 23 there, 30 asked for; size: None there, 9 asked for\)"
    ):
        claim_folder(tmp_path / "ours", "s.json", {"crf": 30, "preset": "fast", "size": 9})
    assert differences({"crf": 23}, {"crf": 23}, "now") == ""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"theirs' is not empty and s.json is missing"):
        claim_folder(tmp_path / "theirs", "s.json", {})
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_its_settings_were_written_is_no_foreign_folder(tmp_path):
    """Catches a folder that is refused for ever: killed between mkdir and the rename of the settings."""
    (tmp_path / ".123-abc.part").write_text("{")
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".lock.shard-00000-of-00002").write_text("")
    with claimed_folder(tmp_path, "s.json", {"crf": 23}):
        assert json.loads((tmp_path / "s.json").read_text()) == {"crf": 23}
        assert not list(tmp_path.glob("*.part"))
    (tmp_path / "s.json").write_text('{"crf"')
    with pytest.raises(ValueError, match="s.json' are damaged"):
        claim_folder(tmp_path, "s.json", {"crf": 23})


def test_two_shards_that_start_together_agree_on_the_settings(tmp_path):
    """Catches the second of two shards whose other settings replace those of the first."""
    results = []

    def start(index, settings):
        try:
            with claimed_folder(tmp_path / "out", "s.json", settings, Shard(index, 2)):
                results.append(settings)
                time.sleep(0.2)
        except FileExistsError as error:
            results.append(str(error))

    threads = [threading.Thread(target=start, args=(i, {"crf": 20 + i})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((tmp_path / "out" / "s.json").read_text())
    assert kept in results and sum("made with other settings" in str(result) for result in results) == 1


def test_a_file_written_aside_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), aside(tmp_path / "file") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_comes_back_with_its_result(num_workers):
    jobs = [(number, 2) for number in range(5)]
    done = list(run_jobs(pow, jobs, num_workers))
    assert sorted(done) == [((number, 2), number**2) for number in range(5)]


def test_a_worker_that_dies_is_one_error():
    with pytest.raises(OSError, match="A worker process died.*run the same command again"):
        list(run_jobs(os._exit, [(1,), (1,)], num_workers=2))
