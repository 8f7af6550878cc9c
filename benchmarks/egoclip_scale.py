"""EgoClip at full size: writes a table of 3,847,723 lines like the published one and measures what the loader costs.

    python benchmarks/egoclip_scale.py --output benchmarks/egoclip_scale.json

Measured, each in a process of its own: preparing (wall clock, CPU, peak resident memory), twice into empty caches and
compared byte by byte; row access; the scene index and the batches of the sampler. The files (about 2 GB) go to a
temporary folder and are deleted.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_ROWS = 3_847_723
NUM_VIDEOS = 9_000
# Lines that must be left out and listed, and no other line with them.
MALFORMED = (
    "a line with too few cells",
    "1\tuid\t10.0\tnarration_pass_1\t0\t1.0\t0.5\t1.5\t#C C waits\t[__import__('os')]\t[1]",
    "1\tuid\tten\tnarration_pass_1\t0\t1.0\t0.5\t1.5\t#C C waits\t[1]\t[1]",
    "1\t../../etc\t10.0\tnarration_pass_1\t0\t1.0\t0.5\t1.5\t#C C waits\t[1]\t[1]",
    "",
)
# Narrations of EgoClip are about 37 characters long; a lone quotation mark is what default csv readers stumble over.
VERBS = "picks up,puts down,opens,closes,cuts,washes,holds,moves,turns,looks at,wipes,adjusts".split(",")
NOUNS = 'the red cup from the table,the drawer,a knife with the right hand,the phone,a 12" board,the tap'.split(",")


def write_table(path: Path, num_rows: int, seed: int = 0) -> None:
    """An egoclip.csv with `num_rows` good lines; the malformed ones are spread evenly between them."""
    rng = np.random.default_rng(seed)
    columns = "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end"
    per_video = np.bincount(rng.integers(NUM_VIDEOS, size=num_rows), minlength=NUM_VIDEOS)
    bad_at = {num_rows * (i + 1) // (len(MALFORMED) + 1): line for i, line in enumerate(MALFORMED)}
    row = 0
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join([*columns.split(), "clip_text", "tag_verb", "tag_noun"]) + "\n")
        for count in per_video.tolist():
            digits = rng.bytes(16).hex()
            uid = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            seconds = 2.7 * count + 10
            middles = np.sort(rng.uniform(0, seconds, count)).round(5)
            lengths = rng.gamma(1.2, 0.8, count)
            for i, (middle, length) in enumerate(zip(middles.tolist(), lengths.tolist())):
                if row in bad_at:
                    file.write(bad_at[row] + "\n")
                verb, noun = row % 118, (row * 7) % 582
                nouns = "" if row % 17 == 0 else f"{noun}" if row % 3 else f"{noun}, {(noun + 5) % 582}, {row % 582}"
                file.write(
                    f"{row}\t{uid}\t{seconds:.6f}\tnarration_pass_{1 + i % 2}\t{i}\t{middle}\t"
                    f"{middle - length / 2:.6f}\t{middle + length / 2:.6f}\t"
                    f"#C C {VERBS[row % len(VERBS)]} {NOUNS[row // 5 % len(NOUNS)]}\t[{verb}]\t[{nouns}]\n"
                )
                row += 1


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def measure_prepare(csv: str, cache: str) -> dict:
    from modeling_svitt_ego.data.egoclip import load_egoclip
    from modeling_svitt_ego.files.arrow_cache import rejected_lines

    idle = peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    table = load_egoclip(csv, cache_dir=cache)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mb()
    digest = hashlib.sha256()
    for file in table.cache_files:
        digest.update(Path(file["filename"]).read_bytes())
    return {
        "rows": len(table),
        "left_out": [[line.line, line.reason] for line in rejected_lines(table)],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_rss_mb": round(peak),
        "rss_mb_after_import": round(idle),
        "arrow_mb": round(sum(os.path.getsize(file["filename"]) for file in table.cache_files) / 1e6),
        "arrow_sha256": digest.hexdigest(),
    }


def measure_use(csv: str, cache: str) -> dict:
    import pickle

    from modeling_svitt_ego.data.egoclip import load_egoclip
    from modeling_svitt_ego.data.sampling import SceneAwareBatchSampler, SceneIndex, TagPairs

    start = time.perf_counter()
    table = load_egoclip(csv, cache_dir=cache)
    found = time.perf_counter() - start
    rows = np.random.default_rng(0).integers(len(table), size=5000).tolist()
    times = []
    for row in rows:
        start = time.perf_counter()
        table[row]
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    index, pairs = SceneIndex(table), TagPairs(table)
    index_seconds = time.perf_counter() - start
    sampler = SceneAwareBatchSampler(index, batch_size=128, tags=pairs)
    start = time.perf_counter()
    batches = iter(sampler)
    next(batches)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(1000):
        next(batches)
    return {
        "found_in_cache_seconds": round(found, 2),
        "row_access_us": {"median": round(1e6 * np.median(times), 1), "p99": round(1e6 * np.quantile(times, 0.99), 1)},
        "pickled_table_bytes": len(pickle.dumps(table)),
        "scene_index_seconds": round(index_seconds, 2),
        "scenes": index.num_scenes,
        "first_batch_seconds": round(first, 2),
        "batch_of_128_ms": round(time.perf_counter() - start, 3),  # 1000 batches, so seconds are ms
        "batches": sampler.statistics.as_dict(),
        "peak_rss_mb": round(peak_mb()),
    }


def in_new_process(function: str, *arguments: str) -> dict:
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--measure", function, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def provenance() -> dict:
    import datasets
    import pyarrow
    import torch

    from modeling_svitt_ego.weights.provenance import package_commit

    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": package_commit(),
        "machine": {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "datasets": datasets.__version__,
            "pyarrow": pyarrow.__version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--measure", nargs="+", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, *rest = args.measure
        print(json.dumps({"prepare": measure_prepare, "use": measure_use}[name](*rest)))
        return

    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "egoclip.csv"
        start = time.perf_counter()
        write_table(csv, args.rows)
        written = time.perf_counter() - start
        runs = [in_new_process("prepare", str(csv), str(Path(folder) / f"cache{i}")) for i in range(2)]
        result = {
            "what": "EgoClip-sized table, generated",
            **provenance(),
            "rows": args.rows,
            "csv_mb": round(csv.stat().st_size / 1e6),
            "generated_in_seconds": round(written, 1),
            "prepare": runs,
            "two_runs_byte_identical": runs[0]["arrow_sha256"] == runs[1]["arrow_sha256"],
            "use": in_new_process("use", str(csv), str(Path(folder) / "cache0")),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
