"""Reading clips: the right frame at each time, by every decoder, or one clear error."""

import json
import multiprocessing
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from modeling_svitt_ego.model import clip_reading
from modeling_svitt_ego.model.clip_reading import (
    ClipReadError,
    choose_backend,
    clamp_window,
    clip_times,
    frame_indices,
    probe_video,
    read_clip,
    read_clip_and_info,
)

SIDE, CELL = 64, 16


def picture(number: int) -> np.ndarray:
    """A 64 x 64 picture with `number` in binary, as 16-pixel squares: 12 bits, 3 guards of white, 1 of black."""
    bits = [(number >> i) & 1 for i in range(12)] + [1, 0, 1, 1]
    squares = np.array(bits, dtype=np.uint8).reshape(4, 4) * 200 + 20
    return np.stack([np.kron(squares, np.ones((CELL, CELL), dtype=np.uint8))] * 3, axis=-1)


def number_of(frame: np.ndarray) -> int:
    assert frame.shape == (SIDE, SIDE, 3) and frame.dtype == np.uint8
    squares = frame.reshape(4, CELL, 4, CELL, 3).astype(float).mean((1, 3, 4)).ravel() > 120
    assert squares[12:].tolist() == [True, False, True, True], "not a picture of this test: black, rotated or damaged"
    return sum(int(bit) << i for i, bit in enumerate(squares[:12]))


TICK = Fraction(1, 3000)


