"""What `svitt-ego export` writes: differences to PyTorch, sizes, and seconds of CPU next to PyTorch's.

    python benchmarks/export.py --output benchmarks/results/export.json                   # base size, random weights
    python benchmarks/export.py --model svitt-ego-demo/model --videos VIDEOS --output FILE  # a trained model

The command itself is run for `--format onnx` and `--format archive`. Its int8 files (`--int8-text --int8-video`) are
then made from the same float32 files by the same functions, because tracing takes most of the time. An int8 file that
`export` refuses is recorded with the reason and not timed. Then each tower is run by PyTorch, onnxruntime and
onnxruntime in int8, and both by PyTorch and the archive, in turn and with one thread. `ratio` is the median over the
rounds of PyTorch's time over the other's, so above 1 is faster.

Random weights say how fast and how large the files are. The cosine of int8 files depends on the weights: that of
random ones is not that of trained ones.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch
from attention import machine, write_record
from clip_reading import write_raw_video

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor, SViTTEgoVideoProcessor
from modeling_svitt_ego.cli import main as svitt_ego
from modeling_svitt_ego.commands.export import _calibration
from modeling_svitt_ego.export.engine import OnnxDualEncoder
from modeling_svitt_ego.export.onnx import MANIFEST, _dynamic, _quantise, _static
from modeling_svitt_ego.export.towers import TextTower, VideoTower, example_clips, example_texts
from modeling_svitt_ego.hub.configs import hub_config
from modeling_svitt_ego.weights.loading import load_dual_encoder
from modeling_svitt_ego.weights.tokenizer import train_tokenizer

TEXT_LENGTH = 16


def save_random_model(name: str, folder: Path) -> None:
    """A variant with random weights, with a processor of its size."""
    config = hub_config(name)
    torch.manual_seed(0)
    SViTTEgoModel(config).save_pretrained(folder)
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    frames = SViTTEgoVideoProcessor(size=size, num_frames=config.vision_config.num_frames)
    SViTTEgoProcessor(frames, train_tokenizer(["#C C opens the box"])).save_pretrained(folder)


def export(model: Path, out: Path, *options: str) -> dict:
    """Runs `svitt-ego export`: its seconds of CPU and what it wrote."""
    said, begin = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(said):
        if svitt_ego(["export", str(model), str(out), *options]):
            raise SystemExit("svitt-ego export failed.")
    row = {"cpu_seconds": round(time.process_time() - begin, 1), "said": said.getvalue().replace(str(out.parent), "…")}
    if out.is_file():
        return row | {"megabytes": out.stat().st_size / 1e6}
    return row | {"towers": json.loads((out / MANIFEST).read_text())["towers"]}


def quantise(model, processor, source: Path, out: Path, videos: Path, num_clips: int) -> dict:
    """The int8 files as `svitt-ego export` makes them; a refused one is left in float32."""
    shutil.copytree(source, out)
    texts = example_texts(model.config, 3, 7)
    arguments = argparse.Namespace(int8_video=videos, calibration_clips=num_clips, num_frames=None)
    clips = _calibration(processor, arguments, model.config.vision_config.num_frames)
    batches = [(torch.as_tensor(batch),) for batch in clips]
    jobs = {
        "text": lambda path: _quantise(TextTower(model), path, _dynamic, [texts]),
        "video": lambda path: _quantise(VideoTower(model), path, _static(batches), batches),
    }
    rows = {}
    for tower, job in jobs.items():
        begin = time.process_time()
        try:
            rows[tower] = asdict(job(out / f"{tower}.onnx"))
        except ValueError as error:
            rows[tower] = {"refused": str(error)}
            shutil.copy(source / f"{tower}.onnx", out / f"{tower}.onnx")
        rows[tower]["cpu_seconds"] = round(time.process_time() - begin, 1)
    return rows


def readers(model, folders: dict[str, Path], archive: Path, batch_size: int, refused: list[str]) -> dict[str, dict]:
    """By tower and engine, a function that computes embeddings of the same random batch."""
    config = model.config
    clips = example_clips(config, batch_size, config.vision_config.num_frames)
    texts = example_texts(config, batch_size, TEXT_LENGTH)
    whole = torch.export.load(str(archive)).module()
    engines = {"PyTorch": model} | {name: OnnxDualEncoder(folder, 1) for name, folder in folders.items()}
    towers: dict[str, dict] = {"video": {}, "text": {}}
    for name, engine in engines.items():
        if "int8" not in name or "video" not in refused:
            towers["video"][name] = lambda engine=engine: engine.get_video_features(clips)
        if "int8" not in name or "text" not in refused:
            towers["text"][name] = lambda engine=engine: engine.get_text_features(*texts)
    towers["both"] = {"PyTorch": lambda: model(clips, *texts), "archive": lambda: whole(clips, *texts)}
    return towers


@torch.inference_mode()
def measure(towers: dict[str, dict], batch_size: int, rounds: int) -> list[dict]:
    """Seconds of CPU per clip or text, of each engine in turn."""
    rows = []
    for tower, engines in towers.items():
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(rounds + 1):  # the first is a warm-up
            for name, run in engines.items():
                begin = time.process_time()
                run()
                if number:
                    spent[name].append((time.process_time() - begin) / batch_size)
        for name, seconds in spent.items():
            ratio = statistics.median(a / b for a, b in zip(spent["PyTorch"], seconds))
            row = {"tower": tower, "engine": name, "batch_size": batch_size, "ratio": round(ratio, 3)}
            rows.append(row | {"cpu_ms": round(1e3 * statistics.median(seconds), 3)})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="svitt-ego-base", help="variant of hub_configs, with random weights")
    parser.add_argument("--model", help="a saved model instead")
    parser.add_argument("--videos", help="to calibrate int8 on; a rendered texture by default")
    parser.add_argument("--calibration-clips", type=int, default=8)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, videos = arguments.model, arguments.videos
        if model is None:
            model = root / "model"
            save_random_model(arguments.config, model)
        if videos is None:
            videos = root / "videos"
            videos.mkdir()
            write_raw_video(videos / "texture.mp4", 4.0, 256)
        exports = {"onnxruntime": export(model, root / "onnx")}
        exports["archive"] = export(model, root / "model.pt2", "--format", "archive")
        loaded, processor = load_dual_encoder(model, "cpu")
        exports["onnxruntime, int8"] = quantise(
            loaded, processor, root / "onnx", root / "int8", videos, arguments.calibration_clips
        )
        refused = [tower for tower, row in exports["onnxruntime, int8"].items() if "refused" in row]
        folders = {"onnxruntime": root / "onnx", "onnxruntime, int8": root / "int8"}
        result = {
            "command": "python benchmarks/export.py " + " ".join(sys.argv[1:] if argv is None else argv),
            "model": arguments.model or f"{arguments.config}, random weights",
            "machine": machine("cpu", "fp32", 1) | {"onnxruntime": onnxruntime.__version__, "clock": "processor"},
            "parameters": loaded.num_parameters(),
            "exports": exports,
            "rounds": arguments.rounds,
            "speed": [
                row
                for size in arguments.batch_sizes
                for row in measure(readers(loaded, folders, root / "model.pt2", size, refused), size, arguments.rounds)
            ],
        }
    write_record(arguments.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
