"""The prepared EgoClip table on the Hub: pushed by `datasets` itself, read where this package is not known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_svitt_ego.data.egoclip import EGOCLIP_FEATURES
from tests.helpers.hub_double import READ_TOKEN, WRITE_TOKEN, HubDouble
from tests.helpers.tiny_data import egoclip_row, write_egoclip

PUSH = """
import sys
from pathlib import Path
from modeling_svitt_ego.data.egoclip import load_egoclip
cache, older, newer = sys.argv[1:]
load_egoclip(older, cache_dir=cache).push_to_hub("user/egoclip", num_shards=5)
load_egoclip(newer, cache_dir=cache).push_to_hub("user/egoclip", num_shards=3)
"""

PULL = """
import json, sys
from datasets import load_dataset
table = load_dataset("user/egoclip", split="train")
stream = load_dataset("user/egoclip", split="train", streaming=True)
assert not [name for name in sys.modules if name.startswith("modeling_svitt_ego")]
found = {"rows": table.to_list(), "stream": list(stream), "features": table.features.to_dict()}
open(sys.argv[1], "w").write(json.dumps(found))
"""


@pytest.fixture
def run(tmp_path):
    """`run(code, hub, token, home, *arguments)`: a clean process whose Hub is the double (which speaks no Xet)."""

    def run(code, hub, token, home, *arguments):
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "PATH": os.defpath}
        env |= {"HF_HOME": str(tmp_path / home), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        if code is PUSH:
            env["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return run


def test_a_pushed_table_is_read_by_plain_load_dataset(tmp_path, run):
    """Catches features that do not survive (int32, lists), rows that are lost between shards, a path of this machine
    on the Hub, and a second push that leaves shards of the first."""
    rows = [egoclip_row(i) for i in range(60)]
    rows[9] = egoclip_row(9, tag_verb=[], clip_start=-0.25, clip_text='#C C lifts a 12" board')
    rows[10] = egoclip_row(10, tag_noun=[], clip_text="#O A man öffnet 箱")
    longer = write_egoclip(tmp_path / "longer.csv", [egoclip_row(i) for i in range(100)])
    csv = write_egoclip(tmp_path / "e.csv", [*rows[:30], "a malformed line", *rows[30:]])
    with HubDouble() as hub:
        done = run(PUSH, hub, WRITE_TOKEN, "mine", tmp_path / "cache", longer, csv)
        assert "1 malformed line(s)" in done.stderr
        run(PULL, hub, READ_TOKEN, "theirs", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == rows and found["stream"] == rows
    assert found["features"] == EGOCLIP_FEATURES.to_dict()
    files = hub.pushes("datasets/user/egoclip")[-1].files
    assert sum(name.endswith(".parquet") for name in files) == 3
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
