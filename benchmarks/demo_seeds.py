"""`svitt-ego demo` with several seeds: the mean, the deviation and the worst of its accuracies.

    python benchmarks/demo_seeds.py --seeds 0,1,2,3,4 --work runs/demo

A seed decides the world, the weights and the order of the clips. Finished folders in WORK are read and not run again,
so a stopped command continues where it was. The record is `benchmarks/results/demo/seeds.json`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from experiment_parts.records import origin
from experiment_parts.report import spread

from modeling_svitt_ego.files.writing import write_json
from modeling_svitt_ego.weights.provenance import package_commit

HERE = Path(__file__).resolve().parent
EVALUATIONS = {"untrained": "untrained", "shuffled_frames": "trained, frames shuffled", "trained": "**trained**"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda x: [int(s) for s in x.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="folder with one demo folder per seed")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "demo" / "seeds.json")
    parser.add_argument("--quick", action="store_true", help="the demo's smoke test, to try this script")
    options = parser.parse_args(argv)
    runs = [run_seed(options.work, seed, options.quick) for seed in options.seeds]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {**origin(), "runs": runs})
    print(table(runs))


def run_seed(work: Path, seed: int, quick: bool) -> dict:
    """The metrics of a seed's demo and, where this script has run it, the commit, seconds and CPU seconds of it."""
    folder = work / str(seed)
    metrics, took = folder / "demo_metrics.json", folder / "demo_seconds.json"
    if not metrics.is_file():
        begin, cpu = time.time(), _cpu_of_children()
        command = [
            sys.executable,
            "-m",
            "modeling_svitt_ego.cli",
            "demo",
            "--seed",
            str(seed),
            "--output",
            str(folder),
        ]
        subprocess.run(command + (["--quick"] if quick else []), check=True)
        seconds = {"seconds": round(time.time() - begin, 1), "cpu_seconds": round(_cpu_of_children() - cpu, 1)}
        write_json(took, {"commit": package_commit(), **seconds})
    seconds = json.loads(took.read_text(encoding="utf-8")) if took.is_file() else {}
    return {"seed": seed, **seconds, **json.loads(metrics.read_text(encoding="utf-8"))}


def table(runs: list[dict]) -> str:
    """Markdown: mean ± standard deviation over the seeds, with the lowest and the highest in brackets."""
    lines = ["| EgoMCQ, accuracy in per cent | inter | intra |", "|---|---|---|"]
    for name, label in EVALUATIONS.items():
        cells = [_with_extremes([run[name][kind] for run in runs]) for kind in ("inter", "intra")]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _with_extremes(values: list[float]) -> str:
    return f"{spread(values)} ({min(values):.1f} to {max(values):.1f})"


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
