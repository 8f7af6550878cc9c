"""svitt-ego prepare: at each second the same picture as before, whole files only, nothing lost in silence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.corpus import prepare
from modeling_svitt_ego.corpus.prepare import layout_for, prepare_videos
from modeling_svitt_ego.corpus.transcoding import Encoding, TranscodeError, inspect_chunk, transcode
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.model.clip_reading import BACKENDS, probe_video, read_clip
from tests.helpers.painted_video import expected_numbers, is_usable, number_of, regular, write_video
from tests.model.test_clip_reading import MADE

TINY = Encoding(short_side=64, gop=10, preset="ultrafast")
KINDS = ["fps30-gop12", "fps23.976-gop250", "variable-rate", "late-start", "rotated-90", "rotated-270", "avi-mpeg4"]


@pytest.mark.parametrize("backend", list(filter(is_usable, BACKENDS)))
@pytest.mark.parametrize("kind", KINDS)
def test_each_second_shows_the_same_picture_in_the_chunks(tmp_path, kind, backend):
    """Catches frames lost or doubled at edges, a constant rate forced on a varying one, rotation, late starts."""
    made = dict(MADE[kind])
    pts, tick = made["pts"], int(1 / made.get("tick", 1 / 3000))
    root = tmp_path / "raw"
    root.mkdir()
    write_video(root / f"v{Path(made.pop('name')).suffix}", **made)
    report = prepare_videos(root, tmp_path / "out", 1, TINY, num_workers=1)
    begins = [(p - pts[0]) / tick for p in pts]
    assert report.num_chunks == len(list((tmp_path / "out" / "v.mp4").iterdir())) and report.exit_code == 0
    # To a few frames: with a varying rate an mp4 may state a length at which its last frame has not yet begun.
    stated = probe_video(next(root.glob("v.*")), "pyav").duration
    assert report.video_seconds == pytest.approx(stated, abs=0.1 if kind == "variable-rate" else 0.01)
    times = begins + [(a + b) / 2 for a, b in zip(begins, begins[1:])]
    store = VideoStore(tmp_path / "out", layout_for(1), backend)
    shown = [number_of(frame) for frame in store.read("v", times)]
    assert shown == expected_numbers(times, pts, tick)


def test_a_frame_on_the_screen_at_an_edge_is_in_both_chunks(tmp_path):
    """Catches a chunk that begins with the next frame, which shifts all of its times."""
    pts = [0, 1000, 2900, 3600, 6500, 7000]  # ticks of 1/3000 s: frames 2 and 3 last over the edges at 1 s and 2 s
    source = write_video(tmp_path / "v.mp4", pts)
    chunks = transcode(source, lambda n: tmp_path / f"{n}.mp4", 1, encoding=TINY)
    assert [chunk.frames for chunk in chunks] == [3, 2, 3]
    assert [chunk.duration for chunk in chunks[:2]] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert [number_of(frame) for frame in read_clip(chunks[1].path, [0.0, 0.1, 0.25, 0.99])] == [2, 2, 3, 3]
    assert [number_of(frame) for frame in read_clip(chunks[2].path, [0.0, 0.1, 0.2])] == [3, 3, 4]


@pytest.mark.parametrize(
    "seconds, name, files",
    [
        (600, "egovlp", ["v/0.mp4"]),
        (300, "lavila", ["v.mp4/0.mp4"]),
        (15, "avion", ["v.mp4/0.mp4", "v.mp4/15.mp4", "v.mp4/30.mp4"]),
        (0, "undivided", ["v.mp4"]),
    ],
)
def test_the_layouts_are_those_that_the_store_finds_by_looking(tmp_path, seconds, name, files):
    """Catches names or places that the reader would take for another layout."""
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "v.mp4", regular(66, 2), fps=2)
    arguments = ["--chunk-seconds", str(seconds), "--short-side", "32", "--num-workers", "1"]
    assert main(["prepare", str(tmp_path / "raw"), str(tmp_path / "out"), *arguments]) == 0
    found = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.mp4") if path.is_file()
    )
    assert sorted(found) == sorted(files)
    store = VideoStore(tmp_path / "out")
    assert store.layout.name == name and store.duration("v") == pytest.approx(33.0, abs=0.01)
    assert store.read("v", [32.9, 14.9]).shape == (2, 32, 32, 3)


def test_size_gop_and_colours(tmp_path):
    """Catches odd sizes, enlarged videos, missing key frames, and HD colours that change when tags are lost."""
    import av

    assert Encoding(256).size(1920, 1080) == (456, 256) and Encoding(256).size(1080, 1920) == (256, 456)
    assert Encoding(256).size(201, 99) == (200, 100) or Encoding(256).size(201, 99) == (200, 98)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_trc = stream.codec_context.color_primaries = 1
        colours = np.zeros((128, 192, 3), dtype=np.uint8)
        colours[:, :64], colours[:, 64:128], colours[:, 128:] = (200, 30, 30), (30, 180, 60), (40, 60, 200)
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
        container.mux(stream.encode())
    (chunk,) = transcode(tmp_path / "v.mp4", lambda n: tmp_path / "out.mp4", float("inf"), encoding=TINY)
    assert (chunk.width, chunk.height) == (96, 64)
    for backend in filter(is_usable, BACKENDS):
        before, after = (read_clip(path, [1.0], backend)[0] for path in (tmp_path / "v.mp4", chunk.path))
        for column in (0.15, 0.5, 0.85):
            a = before[40:80, int(column * 192) - 5 : int(column * 192) + 5].mean((0, 1))
            b = after[20:40, int(column * 96) - 3 : int(column * 96) + 3].mean((0, 1))
            np.testing.assert_allclose(b, a, atol=4)
    with av.open(chunk.path) as container:
        stream = container.streams.video[0]
        keys = [i for i, packet in enumerate(p for p in container.demux(stream) if p.size) if packet.is_keyframe]
        assert keys == [0, 10] and not container.streams.audio


def make_raw(folder, count=3, frames=100):
    folder.mkdir()
    for i in range(count):
        write_video(folder / f"video-{i}.mp4", regular(frames, 10), fps=10)
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mp4")) if path.is_file()
    }


def test_a_killed_run_leaves_whole_files_and_ends_like_an_uninterrupted_one(tmp_path):
    """Catches half a file under a final name, work done twice, and a resume that ends with other files."""
    raw = make_raw(tmp_path / "raw", frames=300)
    out, options = tmp_path / "out", ["--chunk-seconds", "2", "--short-side", "64", "--num-workers", "1"]
    command = [sys.executable, "-m", "modeling_svitt_ego.cli", "prepare", str(raw), str(out), *options]
    process = subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 1800
    while len(list(out.rglob("[0-9]*.mp4"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = contents(out)
    assert 5 <= len(finished) < 45
    for name in finished:
        inspect_chunk(out / name, 0, 0.0)  # raises if not whole
    stamps = {name: (out / name).stat().st_mtime_ns for name in finished}
    assert main(["prepare", str(raw), str(out), *options]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == stamps
    assert main(["prepare", str(raw), str(tmp_path / "whole"), *options]) == 0
    assert contents(out) == contents(tmp_path / "whole") and len(contents(out)) == 45
    assert not list(out.rglob(".*.part")), "the next run removes what the kill left behind"


def test_a_second_run_does_nothing_and_a_lost_chunk_is_made_again(tmp_path, monkeypatch):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    first = prepare_videos(raw, out, 3, TINY, num_workers=1)
    assert (first.num_videos, first.num_chunks, first.video_seconds) == (3, 12, pytest.approx(30.0, abs=0.01))
    before = contents(out)
    (out / "video-1.mp4" / "3.mp4").unlink()
    with open(out / prepare.MANIFEST_NAME, "a") as manifest:
        manifest.write('{"video_uid": "video-2", "fi')  # what a kill leaves
    jobs = []
    monkeypatch.setattr(prepare, "transcode", lambda *job: jobs.append(job) or transcode(*job))
    second = prepare_videos(raw, out, 3, TINY, num_workers=1)
    assert len(jobs) == 1 and contents(out) == before
    assert (second.num_chunks, second.output_bytes) == (12, first.output_bytes)
    third = prepare_videos(raw, out, 3, TINY, num_workers=1)
    assert len(jobs) == 1 and third.video_seconds_this_run == 0


def test_two_runs_on_one_folder(tmp_path):
    """Catches two writers on one folder: whichever is second is refused or comes later, and every file is whole."""
    raw = make_raw(tmp_path / "raw", frames=300)
    out, options = tmp_path / "out", ["--chunk-seconds", "2", "--short-side", "64", "--num-workers", "1"]
    command = [sys.executable, "-m", "modeling_svitt_ego.cli", "prepare", str(raw), str(out), *options]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) for _ in range(2)]
    errors = [run.communicate(timeout=600)[1] for run in runs]
    # On a busy machine one can end before the other begins.
    assert sorted(run.returncode for run in runs) in ([0, 2], [0, 0])
    for loser in (i for i, run in enumerate(runs) if run.returncode):
        assert f"is being written by process {runs[1 - loser].pid} on" in errors[loser]
    assert len(contents(out)) == 45
    for name in contents(out):
        inspect_chunk(out / name, 0, 0.0)


def test_a_run_on_a_folder_in_use_is_refused(tmp_path, capsys):
    """Catches a lock that is not asked for, or whose holder is not named."""
    raw, out = make_raw(tmp_path / "raw", frames=30), tmp_path / "out"
    out.mkdir()
    code = "import sys, time\nfrom modeling_svitt_ego.files.folder_lock import locked\n"
    code += "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            assert main(["prepare", str(raw), str(out), "--chunk-seconds", "2"]) == 2
            assert f"is being written by process {holder.pid} on" in capsys.readouterr().err
        finally:
            holder.kill()
    assert not list(out.rglob("*.mp4"))


@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: whole[:-40] + bytes(40)])
@pytest.mark.parametrize("forget", [False, True])
def test_a_damaged_chunk_is_written_again(tmp_path, damage, forget):
    """Catches "found, never rewritten": by its hash, and without the manifest by decoding it."""
    raw, out = make_raw(tmp_path / "raw", count=1), tmp_path / "out"
    prepare_videos(raw, out, 3, TINY, num_workers=1)
    before = contents(out)
    chunk = out / "video-0.mp4" / "3.mp4"
    if forget:
        (out / prepare.MANIFEST_NAME).unlink()
        chunk.write_bytes(chunk.read_bytes()[:500])
    else:
        chunk.write_bytes(damage(chunk.read_bytes()))
    assert prepare_videos(raw, out, 3, TINY, num_workers=1).exit_code == 0
    assert contents(out) == before


def test_shards_together_are_the_whole(tmp_path):
    """Catches videos that no shard or two shards prepare, and a merge that passes over a hole."""
    raw, out = make_raw(tmp_path / "raw", count=4), tmp_path / "out"
    (raw / "noise.mp4").write_bytes(b"noise")
    options = ["--chunk-seconds", "3", "--short-side", "64", "--gop", "10", "--preset", "ultrafast"]
    command = ["prepare", str(raw), str(out), *options, "--num-workers", "1"]
    prepare_videos(raw, tmp_path / "whole", 3, TINY, num_workers=1)
    codes = [main([*command, "--shard", "0/2"])]
    with pytest.raises(ValueError, match=r"is not complete: .* Without a manifest: shard\(s\) 1 of 2"):
        prepare_videos(raw, out, 3, TINY, num_workers=1, merge=True)
    codes += [main([*command, "--shard", "1/2"])]
    assert sorted(codes) == [0, 1]  # one of them has the noise
    report = prepare_videos(raw, out, 3, TINY, num_workers=1, merge=True)
    assert report.num_chunks == 16 and [Path(f["path"]).name for f in report.failures] == ["noise.mp4"]
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob("*.shard-*.jsonl"))
    (out / "video-2.mp4" / "0.mp4").unlink()
    with pytest.raises(ValueError, match="1 of 4 jobs are missing or damaged, of the videos video-2"):
        prepare_videos(raw, out, 3, TINY, num_workers=1, merge=True)


def test_epic_kitchens_tree_and_odd_names(tmp_path):
    """Catches sub-folders that are not entered, and one odd name that stops all the others."""
    for name in ("P01/videos/P01_11.MP4", "P02/videos/P02_01.mp4", "P02/videos/._P02_01.mp4", "P02/a:b.mp4"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "raw" / name.replace(":", "_"), regular(20, 10), fps=10)
        if ":" in name:
            (tmp_path / "raw" / name.replace(":", "_")).rename(tmp_path / "raw" / name)
    report = prepare_videos(tmp_path / "raw", tmp_path / "out", 0, TINY, num_workers=1)
    assert sorted(contents(tmp_path / "out")) == ["P01_11.mp4", "P02_01.mp4"]
    assert [failure["path"][-7:] for failure in report.failures] == ["a:b.mp4"]


def test_failures_are_listed_and_stop_nothing_else(tmp_path, capsys):
    """Catches a broken video that ends the whole run, or that nobody hears of."""
    raw = make_raw(tmp_path / "raw", count=2)
    (raw / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    mux = {"movflags": "faststart"}
    whole = Path(write_video(tmp_path / "whole.mp4", regular(100, 10), fps=10, gop=10, mux=mux)).read_bytes()
    (raw / "cut.mp4").write_bytes(whole[: int(0.7 * len(whole))])
    options = ["--chunk-seconds", "2", "--short-side", "64", "--num-workers", "1", "--json", str(tmp_path / "r.json")]
    assert main(["prepare", str(raw), str(tmp_path / "out"), *options]) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert sorted(Path(failure["path"]).name for failure in report["failures"]) == ["cut.mp4", "noise.mp4"]
    assert all(failure["reason"] for failure in report["failures"])
    listed = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == report["failures"]
    assert "2 FAILED" in capsys.readouterr().out
    store = VideoStore(tmp_path / "out", layout_for(2))
    assert store.duration("video-0") == pytest.approx(10.0) == store.duration("video-1")
    assert not (tmp_path / "out" / "noise.mp4").exists()
    for chunk in (tmp_path / "out" / "cut.mp4").glob("*.mp4"):
        inspect_chunk(chunk, 0, 0.0)
    write_video(raw / "cut.mp4", regular(100, 10), fps=10)
    (raw / "noise.mp4").unlink()
    assert main(["prepare", str(raw), str(tmp_path / "out"), *options]) == 0
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_what_does_not_read_back_gets_no_name(tmp_path, monkeypatch):
    """Catches a verification that looks at nothing."""
    from modeling_svitt_ego.corpus import transcoding

    source = write_video(tmp_path / "v.mp4", regular(30, 10), fps=10)
    real = transcoding._Writer._mux

    def lossy(self, packets):
        real(self, [packet for packet in packets if packet.pts is None or packet.pts < 3500])

    monkeypatch.setattr(transcoding._Writer, "_mux", lossy)
    with pytest.raises(TranscodeError, match=r"v.mp4|out.mp4"):
        transcode(source, lambda n: tmp_path / "out.mp4", float("inf"), encoding=TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4"]


def test_bad_requests_are_one_error(tmp_path, capsys):
    raw = make_raw(tmp_path / "raw", count=1)

    def error(*arguments):
        assert main(["prepare", *map(str, arguments), "--num-workers", "1"]) == 2
        return capsys.readouterr().err

    assert "not a folder" in error(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "No video in" in error(tmp_path / "empty", tmp_path / "out")
    assert "must not be the folder" in error(raw, raw)
    assert "whole number of seconds" in error(raw, tmp_path / "out", "--chunk-seconds", "1.5")
    assert "short_side (255)" in error(raw, tmp_path / "out", "--short-side", "255")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    assert "not made by this command" in error(raw, tmp_path / "mine")
    prepare_videos(raw, tmp_path / "out", 5, TINY, num_workers=1)
    assert "crf: 23 there, 30 asked for" in error(
        raw, tmp_path / "out", "--chunk-seconds", "5", "--short-side", "64", "--gop", "10", "--crf", "30"
    )
    write_video(raw / "video-0.mp4", regular(50, 10), fps=10)
    with pytest.raises(ValueError, match="video-0.mp4 has .* bytes"):
        prepare_videos(raw, tmp_path / "out", 5, TINY, num_workers=1)
    write_video(raw / "video-0.mkv", regular(50, 10), fps=10)
    assert "would both become video 'video-0'" in error(raw, tmp_path / "new")
