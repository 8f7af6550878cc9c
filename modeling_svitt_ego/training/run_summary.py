"""The cost and the course of a run: throughput, shares of time, memory, curves of loss and EgoMCQ."""

import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import TrainerCallback

from ..files.writing import write_json

try:
    import resource
except ImportError:  # Windows
    resource = None


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
    if resource is None:
        import psutil  # accelerate depends on it

        return psutil.Process().memory_info().peak_wset, "main process"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "main process"


_COLOURS = (
    *("#1f5fa8", "#c8501e", "#3c8c3c", "#7a4fa0", "#a08020", "#209090"),
    *("#c04080", "#606060", "#000000", "#70c0f0", "#90c060", "#e090c0"),
)


def draw_curves(
    curves: dict[str, list[tuple[float, float]]], size: tuple[int, int] = (800, 450), across: str = "step"
) -> Image.Image:
    """A picture of named curves of (step, value) with round ticks; `across` names the horizontal axis."""
    points = [point for curve in curves.values() for point in curve]
    x_ticks, y_ticks = (round_ticks(min(values), max(values)) for values in zip(*points))
    font = ImageFont.load_default(max(14, size[1] // 26))
    y_labels = [f"{value:g}" for value in y_ticks]
    # Room for the widest label at the left, for half a label at the right, and for the lines of text above and below.
    left = 12 + int(max(font.getlength(label) for label in y_labels))
    right, line = 8 + int(font.getlength(f"{x_ticks[-1]:g}") / 2), int(1.5 * font.size)
    names = _in_lines(list(curves), font, left, size[0])
    top, bottom = line * (1 + max(row for _, row in names)), 2 * line

    def place(x: float, y: float) -> tuple[float, float]:
        shares = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + shares[0] * (size[0] - left - right), size[1] - bottom - shares[1] * (size[1] - top - bottom)

    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for value, label in zip(y_ticks, y_labels):
        y = place(x_ticks[0], value)[1]
        draw.line([(left, y), (size[0] - right, y)], fill="#e0e0e0")
        draw.text((left - 6, y), label, fill="black", font=font, anchor="rm")
    for value in x_ticks:
        draw.text(
            (place(value, y_ticks[0])[0], size[1] - bottom + 6), f"{value:g}", fill="black", font=font, anchor="ma"
        )
    draw.text((size[0] // 2, size[1] - 4), across, fill="black", font=font, anchor="md")
    for (name, curve), colour, (at, row) in zip(curves.items(), itertools.cycle(_COLOURS), names):
        placed = [place(x, y) for x, y in curve]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=2)
        for x, y in placed if len(placed) < 50 else []:
            draw.ellipse([(x - 3, y - 3), (x + 3, y + 3)], fill=colour)
        draw.text((at, 4 + row * line), name, fill=colour, font=font)
    return picture


def _in_lines(names: list[str], font, left: int, width: int) -> list[tuple[int, int]]:
    """Where each name of the legend begins, and in which line: a new one where the picture ends."""
    places, at, row = [], left, 0
    for name in names:
        length = int(font.getlength(name))
        if at > left and at + length > width - 8:
            at, row = left, row + 1
        places.append((at, row))
        at += length + 24
    return places


def round_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in equal steps; the first is at most `low` and the last at least `high`."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]
