"""EgoMCQ's file: every question checked, and the view that decodes each clip once."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_svitt_ego.data.egomcq import EGOMCQ_FEATURES, EgoMCQClips, load_egomcq, questions, read_question
from tests.helpers.tiny_data import egomcq_item, write_json

FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck))


def two_questions():
    return {"0": egomcq_item(["a"] * 5, answer=4), "1": egomcq_item(list("abcde"), answer=2, text="#C C cuts")}


def load(tmp_path, content, **kwargs):
    return load_egomcq(write_json(tmp_path / "q.json", content), cache_dir=str(tmp_path / "c"), **kwargs)


def test_good_file_is_typed(tmp_path):
    table = load(tmp_path, two_questions())
    assert table.features == EGOMCQ_FEATURES and table["question_id"][:] == [0, 1]
    assert table["types"][:] == [2, 1] and table["answer"][:] == [4, 2]
    assert table["clip_text"][:] == ["#C C opens a box", "#C C cuts"]
    assert [clip["video_uid"] for clip in table[1]["choices"]] == list("abcde")
    assert table[1]["choices"][3] == {
        "video_uid": "d",
        "clip_start": 4.0,
        "clip_end": 5.0,
        "clip_text": "choice 3",
        "tag_verb": [3],
        "tag_noun": [3, 4],
    }


def test_questions_are_in_numerical_order(tmp_path):
    """As text, 10 sorts before 2; an answer file by position would then be shuffled."""
    items = {str(i): egomcq_item(["a"] * 5, text=f"text {i}") for i in reversed(range(12))}
    assert load(tmp_path, items)["clip_text"][:] == [f"text {i}" for i in range(12)]


def test_streaming_gives_the_same_rows(tmp_path):
    assert list(load(tmp_path, two_questions(), streaming=True)) == load(tmp_path, two_questions()).to_list()


def test_egomcq_and_egoclip_do_not_share_a_cache(tmp_path):
    """Two builders in one cache folder once returned each other's rows."""
    from modeling_svitt_ego.data.egoclip import load_egoclip
    from modeling_svitt_ego.data.egonlq import load_egonlq
    from tests.helpers.tiny_data import egoclip_row, write_egoclip

    cache = str(tmp_path / "c")
    mcq = load(tmp_path, two_questions(), split="train")
    clip = load_egoclip(write_egoclip(tmp_path / "e.csv", [egoclip_row(0)]), cache_dir=cache)
    assert mcq.column_names != clip.column_names and len(mcq) == 2 and len(clip) == 1
    with pytest.raises(ValueError, match="videos"):  # and the same file by another builder is not found ready
        load_egonlq(tmp_path / "q.json", split="train", cache_dir=cache)


def changed(change):
    items = two_questions()
    change(items)
    return items


BAD = {
    "swapped names": (lambda q: q["0"].update(types=1), r"question 0: types is 1 \(inter-video\).*from 1 video"),
    "swapped back": (lambda q: q["1"].update(types=2), r"question 1: types is 2 \(intra-video\).*from 5 video"),
    "other types": (lambda q: q["1"].update(types=3), "question 1: types is 3"),
    "four choices": (lambda q: q["1"]["choices"].pop("4"), "question 1: 4 choices"),
    "six choices": (lambda q: q["1"]["choices"].update({"5": {}}), "question 1: 6 choices"),
    "answer 7": (lambda q: q["1"].update(answer=7), "question 1: answer is 7, expected 0 to 4"),
    "answer -1": (lambda q: q["1"].update(answer=-1), "question 1: answer is -1"),
    "answer True": (lambda q: q["1"].update(answer=True), "question 1, answer: expected a whole number, got True"),
    "no answer": (lambda q: q["1"].pop("answer"), "question 1, answer: .* got None"),
    "no query": (lambda q: q["1"].pop("query"), "question 1, query: expected an object"),
    "empty text": (lambda q: q["0"]["query"].update(clip_text=" "), "question 0, query, clip_text"),
    "uid leaves": (lambda q: q["1"]["choices"]["2"].update(video_uid="../x"), r"question 1, choice 2: .*'\.\./x'"),
    "nan": (lambda q: q["1"]["choices"]["2"].update(clip_start=float("nan")), "choice 2, clip_start.* got nan"),
    "code": (lambda q: q["1"]["choices"]["2"].update(tag_verb="[exit()]"), r"choice 2, tag_verb.*exit\(\)"),
    "tag text": (lambda q: q["1"]["choices"]["2"].update(tag_noun=["3"]), "choice 2, tag_noun"),
    "a gap": (lambda q: q.update({"3": q.pop("1")}), r"keys \"0\" … \"1\".*'3'"),
    "a list": (lambda q: q.update({"1": []}), "question 1: expected an object"),
    "surrogate": (lambda q: q["0"]["query"].update(clip_text="\ud83d"), "question 0, .*surrogate"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_question_is_named(tmp_path, name):
    change, error = BAD[name]
    with pytest.raises(ValueError, match=error) as caught:
        load(tmp_path, changed(change))
    assert "q.json" in str(caught.value)


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "0 bytes"),
        (b"{}", "no questions"),
        (b"[]", "expected an object"),
        (b'{"0": ', "not valid JSON"),
        (b'{"0": {"answer": 1, "answer": 2}}', "'answer' occurs twice"),
        ('{"0": "é"}'.encode("latin-1"), "not UTF-8"),
        (b"[" * 200_000, "nested too deeply|not valid JSON"),
        (b"9" * 10_000, "not valid JSON"),
    ],
    ids=["0-byte", "empty", "list", "cut", "twice", "latin-1", "deep", "digits"],
)
def test_wrong_file_is_one_clear_error(tmp_path, content, error):
    (tmp_path / "q.json").write_bytes(content)
    with pytest.raises(ValueError, match=error):
        load_egomcq(tmp_path / "q.json", cache_dir=str(tmp_path))


