"""Narrations -> clip windows, tags, EgoClip, EgoMCQ and EgoNLQ files."""

import ast
import csv
import json

import datasets
import numpy as np
import pytest

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.corpus.durations import measure_durations, read_durations
from modeling_svitt_ego.corpus.egoclip_building import (
    EGOCLIP_COLUMNS,
    Selection,
    build_egoclip,
    egoclip_rows,
    write_egoclip,
)
from modeling_svitt_ego.corpus.egomcq_building import INTER, INTRA, build_egomcq
from modeling_svitt_ego.corpus.egonlq_building import build_egonlq
from modeling_svitt_ego.corpus.narration_tagger import tag_narration
from modeling_svitt_ego.corpus.narrations import Narration, clip_windows, read_narration_json, write_narration_json
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.taxonomy import Taxonomy, read_taxonomy, write_taxonomy
from tests.helpers.tiny_data import write_video

VERBS = Taxonomy(
    labels=("take_(pick,_get)", "put_down", "slide left", "open", "book"),
    words=(("pick", "take", "get", "pick-up"), ("put_down", "place"), ("slide left",), ("open",), ("book",)),
)
NOUNS = Taxonomy(
    labels=("cup", "board", "cutting board", "book", "berry"),
    words=(("cup", "mug"), ("board",), ("cutting_board",), ("book",), ("berry",)),
)


def narrate(video_uid, items, duration=100.0, source="narration_pass_1"):
    return [Narration(video_uid, duration, time, text, source) for time, text in items]


def test_clip_windows_follow_egovlps_formula():
    """Catches a window that forgets the 2, the mean over videos, or the order of the narrations."""
    windows = clip_windows({"slow": [9.0, 1.0, 5.0], "fast": [0.1, 2.1]})  # beta 4 and 2, alpha 3
    assert windows["slow"] == [(t - 4 / 6, t + 4 / 6) for t in (9.0, 1.0, 5.0)]
    assert windows["fast"] == [(t - 2 / 6, t + 2 / 6) for t in (0.1, 2.1)]
    assert windows["fast"][0][0] < 0  # as in the published file: readers clamp


def test_clip_windows_where_no_gap_is_known():
    """Catches a division by zero for videos with one narration, or all at one time."""
    assert clip_windows({"one": [3.0], "two": [0.0, 4.0]})["one"] == [(2.5, 3.5)]
    assert clip_windows({"one": [3.0]}) == {"one": [(2.5, 3.5)]}
    assert clip_windows({"same": [3.0, 3.0]})["same"] == [(2.5, 3.5)] * 2
    assert clip_windows({}) == {}


@pytest.mark.parametrize(
    "text, verbs, nouns",
    [
        ("#C C picks up the red cup", [0], [0]),
        ("#C C picked berries", [0], [4]),
        ("#C C slides a mug slowly to the left", [2], [0]),
        ("#C C slides a mug", [], [0]),
        ("#C C puts the cup down", [1], [0]),
        ("#C C takes the cutting board", [0], [2]),
        ("#C C picks up the book", [0], [3]),  # book is also a verb, but not here
        ("#C C opens the book and places the cup", [3, 1], [3, 0]),
        ("#O A man X takes #unsure", [0], []),
        ("#C C looks around", [], []),
        ("", [], []),
    ],
)
def test_tag_narration(text, verbs, nouns):
    """Catches wrong groups: word forms, gapped verbs, long before short entries, nouns taken for verbs."""
    assert tag_narration(text, VERBS, NOUNS) == (verbs, nouns)


def test_taxonomy_survives_the_file_and_epic_kitchens_form_is_read(tmp_path):
    """Catches a csv that quotes the word lists wrongly."""
    write_taxonomy(VERBS, tmp_path / "verbs.csv")
    assert (tmp_path / "verbs.csv").read_text().splitlines()[0] == "label,group"
    assert read_taxonomy(tmp_path / "verbs.csv") == VERBS
    (tmp_path / "epic.csv").write_text("id,key,instances,category\n1,put,\"['put', 'lay']\",x\n0,take,['take'],x\n")
    assert read_taxonomy(tmp_path / "epic.csv") == Taxonomy(("take", "put"), (("take",), ("put", "lay")))


@pytest.mark.parametrize("content", ["", "label,group\n", "a,b\n1,2\n", "label,group\ncup,__import__('os')\n"])
def test_bad_taxonomy_is_one_error_with_the_path(tmp_path, content):
    """Catches evaluation of annotation cells and bare KeyErrors."""
    (tmp_path / "nouns.csv").write_text(content)
    with pytest.raises(ValueError, match="nouns.csv"):
        read_taxonomy(tmp_path / "nouns.csv")


