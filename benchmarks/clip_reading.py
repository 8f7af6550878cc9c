"""Clips per second and core, by layout, decoder and number of frames; and both ways of `svitt-ego prepare`.

    python benchmarks/clip_reading.py --output benchmarks/results/clip_reading.json

A corpus is generated (moving noise-like textures, so that the files are not unnaturally small), prepared as chunks of
600, 300 and 15 s and as JPEG shards, and clips of one second are read from each, in random order, with one thread. CPU
time is measured, for each way in turn, several times over; the median counts. `ratio` is clips per second relative to
the undivided raw files read by decord. The 15-s chunks are also re-encoded as VP9, and for `encodings` in other ways
of H.264 (read by PyAV), which shows what groups of pictures, B-frames and x264's "fastdecode" bring.

`training_batch` has the shares of `decode` (file to uint8 frames at native size), `resize` (random crop to 224 px,
flip) and `transfer` (collating to one batch and normalising as float32). `decode_time_resize` compares resizing in
decord (`width=224, height=224`) with ours after it, in time and by PSNR. No weights and no network are needed.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from modeling_svitt_ego.corpus.prepare import prepare_videos
from modeling_svitt_ego.corpus.transcoding import Encoding
from modeling_svitt_ego.data.clip_shards import ClipShardDataset, ShardSettings, write_clip_shards
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.model.clip_reading import TIME_TOLERANCE, clip_times, read_clip
from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.provenance import package_commit

COLUMNS = "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text"


def write_raw_video(path: Path, seconds: float, height: int, gop: int = 250, fps: int = 30, seed: int = 0) -> None:
    """A texture under a moving camera with moving patches, as a camera would write it: long groups of pictures."""
    import av

    rng = np.random.default_rng(seed)
    width = height * 16 // 18 * 2  # even
    coarse = rng.integers(0, 256, size=(height // 4, width // 4, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))
    texture = np.clip(texture + rng.normal(0, 8, texture.shape), 0, 255).astype(np.uint8)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        options = {"crf": "23", "preset": "ultrafast", "g": str(gop), "threads": "1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(round(seconds * fps)):
            y = round((0.5 + 0.5 * np.sin(i / 47)) * (texture.shape[0] - height))
            x = round((0.5 + 0.5 * np.cos(i / 61)) * (texture.shape[1] - width))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[y : y + height, x : x + width]), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_table(path: Path, uids: list[str], seconds: float, clips_per_video: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join([*COLUMNS.split(), "tag_verb", "tag_noun"]) + "\n")
        for uid in uids:
            for i, start in enumerate(np.sort(rng.uniform(0, seconds - 1, clips_per_video)).round(3)):
                cells = [
                    i,
                    uid,
                    seconds,
                    "narration_pass_1",
                    i,
                    start + 0.5,
                    start,
                    start + 1,
                    "#C C waits",
                    "[1]",
                    "[1]",
                ]
                file.write("\t".join(map(str, cells)) + "\n")


ENCODED_SECONDS = 120.0  # of each video, which are encoded in all ways
ENCODINGS = {
    "as prepared: GOP 30, fastdecode": {"g": "30", "bf": "0", "tune": "fastdecode"},
    "without fastdecode": {"g": "30", "bf": "0"},
    "without fastdecode, GOP 10": {"g": "10", "bf": "0"},
    "GOP 10": {"g": "10", "bf": "0", "tune": "fastdecode"},
    "3 B-frames that nothing refers to": {
        "g": "30",
        "bf": "3",
        "tune": "fastdecode",
        "x264-params": "b-pyramid=none:b-adapt=0:open-gop=0",
    },
}


def encode_again(source: Path, target: Path, codec: str, options: dict[str, str], until: float = float("inf")) -> int:
    """Writes the chunks below `source` that begin before `until` s in another encoding; returns the bytes."""
    import av

    total = 0
    for path in sorted(source.glob("*/*.mp4")):
        if float(path.stem) >= until:  # chunks are named by their start
            continue
        out = target / path.relative_to(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path)) as container, av.open(str(out), "w", options={"movflags": "+faststart"}) as copy:
            frames = container.decode(video=0)
            source_stream = container.streams.video[0]
            stream = copy.add_stream(codec, rate=source_stream.average_rate, options={**options, "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = source_stream.width, source_stream.height, "yuv420p"
            stream.time_base = source_stream.time_base
            for frame in frames:
                frame.pict_type = av.video.frame.PictureType.NONE
                copy.mux(stream.encode(frame))
            copy.mux(stream.encode())
        total += out.stat().st_size
    return total


def measure_encodings(chunks: Path, root: Path, requests, num_frames: int, repeats: int) -> list[dict]:
    """PyAV on the first 15-s chunks, encoded in the ways of `ENCODINGS` from the prepared ones."""
    sizes, readers = {}, {}
    last = min(ENCODED_SECONDS, max(start for _, start, _ in requests) + 1)
    starts = np.random.default_rng(1).uniform(0, last - 1, len(requests))
    requests = [(uid, float(start), row) for (uid, _, row), start in zip(requests, starts)]
    for number, (name, options) in enumerate(ENCODINGS.items()):
        folder = root / f"encoding-{number}"
        sizes[name] = encode_again(chunks, folder, "libx264", {"crf": "23", "preset": "veryfast", **options}, last)
        store = VideoStore(folder, backend="pyav")
        readers[name] = lambda request, store=store: store.read_window(
            request[0], request[1], request[1] + 1, lambda a, b: clip_times(a, b, num_frames)
        )
    times = {name: [] for name in readers}
    for _ in range(repeats):
        for name, read in readers.items():
            times[name].append(cpu_ms_per_clip(read, requests))
    return [
        {
            "encoding": name,
            "num_frames": num_frames,
            "mb": round(sizes[name] / 1e6, 1),
            "cpu_ms_per_clip": round(statistics.median(values), 2),
            "clips_per_second_per_core": round(1e3 / statistics.median(values), 1),
        }
        for name, values in times.items()
    ]


def cpu_ms_per_clip(read, requests) -> float:
    begin = time.process_time()
    for request in requests:
        read(request)
    return 1e3 * (time.process_time() - begin) / len(requests)


def backends() -> list[str]:
    found = ["pyav"]
    for name in ("decord", "torchcodec.decoders"):
        try:
            importlib.import_module(name)
            found.append(name.split(".")[0])
        except (ImportError, OSError, RuntimeError):
            print(f"{name} is not installed: left out", file=sys.stderr)
    return ["auto", *sorted(found)]


def measure_reading(stores: dict, shards: dict, requests, frame_counts, repeats: int) -> list[dict]:
    readers = {}
    for num_frames in frame_counts:
        for (layout, backend), store in stores.items():

            def read(request, store=store, num_frames=num_frames):
                uid, start, _ = request
                return store.read_window(uid, start, start + 1, lambda a, b: clip_times(a, b, num_frames))

            readers[layout, backend, num_frames] = read
        dataset = shards[num_frames]
        readers["jpeg shards", "pillow", num_frames] = lambda request, dataset=dataset: dataset[request[2]]
    times = {key: [] for key in readers}
    for read in readers.values():
        read(requests[0])  # imports and caches
    for _ in range(repeats):
        for key, read in readers.items():  # in turn, so that a busy minute hits all of them
            times[key].append(cpu_ms_per_clip(read, requests))
    reference = {n: statistics.median(times["raw, undivided", "decord", n]) for n in frame_counts
                 if ("raw, undivided", "decord", n) in times}  # fmt: skip
    rows = []
    for (layout, backend, num_frames), values in times.items():
        median = statistics.median(values)
        row = {"layout": layout, "backend": backend, "num_frames": num_frames, "cpu_ms_per_clip": round(median, 2)}
        row |= {"clips_per_second_per_core": round(1e3 / median, 1), "all_cpu_ms": [round(v, 2) for v in values]}
        if num_frames in reference:
            row["ratio"] = round(reference[num_frames] / median, 2)
        rows.append(row)
    return rows


def measure_shares(store: VideoStore, requests, num_frames: int, batch_size: int = 8) -> dict:
    """Where the CPU time of a training batch goes."""
    processor = SViTTEgoVideoProcessor(do_random_resized_crop=True, do_random_flip=True)
    spent = dict.fromkeys(("decode", "resize", "transfer"), 0.0)
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        begin = time.process_time()
        clips = [store.read_window(u, s, s + 1, lambda a, b: clip_times(a, b, num_frames))[0] for u, s, _ in batch]
        decoded = time.process_time()
        views = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
        small = processor(views, do_sample_frames=False, do_rescale=False, do_normalize=False, return_tensors="pt")
        resized = time.process_time()
        pixels = small["pixel_values_videos"].contiguous().float().div_(127.5).sub_(1)
        assert pixels.shape[:2] == (len(batch), num_frames)
        spent["decode"] += decoded - begin
        spent["resize"] += resized - decoded
        spent["transfer"] += time.process_time() - resized
    total = sum(spent.values())
    shares = {name: round(seconds / total, 3) for name, seconds in spent.items()}
    return {"num_frames": num_frames, "shares": shares, "cpu_ms_per_clip": round(1e3 * total / len(requests), 2)}


def measure_decode_time_resize(store: VideoStore, requests, repeats: int, num_frames: int, size: int = 224) -> dict:
    """The evaluation picture (224 x 224, no crop): resized by decord while decoding, or by our processor after it.

    The PSNR between the two is a worst case: these textures are finely and strongly coloured, and a decoder resizes
    the colours at half resolution, before they are turned into RGB.
    """
    import decord

    processor = SViTTEgoVideoProcessor(size={"height": size, "width": size})
    places = []
    for uid, start, _ in requests:
        chunk = store.layout.chunk_of(start)
        if chunk == store.layout.chunk_of(start + 1):
            local = start - store.layout.start_of(chunk)
            places.append((str(store.path(uid, start)), clip_times(local, local + 1, num_frames)))

    def decode(place):
        return read_clip(*place, backend="decord")

    def decode_then_resize(place):
        view = torch.from_numpy(decode(place)).permute(0, 3, 1, 2)
        small = processor([view], do_sample_frames=False, do_rescale=False, do_normalize=False, return_tensors="np")
        return small["pixel_values_videos"][0].transpose(0, 2, 3, 1)

    def resize_while_decoding(place):  # the frames of `read_clip`, whose checks are kept
        path, times = place
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, width=size, height=size)
        begins = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64).reshape(-1, 2)[:, 0]
        indices = np.searchsorted(begins - begins[0], np.array(times) + TIME_TOLERANCE, side="right") - 1
        return reader.get_batch(indices.tolist()).asnumpy()

    ways = {f.__name__: f for f in (decode, decode_then_resize, resize_while_decoding)}
    spent = {name: [] for name in ways}
    differences = []
    for place in places:
        ours, decords = decode_then_resize(place).astype(np.float64), resize_while_decoding(place)
        assert ours.shape == decords.shape == (num_frames, size, size, 3)
        differences.append(np.square(ours - decords).mean())
    for _ in range(repeats):
        for name, way in ways.items():
            spent[name].append(cpu_ms_per_clip(way, places))
    return {
        "num_frames": num_frames,
        "clips": len(places),
        "cpu_ms_per_clip": {name: round(statistics.median(values), 2) for name, values in spent.items()},
        "psnr_db": round(10 * float(np.log10(255**2 / np.mean(differences))), 1),
    }


def machine() -> dict:
    import av
    import PIL

    found = {"av": av.__version__, "pillow": PIL.__version__}
    for name in ("decord", "torchcodec"):
        try:
            found[name] = __import__(name).__version__
        except (ImportError, OSError, RuntimeError):
            found[name] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **found,
        },
        "commit": package_commit(Path(__file__).parents[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=620, help="length of each video")
    parser.add_argument("--height", type=int, default=360, help="of the raw videos")
    parser.add_argument("--clips", type=int, default=24, help="clips read per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if any(max(args.frames) % n for n in args.frames):
        parser.error(f"--frames {args.frames}: the shards hold {max(args.frames)} frames, which each must divide.")
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "raw").mkdir()
        uids = [f"video-{i}" for i in range(args.videos)]
        for i, uid in enumerate(uids):
            write_raw_video(root / "raw" / f"{uid}.mp4", args.seconds, args.height, seed=i)
        raw_bytes = sum(path.stat().st_size for path in (root / "raw").iterdir())
        write_table(root / "e.csv", uids, args.seconds, args.clips // args.videos)

        prepared, stores = [], {}
        for backend in backends():
            stores["raw, undivided", backend] = VideoStore(root / "raw", "undivided", backend)
        for length in (600, 300, 15):
            begin = time.process_time()
            report = prepare_videos(root / "raw", root / str(length), length, Encoding(), num_workers=1)
            cpu = time.process_time() - begin
            if report.failures:
                raise SystemExit(f"Preparing failed: {report.failures}")
            prepared.append(
                {
                    "what": f"chunks of {length} s, short side 256, GOP 30",
                    "mb": round(report.output_bytes / 1e6, 1),
                    "share_of_raw_bytes": round(report.output_bytes / raw_bytes, 3),
                    "cpu_seconds_per_video_second": round(cpu / report.video_seconds, 3),
                }
            )
            for backend in backends():
                stores[f"chunks of {length} s", backend] = VideoStore(root / str(length), backend=backend)
        begin = time.process_time()
        vp9 = {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0", "g": "30"}
        vp9_bytes = encode_again(root / "15", root / "vp9", "libvpx-vp9", vp9)
        cpu = (time.process_time() - begin) / (args.videos * args.seconds)
        prepared.append(
            {
                "what": "chunks of 15 s as VP9, short side 256, GOP 30",
                "mb": round(vp9_bytes / 1e6, 1),
                "share_of_raw_bytes": round(vp9_bytes / raw_bytes, 3),
                "cpu_seconds_per_video_second": round(cpu, 3),
            }
        )
        for backend in backends():
            stores["chunks of 15 s, VP9", backend] = VideoStore(root / "vp9", backend=backend)
        begin, settings = time.process_time(), ShardSettings(frames_per_clip=max(args.frames))
        report = write_clip_shards(
            root / "e.csv", root / "15", root / "shards", settings, num_workers=1, cache_dir=str(root / "c")
        )
        prepared.append(
            {
                "what": f"shards of JPEG clips, {settings.frames_per_clip} frames each, short side 256",
                "mb": round(report.output_bytes / 1e6, 1),
                "kb_per_clip": round(report.output_bytes / report.num_clips / 1e3, 1),
                "cpu_ms_per_clip": round(1e3 * (time.process_time() - begin) / report.num_clips, 1),
            }
        )
        shards = {n: ClipShardDataset(root / "shards", num_frames=n, sampling="middle") for n in args.frames}
        rows = [(row["video_uid"], row["clip_start"], i) for i, row in enumerate(shards[args.frames[0]].table)]
        requests = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: args.clips]]
        result = {
            "what": "reading clips of 1 s in random order, 1 thread, CPU time",
            "command": "python benchmarks/clip_reading.py " + " ".join(sys.argv[1:]),
            **machine(),
            "corpus": {
                "videos": args.videos,
                "seconds": args.seconds,
                "height": args.height,
                "raw_mb": round(raw_bytes / 1e6, 1),
                "clips": len(requests),
                "repeats": args.repeats,
            },
            "prepared": prepared,
            "reading": measure_reading(stores, shards, requests, args.frames, args.repeats),
            "encodings": measure_encodings(root / "15", root, requests, min(args.frames), args.repeats),
            "training_batch": [
                {"layout": layout, "backend": backend, **measure_shares(store, requests, n)}
                for (layout, backend), store in stores.items()
                if layout in ("raw, undivided", "chunks of 15 s") and backend != "auto"
                for n in args.frames
            ],
            "decode_time_resize": [
                {"layout": layout, **measure_decode_time_resize(store, requests, args.repeats, min(args.frames))}
                for (layout, backend), store in stores.items()
                if layout in ("raw, undivided", "chunks of 15 s") and backend == "decord"
            ],
        }
    result["took_seconds"] = round(time.perf_counter() - began)
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
