"""Rephrased narrations: three file formats with the same content, and a pickle that must not run."""

import os
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest

from modeling_svitt_ego.data.rephrasings import Rephrasings, load_rephrased, nearest_in_time, read_plain_pickle

ENTRIES = [
    ("video-a", 1.0, 2.0, ["#C C picks a cup", "#C C takes a cup, slowly"]),
    ("video-a", 8.0, 9.5, "#C C opens the door"),
    ("video-b", 0.0, 1.0, ["#C C cuts bread", "#C C cuts bread", "  "], 0.7, "more"),
]
EXPECTED = [
    ["#C C picks a cup", "#C C takes a cup, slowly"],
    ["#C C opens the door"],
    ["#C C cuts bread"],
]


def write(path, entries=ENTRIES):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(entries, protocol=4))
        return path
    rows = [(uid, start, end, text) for uid, start, end, texts, *_ in entries for text in np.atleast_1d(texts)]
    frame = pd.DataFrame(rows, columns=["video_uid", "clip_start", "clip_end", "text"])
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".pkl", ".csv", ".parquet"])
def test_all_formats_give_the_same_clips(tmp_path, suffix):
    """Catches texts lost where several rows name one clip, and a comma that splits a narration."""
    table = load_rephrased(write(tmp_path / f"r{suffix}"))
    assert list(table["texts"]) == EXPECTED
    assert table["clip_text"][0] == "#C C picks a cup" and table["clip_end"][1] == 9.5


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(ENTRIES, protocol=protocol))
    assert read_plain_pickle(tmp_path / "r.pkl") == ENTRIES


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Evaluates:
    def __reduce__(self):
        return eval, ("__import__('os').getcwd()",)


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path):
    """Catches `pickle.load`, and an allow-list with builtins such as eval and getattr in it."""
    for content, name in ((Runs(tmp_path / "ran"), "mkdir"), (Evaluates(), "eval"), (getattr, "getattr")):
        path = tmp_path / "r.pkl"
        path.write_bytes(pickle.dumps([content]))
        with pytest.raises(ValueError, match=rf"{name}.*csv or parquet"):
            load_rephrased(path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "r.pkl").write_bytes(pickle.dumps([np.float64(1.0)]))
    with pytest.raises(ValueError, match="numpy"):
        load_rephrased(tmp_path / "r.pkl")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "instead of a list"),
        ([("video-a", 1.0, 2.0)], "entry 0"),
        ([("../video", 1.0, 2.0, "a")], "entry 0.*plain file name"),
        ([("video-a", "x", 2.0, "a")], "entry 0.*seconds"),
        ([("video-a", 1.0, 2.0, [3])], "entry 0.*neither"),
        ([("video-a", 1.0, 2.0, [" "])], "no text with words"),
        ([], "no clip"),
    ],
)
def test_bad_entries_are_named(tmp_path, entries, message):
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(entries))
    with pytest.raises(ValueError, match=message):
        load_rephrased(tmp_path / "r.pkl")


def test_bad_files_are_named(tmp_path):
    (tmp_path / "r.csv").write_text("video_uid,text\na,b\n")
    with pytest.raises(ValueError, match="lacks the column"):
        load_rephrased(tmp_path / "r.csv")
    (tmp_path / "r.pkl").write_bytes(b"\x80\x04no pickle")
    with pytest.raises(ValueError, match="plain pickle"):
        load_rephrased(tmp_path / "r.pkl")
    (tmp_path / "r.txt").write_text("x")
    with pytest.raises(ValueError, match=".csv or .parquet"):
        load_rephrased(tmp_path / "r.txt")


def test_rows_find_the_nearest_clip_of_their_video(tmp_path):
    """Against a search over all pairs; catches a match in another video and beyond the tolerance."""
    rng = np.random.default_rng(0)

    def table(rows):
        start = rng.uniform(0, 30, rows)
        return datasets.Dataset.from_dict(
            {
                "video_uid": [f"v{i}" for i in rng.integers(0, 5, rows)],
                "clip_start": start,
                "clip_end": start + rng.uniform(0, 2, rows),
            }
        )

    own, others = table(40), table(23)
    found = nearest_in_time(own, others, tolerance=1.0)
    for row, match in zip(own, found):
        middle = (row["clip_start"] + row["clip_end"]) / 2
        gaps = [
            abs((o["clip_start"] + o["clip_end"]) / 2 - middle) if o["video_uid"] == row["video_uid"] else np.inf
            for o in others
        ]
        assert match == (int(np.argmin(gaps)) if min(gaps) <= 1.0 else -1)
    assert (found >= 0).any() and (found < 0).any()


def test_own_and_rephrased_texts_are_drawn_by_seed(tmp_path):
    rephrased = load_rephrased(write(tmp_path / "r.pkl"))
    table = datasets.Dataset.from_dict(
        {
            "video_uid": ["video-a", "video-c"],
            "clip_start": [1.1, 0.0],
            "clip_end": [2.1, 1.0],
            "clip_text": ["#C C picks a cup", "#C C waits"],
        }
    )
    texts = Rephrasings(table, rephrased)
    assert texts.num_found == 1 and len(texts) == 2
    drawn = [texts.draw(0, seed)["text"] for seed in range(200)]
    assert set(drawn) == set(EXPECTED[0]) and 60 < drawn.count(EXPECTED[0][0]) < 140
    assert drawn == [texts.draw(0, seed)["text"] for seed in range(200)]
    assert {texts.draw(1, seed)["text"] for seed in range(9)} == {"#C C waits"}
    with pytest.raises(ValueError, match="None of the 1 rows"):
        Rephrasings(table.select([1]), rephrased)
