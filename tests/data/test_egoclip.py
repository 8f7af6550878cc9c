"""EgoClip's file: nothing lost silently, nothing evaluated, every malformed line listed with its number."""

import csv
import io
import math
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import datasets
import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_svitt_ego.corpus.parquet_export import export_parquet
from modeling_svitt_ego.data.egoclip import EGOCLIP_FEATURES, load_egoclip, read_egoclip
from modeling_svitt_ego.files.arrow_cache import REPORT_NAME, rejected_lines
from tests.helpers.tiny_data import COLUMNS, egoclip_row, write_egoclip

FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck))


def line_of(**changes):
    return "\t".join(str(value) for value in egoclip_row(0, **changes).values())


def test_good_file_is_typed(tmp_path):
    rows = [egoclip_row(i) for i in range(5)]
    rows[1] = egoclip_row(1, tag_verb=[], tag_noun=[])
    rows[2] = egoclip_row(2, clip_start=-0.25, tag_noun=[192, 115, 12])
    table = load_egoclip(write_egoclip(tmp_path / "e.csv", rows), cache_dir=str(tmp_path / "c"))
    assert table.features == EGOCLIP_FEATURES
    assert table.to_list() == rows
    assert rejected_lines(table) == []


def test_columns_go_by_name_and_extra_ones_are_ignored(tmp_path):
    rows = [{**egoclip_row(i), "extra": "x"} for i in range(3)]
    path = write_egoclip(tmp_path / "e.csv", rows, columns=["extra", *reversed(COLUMNS)])
    assert load_egoclip(path, cache_dir=str(tmp_path)).to_list() == [egoclip_row(i) for i in range(3)]


@pytest.mark.parametrize("newline, end", [("\n", "\n"), ("\r\n", "\r\n"), ("\n", "")], ids=["lf", "crlf", "no-end"])
def test_line_ends(tmp_path, newline, end):
    rows = [egoclip_row(i) for i in range(4)]
    path = write_egoclip(tmp_path / "e.csv", rows, newline=newline, end=end)
    table = load_egoclip(path, cache_dir=str(tmp_path))
    assert table.to_list() == rows and not rejected_lines(table)


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_egoclip(path, cache_dir=str(tmp_path))) == 1


def test_lone_quotation_marks_keep_every_row(tmp_path):
    """With default quoting one lone mark swallowed 112,907 of 200,000 rows, silently."""
    texts = ['#C C opens a 12" board', '"', "'", '""', 'a "quoted" word', '#C C says "hi', "back\\slash", "#unsure"]
    rows = [egoclip_row(i, clip_text=texts[i % len(texts)]) for i in range(200)]
    table = load_egoclip(write_egoclip(tmp_path / "e.csv", rows), cache_dir=str(tmp_path))
    assert table["clip_text"][:] == [row["clip_text"] for row in rows]


BAD_LINES = {
    "too few cells": ("a\tb", "2 cells instead of 11"),
    "too many cells": (line_of() + "\textra", "12 cells instead of 11"),
    "empty line": ("", "1 cells instead of 11"),
    "code in a list": (line_of(tag_verb="[__import__('os').system('x')]"), "tag_verb: .* is not a list of integers"),
    "unclosed list": (line_of(tag_noun="[1, 2"), "tag_noun: .* is not a list"),
    "negative tag": (line_of(tag_noun="[-1]"), "tag_noun: .* is not a list"),
    "tag of 20 digits": (line_of(tag_verb="[99999999999999999999]"), "tag_verb: .* is not a list"),
    "trailing comma": (line_of(tag_verb="[1,]"), "tag_verb: .* is not a list"),
    "words for numbers": (line_of(clip_start="soon"), "clip_start: 'soon' is not a number"),
    "empty number": (line_of(clip_end=""), "clip_end: '' is not a number"),
    "nan": (line_of(narration_time="nan"), "narration_time: 'nan' is not finite"),
    "infinite": (line_of(video_dur="inf"), "video_dur: 'inf' is not finite"),
    "float index": (line_of(clip_idx="1.5"), "clip_idx: '1.5' is not a whole number"),
    "leaves the root": (line_of(video_uid="../../etc/passwd"), "video_uid: .* not a plain file name"),
    "empty uid": (line_of(video_uid=""), "video_uid: .* not a plain file name"),
    "empty text": (line_of(clip_text=" "), "clip_text: empty"),
    "not utf-8": (line_of(clip_text="XX").encode().replace(b"XX", b"caf\xe9"), "not UTF-8: byte 0xe9 at position 49"),
    "two rows in one line": (line_of() + "\r" + line_of(), "a carriage return inside the line"),
    "carriage return": (line_of(clip_text="one\rtwo"), "a carriage return inside the line"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_malformed_line_is_listed_and_its_neighbours_stay(tmp_path, name, caplog):
    """The line's number and reason are told, and no good line goes with it."""
    bad, reason = BAD_LINES[name]
    rows = [egoclip_row(i) for i in range(12)]
    path = write_egoclip(tmp_path / "e.csv", [*rows[:7], bad, *rows[7:]])
    table = load_egoclip(path, cache_dir=str(tmp_path))
    assert table.to_list() == rows
    (entry,) = rejected_lines(table)
    assert (entry.file, entry.line) == (str(path), 9)
    assert re.search(reason, entry.reason), entry.reason
    assert "1 malformed line(s)" in caplog.text and "line 9" in caplog.text and REPORT_NAME in caplog.text
    with pytest.raises(ValueError, match="1 malformed line.*line 9"):
        load_egoclip(path, cache_dir=str(tmp_path), strict=True)


def test_warning_and_list_come_back_from_the_cache(tmp_path, caplog):
    """The second load reads no line, but must not be silent about the lines that are missing."""
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(0), "bad", egoclip_row(1)])
    first = rejected_lines(load_egoclip(path, cache_dir=str(tmp_path)))
    caplog.clear()
    again = load_egoclip(path, cache_dir=str(tmp_path))
    assert rejected_lines(again) == first and "1 malformed" in caplog.text