def write_video(path, pts, fps=30, codec="libx264", tick=TICK, gop=12, rotation=0, options=None, mux=None):
    """Frame i shows the number i and begins at pts[i] ticks."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "yuv420p", tick, tick
        stream.gop_size, stream.options = gop, options or {}
        if rotation and not hasattr(stream, "set_display_rotation"):
            pytest.skip("PyAV writes rotation flags, which this test needs, from 17.1 on")
        if rotation:
            stream.set_display_rotation(rotation)
        for i, p in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture(i), -rotation // 90)))
            frame.pts, frame.time_base = int(p), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # Run by root, SVT-AV1 leaves its caller a real-time process, beside which no other runs.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return str(path)


def regular(num_frames, fps, tick=3000):
    return [round(i * tick / fps) for i in range(num_frames)]


def expected_numbers(times, pts, tick=3000):
    """The definition: the last frame that has begun by t."""
    begins = (np.asarray(pts) - pts[0]) / tick
    return [int(np.flatnonzero(begins <= t + 1e-3)[-1]) for t in times]


def numbers(path, times, backend="auto"):
    return [number_of(frame) for frame in read_clip(path, times, backend)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder) -> str:
    """90 frames at 30 fps, B-frames, a key frame every 12."""
    return write_video(folder / "plain.mp4", regular(90, 30))


MADE = {
    "fps30-gop12": dict(name="a.mp4", pts=regular(90, 30)),
    "fps23.976-gop250": dict(name="b.mp4", pts=regular(70, 24000 / 1001), gop=250),
    "fps60-all-key": dict(name="c.mp4", pts=regular(120, 60), gop=1),
    "mkv-fps25": dict(name="d.mkv", pts=regular(75, 25), fps=25),
    "avi-mpeg4": dict(name="e.avi", pts=regular(60, 30, 30), tick=Fraction(1, 30), codec="mpeg4"),
    "no-b-frames": dict(name="f.mp4", pts=regular(60, 30), options={"bf": "0"}),
    "variable-rate": dict(name="g.mp4", pts=np.cumsum([40, 40, 250, 100, 60, 3000, 40, 500] * 8).tolist()),
    "late-start": dict(name="i.mkv", pts=[4200 + p for p in regular(60, 25)], fps=25),
    "webm-vp9": dict(name="j.webm", pts=regular(40, 30), codec="libvpx-vp9"),
    "rotated-90": dict(name="k.mp4", pts=regular(20, 30), rotation=90),
    "rotated-180": dict(name="l.mp4", pts=regular(20, 30), rotation=180),
    "rotated-270": dict(name="m.mp4", pts=regular(20, 30), rotation=270),
}
PYAV_ONLY = {
    "hevc-closed": dict(name="n.mp4", pts=regular(60, 30), codec="libx265", options={"x265-params": "open-gop=0"}),
    "open-gop-h264": dict(name="h.mp4", pts=regular(90, 30), options={"x264-params": "open-gop=1:bframes=3"}),
    "open-gop-hevc": dict(name="o.mp4", pts=regular(90, 30), codec="libx265", options={"x265-params": "open-gop=1"}),
    "av1": dict(name="p.mkv", pts=regular(30, 30), codec="libsvtav1", options={"preset": "12"}),
    "ts": dict(name="q.ts", pts=regular(60, 30)),
    "fragmented": dict(name="r.mp4", pts=regular(60, 30), mux={"movflags": "frag_keyframe+empty_moov"}),
    "intra-refresh": dict(name="s.mp4", pts=regular(90, 30), gop=20, options={"x264-params": "intra-refresh=1"}),
}


def make(folder, name, pts, **options):
    path = folder / name
    return str(path) if path.exists() else write_video(path, pts, **options)


@pytest.mark.parametrize("backend", ["decord", "pyav", "auto"])
@pytest.mark.parametrize("kind", MADE)
def test_every_time_gives_the_last_frame_begun(folder, kind, backend):
    """An off-by-one at key frames, at exact frame times, with variable rates, late starts or rotation."""
    pts, tick = MADE[kind]["pts"], int(1 / MADE[kind].get("tick", TICK))
    path = make(folder, **MADE[kind])
    exact = [(p - pts[0]) / tick for p in pts]
    middle = [(a + b) / 2 for a, b in zip(exact, exact[1:])]
    assert numbers(path, exact, backend) == list(range(len(pts)))
    assert numbers(path, middle, backend) == expected_numbers(middle, pts, tick)
    # a few at a time, out of order and repeated, as a sampler asks
    draw = np.random.default_rng(0)
    for _ in range(6):
        times = draw.uniform(0, exact[-1], size=4).tolist()
        times.append(times[0])
        assert numbers(path, times, backend) == expected_numbers(times, pts, tick)


@pytest.mark.parametrize("kind", PYAV_ONLY)
def test_files_that_decord_cannot_take_are_read_by_pyav(folder, kind):
    """decord loops for ever on .ts, fails on AV1 and is up to 3 frames off, silently, on open groups of pictures."""
    pts = PYAV_ONLY[kind]["pts"]
    path = make(folder, **PYAV_ONLY[kind])
    times = np.random.default_rng(1).uniform(0, (pts[-1] - pts[0]) / 3000, size=12).tolist()
    for chunk in (times[:4], times[4:8], times[8:9], times[9:10], times[10:]):
        frames, info = read_clip_and_info(path, chunk)
        assert [number_of(frame) for frame in frames] == expected_numbers(chunk, pts)


def test_edit_list_is_honoured(folder):
    """decord ignores edit lists: its times begin below 0, which must send the file to PyAV."""
    path = write_video(
        folder / "edited.mp4",
        [p - 1000 for p in regular(60, 30)],
        mux={"avoid_negative_ts": "disabled", "use_editlist": "1"},
    )
    frames, info = read_clip_and_info(path, [0.0, 0.5, 1.0])
    assert [number_of(frame) for frame in frames] == [10, 25, 40]
    assert info.backend == "pyav" and info.duration == pytest.approx(50 / 30, abs=0.01)
    with pytest.raises(ClipReadError, match="edit list"):
        read_clip(path, [0.0], "decord")


def test_the_end_of_the_video_is_its_last_frame(plain):
    for backend in ("decord", "pyav"):
        info = probe_video(plain, backend)
        assert (info.backend, info.num_frames, info.height, info.width) == (backend, 90, 64, 64)
        assert info.duration == pytest.approx(3.0, abs=1e-3) and info.fps == pytest.approx(30)
        assert numbers(plain, [info.duration, 0], backend) == [89, 0]


def test_real_files_agree_bit_for_bit_between_decoders(shared_dir):
    """Wrong stream of two, wrong colours, wrong rotation, wrong clock: seen only on real files."""
    agreed = set()
    for path in sorted((shared_dir / "assets").glob("*.m*")):
        if path.suffix == ".md":
            continue
        try:
            info = probe_video(path, "pyav")
            times = clip_times(0, info.duration, 5)
            frames = read_clip(path, times, "pyav")
        except ClipReadError as error:
            assert str(path) in str(error) and path.name == "decord_corrupted.mp4"
            continue
        assert frames.shape == (5, info.height, info.width, 3)
        assert frames.std() > 1 or path.name == "decord_unordered.mov"  # which is all white
        try:
            by_decord = read_clip(path, times, "decord")
        except ClipReadError:
            continue
        if path.name == "torchcodec_h264_10bits.mp4":
            # beyond 8 bits each FFmpeg interpolates colour in its own way: the same moments, not the same bits
            assert abs(by_decord.astype(int) - frames).mean() < 6
            continue
        np.testing.assert_array_equal(by_decord, frames)
        agreed.add(path.name)
    assert len(agreed) >= 11
    assert probe_video(shared_dir / "assets" / "decord_video_90.mov").height == 568


def test_damaged_real_file_gives_its_intact_part_or_an_error(shared_dir):
    path = shared_dir / "assets" / "decord_corrupted.mp4"
    assert read_clip(path, [0.0, 1.0, 2.0]).std() > 10
    with pytest.raises(ClipReadError, match="decord_corrupted.mp4.*Invalid data"):
        read_clip(path, [4.0])


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
def test_bad_files_are_errors_that_name_the_file(folder, plain, backend):
    """Upstream code trains on black frames here."""
    content = Path(plain).read_bytes()
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    bad = {
        "absent.mp4": None,
        "empty.mp4": b"",
        "cut.mp4": content[: len(content) // 2],
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "text.mp4": b"no video\n" * 200,
        "text.txt": b"no video\n" * 200,
        "sound.mp4": (folder / "sound.mp4").read_bytes(),
        "folder.mp4": "folder",
    }
    for name, data in bad.items():
        path = folder / "bad" / name
        path.parent.mkdir(exist_ok=True)
        if data == "folder":
            path.mkdir(exist_ok=True)
        elif data is not None:
            path.write_bytes(data)
        for function in (lambda p: read_clip(p, [0.0], backend), lambda p: probe_video(p, backend)):
            with pytest.raises(ClipReadError) as caught:
                function(path)
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_truncated_file_gives_right_frames_or_an_error(folder, suffix):
    """A file cut anywhere must never give its last good frame, or grey, for a frame that is gone."""
    mux = {"movflags": "faststart"} if suffix == ".mp4" else None
    whole = Path(write_video(folder / f"whole{suffix}", regular(90, 30), mux=mux)).read_bytes()
    path, right, refused = folder / f"cut{suffix}", 0, 0
    for share in np.linspace(0.3, 0.99, 12):
        path.write_bytes(whole[: int(share * len(whole))])
        for t in (0.5, 1.7, 2.9):
            try:
                assert numbers(path, [t]) == expected_numbers([t], regular(90, 30))
                right += 1
            except ClipReadError as error:
                assert str(path) in str(error)
                refused += 1
    assert right >= 6 and refused >= 6


@pytest.mark.parametrize("times", [[-0.1], [3.2], [0.0, 99.0], [], [float("nan")], [float("inf")]])
@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_times_outside_the_video_are_errors(plain, times, backend):
    with pytest.raises(ClipReadError, match="plain.mp4.*times"):
        read_clip(plain, times, backend)


def test_clamp_window():
    """Annotations reach a little over both ends; only a window with nothing left is wrong."""
    assert clamp_window(-0.4, 2.0, 10.0, "v") == (0.0, 2.0)
    assert clamp_window(8.0, 11.0, 10.0, "v") == (8.0, 10.0)
    assert clamp_window(None, None, 10.0, "v") == (0.0, 10.0)
    for start, end in [(10.0, 12.0), (-3.0, -1.0), (-3.0, 0.0), (5.0, 5.0), (6.0, 5.0), (float("nan"), 5.0)]:
        with pytest.raises(ClipReadError, match=r"v: window \["):
            clamp_window(start, end, 10.0, "v")


# ------------------------------------------------------------------------------------------------------------ sampling


def test_clip_times_middle_and_random():
    assert clip_times(2.0, 4.0, 4) == [2.25, 2.75, 3.25, 3.75]
    draws = np.array([clip_times(2.0, 4.0, 4, "random", torch.Generator().manual_seed(i)) for i in range(500)])
    segments = (draws - 2.0) / 0.5 - np.arange(4)
    assert (segments >= 0).all() and (segments < 1).all()
    np.testing.assert_allclose(segments.mean(0), 0.5, atol=0.05)
    again = clip_times(2.0, 4.0, 4, "random", torch.Generator().manual_seed(7))
    assert again == draws[7].tolist()
    with pytest.raises(ValueError, match="'uniform'"):
        clip_times(0, 1, 4, "uniform")


def test_frame_indices_equal_the_release(shared_dir):
    golden = json.loads((shared_dir / "golden" / "J_recipe.json").read_text())["frames_middle"]
    for num_frames, total, indices in golden:
        assert frame_indices(total, num_frames) == indices


def test_random_frame_indices_reach_every_frame():
    """The release never draws an interval's last frame; all frames must come, equally often."""
    generator = torch.Generator().manual_seed(0)
    draws = np.array([frame_indices(10, 3, "random", generator) for _ in range(3000)])
    for column, frames in zip(draws.T, ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])):
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == frames
        assert (abs(counts / 3000 - 1 / len(frames)) < 0.04).all()
    assert frame_indices(2, 4, "random", generator) == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="0 frames"):
        frame_indices(0, 4)


