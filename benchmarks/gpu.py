"""Every figure of the speed goals on one GPU, in one process of at most six minutes.

    python benchmarks/gpu.py --output benchmarks/results/gpu.json

The most important figures come first. The record is written after each, so that a run which is cut off keeps what it
has; figures that would not fit into `--seconds` are named as skipped. A table ends the output. torch, triton,
transformers and this package are enough, but for the last figure, which also reads videos.

`--dry` runs the same code on tiny sizes on a CPU, in triton's interpreter (TRITON_INTERPRET=1): it shows that the
script runs, measures nothing, and its record has neither times nor peaks.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import triton

sys.path.insert(0, str(Path(__file__).parent))
from attention import machine, write_record
from gpu_parts import attention_figures, tower_figures, training_figures
from gpu_parts.bench import Bench, OutOfTime, kernels

FIGURES = {
    "correctness": attention_figures.correctness,
    "attention alone": attention_figures.attention_alone,
    "tower": tower_figures.towers,
    "launches": training_figures.launches,
    "rate": tower_figures.rate,
    "memory plan": training_figures.memory_plan,
    "cached step": training_figures.cached_step,
    "torch.compile": tower_figures.compiled,
    "batches": tower_figures.batches,
    "trainer from JPEG shards": training_figures.trainer,
}


def run(bench: Bench, path: Path, only: list[str] | None) -> dict:
    place = "dry_run" if bench.is_dry else "figures"
    record = {
        "machine": machine(bench.device, "bf16 autocast", torch.get_num_threads()) | {"triton": triton.__version__}
    }
    figures = record.setdefault(place, {})
    for name, figure in FIGURES.items():
        if only and name not in only:
            continue
        found = figures.setdefault(name, {})
        begin = time.monotonic()
        try:
            for key, value in figure(bench):
                found[key] = value
                print(f"{name} | {key} | {value}", flush=True)
                write_record(path, record)
        except OutOfTime as reason:
            found["skipped"] = str(reason)
        except Exception as error:  # one figure that fails must not cost the others
            found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if bench.is_dry:
                raise
        bench.release()
        if not bench.is_dry:
            found["took s"] = round(time.monotonic() - begin, 1)
        write_record(path, record)
    return record


def table(record: dict) -> str:
    """The tower's figures by setting, and the goals' ratios; errors and what was skipped below."""
    if "dry_run" in record:
        return "DRY RUN: nothing was measured."
    tower = record["figures"].get("tower", {})
    lines = [f"{record['machine']['processor']}, step ms (forward ms) · peak MB"]
    for form in tower_figures.FORMS:
        cells = []
        for num_frames, batch_size in tower_figures.SETTINGS:
            found = tower.get(f"T={num_frames} B={batch_size} {form}")
            if found is None or "error" in found:
                cells.append("–" if found is None else found["error"])
            else:
                cells.append(f"{found['step ms']:.0f} ({found['forward ms']:.0f}) · {found['peak MB']:,}")
        lines.append(f"{form:28} | " + " | ".join(cells))
    for reference in ("dense, flash without bias", "dense, flex_attention"):
        for kind in ("step ms", "forward ms"):
            ratios = []
            for num_frames, batch_size in tower_figures.SETTINGS:
                a, b = (
                    tower.get(f"T={num_frames} B={batch_size} {form}", {}).get(kind) for form in (reference, "both")
                )
                ratios.append(f"{a / b:.2f}" if a and b else "–")
            lines.append(f"{kind} of '{reference}' / both: " + ", ".join(ratios))
    columns = ", ".join(f"T={t} B={b}" for t, b in tower_figures.SETTINGS)
    lines.insert(1, f"{'':28} | {columns}")
    for name, found in record["figures"].items():
        lines += [f"{name}: {reason} {found[reason]}" for reason in ("error", "skipped") if reason in found]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="benchmarks/results/gpu.json")
    parser.add_argument("--seconds", type=float, default=345, help="budget; what would not fit is skipped")
    parser.add_argument("--only", nargs="+", choices=FIGURES, metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU; nothing is measured")
    arguments = parser.parse_args(argv)
    if arguments.dry and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry runs the kernels in triton's interpreter: set TRITON_INTERPRET=1")
    if not arguments.dry and not torch.cuda.is_available():
        parser.error("no CUDA device; `TRITON_INTERPRET=1 python benchmarks/gpu.py --dry` shows that the script runs")
    bench = Bench(arguments.dry, arguments.seconds)
    with kernels(True, bench.device):
        record = run(bench, Path(arguments.output), arguments.only)
    print(table(record))


if __name__ == "__main__":
    main()
