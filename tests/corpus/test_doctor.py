"""What the doctor must find in a corpus with one fault of each kind, and must not find in a good one."""

import json

import pytest

from modeling_svitt_ego.corpus.doctor import diagnose, has_open_gop
from tests.helpers.tiny_data import egoclip_row, egomcq_item, write_egoclip, write_json, write_video

NUM_CLIPS = 10


@pytest.fixture
def corpus(tmp_path):
    """Ten good clips of one 20-s video in 15-s chunks; returns a function that diagnoses changed rows."""
    write_video(tmp_path / "v" / "video-a.mp4" / "0.mp4", 150)
    write_video(tmp_path / "v" / "video-a.mp4" / "15.mp4", 50)

    def check(changes=None, extra=(), **kwargs):
        rows = [egoclip_row(i, **(changes or {}).get(i, {})) for i in range(NUM_CLIPS)]
        csv = write_egoclip(tmp_path / "e.csv", [*rows, *extra])
        return diagnose(csv, tmp_path / "v", layout="avion", cache_dir=str(tmp_path / "c"), **kwargs)

    check.root = tmp_path
    return check


def found(report):
    """The findings that are problems, by the start of their names."""
    return {finding.name: finding.count for finding in report.findings if finding.is_problem}


def one(report, start):
    (finding,) = [finding for finding in report.findings if finding.name.startswith(start)]
    return finding


def test_good_corpus_has_no_problem(corpus):
    report = corpus()
    assert found(report) == {} and report.exit_code == 0
    assert (report.num_clips, report.num_videos, report.num_files, report.num_probed) == (10, 1, 1, 1)
    assert "10 clips of 1 videos" in report.table() and "layout avion" in report.table()


@pytest.mark.parametrize(
    "name, change, count, example",
    [
        ("clips of 1 missing files", dict(video_uid="absent"), 1, "absent.mp4/0.mp4"),
        ("window empty or reversed", dict(clip_start=5.0, clip_end=5.0), 1, "row 3: video-a, 5.000 to 5.000 s"),
        ("window outside the video", dict(clip_start=31.0, clip_end=32.0), 1, "row 3: video-a, 31.000"),
        ("window outside the video", dict(clip_start=-3.0, clip_end=-1.0), 1, "row 3"),
        ("tags past 118 verbs or 582 nouns", dict(tag_verb=[118]), 1, "row 3: tag_verb [118]"),
        ("tags past 118 verbs or 582 nouns", dict(tag_noun=[4, 582]), 1, "tag_noun [4, 582]"),
    ],
)
def test_each_fault_is_an_error_with_its_row(corpus, name, change, count, example):
    report = corpus({3: change})
    assert found(report) == {name: count} and report.exit_code == 1
    finding = one(report, name)
    assert finding.level == "error" and example in finding.examples[0]
    assert example in report.table() and "error" in report.table()


def test_missing_second_chunk_of_a_clip(corpus):
    """A clip across an edge needs both files; a window that only overshoots the video does not."""
    (corpus.root / "v" / "video-a.mp4" / "15.mp4").unlink()
    report = corpus({3: dict(clip_start=14.5, clip_end=15.5)})
    assert found(report) == {"clips of 1 missing files": 1}
    changes = {i: dict(video_dur=15.0) for i in range(NUM_CLIPS)}
    changes[3] = dict(video_dur=15.0, clip_start=14.5, clip_end=15.5)
    assert found(corpus(changes)) == {}


def test_unreadable_file(corpus):
    (corpus.root / "v" / "video-a.mp4" / "0.mp4").write_bytes(b"no video" * 99)
    report = corpus()
    assert found(report) == {"unreadable files": 1} and report.exit_code == 1
    assert "0.mp4" in one(report, "unreadable").examples[0]


def test_malformed_lines_are_a_warning(corpus):
    report = corpus(extra=["bad line"])
    assert found(report) == {"malformed lines left out": 1} and report.exit_code == 0
    assert one(report, "malformed").examples == ["line 12: 1 cells instead of 11"]
    assert "warning" in report.table()


def test_true_length_is_taken_from_the_files(corpus):
    """video_dur says 60 s, the files end at 20: a clip at 21 s is outside, and the difference is told."""
    changes = {i: dict(video_dur=60.0) for i in range(NUM_CLIPS)}
    changes[8] = dict(video_dur=60.0, clip_start=16.0, clip_end=17.0)  # so that the last file is opened
    changes[9] = dict(video_dur=60.0, clip_start=21.0, clip_end=22.0)
    report = corpus(changes)
    assert found(report) == {
        "window outside the video": 1,
        "length differs from video_dur by more than 1 s": 1,
    }
    assert "20.00 s, video_dur says 60.00 s" in one(report, "length differs").examples[0]


def test_short_clips_and_empty_tags_are_told_but_no_problem(corpus):
    changes = {0: dict(clip_start=1.0, clip_end=1.35), 1: dict(tag_verb=[]), 2: dict(clip_start=-0.5, clip_end=0.8)}
    report = corpus(changes)
    assert found(report) == {}
    assert one(report, "shorter than 4 frames at 10 fps").count == 1
    assert one(report, "no verb or no noun").count == 1 and one(report, "window reaches past").count == 1
    assert one(corpus(changes, num_frames=16), "shorter than 16 frames").count == NUM_CLIPS


def test_lonely_clips_are_counted(corpus):
    report = corpus({4: dict(narration_time=500.0)})
    assert one(report, "alone in its 60-s scene").count == 1


def test_sample_limits_the_files_opened(corpus):
    changes = {9: dict(clip_start=16.0, clip_end=17.0)}
    assert corpus(changes).num_probed == 2 and corpus(changes, sample=1).num_probed == 1
    assert corpus(changes, sample=0).num_probed == 0


def test_egomcq_types_are_checked_against_the_video_ids(corpus):
    items = {
        "0": egomcq_item(["video-a"] * 5),
        "1": egomcq_item(["video-a"] * 5, types=1),
        "2": egomcq_item(["video-a", "b", "c", "d", "e"]),
        "3": egomcq_item(["video-a"] * 5, answer=7),
    }
    report = corpus(egomcq=write_json(corpus.root / "q.json", items))
    assert found(report) == {"EgoMCQ malformed, or types wrong": 2, "EgoMCQ clip without a file": 1}
    assert "question 1: types is 1" in one(report, "EgoMCQ malformed").examples[0]
    assert "answer is 7" in one(report, "EgoMCQ malformed").examples[1]
    assert "question 2" in one(report, "EgoMCQ clip").examples[0]


def test_report_is_json(corpus):
    content = json.loads(json.dumps(corpus({3: dict(tag_verb=[118])}).as_dict()))
    assert content["exit_code"] == 1 and content["num_clips"] == NUM_CLIPS
    assert {"name", "level", "count", "total", "unit", "examples"} == set(content["findings"][0])


def test_wrong_csv_raises_like_the_loader(tmp_path):
    (tmp_path / "e.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="lacks the column"):
        diagnose(tmp_path / "e.csv", tmp_path)


def test_open_gop_is_told_from_closed(tmp_path):
    """x265 opens its GOPs by default; decord then shows frames up to 3 places off."""
    import av
    import numpy as np

    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265")
    for name, options in (("open", "open-gop=1"), ("closed", "open-gop=0")):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx265", rate=10)
            stream.options = {"x265-params": f"keyint=12:min-keyint=12:bframes=3:log-level=none:{options}"}
            stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
            rng = np.random.default_rng(0)
            for _ in range(60):
                picture = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        assert has_open_gop(tmp_path / f"{name}.mp4") == (name == "open")