# ------------------------------------------------------------------------------------------------- choice of a decoder


def test_auto_chooses_decord_for_short_files_and_says_why_not(folder, plain, monkeypatch):
    assert choose_backend(plain)[0] == "decord"
    assert read_clip_and_info(plain, [0.0])[1].backend == "decord"
    hevc = make(folder, **PYAV_ONLY["open-gop-hevc"])
    assert choose_backend(hevc)[0] == "pyav" and "HEVC" in choose_backend(hevc)[1]
    transport = make(folder, **PYAV_ONLY["ts"])
    assert choose_backend(transport)[0] == "pyav"
    renamed = shutil.copy(transport, folder / "transport.mp4")
    assert "MPEG-TS" in choose_backend(renamed)[1] and numbers(renamed, [1.0]) == [30]
    monkeypatch.setattr(clip_reading, "DECORD_MAX_BYTES", 100)
    assert choose_backend(plain)[0] == "pyav" and "bytes" in choose_backend(plain)[1]
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    monkeypatch.setattr(clip_reading, "DECORD_MAX_BYTES", 2**30)
    assert "imported" in choose_backend(plain)[1]
    assert numbers(plain, [1.0]) == [30]
    with pytest.raises(ClipReadError, match="decord cannot be imported"):
        read_clip(plain, [1.0], "decord")
    with pytest.raises(ValueError, match="'opencv'"):
        read_clip(plain, [1.0], "opencv")