def test_malformed_lines_are_numbered_across_blocks(tmp_path):
    """Blocks are parsed alone; line numbers count from the start of the file."""
    rows = [egoclip_row(i) for i in range(300)]
    bad_at = (0, 1, 57, 150, 299)
    for i in bad_at:
        rows[i] = f"bad {i}"
    path = write_egoclip(tmp_path / "e.csv", rows)
    rejected = []
    got = [row for t in read_egoclip(str(path), rejected, block_bytes=777) for row in t.to_pylist()]
    assert got == [row for row in rows if isinstance(row, dict)]
    assert [line.line for line in rejected] == [i + 2 for i in bad_at]


def test_mostly_malformed_file_is_an_error(tmp_path):
    """Hundreds of bad lines are a wrong file, not a few accidents."""
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(i) for i in range(100)] + ["bad"] * 30)
    with pytest.raises(ValueError, match="30 of the first 130 lines.*line 102: 1 cells"):
        load_egoclip(path, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="2 of the first 2 lines"):
        load_egoclip(write_egoclip(tmp_path / "f.csv", ["bad"] * 2), cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", r"is empty \(0 bytes\)"),
        ("\t".join(COLUMNS).encode() + b"\n", "has a header but no rows"),
        (",".join(COLUMNS).encode() + b"\n1,2\n", "separated by ',', not by tabs"),
        (";".join(COLUMNS).encode() + b"\n1;2\n", "separated by ';'"),
        ("\t".join(COLUMNS[:-1]).encode() + b"\n", r"lacks the column\(s\) \['tag_noun'\]"),
        ("\t".join([*COLUMNS, "clip_text"]).encode() + b"\n", "'clip_text'.* more than once"),
        ("\t".join(COLUMNS).encode("utf-16"), "not UTF-8 text: it looks like UTF-16"),
        (b"\xff\xfe\x00", "UTF-16 or a binary file"),
        (b"caf\xe9\tx\n", "not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8 text|binary"),
    ],
    ids=["0-byte", "header-only", "commas", "semicolons", "column", "twice", "utf-16", "bom", "latin-1", "png"],
)
def test_wrong_file_is_one_clear_error(tmp_path, content, error):
    path = tmp_path / "e.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=error) as caught:
        load_egoclip(path, cache_dir=str(tmp_path))
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no EgoClip file at .*absent.csv"):
        load_egoclip(tmp_path / "absent.csv", cache_dir=str(tmp_path))


def test_cache_goes_by_content(tmp_path):
    """The same bytes elsewhere are the same table; the same path with other bytes is another."""
    cache = str(tmp_path / "c")
    one = load_egoclip(write_egoclip(tmp_path / "a.csv", [egoclip_row(0)]), cache_dir=cache)
    moved = load_egoclip(write_egoclip(tmp_path / "b.csv", [egoclip_row(0)]), cache_dir=cache)
    assert one.cache_files == moved.cache_files and one._fingerprint == moved._fingerprint
    changed = load_egoclip(write_egoclip(tmp_path / "a.csv", [egoclip_row(5)]), cache_dir=cache)
    assert changed["clip_idx"][:] == [5] and changed._fingerprint != one._fingerprint
    renamed = load_egoclip(tmp_path / "a.csv", split="test", cache_dir=cache)
    assert str(renamed.split) == "test" and renamed["clip_idx"][:] == [5]


