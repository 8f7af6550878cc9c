"""Times and weighs the video tower: dense, edges, nodes and both, by every implementation, and others.

    python benchmarks/attention.py --output benchmarks/results/attention.json --frames 4 8 16 --plot attention.png

A configuration is a whole base-size tower with random weights at 224 px: its forward and its training step (forward
and backward, no optimizer). The configurations of one number of frames run in turn, `--rounds` times; medians are
kept, and ratios are medians of the ratios within a round, so that a machine that slows down slows all alike. Memory is
weighed in a process of its own, at the second step: bytes saved for the backward; peak, gradients included, above what
is there before the step, resident (CPU) or allocated (GPU). What does not fit `--memory-limit` is recorded so.
Where a step takes minutes, `--no-warm-up` saves the one that is not counted.

The record is written after each measurement: an interrupted run goes on where it stopped when started again,
`--report` only prints. The FLOP bound is the ratio of the matrix FLOPs, dense to sparse; nothing is extrapolated.
"""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    AttentionInterface,
    BigBirdConfig,
    BigBirdModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_svitt_ego import SViTTEgoVisionConfig, SViTTEgoVisionModel
from modeling_svitt_ego.files.writing import write_json
from modeling_svitt_ego.model.configuration_svitt_ego import num_kept_tokens
from modeling_svitt_ego.training.memory_plan import SavedBytes
from modeling_svitt_ego.weights.provenance import package_commit

REFERENCE = "dense/library"
# svitt-ego-base-temporal's edges: as many attended blocks as the paper's.
TEMPORAL = dict(num_local_blocks=1, num_temporal_blocks=2, num_random_blocks=1, block_size=49)
# What edge and node sparsity change; the rest is the base size's defaults.
PATTERNS = {
    "dense": dict(num_random_blocks=None, keep_rate=1.0),
    "edge": dict(num_random_blocks=3, keep_rate=1.0),
    "node": dict(num_random_blocks=None, keep_rate=0.7),
    "both": dict(num_random_blocks=3, keep_rate=0.7),
    "temporal": TEMPORAL | dict(keep_rate=1.0),
    "temporal-both": TEMPORAL | dict(keep_rate=0.7),
    "temporal-motion": TEMPORAL | dict(keep_rate=0.7, keep_strategy="motion"),
}
# "library" is what one would write with the library alone: F.scaled_dot_product_attention with the bias as mask, in
# torch's own graph; "sdpa" computes dense attention in chunks, and its tower keeps less (lean_linear.py).
IMPLEMENTATIONS = {
    "dense": ("eager", "library", "sdpa", "flex_attention"),
    "edge": ("eager", "sdpa", "flex_attention"),
    "node": ("eager", "library", "sdpa", "flex_attention"),
    "both": ("eager", "sdpa", "flex_attention"),
    "temporal": ("sdpa",),
    "temporal-both": ("sdpa",),
    "temporal-motion": ("sdpa",),
}
OTHERS = ("bigbird", "videomae", "timesformer")
AttentionInterface.register("library", sdpa_attention_forward)


def names(device: str) -> list[str]:
    ours = [f"{p}/{i}" for p, implementations in IMPLEMENTATIONS.items() for i in implementations]
    return [n for n in ours if device == "cuda" or not n.endswith("flex_attention")] + list(OTHERS)


# --------------------------------------------------------------------------------------------------------- FLOPs