def test_narration_json_survives_the_file(tmp_path):
    """Catches lost annotators and a reader that trusts the order of the file."""
    narrations = narrate("v1", [(5.0, "#C C takes a cup"), (2.0, "#C C opens a book")])
    narrations += narrate("v1", [(4.0, "#C C takes a cup")], source="narration_pass_2")
    write_narration_json(narrations, tmp_path / "narration.json")
    assert read_narration_json(tmp_path / "narration.json", {"v1": 100.0}) == narrations
    with pytest.raises(ValueError, match="v1"):
        read_narration_json(tmp_path / "narration.json", {})


def test_egoclip_has_the_published_columns_and_cells(tmp_path):
    """Catches any departure from the tab-separated, unquoted file that EgoVLP's readers expect."""
    narrations = narrate("v1", [(5.0, '#C C takes a "cup"'), (2.0, "#C C opens a book"), (4.0, "#C C looks around")])
    narrations += narrate("v1", [(4.0, "#C C takes a cup"), (9.0, "#C C takes a cup")], source="narration_pass_2")
    rows = build_egoclip(narrations, VERBS, NOUNS)
    write_egoclip(rows, tmp_path / "egoclip.csv")
    with open(tmp_path / "egoclip.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert tuple(lines[0]) == EGOCLIP_COLUMNS
    assert [line["narration_time"] for line in lines] == ["2.0", "4.0", "5.0", "4.0", "9.0"]
    assert [line["narration_ind"] for line in lines] == ["0", "1", "2", "0", "1"]
    assert [line["clip_idx"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[2]["clip_text"] == '#C C takes a "cup"'
    assert (lines[0]["tag_verb"], lines[0]["tag_noun"]) == ("[3]", "[3]")
    assert (lines[1]["tag_verb"], lines[1]["tag_noun"]) == ("[]", "[]")
    # Two annotators are two lists: beta 1.5 and 5, alpha 3.25.
    assert float(lines[4]["clip_end"]) == pytest.approx(9 + 5 / 6.5, abs=1e-6)


def test_a_narration_that_would_break_the_table_is_refused(tmp_path):
    """Catches a tab in a sentence that would shift every later column."""
    rows = build_egoclip(narrate("v1", [(1.0, "#C C takes\ta cup")]), VERBS, NOUNS)
    with pytest.raises(ValueError, match="tab or line break"):
        write_egoclip(rows, tmp_path / "egoclip.csv")


def make_rows(num_videos=7, per_video=24, seed=0):
    rng = np.random.default_rng(seed)
    verbs = Taxonomy(("open", "close", "take"), (("open",), ("close",), ("take",)))
    narrations = []
    for video in range(num_videos):
        for k in range(per_video):
            verb, noun = rng.choice(["opens", "closes", "takes"]), rng.choice(["cup", "book", "board", "berry"])
            narrations += narrate(f"video{video}", [(2.0 * k, f"#C C {verb} the {noun}")])
    narrations += narrate("video0", [(60.0, "#C C looks around")])
    return build_egoclip(narrations, verbs, NOUNS), verbs


def test_egomcq_has_exactly_one_right_answer_and_the_published_form():
    """Catches a second right answer, choices of the wrong videos, and wrong types."""
    rows, _ = make_rows()
    questions = build_egomcq(rows, max_inter=30, max_intra=25, twin_verbs={0: 1, 1: 0}, seed=3)
    assert list(questions) == [str(k) for k in range(55)]
    kinds = [question["types"] for question in questions.values()]
    assert (kinds.count(INTER), kinds.count(INTRA)) == (30, 25)
    for question in questions.values():
        choices = [question["choices"][str(k)] for k in range(5)]
        assert choices[question["answer"]] == question["query"]
        assert set(question["query"]) == set(EGOCLIP_COLUMNS)
        assert len({choice["video_uid"] for choice in choices}) == (5 if question["types"] == INTER else 1)
        assert len({(choice["tag_verb"], choice["tag_noun"]) for choice in choices}) == 5
        assert len({choice["clip_text"] for choice in choices}) == 5
        assert all(ast.literal_eval(choice["tag_verb"]) for choice in choices)
    assert len({question["answer"] for question in questions.values()}) == 5
    json.dumps(questions)
    assert questions == build_egomcq(rows, max_inter=30, max_intra=25, twin_verbs={0: 1, 1: 0}, seed=3)


def test_intra_questions_offer_the_time_reversed_twin_where_there_is_one():
    """Catches intra questions that the bag of frames could answer."""
    rows, _ = make_rows()
    pairs = {(row["video_uid"], row["tag_verb"][0], row["tag_noun"][0]) for row in rows if row["tag_verb"]}
    twins = {0: 1, 1: 0}
    for question in build_egomcq(rows, twin_verbs=twins).values():
        query = question["query"]
        verb, noun = ast.literal_eval(query["tag_verb"])[0], ast.literal_eval(query["tag_noun"])[0]
        if question["types"] == INTRA and verb in twins and (query["video_uid"], twins[verb], noun) in pairs:
            tags = [(choice["tag_verb"], choice["tag_noun"]) for choice in question["choices"].values()]
            assert (str([twins[verb]]), str([noun])) in tags


def test_too_small_corpora_give_no_questions_rather_than_wrong_ones():
    """Catches questions with fewer than five choices."""
    rows, _ = make_rows(num_videos=4)
    assert {question["types"] for question in build_egomcq(rows).values()} == {INTRA}
    assert build_egomcq([]) == {}
    assert build_egomcq(rows[:3]) == {}


def test_egonlq_asks_only_where_there_is_one_answer():
    """Catches ambiguous questions and windows outside the video or on two clocks."""
    items = [(2, "opens the cup"), (4, "takes the book"), (6, "takes the berry"), (8, "opens the board")]
    items += [(10, "opens the board"), (99.9, "closes the cup")]
    verbs = Taxonomy(("open", "close", "pick up"), (("open",), ("close",), ("take",)))
    rows = build_egoclip(narrate("v1", [(t, f"#C C {text}") for t, text in items]), verbs, NOUNS)
    content = build_egonlq(rows, verbs, NOUNS, windows={1: (3.0, 5.5)})
    (video,) = content["videos"]
    (clip,) = video["clips"]
    (annotation,) = clip["annotations"]
    queries = {query["query"]: query for query in annotation["language_queries"]}
    assert set(queries) == {
        "when did i open the cup?",
        "what did i pick up after i opened the cup?",
        "where was the book before i picked it up?",
        "where was the berry before i picked it up?",
        "did i close the cup?",
    }
    answer = queries["what did i pick up after i opened the cup?"]
    assert (answer["clip_start_sec"], answer["clip_end_sec"]) == (3.0, 5.5)
    for query in queries.values():
        assert 0 <= query["clip_start_sec"] < query["clip_end_sec"] <= clip["clip_end_sec"] == 100.0
        assert query["video_start_sec"] == query["clip_start_sec"]
        assert set(query) >= {"template", "query", "slot_x", "verb_x", "slot_y", "verb_y", "raw_tags"}

    (repeated,) = build_egonlq(rows, verbs, NOUNS, unique=False)["videos"][0]["clips"][0]["annotations"]
    asked = [query for query in repeated["language_queries"] if query["query"] == "when did i open the board?"]
    assert [round(query["clip_start_sec"] + query["clip_end_sec"]) // 2 for query in asked] == [8, 10]
    assert repeated["annotation_uid"] != annotation["annotation_uid"]  # features of texts are filed under it


# ── svitt-ego build-egoclip ────────────────────────────────────────────────────────────────────────────────────────


def sentence(time, text):
    return {"timestamp_sec": time, "timestamp_frame": 0, "narration_text": text, "annotation_uid": "x"}


@pytest.fixture
def corpus(tmp_path):
    """Two annotators, out of order, with everything that real narrations have in them."""
    first = [
        sentence(9.0, "#C C picks up the\tcup\n"),
        sentence(1.0, "#O A man X opens the book"),
        sentence(5.0, "#C C takes #unsure"),
        sentence(5.0, "#C C takes #unsure"),
        sentence(None, "#C C takes a cup"),
        sentence(6.0, "  "),
        sentence(float(90), "#C C takes a cup"),
        "no object",
    ]
    second = [sentence(3.0, "#C C places the berries"), sentence(4.0, "#C C walks")]
    videos = {
        "video-a": {
            "status": "complete",
            "narration_pass_2": {"narrations": second, "summaries": []},
            "narration_pass_1": {"narrations": first, "summaries": []},
        },
        "video-b": {"status": "redacted"},
        "video-c": {"narration_pass_1": {"narrations": [sentence(1.0, "#C C takes a cup")], "summaries": []}},
    }
    (tmp_path / "narration.json").write_text(json.dumps(videos))
    durations = {"videos": [{"video_uid": uid, "duration_sec": 30.0} for uid in ("video-a", "video-b")]}
    (tmp_path / "ego4d.json").write_text(json.dumps(durations))
    write_taxonomy(VERBS, tmp_path / "verbs.csv")
    write_taxonomy(NOUNS, tmp_path / "nouns.csv")
    return tmp_path


def build_by_command(folder, *options, durations=("--durations", "ego4d.json")):
    paths = ["build-egoclip", folder / "narration.json", folder / "out.csv"]
    paths += ["--verb-taxonomy", folder / "verbs.csv", "--noun-taxonomy", folder / "nouns.csv"]
    paths += [durations[0], folder / durations[1], "--json", folder / "report.json", *options]
    return main([str(part) for part in paths])


def test_the_command_keeps_what_it_can_and_accounts_for_the_rest(corpus, capsys):
    """Catches a sentence that is neither a clip nor on the list of what was dropped."""
    assert build_by_command(corpus) == 0
    table = load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache"), strict=True)
    assert table["clip_text"][:] == [
        "#O A man X opens the book",
        "#C C takes #unsure",
        "#C C picks up the cup",
        "#C C places the berries",
        "#C C walks",
    ]
    assert table["narration_source"][:] == ["narration_pass_1"] * 3 + ["narration_pass_2"] * 2
    assert table["tag_verb"][:] == [[3], [0], [0], [1], []] and table["tag_noun"][:] == [[3], [], [0], [4], []]
    report = json.loads((corpus / "report.json").read_text())
    assert (report["read"], report["kept"], report["videos"], report["passes"]) == (11, 5, 1, 2)
    assert (report["other_person"], report["unsure"], report["no_verb"], report["no_noun"]) == (1, 1, 1, 2)
    assert report["dropped"] == {
        "time is not a number": 2,
        "same sentence at the same time": 1,
        "no text": 1,
        "window past the video's end": 1,
        "no duration known for the video": 1,
    }
    assert report["read"] == report["kept"] + sum(report["dropped"].values())
    listed = (corpus / "out.csv.dropped.tsv").read_text().splitlines()
    assert len(listed) == 7 and any("video-c" in line for line in listed)
    assert "dropped: no text" in capsys.readouterr().out


def test_the_selection_is_the_users(corpus):
    """Catches options that are read and not obeyed, and windows that move when a sentence is left out."""
    build_by_command(corpus)
    whole = {row["clip_text"]: row for row in load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache"))}
    build_by_command(corpus, "--drop", "unsure", "other", "--min-words", "2")
    kept = list(load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache")))
    assert [row["clip_text"] for row in kept] == ["#C C picks up the cup", "#C C places the berries"]
    for row in kept:
        before = whole[row["clip_text"]]
        assert (row["clip_start"], row["clip_end"]) == (before["clip_start"], before["clip_end"])
    dropped = json.loads((corpus / "report.json").read_text())["dropped"]
    assert (dropped["says #unsure"], dropped["says #O"], dropped["fewer than 2 words"]) == (1, 1, 1)
    build_by_command(corpus, "--min-seconds", "0.4", "--max-seconds", "0.4")
    for row in load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache")):
        assert row["clip_end"] - row["clip_start"] == pytest.approx(0.4)
        assert (row["clip_end"] + row["clip_start"]) / 2 == pytest.approx(row["narration_time"])


def test_windows_can_be_widened():
    rows = egoclip_rows(
        narrate("v1", [(5.0, "#C C takes a cup"), (6.0, "#C C walks")]), VERBS, NOUNS, Selection(min_seconds=3.0)
    )
    assert [(row["clip_start"], row["clip_end"]) for row in rows] == [(3.5, 6.5), (4.5, 7.5)]


def test_lengths_can_come_from_the_videos(corpus):
    """Catches a video without a file that ends the build, or is kept with a length of its own invention."""
    write_video(corpus / "videos" / "video-a.mp4", 50, fps=5)
    assert build_by_command(corpus, durations=("--video-root", "videos")) == 0
    table = load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache"))
    assert set(table["video_dur"][:]) == {10.0} and len(table) == 5


def test_a_failed_build_leaves_the_old_file_alone(corpus, capsys):
    """Catches a good csv overwritten by an empty or half-written one."""
    build_by_command(corpus)
    before = (corpus / "out.csv").read_bytes()
    (corpus / "ego4d.json").write_text(json.dumps({"videos": [{"video_uid": "other", "duration_sec": 3}]}))
    assert build_by_command(corpus) == 2
    error = capsys.readouterr().err
    assert "none of its 11 sentences" in error and "11 x no duration known" in error
    assert (corpus / "out.csv").read_bytes() == before and not (corpus / "out.csv.incomplete").exists()


def test_shards_give_the_same_bytes_as_one_run(corpus, capsys):
    """Catches sentences that no shard tags, and a merge of half the shards or of another narration file's."""
    assert build_by_command(corpus) == 0
    whole = (corpus / "out.csv").read_bytes()
    (corpus / "out.csv").unlink()
    assert build_by_command(corpus, "--shard", "0/2") == 0
    assert build_by_command(corpus, "--merge") == 2
    assert "run every shard of one split" in " ".join(capsys.readouterr().err.split()).lower()
    assert build_by_command(corpus, "--shard", "1/2") == 0 and not (corpus / "out.csv").exists()
    narrations = (corpus / "narration.json").read_text()
    (corpus / "narration.json").write_text(narrations + " ")
    assert build_by_command(corpus, "--merge") == 2
    assert "was made from other narrations or taxonomies" in capsys.readouterr().err
    (corpus / "narration.json").write_text(narrations)
    assert build_by_command(corpus, "--merge") == 0
    assert (corpus / "out.csv").read_bytes() == whole and not list(corpus.glob("*shard*.jsonl"))


def test_the_table_as_parquet(corpus):
    assert build_by_command(corpus, "--parquet", corpus / "table") == 0
    table = datasets.load_dataset(str(corpus / "table"), "egoclip", split="train", cache_dir=str(corpus / "cache"))
    assert table.to_list() == load_egoclip(corpus / "out.csv", cache_dir=str(corpus / "cache")).to_list()


def test_a_damaged_video_drops_its_sentences_and_ends_nothing(tmp_path, caplog):
    write_video(tmp_path / "videos" / "good.mp4", 20)
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    videos = {uid: {"narration_pass_1": {"narrations": []}} for uid in ("good", "bad", "absent")}
    (tmp_path / "n.json").write_text(json.dumps(videos))
    assert measure_durations(tmp_path / "n.json", tmp_path / "videos") == {"good": pytest.approx(2.0)}
    assert "bad.mp4" in caplog.text


@pytest.mark.parametrize("name", ["taxonomy.csv", "durations.csv"])
def test_tables_of_other_programs(tmp_path, name):
    """Catches a byte order mark in the first column's name, a blank last line, and an error that names no file."""
    read = read_durations if name == "durations.csv" else read_taxonomy
    rows = "label,group\nopen,['öffne']\n" if read is read_taxonomy else "video_uid,duration_sec\nö,3.5\n"
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").encode() + b"\r\n , \r\n\r\n")
    found = read(path)
    assert (found == {"ö": 3.5}) if read is read_durations else (found.words == (("öffne",),))
    path.write_bytes(rows.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}' is not UTF-8 text"):
        read(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "expected an object of videos"),
        ('{"videos": []}', "expected an object of videos by video_uid, got `videos` is a list"),
        ('{"v": {"status": "complete"}}', "none of its 1 videos has narration_pass_1 or narration_pass_2"),
        ('{"v": []}', "expected an object with narration_pass_1"),
        ('{"v": {"narration_pass_1": []}}', "has no list"),
        ('{"../v": {"narration_pass_1": {"narrations": []}}}', "not a plain file name"),
        ('{"v": {"narration_pass_1"', "not valid JSON"),
    ],
)
def test_a_malformed_narration_file_is_one_error_with_the_path(corpus, capsys, content, message):
    (corpus / "narration.json").write_text(content)
    assert build_by_command(corpus) == 2
    error = capsys.readouterr().err
    assert message in error


def test_durations_are_read_from_a_csv_too(tmp_path):
    (tmp_path / "d.csv").write_text("video_uid,duration_sec\nv1,3.5\n")
    assert read_durations(tmp_path / "d.csv") == {"v1": 3.5}
    (tmp_path / "d.csv").write_text("video_uid,seconds\nv1,3.5\n")
    with pytest.raises(ValueError, match="d.csv: entry 0"):
        read_durations(tmp_path / "d.csv")
