"""Reading clips: the right frame at each time, by every decoder, or one clear error."""

import io
import json
import multiprocessing
import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from modeling_svitt_ego.model.clip_reading import (
    BACKENDS,
    ClipReadError,
    VideoSource,
    clamp_window,
    clip_times,
    frame_indices,
    probe_video,
    read_clip,
    read_clip_and_info,
)
from tests.helpers.painted_video import TICK, expected_numbers, is_usable, number_of, regular, write_video

USABLE = [backend for backend in BACKENDS if is_usable(backend)]


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
NOT_BY_DECORD = {
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


@pytest.mark.parametrize("backend", [*USABLE, "auto"])
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


@pytest.mark.parametrize("kind", NOT_BY_DECORD)
def test_files_that_decord_cannot_take_are_read_by_pyav(folder, kind):
    """decord does not return from .ts, fails on AV1 and is up to 3 frames off on open groups of pictures."""
    pts = NOT_BY_DECORD[kind]["pts"]
    path = make(folder, **NOT_BY_DECORD[kind])
    times = np.random.default_rng(1).uniform(0, (pts[-1] - pts[0]) / 3000, size=12).tolist()
    for chunk in (times[:4], times[4:8], times[8:9], times[9:10], times[10:]):
        frames, info = read_clip_and_info(path, chunk)
        assert [number_of(frame) for frame in frames] == expected_numbers(chunk, pts)


def test_edit_list_is_honoured(folder):
    """Catches frames before the beginning of the edit, which decord shows."""
    path = write_video(
        folder / "edited.mp4",
        [p - 1000 for p in regular(60, 30)],
        mux={"avoid_negative_ts": "disabled", "use_editlist": "1"},
    )
    frames, info = read_clip_and_info(path, [0.0, 0.5, 1.0])
    assert [number_of(frame) for frame in frames] == [10, 25, 40]
    assert info.backend == "pyav" and info.duration == pytest.approx(50 / 30, abs=0.01)
    if "decord" in USABLE:
        with pytest.raises(ClipReadError, match="edit list"):
            read_clip(path, [0.0], "decord")


def test_the_end_of_the_video_is_its_last_frame(plain):
    for backend in USABLE:
        info = probe_video(plain, backend)
        assert (info.backend, info.num_frames, info.height, info.width) == (backend, 90, 64, 64)
        assert info.duration == pytest.approx(3.0, abs=1e-3) and info.fps == pytest.approx(30)
        assert numbers(plain, [info.duration, 0], backend) == [89, 0]


def test_real_files_agree_bit_for_bit_between_decoders(shared_dir):
    """Wrong stream of two, wrong colours, wrong rotation, wrong clock: seen only on real files."""
    agreed = {"decord": set(), "torchcodec": set()}
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
        for backend, files in agreed.items():
            try:
                others = read_clip(path, times, backend)
            except ClipReadError:
                continue
            np.testing.assert_array_equal(others, frames)
            files.add(path.name)
    assert len(agreed["decord"]) >= 10 or "decord" not in USABLE
    assert len(agreed["torchcodec"]) >= 13 or "torchcodec" not in USABLE
    assert probe_video(shared_dir / "assets" / "decord_video_90.mov").height == 568


def test_damaged_real_file_gives_its_intact_part_or_an_error(shared_dir):
    path = shared_dir / "assets" / "decord_corrupted.mp4"
    assert read_clip(path, [0.0, 1.0, 2.0]).std() > 10
    with pytest.raises(ClipReadError, match="decord_corrupted.mp4.*Invalid data"):
        read_clip(path, [4.0])


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("backend", ["auto", *USABLE])
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
@pytest.mark.parametrize("backend", USABLE)
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


def test_a_decoder_that_is_missing_or_unknown_is_an_error(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert numbers(plain, [1.0]) == [30]
    with pytest.raises(ClipReadError, match="plain.mp4: decord cannot read it: decord cannot be imported"):
        read_clip(plain, [1.0], "decord")
    with pytest.raises(ClipReadError, match="torchcodec cannot be imported.*pip install torchcodec.*ffmpeg"):
        read_clip(plain, [1.0], "torchcodec")
    with pytest.raises(ValueError, match="'opencv'"):
        read_clip(plain, [1.0], "opencv")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ClipReadError, match="plain.mp4: pyav cannot read it: PyAV cannot be imported.*pip install av"):
        read_clip(plain, [1.0])


def test_decoding_on_a_gpu_needs_one_and_says_that_it_is_untested(plain, monkeypatch):
    """Catches a GPU decoder that decodes on the CPU in silence. The GPU is played by the CPU: nothing is measured."""
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClipReadError, match="torchcodec-cuda needs an NVIDIA GPU.*backend='pyav'"):
        read_clip(plain, [1.0], "torchcodec-cuda")

    devices, fallback = [], []  # no fallback: the GPU decoded
    real = decoders.VideoDecoder

    def on_gpu(source, device, **options):
        devices.append(device)
        return real(source, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(decoders, "VideoDecoder", on_gpu)
    monkeypatch.setattr(real, "cpu_fallback", property(lambda self: fallback))
    with pytest.warns(UserWarning, match="not been tested on a GPU"):
        frames, info = read_clip_and_info(plain, [0.5, 2.0], "torchcodec-cuda")
    assert [number_of(frame) for frame in frames] == [15, 60] and info.backend == "torchcodec-cuda"
    fallback.append("Video not supported")
    with pytest.warns(UserWarning), pytest.raises(ClipReadError, match="the GPU does not decode it.*not supported"):
        read_clip(plain, [0.5], "torchcodec-cuda")
    assert devices == ["cuda", "cuda"]


@pytest.mark.parametrize("form", ["bytes", "bytearray", "file", "memory file", "source"])
def test_videos_in_memory_and_open_files(plain, form):
    data = Path(plain).read_bytes()
    with open(plain, "rb") as file:
        file.read(100)  # someone has looked at it
        forms = {"bytes": data, "bytearray": bytearray(data), "file": file, "memory file": io.BytesIO(data)}
        forms["source"] = VideoSource("clip in a shard", data)
        assert numbers(forms[form], [1.0, 0.2]) == [30, 6]
    with pytest.raises(ClipReadError, match="clip in a shard: times"):
        read_clip(VideoSource("clip in a shard", data), [99.0])
    if "decord" in USABLE:
        with pytest.raises(ClipReadError, match="clip in a shard: decord .*in memory"):
            read_clip(VideoSource("clip in a shard", data), [0.0], "decord")


def test_files_that_are_no_local_files(tmp_path, plain):
    with pytest.raises(ClipReadError, match="https://example.org/v.mp4: is a URL, and only local files are read"):
        read_clip("https://example.org/v.mp4", [0.0])
    with pytest.raises(ClipReadError, match="empty"):
        read_clip(b"", [0.0])
    (tmp_path / "t.txt").write_text("text")
    with open(tmp_path / "t.txt") as file, pytest.raises(ClipReadError, match="t.txt.*binary mode"):
        read_clip(file, [0.0])


def _in_worker(path, backends, results):
    results.put([numbers(path, [1.0], backend) for backend in backends])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_can_read_after_the_parent_has(plain, method):
    """A decoder kept open across a fork hangs; nothing may be kept."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    assert [numbers(plain, [0.5], backend) for backend in USABLE] == [[15]] * len(USABLE)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    worker = context.Process(target=_in_worker, args=(plain, USABLE, results))
    worker.start()
    try:
        assert results.get(timeout=600) == [[30]] * len(USABLE)
    finally:
        worker.terminate()
        worker.join()


def test_frames_are_converted_in_this_thread(plain, monkeypatch):
    """Catches FFmpeg's threads for every frame: on a busy machine waiting for them took longer than decoding."""
    asked, reformatter = [], av.video.reformatter.VideoReformatter

    class Recording:
        def reformat(self, frame, **options):
            asked.append(options.get("threads"))
            return reformatter().reformat(frame, **options)

    monkeypatch.setattr(av.video.reformatter, "VideoReformatter", Recording)
    read_clip(plain, [0.0, 0.5], backend="pyav")
    assert asked == [1, 1]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_nothing_stays_open(folder, plain):
    """A leak of one handle per clip, or per error, ends a long run."""
    broken = folder / "leak.mp4"
    shutil.copy(plain, broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    for _ in range(3):
        [read_clip(plain, [1.0], backend) for backend in USABLE]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        [read_clip(plain, [1.0], backend) for backend in USABLE]
        with pytest.raises(ClipReadError):
            read_clip(broken, [0.0])
    assert len(os.listdir("/proc/self/fd")) <= before