@pytest.mark.parametrize("quoting", ["minimal", "nonnumeric", "all"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_saved_by_pandas_is_the_same_table(tmp_path, quoting, end):
    """Catches quotation marks that stay in the texts, and narrations with a tab that are refused."""
    texts = [
        '#C C says "hi"',
        "#C C lifts\ta board",
        '#C C holds a 5" nail',
        '"',
        '#C C "a"\t"b"',
        "#C C walks",
        "öffnet",
    ]
    rows = [egoclip_row(i, clip_text=text) for i, text in enumerate(texts)]
    frame = pandas.DataFrame(rows).assign(tag_verb=[str(row["tag_verb"]) for row in rows])
    frame["tag_noun"] = [str(row["tag_noun"]) for row in rows]
    quoting = getattr(csv, f"QUOTE_{quoting.upper()}")
    frame.to_csv(tmp_path / "e.csv", sep="\t", index=False, quoting=quoting, lineterminator=end)
    table = load_egoclip(tmp_path / "e.csv", cache_dir=str(tmp_path))
    assert table.to_list() == rows and not rejected_lines(table)


def test_quotation_marks_of_an_unquoted_file_stay(tmp_path):
    """Catches an unquoting that changes the published file, whose texts may begin with a quotation mark."""
    texts = ['"stop" says #O', '"stop"', '"', 'a "b" c', '"a ""b"" c', '""', '#C C ""', '"x" "y"']
    rows = [egoclip_row(i, clip_text=text) for i, text in enumerate(texts)]
    assert load_egoclip(write_egoclip(tmp_path / "e.csv", rows), cache_dir=str(tmp_path)).to_list() == rows


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n\n", "", "\n" * 300])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(i) for i in range(3)], end=end)
    table = load_egoclip(path, cache_dir=str(tmp_path), strict=True)
    assert len(table) == 3


def test_a_tag_beyond_the_taxonomy_is_found_at_loading(tmp_path):
    """Catches a tag that would end a training run at the first batch that holds it."""
    rows = [egoclip_row(0), "a malformed line", egoclip_row(1, tag_verb=[3, 117], tag_noun=[581]), egoclip_row(2)]
    path = write_egoclip(tmp_path / "e.csv", rows)
    assert len(load_egoclip(path, cache_dir=str(tmp_path))) == 3
    with pytest.raises(ValueError, match=r"e.csv', line 4: the tag 117 is not below num_verbs \(100\)"):
        load_egoclip(path, cache_dir=str(tmp_path), num_verbs=100)
    path = write_egoclip(tmp_path / "f.csv", [*rows, egoclip_row(3, tag_noun=[1, 582])])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"f.csv', line 6: the tag 582 is not below num_nouns \(582\)"):
            list(load_egoclip(path, cache_dir=str(tmp_path), streaming=streaming))
    assert len(load_egoclip(path, cache_dir=str(tmp_path), num_nouns=None)) == 4


@pytest.mark.parametrize("name", ["egoclip-train.arrow", "rejected_lines.tsv", "dataset_info.json", "checksums.json"])
def test_a_damaged_cache_is_built_again(tmp_path, name, caplog):
    """Catches an Arrow file that was cut between two messages and opens as a shorter table."""
    rows = [egoclip_row(i) for i in range(25_000)]
    path = write_egoclip(tmp_path / "e.csv", [*rows, "a malformed line"])
    cache = Path(load_egoclip(path, cache_dir=str(tmp_path / "c")).cache_files[0]["filename"]).parent
    content = (cache / name).read_bytes()
    if name.endswith(".arrow"):
        starts = [m.start() for m in re.finditer(re.escape(b"\xff\xff\xff\xff"), content)]
        damages = [content[: starts[2]], content[:1000], content[:-1000] + bytes(1000)]
        assert 0 < len(datasets.Dataset.from_buffer(pa.py_buffer(damages[0]))) < len(rows)
    else:
        damages = [content[:20], b""]
    for damage in damages:
        (cache / name).write_bytes(damage)
        caplog.clear()
        table = load_egoclip(path, cache_dir=str(tmp_path / "c"))
        assert len(table) == 25_000 and table[24_999] == rows[24_999] and len(rejected_lines(table)) == 1
        assert str(cache) in caplog.text and re.search(r" (is|are) damaged", caplog.text)
        caplog.clear()
        load_egoclip(path, cache_dir=str(tmp_path / "c"))
        assert not re.search(r" (is|are) damaged", caplog.text)


def test_a_cache_that_cannot_be_written_is_one_error_with_the_remedy(tmp_path):
    """Catches a raw error from inside `datasets` where HF_HOME is read-only."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written: .*HF_DATASETS_CACHE \(or HF_HOME\)"):
        load_egoclip(write_egoclip(tmp_path / "e.csv", [egoclip_row(0)]), cache_dir=str(tmp_path / "file" / "cache"))


def test_two_runs_are_byte_identical(tmp_path):
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(i) for i in range(500)])
    one, two = (load_egoclip(path, cache_dir=str(tmp_path / name)).cache_files[0]["filename"] for name in "ab")
    assert one != two and Path(one).read_bytes() == Path(two).read_bytes()


def test_streaming_gives_the_same_rows_and_warns(tmp_path, caplog):
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(0), "bad", egoclip_row(1)])
    stream = load_egoclip(path, streaming=True, cache_dir=str(tmp_path))
    assert isinstance(stream, datasets.IterableDataset) and stream.features == EGOCLIP_FEATURES
    assert list(stream) == [egoclip_row(0), egoclip_row(1)]
    assert "1 malformed line(s)" in caplog.text and "line 3" in caplog.text


def test_strict_stream_raises(tmp_path):
    path = write_egoclip(tmp_path / "e.csv", [egoclip_row(0), "bad", egoclip_row(1)])
    with pytest.raises(ValueError, match="line 3"):
        list(load_egoclip(path, streaming=True, strict=True, cache_dir=str(tmp_path)))


def test_exported_folder_is_read_by_plain_load_dataset(tmp_path):
    """The exported folder is what a Hub repo would hold."""
    rows = [egoclip_row(i) for i in range(60)]
    rows[9] = egoclip_row(9, tag_verb=[])
    table = load_egoclip(write_egoclip(tmp_path / "e.csv", [*rows, "bad"]), cache_dir=str(tmp_path / "c"))
    folder = tmp_path / "out"
    export_parquet(table.select(range(30)), folder, "egoclip", shard_bytes=500)  # an older, longer list of shards
    export_parquet(table, folder, "egoclip", shard_bytes=3000)
    export_parquet(table.select(range(3)), folder, "small")
    back = datasets.load_dataset(str(folder), "egoclip", split="train", cache_dir=str(tmp_path / "d"))
    assert back.to_list() == rows and back.features == EGOCLIP_FEATURES
    assert len(list((folder / "egoclip").glob("*.parquet"))) > 1
    stream = datasets.load_dataset(str(folder), "small", split="train", streaming=True)
    assert list(stream) == rows[:3]
    report = (folder / "egoclip" / f"train-{REPORT_NAME}").read_text()
    assert "e.csv\t62\t1 cells" in report and str(tmp_path) not in report


def test_loader_needs_no_torch():
    """Preparing 3.85 million rows in 1 GB leaves no room for what the table does not need."""
    code = (
        "import sys, types; p = types.ModuleType('modeling_svitt_ego'); p.__path__ = [sys.argv[1]]; "
        "sys.modules['modeling_svitt_ego'] = p; import modeling_svitt_ego.data.egoclip; "
        "assert not {'torch', 'decord', 'av'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2] / "modeling_svitt_ego"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


# ---- fuzzing: the loader against an oracle of a few lines -----------------------------------------------------------


def cells_of(line):
    """Split at tabs, unless a csv writer would write the line with just these quotation marks."""
    try:
        (cells,) = csv.reader([line], delimiter="\t", strict=True)
    except (csv.Error, ValueError):
        return line.split("\t")
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="").writerow(cells)
    return cells if written.getvalue() == line else line.split("\t")


def oracle(path):
    """The rows an attentive reader would accept, one line at a time, with Python's own parsers."""
    header, *lines = Path(path).read_bytes().split(b"\n")
    if lines and lines[-1] == b"":
        lines.pop()
    good, bad = [], []
    for number, line in enumerate(lines, start=2):
        try:
            cells = cells_of(line.decode().removesuffix("\r"))
            row = dict(zip(header.decode().split("\t"), cells, strict=True))
            assert "\r" not in "".join(row.values())
            for name, value in row.items():
                if name.startswith("tag_"):
                    value = value.strip(" \t\f")
                    inner = value.removeprefix("[").removesuffix("]")
                    assert len(inner) == len(value) - 2 and value.isascii()
                    tags = [tag.strip(" \t\f") for tag in inner.split(",")] if inner.strip(" \t\f") else []
                    assert all(tag.isdigit() and int(tag) < 2**31 for tag in tags)
                    row[name] = [int(tag) for tag in tags]
                elif EGOCLIP_FEATURES[name].dtype != "string" and value.strip() != value.strip(" "):
                    raise ValueError("Python would also skip vertical tabs and form feeds around a number")
                elif name in ("clip_idx", "narration_ind"):
                    row[name] = int(value, 16 if value[:2].lower() == "0x" else 10)  # pyarrow reads 0x1f as 31
                    limit = 2**63 if name == "clip_idx" else 2**31
                    assert value.isascii() and "_" not in value and "+" not in value and -limit <= row[name] < limit
                elif EGOCLIP_FEATURES[name].dtype == "float64":
                    row[name] = float(value)
                    assert value.isascii() and "_" not in value
                    assert math.isfinite(row[name])
            assert row["clip_text"].strip() and row["video_uid"] not in ("", ".", "..")
            assert not any(c in "/\\:" or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in row["video_uid"])
            good.append(row)
        except (ValueError, AssertionError, SyntaxError):
            bad.append(number)
    return good, bad


CELL = st.one_of(
    st.text(alphabet="\"'\\,;[]{}()#C 0123456789.e-+_naif\x00é東\ud83d".replace("\ud83d", "😀"), max_size=12),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
    st.lists(st.integers(-2, 3_000_000_000), max_size=4).map(str),
    st.sampled_from(["[]", "[ ]", "[1,]", "[1 2]", "[01]", "1e999", "0x1", "..", "[[1]]", "[1.0]", "", " ", "[1]\r"]),
)


@st.composite
def annotation_files(draw):
    """A file of a few lines, each with at most two cells or bytes out of order."""
    lines = []
    for number in range(draw(st.integers(1, 6))):
        row = {name: str(value) for name, value in egoclip_row(number).items()}
        for name in draw(st.lists(st.sampled_from(COLUMNS), max_size=2)):
            row[name] = draw(CELL)
        line = "\t".join(row.values()).encode("utf-8")
        kind = draw(st.sampled_from(["as it is"] * 6 + ["cut", "byte", "crlf"]))
        if kind == "cut":
            line = line[: draw(st.integers(0, len(line)))]
        elif kind == "byte":
            place = draw(st.integers(0, len(line)))
            line = line[:place] + draw(st.binary(min_size=1, max_size=2)) + line[place:]
        elif kind == "crlf":
            line += b"\r"
        lines.append(line)
    lines.append("\t".join(str(value) for value in egoclip_row(99).values()).encode())  # at least one good row
    return lines


def check_against_oracle(path, lines, block_bytes):
    write_egoclip(path, lines)
    expected, bad = oracle(path)
    rejected = []
    tables = list(read_egoclip(str(path), rejected, block_bytes=block_bytes))
    rows = pa.concat_tables(tables).to_pylist()
    assert [line.line for line in rejected] == bad, rejected
    assert rows == expected
    assert all(line.reason for line in rejected)


@given(annotation_files(), st.sampled_from([64, 300, 1 << 20]))
@settings(max_examples=150, **FUZZ)
def test_fuzzed_lines_agree_with_the_oracle(tmp_path_factory, lines, block_bytes):
    """Fast column-wise parsing and halving keep and drop exactly the lines that a slow reader would."""
    check_against_oracle(tmp_path_factory.getbasetemp() / "fuzz.csv", lines, block_bytes)


@pytest.mark.slow
@given(annotation_files(), st.sampled_from([64, 300, 1 << 20]))
@settings(max_examples=10_000, **FUZZ)
def test_ten_thousand_fuzzed_files_agree_with_the_oracle(tmp_path_factory, lines, block_bytes):
    check_against_oracle(tmp_path_factory.getbasetemp() / "fuzz-slow.csv", lines, block_bytes)


@given(st.binary(max_size=300))
@settings(max_examples=150, **FUZZ)
def test_any_bytes_give_a_table_or_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes("\t".join(COLUMNS).encode() + b"\n" + content)
    try:
        list(read_egoclip(str(path), []))
    except ValueError as error:
        assert str(path) in str(error)