def tower_flops(config: SViTTEgoVisionConfig, num_frames: int) -> int:
    """Matrix FLOPs (two per multiply-add) of one clip's forward; pruned layers prune before their MLP."""
    width, inner, grid = config.hidden_size, config.intermediate_size, config.patches_per_frame
    total = 2 * num_frames * grid * config.num_channels * config.patch_size**2 * width
    for layer, patches in enumerate(config.tokens_per_layer(num_frames)):
        prunes = layer in config.prune_layers
        kept = num_kept_tokens(patches, config.keep_rate) if prunes else patches
        tokens = 1 + patches
        total += 8 * tokens * width**2 + 4 * (1 + kept) * width * inner
        if config.num_random_blocks is None:
            pairs = tokens * tokens
        else:
            blocks = -(-patches // config.block_size)
            listed = config.num_local_blocks + config.num_temporal_blocks + config.num_random_blocks
            attended = min(listed, blocks)
            pairs = tokens + patches * (1 + attended * config.block_size)
        total += 4 * pairs * width
    return total


def vision_config(name: str, num_frames: int, **sizes) -> SViTTEgoVisionConfig:
    return SViTTEgoVisionConfig(**({"num_frames": num_frames, "drop_path_rate": 0.0} | sizes | PATTERNS[name]))


# --------------------------------------------------------------------------------------------------------- models


class Runner:
    """One configuration: a model, its input, a forward and a training step."""

    cpu_time = False

    def __init__(self, name: str, num_frames: int, batch_size: int, device: str, bf16: bool, sizes: dict):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        tokens = num_frames * 196
        if name in OTHERS:
            size = {k: v for k, v in sizes.items() if k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
            size |= {"intermediate_size": sizes["intermediate_size"]} if "intermediate_size" in sizes else {}
        if name == "bigbird":  # its blocks must divide the length: 64, and as many tokens as fill them
            length = -(-(tokens + 1) // 64) * 64
            config = BigBirdConfig(
                max_position_embeddings=length, attention_type="block_sparse", block_size=64, num_random_blocks=3,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=100, **size,
            )  # fmt: skip
            model = BigBirdModel(config, add_pooling_layer=False)
            states = torch.randn(batch_size, length, config.hidden_size, generator=generator)
            self.inputs = {"inputs_embeds": states}
        else:
            clips = torch.randn(batch_size, num_frames, 3, 224, 224, generator=generator)
            if name == "videomae":
                model = VideoMAEModel(VideoMAEConfig(num_frames=num_frames, **size))
            elif name == "timesformer":
                model = TimesformerModel(TimesformerConfig(num_frames=num_frames, **size))
            else:
                pattern, implementation = name.split("/")
                config = vision_config(pattern, num_frames, **sizes)
                model = SViTTEgoVisionModel._from_config(config, attn_implementation=implementation)
                if implementation == "library":
                    for module in model.modules():
                        if isinstance(module, torch.nn.Linear):  # a layer with a hook is called in torch's own way
                            module.register_forward_hook(lambda *_: None)
            self.inputs = {("pixel_values_videos" if name not in OTHERS else "pixel_values"): clips}
        self.device, self.bf16 = device, bf16
        self.model = model.train().to(device)
        self.inputs = {key: x.to(device) for key, x in self.inputs.items()}

    def forward(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.model(**self.inputs).last_hidden_state

    def inference(self):
        with torch.no_grad():
            self.forward()

    def step(self):
        self.forward().float().square().mean().backward()
        self.model.zero_grad(set_to_none=True)

    def timed(self, kind: str) -> float:
        """Seconds: the device's on a GPU; on a CPU of the clock, or of the processor over the threads."""
        run = self.inference if kind == "forward" else self.step
        if self.device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            return start.elapsed_time(stop) / 1e3
        clock, share = (time.process_time, torch.get_num_threads()) if self.cpu_time else (time.perf_counter, 1)
        begin = clock()
        run()
        return (clock() - begin) / share


def weigh(name: str, num_frames: int, batch_size: int, device: str, bf16: bool, sizes: dict, warm_up: bool) -> dict:
    """Bytes of one training step above the model, in this (fresh) process."""
    runner = Runner(name, num_frames, batch_size, device, bf16, sizes)
    if warm_up:
        runner.step()  # kernels are compiled, libraries loaded, workspaces made
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        watch = PeakResident()
    with SavedBytes(exclude=runner.model.parameters()) as saved:
        loss = runner.forward().float().square().mean()
    found = {"saved_bytes": saved.total}
    loss.backward()
    gradients = sum(p.grad.nbytes for p in runner.model.parameters() if p.grad is not None)
    if device == "cuda":
        return found | {"peak_bytes": torch.cuda.max_memory_allocated() - before, "gradient_bytes": gradients}
    return found | {"peak_bytes": watch.stop(), "gradient_bytes": gradients}


class PeakResident:
    """Largest resident memory above the present one, looked at every 2 ms: ru_maxrss cannot be set back."""

    def __init__(self):
        self.first = self.peak = self.now()
        self.running = True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    @staticmethod
    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def watch(self):
        while self.running:
            self.peak = max(self.peak, self.now())
            time.sleep(0.002)

    def stop(self) -> int:
        self.running = False
        self.thread.join()
        return self.peak - self.first


# --------------------------------------------------------------------------------------------------------- the run


def machine(device: str, precision: str, threads: int) -> dict:
    """What is recorded with every number."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else model,
        "device": device,
        "threads": threads,
        "precision": precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": package_commit(Path(__file__).parents[1]),
        "date": time.strftime("%Y-%m-%d"),
    }


def run(arguments) -> dict:
    path = Path(arguments.output)
    result = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    now = machine(arguments.device, "bf16 autocast" if arguments.bf16 else "fp32", arguments.threads)
    now["clock"] = "device" if arguments.device == "cuda" else "processor" if arguments.cpu_time else "wall"
    now["sizes"] = arguments.sizes
    unlike = {k for k in now if k != "date" and "machine" in result and result["machine"][k] != now[k]}
    if unlike:
        raise SystemExit(f"{path} was measured otherwise ({', '.join(sorted(unlike))}); give another --output.")
    result["machine"] = now
    sizes = json.loads(arguments.sizes)
    for num_frames in arguments.frames:
        chosen = arguments.only or names(arguments.device)
        key = f"T{num_frames}-B{arguments.batch_size}"
        entry = result["runs"].setdefault(key, {"num_frames": num_frames, "batch_size": arguments.batch_size})
        entry["gflops"] = {p: tower_flops(vision_config(p, num_frames, **sizes), num_frames) / 1e9 for p in PATTERNS}
        memory = entry.setdefault("memory", {})
        for name in chosen:
            if name not in memory:
                memory[name] = _weigh_apart(name, num_frames, arguments)
                write_record(path, result)
        for kind in arguments.kinds:
            times = entry.setdefault(kind, {})
            usable = [n for n in chosen if "error" not in memory[n]]
            for name in usable:
                times.setdefault(name, [])
            runners = {}
            while min((len(times[n]) for n in usable), default=arguments.rounds) < arguments.rounds:
                behind = min(len(times[n]) for n in usable)
                for name in usable:
                    if len(times[name]) > behind:
                        continue
                    runner = runners.get(name)
                    if runner is None:
                        given = (name, num_frames, arguments.batch_size, arguments.device, arguments.bf16, sizes)
                        runner = Runner(*given)
                        if not arguments.no_warm_up:
                            runner.timed(kind)  # not counted
                        if arguments.keep_models:
                            runners[name] = runner
                    times[name].append(runner.timed(kind))
                    print(f"{key} {kind} {name}: {times[name][-1]:.3f} s", flush=True)
                    write_record(path, result)
                    del runner
    return result


def _weigh_apart(name: str, num_frames: int, arguments) -> dict:
    given = [name, num_frames, arguments.batch_size, arguments.device, arguments.bf16, json.loads(arguments.sizes)]
    given.append(not arguments.no_warm_up)
    command = [sys.executable, __file__, "--weigh", json.dumps(given), "--threads", str(arguments.threads)]
    if arguments.memory_limit:
        command += ["--memory-limit", str(arguments.memory_limit)]
    # Otherwise glibc keeps freed memory for later, and resident memory shows what once was.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        if "alloc" in last and arguments.memory_limit:
            last = f"does not fit in {arguments.memory_limit:g} GiB: {last}"
        found = {"error": last if done.returncode > 0 else f"killed by signal {-done.returncode} (memory?)"}
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    print(f"T{num_frames} memory {name}: {found}", flush=True)
    return found


def write_record(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


# --------------------------------------------------------------------------------------------------------- reading


def speedup(times: dict, name: str, reference: str = REFERENCE) -> float | None:
    """How many times faster than the reference: the median of the ratios within each round."""
    pairs = list(zip(times.get(reference, []), times.get(name, [])))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def report(result: dict) -> str:
    """Tables in Markdown: seconds, ratios to dense attention by the library, memory, and the FLOP bound."""
    lines = [", ".join(f"{k} {v}" for k, v in result["machine"].items())]
    for key, entry in sorted(result["runs"].items(), key=lambda run: (run[1]["num_frames"], run[1]["batch_size"])):
        lines += ["", f"**{key}**: FLOPs dense / both {entry['gflops']['dense'] / entry['gflops']['both']:.2f}", ""]
        lines += ["| | forward s | faster | step s | faster | saved MB | peak MB | of dense |", "|---|" + "---|" * 7]
        reference = entry["memory"].get(REFERENCE, {}).get("peak_bytes")
        for name, memory in entry["memory"].items():
            if "error" in memory:
                lines.append(f"| {name} | {memory['error'].split(': ')[0]} |" + " |" * 6)
                continue
            cells = []
            for kind in ("forward", "step"):
                times = entry.get(kind, {})
                ratio = speedup(times, name)
                cells.append(f"{statistics.median(times[name]):.2f}" if times.get(name) else "")
                cells.append(f"{ratio:.2f}" if ratio else "")
            share = f"{memory['peak_bytes'] / reference:.2f}" if reference else ""
            cells += [f"{memory[k] / 1e6:,.0f}" for k in ("saved_bytes", "peak_bytes")] + [share]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        bound = entry["gflops"]["dense"] / entry["gflops"]["both"]
        for kind in ("step", "forward"):
            times = entry.get(kind, {})
            medians = {n: statistics.median(times[n]) for n in times if n.startswith("both/") and times[n]}
            name = min(medians, key=medians.get, default=None)
            ratios = {n: speedup(times, name, n) for n in times if n.startswith("dense/") and times[n]} if name else {}
            if ratios:
                dense = min(ratios, key=ratios.get)
                lines += ["", f"{kind}: against the best dense one ({dense}) {name} is {ratios[dense]:.2f} x as fast, "
                              f"{ratios[dense] / bound:.0%} of the FLOP bound."]  # fmt: skip
    return "\n".join(lines)


def plot(result: dict, path: str, batch_size: int) -> None:
    """
    Speed-up of a training step per number of frames, with the FLOP bound: over dense attention by the library, as far
    as that fits into memory, and over our own.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install -e .[benchmark]") from None
    entries = [e for e in result["runs"].values() if e.get("step") and e["batch_size"] == batch_size]
    entries.sort(key=lambda e: e["num_frames"])
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, reference in zip(figure.subplots(1, 2, sharey=True), (REFERENCE, "dense/sdpa")):
        frames = [e["num_frames"] for e in entries if e["step"].get(reference)]
        bound = [e["gflops"]["dense"] / e["gflops"]["both"] for e in entries if e["step"].get(reference)]
        axes.plot(frames, bound, "ks--", label="FLOP bound, both")
        shown = ("dense/sdpa", "edge/sdpa", "node/sdpa", "both/sdpa", "both/flex_attention", *OTHERS)
        for place, name in enumerate(shown):
            found = [(e["num_frames"], speedup(e["step"], name, reference)) for e in entries]
            found = [point for point in found if point[1]]
            if found and name != reference:
                axes.plot(*zip(*found), f"C{place}o-", label=name, alpha=0.5 if name in OTHERS else 1.0)
        axes.set(xscale="log", yscale="log", xticks=frames, xticklabels=[str(f) for f in frames], xlabel="frames")
        axes.minorticks_off()
        axes.set_title(f"times faster than {reference}", fontsize=10)
        ticks = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    info = result["machine"]
    figure.suptitle(
        f"Training step, batch {batch_size}: {info['processor']}, {info['threads']} threads, {info['precision']}, "
        f"torch {info['torch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="benchmarks/results/attention.json")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=["step", "forward"], choices=["step", "forward"],
                        help="what to time; with none, memory alone is weighed")  # fmt: skip
    parser.add_argument("--only", nargs="+", help="names such as both/sdpa; all otherwise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-warm-up", action="store_true", help="count and weigh the first step: for minutes a step")
    parser.add_argument("--memory-limit", type=float, help="GiB that a weighed process may take (Linux)")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    parser.add_argument("--sizes", default="{}", help="configuration fields as JSON, for a small check")
    parser.add_argument("--keep-models", action="store_true", help="keep the models between rounds")
    parser.add_argument("--plot", help="also draw to this file")
    parser.add_argument("--report", action="store_true", help="measure nothing, print and draw what is there")
    parser.add_argument("--weigh", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    Runner.cpu_time = arguments.cpu_time
    if arguments.weigh:
        if arguments.memory_limit:  # an error instead of a machine without memory
            limit = int(arguments.memory_limit * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        print(json.dumps(weigh(*json.loads(arguments.weigh))))
        return
    result = json.loads(Path(arguments.output).read_text()) if arguments.report else run(arguments)
    print(report(result))
    if arguments.plot:
        plot(result, arguments.plot, arguments.batch_size)


if __name__ == "__main__":
    main()
