"""The cost and the course of a run: throughput, shares of time, memory, curves of loss and EgoMCQ."""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import TrainerCallback

from ..files.writing import write_json


class RunSummary(TrainerCallback):
    """
    Prints a summary at the end of training and writes `run_summary.json`, `loss.png` and, with EgoMCQ, `egomcq.png`.

    `run_summary.json`: `clips_per_second` (rows, over all processes), `seconds`, of which the shares `data` (waiting
    for clips), `compute` (forward and backward) and `other` (optimizer, evaluation, checkpoints), and
    `peak_memory_bytes` (of the device if it is an accelerator, else of the main process).
    """

    def __init__(self) -> None:
        self.seconds = self.data = self.step = 0.0
        self.clips = 0
        self.began = None
        self._logged = (0.0, 0)  # when, and how many clips by then

    def timed(self, batches: Iterator) -> Iterator:
        """The batches; waiting for them is counted as data."""
        batches = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.data += time.perf_counter() - began
            self.clips += len(batch["input_ids"])
            yield batch

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()
        self._logged = (self.began, self.clips)

    def clips_per_second(self, world_size: int) -> float:
        """Rows read per second over all processes since the last call, evaluation and checkpoints included."""
        (before, clips), now = self._logged, time.perf_counter()
        self._logged = (now, self.clips)
        return (self.clips - clips) * world_size / max(now - before, 1e-9)

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.began
        if not state.is_world_process_zero:
            return
        summary = self.as_dict(args.world_size)
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run_summary.json", summary)
        for name, keys in (("loss", ["loss"]), ("egomcq", ["eval_inter", "eval_intra"])):
            curves = {key: [(e["step"], e[key]) for e in state.log_history if key in e] for key in keys}
            if any(curves.values()):
                draw_curves(curves).save(folder / f"{name}.png")
        shares = summary["shares"]
        print(
            f"{summary['clips']:,} clips in {summary['seconds']:.0f} s ({summary['clips_per_second']:.1f} clips/s): "
            f"{shares['data']:.0%} waiting for clips, {shares['compute']:.0%} forward and backward, "
            f"{shares['other']:.0%} other; peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB "
            f"({summary['peak_memory_of']}). Curves and numbers: {folder}",
            flush=True,
        )

    def as_dict(self, world_size: int) -> dict:
        seconds = max(self.seconds, 1e-9)
        data, compute = self.data / seconds, (self.step - self.data_within_steps) / seconds
        peak, of = peak_memory()
        return {
            "clips": self.clips * world_size,
            "seconds": self.seconds,
            "clips_per_second": self.clips * world_size / seconds,
            "shares": {"data": data, "compute": compute, "other": max(0.0, 1 - data - compute)},
            "peak_memory_bytes": peak,
            "peak_memory_of": of,
        }

    data_within_steps = 0.0  # a contrastive batch is read while its first micro-batches are embedded

    def timed_step(self, run):
        """Result of `run()`, its time counted as computing but for the reading in it."""
        began, data = time.perf_counter(), self.data
        result = run()
        self.step += time.perf_counter() - began
        self.data_within_steps += self.data - data
        return result


def peak_memory() -> tuple[int, str]:
    """Bytes, and of what."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "main process"


_COLOURS = ("#1f5fa8", "#c8501e", "#3c8c3c", "#7a4fa0", "#a08020", "#209090", "#c04080", "#606060")


def draw_curves(
    curves: dict[str, list[tuple[float, float]]], size: tuple[int, int] = (640, 360), across: str = "step"
) -> Image.Image:
    """A picture of named curves of (step, value), with the axes' ends written on them; `across` names the first."""
    width, height = size
    left, right, top, bottom = 64, 16, 24, 28
    points = [point for curve in curves.values() for point in curve]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if first == last else (x - first) / (last - first)
        return left + across * (width - left - right), height - bottom - (y - low) / (high - low) * (
            height - top - bottom
        )

    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        y = place(first, value)[1]
        draw.line([(left, y), (width - right, y)], fill="#e0e0e0")
        draw.text((4, y - 6), f"{value:.4g}", fill="black")
    for x in {first, last}:
        draw.text((place(x, low)[0] - 12, height - bottom + 8), f"{x:g}", fill="black")
    draw.text((width // 2 - 12, height - bottom + 8), across, fill="black")
    label = left
    for (name, curve), colour in zip(curves.items(), _COLOURS):
        placed = [place(x, y) for x, y in curve]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=2)
        for x, y in placed if len(placed) < 50 else []:
            draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=colour)
        draw.text((label, 6), name, fill=colour)
        label += 8 * len(name) + 24
    return picture
