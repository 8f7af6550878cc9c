"""EgoNLQ and EPIC-KITCHENS files: every query is kept, seconds are used, anything wrong is named."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_svitt_ego.data.egonlq import EGONLQ_FEATURES, load_egonlq, query_flags, read_queries
from modeling_svitt_ego.data.epic_kitchens import load_epic_kitchens, parse_timestamp
from tests.helpers.tiny_data import write_json

FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck))


def query(text="Where is the cup?", start=10.0, end=12.5, **more):
    return {
        "clip_start_sec": start,
        "clip_end_sec": end,
        "video_start_sec": 110.0,
        "video_end_sec": 112.5,
        "video_start_frame": 7,  # wrong on purpose: frame fields are not to be used
        "video_end_frame": 7,
        "template": "Objects: Where is object X?",
        "query": text,
        "slot_x": "cup",
        "verb_x": None,
        "slot_y": "",
        "raw_tags": ["a", "b"],
        **more,
    }


def nlq(queries):
    clip = {
        "clip_uid": "c1",
        "video_start_sec": 100.0,
        "video_end_sec": 580.0,
        "annotations": [
            {"annotation_uid": "a1", "language_queries": queries},
            {"annotation_uid": "a2", "language_queries": [query("What did I open?")]},
        ],
    }
    return {"version": "1", "videos": [{"video_uid": "v1", "split": "val", "clips": [clip]}]}


def test_one_row_per_query_in_the_order_of_the_file(tmp_path):
    path = write_json(tmp_path / "n.json", nlq([query(), query("Second?", 1, 2)]))
    table = load_egonlq(path, cache_dir=str(tmp_path))
    assert table.features == EGONLQ_FEATURES
    keys = [(r["clip_uid"], r["annotation_uid"], r["query_idx"]) for r in table]
    assert keys == [("c1", "a1", 0), ("c1", "a1", 1), ("c1", "a2", 0)]
    assert table[0] == {
        "video_uid": "v1",
        "clip_uid": "c1",
        "clip_start": 100.0,
        "clip_end": 580.0,
        "annotation_uid": "a1",
        "query_idx": 0,
        "query": "Where is the cup?",
        "answer_start": 10.0,
        "answer_end": 12.5,
        "template": "Objects: Where is object X?",
        "slot_x": "cup",
        "verb_x": None,
        "slot_y": None,
        "verb_y": None,
    }


def test_odd_queries_stay_and_are_flagged(tmp_path, caplog):
    """v1 val has one query without text and 342 answers of zero length; dropping them changes the score."""
    path = write_json(tmp_path / "n.json", nlq([query(None), query(start=5, end=5), query(start=6, end=5)]))
    table = load_egonlq(path, cache_dir=str(tmp_path))
    flags = query_flags(table)
    assert len(table) == 4
    assert flags["has_text"].tolist() == [False, True, True, True]
    assert flags["has_length"].tolist() == [True, False, False, True]
    assert flags["has_answer"].all()
    assert "4 queries, of which {'has_text': 1, 'has_length': 2}" in caplog.text


def test_test_split_has_no_answers(tmp_path):
    without = query()
    del without["clip_start_sec"], without["clip_end_sec"]
    table = load_egonlq(write_json(tmp_path / "n.json", nlq([without])), split="test", cache_dir=str(tmp_path))
    assert table["answer_start"][:] == [None, 10.0]
    assert query_flags(table)["has_answer"].tolist() == [False, True]
    assert query_flags(table)["has_length"].tolist() == [True, True]


def test_streaming_gives_the_same_rows(tmp_path):
    path = write_json(tmp_path / "n.json", nlq([query()]))
    stream = load_egonlq(path, streaming=True, cache_dir=str(tmp_path))
    assert list(stream) == load_egonlq(path, cache_dir=str(tmp_path)).to_list()


def clip_of(content):
    return content["videos"][0]["clips"][0]


BAD = {
    "no videos": (lambda c: c.pop("videos"), "videos: expected a list, got None"),
    "no queries": (lambda c: c.update(videos=[]), "contains no queries"),
    "uid leaves": (lambda c: c["videos"][0].update(video_uid="../v"), r"video 0: .*'\.\./v'"),
    "no clip uid": (lambda c: clip_of(c).pop("clip_uid"), "video 0, clip 0, clip_uid"),
    "no window": (lambda c: clip_of(c).update(video_end_sec=None), "clip 0, video_end_sec"),
    "nan": (
        lambda c: clip_of(c)["annotations"][0]["language_queries"][0].update(clip_end_sec=float("nan")),
        "annotation 0, query 0, answer_end: .*nan",
    ),
    "half an answer": (
        lambda c: clip_of(c)["annotations"][1]["language_queries"][0].pop("clip_end_sec"),
        "annotation 1, query 0: .*one is missing",
    ),
    "number as text": (
        lambda c: clip_of(c)["annotations"][1]["language_queries"][0].update(query=7),
        "annotation 1, query 0, query: expected a text, got 7",
    ),
    "query as text": (
        lambda c: clip_of(c)["annotations"][1].update(language_queries=["where?"]),
        "annotation 1, query 0: expected an object",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_file_is_named(tmp_path, name):
    change, error = BAD[name]
    content = nlq([query()])
    change(content)
    with pytest.raises(ValueError, match=error) as caught:
        load_egonlq(write_json(tmp_path / "n.json", content), cache_dir=str(tmp_path))
    assert "n.json" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_into(node, prefix=()):
    yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from paths_into(child, (*prefix, key))


TEMPLATE = nlq([query()])
PLACES = [place for place in paths_into(TEMPLATE) if place]


def check_fuzzed(path, place, value):
    content = copy.deepcopy(TEMPLATE)
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path.write_text(json.dumps(content))
    try:
        rows = list(read_queries(str(path)))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return
    for row in rows:
        EGONLQ_FEATURES.encode_example(row)


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=200, **FUZZ)
def test_any_value_anywhere_is_accepted_whole_or_named(tmp_path_factory, place, value):
    check_fuzzed(tmp_path_factory.getbasetemp() / "fuzz.json", place, value)


@pytest.mark.slow
@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=10_000, **FUZZ)
def test_ten_thousand_values_are_accepted_whole_or_named(tmp_path_factory, place, value):
    check_fuzzed(tmp_path_factory.getbasetemp() / "fuzz-slow.json", place, value)


# ---- EPIC-KITCHENS-100 ----------------------------------------------------------------------------------------------

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
EPIC_ROWS = [
    "P01_11_0,P01,P01_11,00:00:00.740,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]",
    'P01_11_1,P01,P01_11,00:00:02,01:00:02.68,01:00:03.48,1,9,"take knife, fork",take,0,knife,4,'
    "\"['knife', 'fork']\",\"[4, 8]\"",
]


def epic(path, rows=EPIC_ROWS, header=EPIC_HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_epic_file_with_a_byte_order_mark_and_blank_lines(tmp_path):
    path = epic(tmp_path / "e.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert len(load_epic_kitchens(path, cache_dir=str(tmp_path))) == 2


def test_epic_clips(tmp_path):
    table = load_epic_kitchens(epic(tmp_path / "e.csv"), cache_dir=str(tmp_path))
    assert table["video_uid"][:] == ["P01_11"] * 2 and table["clip_start"][:] == [0.0, 3602.68]
    assert table[1]["clip_text"] == "take knife, fork" and table[1]["all_nouns"] == ["knife", "fork"]
    assert table[1]["all_noun_classes"] == [4, 8] and table[1]["verb_class"] == 0


@pytest.mark.parametrize("header", ["narration_id,narration", "index,sentence"])
def test_epic_sentences_take_their_classes_from_the_clips(tmp_path, header):
    sentences = epic(tmp_path / "s.csv", ["P01_11_1,take knife and fork"], header)
    table = load_epic_kitchens(epic(tmp_path / "e.csv"), sentences, cache_dir=str(tmp_path))
    assert table["clip_text"][:] == ["take knife and fork"] and table["all_noun_classes"][:] == [[4, 8]]
    bad = epic(tmp_path / "b.csv", ["P99_1,open"], header)
    with pytest.raises(ValueError, match="b.csv', line 2: 'P99_1' is not a narration_id"):
        load_epic_kitchens(tmp_path / "e.csv", bad, cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    "old, new, error",
    [
        ("[2]", "[exit()]", "line 2: .*is not a list of whole numbers"),
        ("['plate']", "[plate]", "line 2: .*is not a list of texts"),
        ("00:00:01.89", "1.89", "line 2: '1.89' is not a time"),
        ("take,0,plate", "take,zero,plate", "line 2: 'zero' is not a class number"),
        ("P01,P01_11,00:00:00.740", "P01,../x,00:00:00.740", r"line 2: .*'\.\./x'"),
        ("P01_11_1,", "P01_11_0,", "line 3: narration_id 'P01_11_0' occurs twice"),
        (",[2]", "", "line 2: 14 cells instead of 15"),
        ("narration_id,", "id,", r"lacks the column\(s\) \['narration_id'\]"),
    ],
)
def test_malformed_epic_file_is_named(tmp_path, old, new, error):
    path = epic(tmp_path / "e.csv")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=error):
        load_epic_kitchens(path, cache_dir=str(tmp_path))


def test_epic_file_in_another_encoding(tmp_path):
    (tmp_path / "e.csv").write_bytes((EPIC_HEADER + "\ncaf\u00e9").encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_epic_kitchens(tmp_path / "e.csv", cache_dir=str(tmp_path))


@given(st.text(alphabet="0123456789:. -e", max_size=14))
@settings(max_examples=300, **FUZZ)
def test_timestamps_are_seconds_or_an_error(cell):
    try:
        value = parse_timestamp(cell)
    except ValueError:
        return
    hours, minutes, secs = cell.strip().split(":")
    assert value == pytest.approx(int(hours) * 3600 + int(minutes) * 60 + float(secs))
    assert 0 <= float(secs) < 60 and int(minutes) < 60
