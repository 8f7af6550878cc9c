"""Every kind of file that people have, by every decoder: the right frame, or a refusal that says why."""

from fractions import Fraction

import av
import numpy as np
import pytest

from modeling_svitt_ego.model import decode_pyav, frame_table
from modeling_svitt_ego.model.clip_reading import (
    BACKENDS,
    ClipReadError,
    choose_backend,
    probe_video,
    read_clip,
    stream_frames,
)
from modeling_svitt_ego.model.needed_frames import NeededFrames
from tests.helpers.painted_video import (
    SIDE,
    expected_numbers,
    is_usable,
    number_of,
    picture,
    regular,
    with_display_matrix,
    with_edit_list,
    write_video,
)

PER_FRAME = Fraction(1, 30)  # a clock that MPEG-4 part 2 and AVI take
COUNT = 40
OLD = {"pts": list(range(COUNT)), "tick": PER_FRAME, "b_frames": 2, "options": {"b": "2000k"}}
X264 = {"pts": regular(COUNT, 30), "options": {"preset": "ultrafast", "bf": "2", "b_strategy": "0"}}
# Open groups of pictures without the settings text that x264 writes into its files.
OPEN = X264 | {"options": {"x264-params": "open-gop=1:bframes=3"}, "filters": "filter_units=remove_types=6"}
X265 = {"pts": regular(COUNT, 30), "codec": "libx265"}
VP9 = {"pts": regular(COUNT, 30), "codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}
AV1 = {"pts": regular(COUNT, 30), "codec": "libsvtav1", "options": {"preset": "12"}}
VARIED = np.cumsum([40, 40, 250, 100, 60, 3000, 40, 500] * 5).tolist()

# name: how it is made, the decoders that read it, and why the others refuse it
ALL = ("decord", "pyav", "torchcodec")
EXACT = ("pyav", "torchcodec")
OPEN_GROUP = "open groups of pictures"
FILES = {
    "mpeg4.mp4": (OLD | {"codec": "mpeg4"}, EXACT, OPEN_GROUP),
    "mpeg4.mov": (OLD | {"codec": "mpeg4"}, EXACT, OPEN_GROUP),
    "mpeg4.mkv": (OLD | {"codec": "mpeg4"}, EXACT, OPEN_GROUP),
    "mpeg2.mp4": (OLD | {"codec": "mpeg2video"}, EXACT, OPEN_GROUP),
    "mpeg2.mkv": (OLD | {"codec": "mpeg2video"}, EXACT, OPEN_GROUP),
    "mpeg2.mxf": (OLD | {"codec": "mpeg2video", "b_frames": 0}, ("pyav",), "mxf"),
    "mpeg2.ts": (OLD | {"codec": "mpeg2video"}, ("pyav",), "mpegts"),
    "mpeg4.avi": (OLD | {"codec": "mpeg4"}, ("pyav",), "open groups|reordered"),
    "mpeg2.avi": (OLD | {"codec": "mpeg2video"}, ("pyav",), "open groups|reordered"),
    "mpeg4-no-b.avi": (OLD | {"codec": "mpeg4", "b_frames": 0}, ALL, ""),
    "mpeg4.3gp": (OLD | {"codec": "mpeg4", "b_frames": 0}, ALL, ""),
    "h264.avi": (
        X264 | {"pts": list(range(COUNT)), "tick": PER_FRAME},
        (),
        "no times for the reordered frames of h264",
    ),
    "mpeg2.mpg": (OLD | {"codec": "mpeg2video"}, (), "MPEG-PS.*convert it to mp4 or mkv"),
    "wmv2.wmv": (OLD | {"codec": "wmv2", "b_frames": 0}, ("pyav",), "asf"),
    "h264.mp4": (X264, ALL, ""),
    "h264.mkv": (X264, ALL, ""),
    "h264.flv": (X264, ("pyav",), "flv"),
    "h264.ts": (X264, ("pyav",), "mpegts"),
    "sound.ts": (X264 | {"sound_seconds": 5}, ("pyav",), "mpegts"),
    "sound.flv": (X264 | {"sound_seconds": 5}, ("pyav",), "flv"),
    "sound.mp4": (X264 | {"sound_seconds": 5}, ALL, ""),
    "sound.mkv": (X264 | {"sound_seconds": 5}, ALL, ""),
    "two-streams.mp4": (X264 | {"second_video": True}, EXACT, "2 video streams"),
    "fragmented.mp4": (X264 | {"mux": {"movflags": "frag_keyframe+empty_moov"}}, ALL, ""),
    "faststart.mp4": (X264 | {"mux": {"movflags": "faststart"}}, ALL, ""),
    "open.mp4": (OPEN, EXACT, OPEN_GROUP),
    "open.mov": (OPEN, EXACT, OPEN_GROUP),
    "open.mkv": (OPEN, EXACT, OPEN_GROUP),
    "refresh.mp4": (
        X264 | {"gop": 20, "options": {"x264-params": "intra-refresh=1"}},
        ("pyav",),
        "open groups|not complete restarts",
    ),
    "interlaced.mp4": (X264 | {"options": {"x264-params": "interlaced=1"}}, ("pyav",), "interlaced"),
    "varied.mp4": (X264 | {"pts": VARIED}, ALL, ""),
    "varied.mkv": (X264 | {"pts": VARIED}, ALL, ""),
    "fps960.mp4": (
        X264 | {"pts": regular(COUNT, 960, 96000), "tick": Fraction(1, 96000), "fps": 960},
        ALL,
        "",
    ),
    "closed.hevc.mp4": (X265 | {"options": {"x265-params": "open-gop=0:log-level=0"}}, ALL, ""),
    "open.hevc.mp4": (X265 | {"options": {"x265-params": "open-gop=1:log-level=0"}}, EXACT, OPEN_GROUP),
    "bits10.hevc.mp4": (
        X265 | {"pix_fmt": "yuv420p10le", "options": {"x265-params": "open-gop=0:log-level=0"}},
        ("pyav",),
        "10 bits per colour",
    ),
    "vp8.webm": (VP9 | {"codec": "libvpx"}, ALL, ""),
    "vp9.webm": (VP9, ALL, ""),
    "vp9.mkv": (VP9, ALL, ""),
    "vp9.mp4": (VP9, ALL, ""),
    "av1.webm": (AV1, EXACT, "not shown to read av1"),
    "av1.mkv": (AV1, EXACT, "not shown to read av1"),
    "av1.mp4": (AV1, EXACT, "not shown to read av1"),
    "prores.mov": (
        OLD | {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "options": {}, "b_frames": 0},
        ("pyav",),
        "",
    ),
    "mjpeg.avi": (OLD | {"codec": "mjpeg", "pix_fmt": "yuvj420p", "b_frames": 0}, ALL, ""),
}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """FFmpeg comments on nearly each of these files."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exact")


def make(folder, name):
    path = folder / name
    return str(path) if path.exists() else write_video(path, **FILES[name][0])


def numbers(path, times, backend):
    return [number_of(frame) for frame in read_clip(path, times, backend)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_right_frames_or_a_refusal_with_its_reason(folder, name, backend):
    """Catches a seek that ends a few frames off, a shifted clock, an end that is too early, and a changed refusal."""
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    options, exact, reason = FILES[name]
    path, pts, tick = make(folder, name), options["pts"], int(1 / options.get("tick", Fraction(1, 3000)))
    if backend not in exact:
        with pytest.raises(ClipReadError, match=f"{name}: .*{reason}"):
            read_clip(path, [0.0], backend)
        return
    begins = [(p - pts[0]) / tick for p in pts]
    info = probe_video(path, backend)
    assert info.backend == backend and begins[-1] < info.duration <= begins[-1] + 0.05
    assert info.duration == pytest.approx(probe_video(path, "pyav").duration, abs=1e-6)
    shown = [t + 0.4 * (after - t) for t, after in zip(begins, [*begins[1:], info.duration])]
    assert numbers(path, shown, backend) == list(range(len(pts)))
    assert numbers(path, shown[::-1], backend) == list(range(len(pts)))[::-1]
    for i in (3, len(pts) // 2, 13, len(pts) - 1):  # each by a seek of its own
        assert numbers(path, [shown[i]], backend) == [i]
    if name.endswith((".mp4", ".mov")):  # others round times to a clock of milliseconds
        assert numbers(path, begins, backend) == list(range(len(pts)))


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name][1]])
def test_one_pass_gives_the_same_frames(folder, name):
    """Catches frames shown in the order of their storage, in whole-video features."""
    path = make(folder, name)
    duration = probe_video(path).duration
    times = [(i + 0.5) * duration / 60 for i in range(60)]
    streamed = [number_of(frame) for frame in stream_frames(path, lambda info: times)]
    assert streamed == numbers(path, times, "pyav")


def test_auto_is_pyav_and_says_what_the_others_would_do(folder):
    """Catches decord recommended for AV1, and a decoder taken by a file's size or name."""
    for name in ("h264.mp4", "av1.mp4", "open.mp4", "mpeg2.ts"):
        backend, reason = choose_backend(make(folder, name))
        assert backend == "pyav"
        refused = "decord" not in FILES[name][1]
        assert ("decord refuses it" in reason) == refused and ("decord may be named" in reason) != refused
    assert "cannot read it" in choose_backend(make(folder, "mpeg2.mpg"))[1]


def test_open_groups_are_found_far_from_both_ends_of_a_file(tmp_path):
    """Catches a search for the encoder's signature: its text is not near an end, and other encoders write none."""
    path = write_video(tmp_path / "v.mp4", regular(90, 30), options=OPEN["options"], mux={"movflags": "faststart"})
    if is_usable("decord"):
        with pytest.raises(ClipReadError, match=OPEN_GROUP):
            read_clip(path, [1.0], "decord")
    assert numbers(path, [22 / 30, 25 / 30], "auto") == [22, 25]


@pytest.mark.parametrize("pts", [regular(120, 30), np.cumsum([40, 250, 100, 3000, 40, 500] * 20).tolist()])
@pytest.mark.parametrize(
    "kind", ["b-pyramid=none:b-adapt=0", "b-pyramid=normal", "open-gop=1", "interlaced=1", "intra-refresh=1"]
)
def test_skipped_frames_are_those_that_nobody_needs(tmp_path, kind, pts):
    """Catches a frame skipped though it was asked for, or though others refer to it, at any rate of frames."""
    path = write_video(
        tmp_path / "v.mp4", pts, gop=40, options={"x264-params": f"bframes=3:{kind}", "preset": "veryfast"}
    )
    begins = [(p - pts[0]) / 3000 for p in pts]
    draw = np.random.default_rng(0)
    for count in (1, 1, 1, 2, 4, 4, 4, 8):
        first = draw.uniform(0, begins[-1])
        times = draw.uniform(first, min(first + 1.5, begins[-1]), size=count).tolist()
        assert numbers(path, times, "pyav") == expected_numbers(times, pts)
    assert numbers(path, [begins[-1], begins[60], begins[-2]], "pyav") == [119, 60, 118]


def test_a_third_of_the_frames_is_decoded(tmp_path, monkeypatch):
    """Catches decoding everything between a key frame and the moment: three times the work."""
    options = {"x264-params": "bframes=3:b-pyramid=none:b-adapt=0"}
    path = write_video(tmp_path / "v.mp4", regular(120, 30), gop=60, options=options)
    decoded, decode = [], NeededFrames._decode
    monkeypatch.setattr(
        NeededFrames, "_decode", lambda self: (decoded.append(frame.pts) or frame for frame in decode(self))
    )
    assert numbers(path, [50.5 / 30, 55.5 / 30], "pyav") == [50, 55]
    assert len(decoded) <= 20, len(decoded)


# --------------------------------------------------------------------------------------- what mp4 files say of showing


MIRRORS = {
    "left-right": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "top-bottom": ((1, 0, 0, -1), lambda picture: picture[::-1]),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
    "other-diagonal": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).swapaxes(0, 1)),
}
ROTATIONS = {
    "90": ((0, 1, -1, 0), lambda picture: np.rot90(picture, 3)),
    "180": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "270": ((0, -1, 1, 0), lambda picture: np.rot90(picture)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [*MIRRORS, *ROTATIONS])
def test_pictures_are_shown_as_the_display_matrix_says(folder, tmp_path, kind, backend):
    """Catches a mirror taken for a rotation by 180 degrees, or ignored."""
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    matrix, shown = (MIRRORS | ROTATIONS)[kind]
    path = with_display_matrix(make(folder, "h264.mp4"), tmp_path / "v.mp4", matrix)
    if kind in MIRRORS and backend != "pyav":
        with pytest.raises(ClipReadError, match="mirrors the picture"):
            read_clip(path, [0.5], backend)
        return
    frame = read_clip(path, [0.5], backend)[0]
    assert abs(frame.astype(int) - shown(picture(15)).astype(int)).mean() < 12


def test_a_picture_turned_by_another_angle_is_refused(folder, tmp_path):
    path = with_display_matrix(make(folder, "h264.mp4"), tmp_path / "v.mp4", (1, 1, -1, 1))
    for backend in filter(is_usable, BACKENDS):
        with pytest.raises(ClipReadError, match="v.mp4.*multiple of 90 degrees"):
            read_clip(path, [0.5], backend)


def frames_of(*ranges):
    return [number for first, last in ranges for number in range(first, last)]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
@pytest.mark.parametrize(
    "edits, expected",
    [
        ([(500, 5)], [(5, 20)]),
        ([(500, -1), (500, 5)], [(5, 20)]),
        ([(500, 5), (500, 22)], [(5, 20), (22, 37)]),
        ([(500, 22), (500, 5)], [(22, 37), (5, 20)]),
    ],
)
def test_edit_lists_without_reordered_frames(tmp_path, edits, expected, backend):
    """Catches frames before an edit's beginning, an end past its last frame, and segments in the wrong order."""
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    video = write_video(tmp_path / "plain.mp4", X264["pts"], options=X264["options"] | {"bf": "0"})
    edits = [(length, first if first < 0 else first * 400) for length, first in edits]
    path = with_edit_list(video, tmp_path / "v.mp4", edits)
    expected = frames_of(*expected)
    assert probe_video(path, backend).duration == pytest.approx(len(expected) / 30, abs=1e-3)
    times = [(i + 0.5) / 30 for i in range(len(expected))]
    assert numbers(path, times, backend) == expected
    for i in (len(expected) - 1, 16, 3):
        if i < len(expected):
            assert numbers(path, [times[i]], backend) == [expected[i]]
    if is_usable("decord"):
        with pytest.raises(ClipReadError, match="edit list"):
            read_clip(path, [0.0], "decord")


def test_several_segments_of_reordered_frames_are_refused(folder, tmp_path):
    """FFmpeg itself shows some of their frames twice and leaves others out."""
    one = with_edit_list(make(folder, "h264.mp4"), tmp_path / "one.mp4", [(500, 800 + 5 * 400)])
    assert numbers(one, [0.01, 0.25, 0.48], "pyav") == [5, 12, 19]
    several = [(500, 800), (500, 800 + 20 * 400)]
    path = with_edit_list(make(folder, "h264.mp4"), tmp_path / "v.mp4", several)
    for backend in filter(is_usable, BACKENDS):
        with pytest.raises(ClipReadError, match=r"v.mp4.*2 segments of reordered frames.*convert"):
            read_clip(path, [0.1], backend)


# -------------------------------------------------------------------------------------------------- damaged and hidden


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["faststart.mp4", "fragmented.mp4", "h264.mkv", "sound.mkv", "h264.ts", "h264.flv", "mpeg4.avi"]
)
def test_a_truncated_file_gives_right_frames_or_an_error(folder, tmp_path, name, backend):
    """Catches the last good frame, or grey, given for a frame that is gone, and a shorter video without a word."""
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    with open(make(folder, name), "rb") as file:
        whole = file.read()
    path, right, refused = tmp_path / name, 0, 0
    for share in (0.35, 0.5, 0.66, 0.8, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        for i in (5, 20, 33, 39):
            try:
                assert numbers(path, [(i + 0.5) / 30], backend) == [i]
                right += 1
            except ClipReadError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused >= 5 and (right >= 3 or backend != "pyav")


def test_playlists_do_not_open_other_files(folder, tmp_path):
    """Catches a file that makes FFmpeg read what it names."""
    target = make(folder, "h264.mp4")
    for name, text in (
        ("a.mp4", f"ffconcat version 1.0\nfile '{target}'\n"),
        ("b.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"),
        ("c.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(text)
        for backend in filter(is_usable, BACKENDS):
            with pytest.raises(ClipReadError, match=name):
                read_clip(tmp_path / name, [0.0], backend)


def test_frames_that_no_memory_holds_are_refused(folder, monkeypatch):
    """Catches a small file that claims frames of gigabytes, in its header or later."""
    path = make(folder, "h264.mp4")
    monkeypatch.setattr(decode_pyav, "MOST_PIXELS", 64 * 64 - 1)
    frame_table._kept.cache_clear()
    for backend in filter(is_usable, BACKENDS):
        with pytest.raises(
            ClipReadError, match="h264.mp4: .*frames of 64 x 64 pixels are larger than the limit of 4095"
        ):
            read_clip(path, [0.0], backend)


def painted_colours(path, pix_fmt, codec="libx264", options=None):
    """Smooth colours; the returned RGB pixels are those of the frame 9 before encoding."""
    y, x = np.mgrid[0:SIDE, 0 : 2 * SIDE]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt, stream.options = SIDE, 2 * SIDE, pix_fmt, options or {}
        for i in range(12):
            rgb = np.stack([x + 5 * i, 3 * y + i, x + y], -1).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb).reformat(format=pix_fmt)))
            if i == 9:
                painted = rgb
        container.mux(stream.encode())
    return painted


