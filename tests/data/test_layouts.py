"""Where frames lie on disk: four layouts, chunk edges, and names that must not leave the video root."""

import dataclasses
import pickle

import numpy as np
import pytest

from modeling_svitt_ego.data.layouts import LAYOUTS, VideoStore, find_layout
from modeling_svitt_ego.data.video_uid import check_video_uid
from modeling_svitt_ego.model.clip_reading import ClipReadError
from tests.helpers.tiny_data import frame_numbers, write_video

# One video in each layout at few frames per second, so that a chunk of 600 s is small. (fps, files and lengths)
SOURCES = {
    "undivided": (10, {"u.mp4": (0, 400)}),
    "egovlp": (0.5, {"u/0.mp4": (0, 300), "u/1.mp4": (300, 200)}),
    "lavila": (1, {"u.mp4/0.mp4": (0, 300), "u.mp4/300.mp4": (300, 250)}),
    "avion": (10, {"u.mp4/0.mp4": (0, 150), "u.mp4/15.mp4": (150, 150), "u.mp4/30.mp4": (300, 100)}),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    from fractions import Fraction

    folders = {}
    for name, (fps, files) in SOURCES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        for path, (first, count) in files.items():
            write_video(folders[name] / path, count, fps=Fraction(fps), first=first)
    return folders


@pytest.mark.parametrize("name", SOURCES)
def test_layout_is_found_by_looking(roots, name):
    """A layout taken for another sends every clip to the wrong second."""
    found = find_layout(roots[name])
    assert (found.name, found.chunk_seconds) == (name, LAYOUTS[name].chunk_seconds)


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_shows_the_frame_of_that_second(roots, name):
    """Chunk arithmetic: each time gives the frame of the undivided video, on both sides of a chunk edge."""
    fps, files = SOURCES[name]
    total = sum(count for _, count in files.values())
    frames = np.unique(np.linspace(0, total - 1, 23).astype(int))
    edges = [first for first, _ in files.values()]
    frames = np.unique(np.r_[frames, edges, [edge - 1 for edge in edges if edge]])
    store = VideoStore(roots[name])
    clip = store.read("u", [(frame + 0.5) / fps for frame in frames])
    assert clip.dtype == np.uint8 and clip.shape == (len(frames), 32, 48, 3)
    assert frame_numbers(clip) == [frame % 28 for frame in frames]
    assert store.duration("u") == pytest.approx(total / fps, abs=0.01)


@pytest.mark.parametrize("name", ["egovlp", "lavila", "avion"])
def test_clip_across_a_chunk_edge_is_read_from_both_files(roots, name):
    """Upstream is off by one here, or wraps around."""
    fps, _ = SOURCES[name]
    edge = LAYOUTS[name].chunk_seconds
    times = [edge - 1.5 / fps, edge + 1.5 / fps, edge - 0.5 / fps, edge + 0.5 / fps]  # in no order
    first = round(edge * fps)
    expected = [(first + offset) % 28 for offset in (-2, 1, -1, 0)]
    assert frame_numbers(VideoStore(roots[name]).read("u", times)) == expected


def test_named_layout_wins_over_looking(roots):
    store = VideoStore(roots["avion"], layout="lavila")
    assert store.layout.chunk_seconds == 300
    with pytest.raises(ValueError, match="Unknown video layout 'nymeria'"):
        VideoStore(roots["avion"], layout="nymeria")


def test_sixty_second_chunks_are_recognised(tmp_path):
    """AVION's files are also seen in 60-s chunks; the names say it."""
    for start in (0, 60, 180):
        write_video(tmp_path / f"v.mp4/{start}.mp4", 3)
    assert find_layout(tmp_path).chunk_seconds == 60


def test_numbered_chunks_of_another_length_are_measured(tmp_path):
    """The number of an EgoVLP chunk does not say how long it is."""
    write_video(tmp_path / "v/0.mp4", 80)
    write_video(tmp_path / "v/1.mp4", 80, first=80)
    store = VideoStore(tmp_path)
    assert store.layout.chunk_seconds == 8
    assert frame_numbers(store.read("v", [8.05])) == [80 % 28]


def test_two_layouts_side_by_side_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    write_video(tmp_path / "b/0.mp4", 3)
    with pytest.raises(ValueError, match="more than one layout.*'a.mp4'.*'b'"):
        find_layout(tmp_path)
    assert VideoStore(tmp_path, layout="undivided").duration("a") == pytest.approx(0.3)


def test_a_root_without_videos_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No video found"):
        VideoStore(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        VideoStore(tmp_path / "absent")


@pytest.mark.parametrize(
    "uid", ["../secret", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "a\0b", "C:x", "x" * 201, "new\nline", None, 7]
)
def test_uid_cannot_leave_the_video_root(tmp_path, uid):
    """An annotation file must not be able to make the reader open files elsewhere."""
    root = tmp_path / "root"
    write_video(root / "a.mp4", 3)
    write_video(tmp_path / "secret.mp4", 3)
    store = VideoStore(root)
    for call in (
        lambda: check_video_uid(uid),
        lambda: store.read(uid, [0.0]),
        lambda: store.read_window(uid, 0.0, 0.2, lambda start, end: [start]),
        lambda: store.duration(uid),
        lambda: store.chunks(uid),
        lambda: store.path(uid),
    ):
        with pytest.raises(ValueError, match="not a plain file name"):
            call()


def test_missing_chunk_names_the_path_and_the_second(roots, tmp_path):
    write_video(tmp_path / "v.mp4/0.mp4", 150)
    write_video(tmp_path / "v.mp4/15.mp4", 30)
    write_video(tmp_path / "v.mp4/45.mp4", 30)
    store = VideoStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Second 31.000 of video 'v'.*30.mp4"):
        store.read("v", [31.0])
    with pytest.raises(FileNotFoundError, match=r"30.mp4"):  # a hole is not the end of the video
        store.read_window("v", 14.0, 31.0, lambda start, end: [start, end])
    with pytest.raises(FileNotFoundError, match="'absent'"):
        store.duration("absent")


def test_time_past_the_end_of_the_file_is_an_error(roots):
    with pytest.raises(ClipReadError, match="u.mp4"):
        VideoStore(roots["undivided"]).read("u", [45.0])
    with pytest.raises(ValueError, match="-1.0"):
        VideoStore(roots["undivided"]).read("u", [-1.0])
    with pytest.raises(ValueError, match="No times"):
        VideoStore(roots["undivided"]).read("u", [])


@pytest.mark.parametrize("name", SOURCES)
def test_window_is_clamped_to_the_video(roots, name):
    """EgoClip's windows start before 0 and end after the video; a frame from outside would be an error or a lie."""
    fps, files = SOURCES[name]
    total = sum(count for _, count in files.values()) / fps
    store = VideoStore(roots[name])

    def both_ends(start, end):
        return [start, end - 0.5 / fps]

    clip, start, end = store.read_window("u", -3.0, 1.5 / fps, both_ends)
    assert (start, end) == (0.0, 1.5 / fps) and frame_numbers(clip) == [0, 1]
    clip, start, end = store.read_window("u", total - 1.5 / fps, total + 0.4, both_ends)
    last = round(total * fps) - 1
    assert end == pytest.approx(total, abs=0.01) and frame_numbers(clip) == [(last - 1) % 28, last % 28]
    with pytest.raises((ClipReadError, FileNotFoundError)):
        store.read_window("u", total + 1, total + 2, both_ends)
    with pytest.raises(ClipReadError, match="reversed"):
        store.read_window("u", 3.0, 2.0, both_ends)
    with pytest.raises(ClipReadError, match="nan"):
        store.read_window("u", float("nan"), 2.0, both_ends)


def test_window_over_the_last_edge_ends_with_the_video(tmp_path):
    """The chunk after the last does not exist; the window ends where the video does."""
    write_video(tmp_path / "v.mp4/0.mp4", 150)
    write_video(tmp_path / "v.mp4/15.mp4", 150, first=150)
    clip, start, end = VideoStore(tmp_path).read_window("v", 29.0, 31.0, lambda start, end: [start, end - 0.05])
    assert (start, end) == (29.0, pytest.approx(30.0)) and frame_numbers(clip) == [290 % 28, 299 % 28]


def test_chunk_cut_short_shows_its_last_frame_until_the_next(tmp_path):
    """Chunks are cut at key frames, so one may end 0.3 s before its nominal end."""
    write_video(tmp_path / "v.mp4/0.mp4", 147)
    write_video(tmp_path / "v.mp4/15.mp4", 20, first=150)
    store = VideoStore(tmp_path)
    assert frame_numbers(store.read("v", [14.95, 15.0])) == [146 % 28, 150 % 28]


def test_chunks_of_different_sizes_are_refused(tmp_path):
    write_video(tmp_path / "v.mp4/0.mp4", 150)
    write_video(tmp_path / "v.mp4/15.mp4", 20, size=(32, 64))
    with pytest.raises(ClipReadError, match="differ in size"):
        VideoStore(tmp_path).read("v", [14.9, 15.1])


def test_store_is_small_to_pickle_and_holds_no_reader(roots):
    """Readers do not survive a fork; durations would grow with the corpus."""
    store = VideoStore(roots["avion"])
    store.duration("u")
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000 and copy._durations == {}
    assert frame_numbers(copy.read("u", [0.05])) == [0]


def test_numbers_with_leading_zeros(tmp_path):
    """FFmpeg's segment names; catches a chunk that is not found, and one that is found under another number."""
    for number in range(3):
        write_video(tmp_path / "v" / f"{number:03d}.mp4", 20, first=20 * number)
    store = VideoStore(tmp_path)
    assert (store.layout.name, store.layout.chunk_seconds, store.layout.num_digits) == ("egovlp", 2, 3)
    assert frame_numbers(store.read("v", [1.95, 2.05, 5.95])) == [19, 20, 59 % 28]
    assert store.duration("v") == pytest.approx(6.0) and store.path("v", 4.5).name == "002.mp4"
    named = VideoStore(tmp_path, layout=dataclasses.replace(LAYOUTS["egovlp"], chunk_seconds=2.0))
    assert frame_numbers(named.read("v", [4.05])) == [40 % 28]


def test_suffixes_may_differ_from_file_to_file(tmp_path):
    """Catches `.MP4` or `.mkv` next to `.mp4`, of which one was missed, and files that are no videos."""
    for number, name in enumerate(("a.mp4", "b.MP4", "c.mkv", "d.MTS")):
        write_video(tmp_path / "v.mp4", 5, first=5 * number).rename(tmp_path / name)
    for name in ("._a.mp4", ".DS_Store", "notes.txt", "d.ts"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    store = VideoStore(tmp_path)
    assert store.layout.name == "undivided"
    assert [frame_numbers(store.read(uid, [0.05]))[0] for uid in "abcd"] == [0, 5, 10, 15]
    for start, suffix in ((0, ".mp4"), (15, ".MP4")):
        write_video(tmp_path / "v.mp4", 150).rename(tmp_path / f"x{suffix}")
        (tmp_path / "chunks" / "u.MP4").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"x{suffix}").rename(tmp_path / "chunks" / "u.MP4" / f"{start}{suffix}")
    store = VideoStore(tmp_path / "chunks", "avion")
    assert len(store.chunks("u")) == 2 and store.read("u", [14.95, 15.05]).shape[0] == 2


@pytest.mark.parametrize(
    "name, files",
    [
        ("epic", ["P01/videos/P01_11.MP4", "P02/videos/P02_101.MP4"]),
        ("epic-flat", ["P01/P01_11.MP4", "P02/P02_101.MP4"]),
        ("epic-avion", ["P01/P01_11.MP4/0.MP4", "P01/P01_11.MP4/15.MP4", "P02/P02_101.MP4/0.MP4"]),
    ],
)
def test_epic_kitchens_trees_are_recognised(tmp_path, name, files):
    for number, file in enumerate(files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "v.mp4", 150, first=number).rename(tmp_path / file)
    (tmp_path / "P01" / "._P01_11.MP4").write_bytes(b"")
    store = VideoStore(tmp_path)
    assert store.layout == LAYOUTS[name]
    assert frame_numbers(store.read("P02_101", [0.05])) == [len(files) - 1]
    if name == "epic-avion":
        assert frame_numbers(store.read("P01_11", [15.05])) == [1]


def test_videos_that_do_not_count_from_zero_are_no_chunks(tmp_path):
    for number in (1, 2, 3):
        write_video(tmp_path / "4" / f"{number}.mp4", 5)
    with pytest.raises(FileNotFoundError, match="No video found"):
        VideoStore(tmp_path)
    assert VideoStore(tmp_path / "4").read("2", [0.0]).shape[0] == 1
