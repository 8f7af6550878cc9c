"""Which tiles, warps and pipeline stages are fastest on this card? One JSON for the kernel repository.

    python benchmarks/tune_kernels.py --output benchmarks/results/kernel_launches

Each kernel's candidates are timed in the forward or backward of one layer of the base model at 8 frames, with token
ids that all clips share and with ids per clip; the sum decides. Candidates that a card cannot run are left out.
`--dry` runs one candidate per kernel on a CPU in triton's interpreter and writes nothing.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_parts.attention_figures import make_inputs
from gpu_parts.bench import Bench

from modeling_svitt_ego.model.edge_triton import triton_attention
from modeling_svitt_ego.model.kernel_launches import KERNELS, Launch, launches_to_json, use_launches

CANDIDATES = [
    Launch(rows, columns, num_warps, num_stages)
    for rows, columns in itertools.product((32, 64), (16, 32, 64))
    for num_warps in (4, 8)
    for num_stages in (1, 2)
]


def layer_times(bench: Bench, cases) -> tuple[float, float] | None:
    """Milliseconds of forward and backward, summed over the cases."""
    forward = backward = 0.0
    for q, k, v, table, positions, ids, size in cases:
        out = triton_attention(q, k, v, table, positions, ids, size)[0]
        grad = torch.ones_like(out)
        with torch.no_grad():
            one = bench.milliseconds(lambda: triton_attention(q, k, v, table, positions, ids, size), rounds=5)  # noqa: B023
        two = bench.milliseconds(
            lambda: torch.autograd.grad(out, (q, k, v, table), grad, retain_graph=True),  # noqa: B023
            rounds=5,
        )
        if one is None:
            return None
        forward, backward = forward + one, backward + two
    return forward, backward


def tune(bench: Bench) -> dict:
    shape = (2, (1, 4, 4), 13, 5, 1, 16) if bench.is_dry else (32, (8, 14, 14), 1097, 56, 12, 64)
    cases = [make_inputs(*shape, torch.bfloat16, per_sample, bench.device) for per_sample in (False, True)]
    best = {}
    for kernel in KERNELS:
        found = []
        for launch in CANDIDATES[:1] if bench.is_dry else CANDIDATES:
            key = (kernel, False, shape[-1])
            use_launches(best | {key: launch})
            try:
                times = layer_times(bench, cases)
            except Exception as error:  # out of resources, or a tile that the compiler refuses on this card
                print(f"{kernel} {launch}: {type(error).__name__}", flush=True)
                continue
            if times is not None:
                found.append((times[0] if kernel == "patches_forward" else times[1], launch))
                print(f"{kernel} {launch}: {found[-1][0]:.3f} ms", flush=True)
        if found:
            best[key] = min(found, key=lambda pair: pair[0])[1]
    use_launches({})
    return best


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="benchmarks/results/kernel_launches", help="folder of one JSON per card")
    parser.add_argument("--dry", action="store_true", help="on a CPU; nothing is measured or written")
    arguments = parser.parse_args(argv)
    if arguments.dry and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry runs the kernels in triton's interpreter: set TRITON_INTERPRET=1")
    if not arguments.dry and not torch.cuda.is_available():
        parser.error("no CUDA device")
    best = tune(Bench(arguments.dry, float("inf")))
    if arguments.dry:
        print("DRY RUN: nothing was measured.")
        return
    path = Path(arguments.output) / f"{torch.cuda.get_device_name().replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(launches_to_json(best), indent=2) + "\n")
    print(f"{path}: {len(best)} kernels")


if __name__ == "__main__":
    main()