@pytest.mark.parametrize(
    "pix_fmt, codec, options",
    [
        ("yuv420p", "libx264", {}),
        ("yuv420p", "libx264", {"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}),
        ("yuvj420p", "libx264", {}),
        ("yuv422p", "libx264", {}),
        ("yuv444p", "libx264", {}),
        ("rgb24", "libx264rgb", {}),
        ("yuv420p10le", "libx265", {"x265-params": "log-level=0"}),
        (
            "yuv420p10le",
            "libx265",
            {"x265-params": "log-level=0:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"},
        ),
    ],
)
def test_colours_are_equal_in_all_decoders_or_refused(tmp_path, pix_fmt, codec, options):
    """Catches colours of 10 bits or of BT.2020 that are up to 80 levels off."""
    painted = painted_colours(tmp_path / "v.mp4", pix_fmt, codec, options)
    frames = read_clip(tmp_path / "v.mp4", [9.5 / 30])
    tagged = "colormatrix" in str(options)  # painted by the conversion of BT.601, which the tag contradicts
    assert abs(frames[0].astype(int) - painted).mean() < (40 if tagged else 6)
    for backend in filter(is_usable, ("decord", "torchcodec")):
        if "10le" in pix_fmt:
            with pytest.raises(ClipReadError, match="10 bits per colour|open groups"):
                read_clip(tmp_path / "v.mp4", [9.5 / 30], backend)
        else:
            np.testing.assert_array_equal(read_clip(tmp_path / "v.mp4", [9.5 / 30], backend), frames)