def test_fallback_reads_the_same_moments(folder, plain, monkeypatch):
    """A random draw repeated by the fallback would depend on which decoder is installed."""

    def broken(path, times):
        times(clip_reading.VideoInfo(path, "decord", 3.0, 30.0, 90, 64, 64, 0.0, None))
        raise clip_reading._Unreadable("broken")

    monkeypatch.setattr(clip_reading, "_read_decord", broken)
    generator = torch.Generator().manual_seed(3)
    frames, info = read_clip_and_info(plain, lambda i: clip_times(0, i.duration, 4, "random", generator))
    times = clip_times(0, 3.0, 4, "random", torch.Generator().manual_seed(3))
    assert info.backend == "pyav"
    assert [number_of(frame) for frame in frames] == expected_numbers(times, regular(90, 30))


def test_torchcodec_reads_the_same_frames(folder, plain):
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec, an optional decoder, is not usable here")
    for kind in ("fps30-gop12", "variable-rate", "late-start", "rotated-90"):
        path, pts = make(folder, **MADE[kind]), MADE[kind]["pts"]
        times = [(p - pts[0]) / 3000 for p in pts]
        np.testing.assert_array_equal(read_clip(path, times, "torchcodec"), read_clip(path, times, "pyav"))


def _in_worker(path, results):
    results.put([numbers(path, [1.0], backend) for backend in ("decord", "pyav")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_can_read_after_the_parent_has(plain, method):
    """A decoder kept open across a fork hangs; nothing may be kept."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    assert numbers(plain, [0.5], "decord") == numbers(plain, [0.5], "pyav") == [15]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    worker = context.Process(target=_in_worker, args=(plain, results))
    worker.start()
    try:
        assert results.get(timeout=60) == [[30], [30]]
    finally:
        worker.terminate()
        worker.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_nothing_stays_open(folder, plain):
    """A leak of one handle per clip, or per error, ends a long run."""
    broken = folder / "leak.mp4"
    shutil.copy(plain, broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    for _ in range(3):
        read_clip(plain, [1.0]), read_clip(plain, [1.0], "pyav")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_clip(plain, [1.0]), read_clip(plain, [1.0], "pyav")
        with pytest.raises(ClipReadError):
            read_clip(broken, [0.0])
    assert len(os.listdir("/proc/self/fd")) <= before