def test_numbers_and_lists_may_be_strings(tmp_path):
    """Published files have the tags as text, as the csv has them."""
    items = two_questions()
    items["0"]["choices"]["1"].update(clip_start="2.5", tag_verb="[7, 8]", tag_noun=None)
    clip = load(tmp_path, items)[0]["choices"][1]
    assert (clip["clip_start"], clip["tag_verb"], clip["tag_noun"]) == (2.5, [7, 8], [])


def test_clips_and_texts_are_unique_and_lead_back(tmp_path):
    """195,000 choices are far fewer clips; each is decoded once."""
    rng = np.random.default_rng(0)
    items = {}
    for i in range(40):
        same = i % 2 == 0
        uids = [f"v{rng.integers(3)}"] * 5 if same else [f"v{n}" for n in rng.permutation(6)[:5]]
        items[str(i)] = egomcq_item(uids, int(rng.integers(5)), text=f"text {i % 7}", start=float(rng.integers(3)))
    table = load(tmp_path, items)
    view = EgoMCQClips(table)
    assert len(view) == 40 and view.choices.shape == (40, 5) and len(view.texts) == 7
    keys = [(c["video_uid"], c["clip_start"], c["clip_end"]) for c in view.clips.to_list()]
    assert keys == sorted(set(keys)) and len(keys) < 100
    for row, choices, text, answer, intra in zip(table, view.choices, view.text_of, view.answers, view.is_intra):
        assert [keys[c] for c in choices] == [(c["video_uid"], c["clip_start"], c["clip_end"]) for c in row["choices"]]
        assert view.texts[text] == row["clip_text"] and answer == row["answer"] and intra == (row["types"] == 2)
    # a part of the questions keeps its own clips alone
    part = EgoMCQClips(table.select([5, 3]))
    assert part.answers.tolist() == [table[5]["answer"], table[3]["answer"]] and part.choices.max() < len(part.clips)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("[1, 2]"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    ("answer",),
    ("types",),
    ("query",),
    ("query", "clip_text"),
    ("choices",),
    ("choices", "2"),
    *(("choices", "2", name) for name in ("video_uid", "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun")),
]


def check_fuzzed(path, place, value):
    item = egomcq_item(list("abcde"))
    node = item
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    path.write_text(json.dumps({"0": item}))
    try:
        ((key, read),) = questions(str(path))
        row = read_question(key, read, str(path))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return
    # What is accepted fits the schema as it is.
    EGOMCQ_FEATURES.encode_example(row)
    assert 0 <= row["answer"] < 5 and row["types"] == 1 and len(row["choices"]) == 5
    assert all(np.isfinite([clip["clip_start"], clip["clip_end"]]).all() for clip in row["choices"])
    assert all(min(clip["tag_verb"] + clip["tag_noun"], default=0) >= 0 for clip in row["choices"])


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=200, **FUZZ)
def test_any_value_anywhere_is_accepted_whole_or_named(tmp_path_factory, place, value):
    check_fuzzed(tmp_path_factory.getbasetemp() / "fuzz.json", place, value)


@pytest.mark.slow
@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=10_000, **FUZZ)
def test_ten_thousand_values_are_accepted_whole_or_named(tmp_path_factory, place, value):
    check_fuzzed(tmp_path_factory.getbasetemp() / "fuzz-slow.json", place, value)
