"""The comparisons that the paper's reader asks for, each one command; on the synthetic world in minutes on a CPU.

    python benchmarks/experiments.py --only 1 --jobs 2      # dense, edge, node, both: EgoMCQ, time, memory, FLOPs
    python benchmarks/experiments.py --only 2 --jobs 2      # EgoNCE, InfoNCE, each half of EgoNCE
    python benchmarks/experiments.py --only 3 --jobs 2      # K_r, G, q_v; 3m: q_m, with the fusion objectives
    python benchmarks/experiments.py --only 4 --jobs 2      # train dense, evaluate sparse; takes the models of 1
    python benchmarks/experiments.py --only 5               # temporal edges; 5-8 and 5-16: at 8 and 16 frames
    python benchmarks/experiments.py --only 6               # which tokens to keep
    python benchmarks/experiments.py --only 7               # trained dense first, continued sparse
    python benchmarks/experiments.py --only 8               # EgoNCE on Zipf's statistics, by contrastive batch
    python benchmarks/experiments.py --only 8-steps --steps 125   # the same at equal steps, not at equal clips
    python benchmarks/experiments.py --only 9               # temporal edges and pruning where the head moves
    python benchmarks/experiments.py --only 9-long --steps 500    # edges where the head moves, trained for longer
    python benchmarks/experiments.py --report               # tables and pictures from the JSON files

Results are in benchmarks/results/experiments, one JSON per experiment; finished runs are kept, so a stopped command
continues where it was. The clips are decoded once and shared by all runs.

On EgoClip the same script, with BEiT and BERT and the published recipe:

    python benchmarks/experiments.py --scale base --egoclip egoclip.csv --videos VIDEO_ROOT \\
        --egomcq egomcq.json --egomcq-videos MCQ_ROOT --steps 20000 --batch-size 32 --bf16 --workers 12 \\
        --results runs/experiments
"""

import argparse
import os
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from experiment_parts import costs, inference
from experiment_parts.plan import (
    FRAMES,
    PAPER_EDGES,
    SAME_COSTS,
    STATISTICS,
    TITLES,
    TRAINED,
    Setting,
    measured_settings,
    settings_of,
)
from experiment_parts.records import ORIGIN, Records
from experiment_parts.report import write_report
from experiment_parts.training import Budget, Corpus, prepare, quietly, train

from modeling_svitt_ego.demo.synthetic_plan import WorldStatistics
from modeling_svitt_ego.demo.synthetic_world import WORLD_VERSION, build_world

HERE = Path(__file__).resolve().parent
COST_FRAMES = {"tiny": [4, 16, 64], "base": [4, 8, 16]}


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    records = Records(options.results)
    if options.report:
        print(f"Written: {write_report(records)}")
        return
    budget = Budget(
        steps=options.steps,
        batch_size=options.batch_size,
        num_frames=options.num_frames,
        scale=options.scale,
        vision_encoder=options.vision_encoder,
        text_encoder=options.text_encoder,
        bf16=options.bf16,
    )
    for number in options.only:
        budget = replace(budget, num_frames=FRAMES.get(number, options.num_frames))
        corpus = find_corpus(options, STATISTICS.get(number, {}))
        prepare(corpus, budget, options.workers)
        if number in TRAINED:
            settings = chosen(settings_of(number, budget.scale), options.settings)
            run_all(number, settings, records, corpus, budget, options)
            if not (options.no_costs or number in SAME_COSTS or "costs" in records.content[number]):
                frames = options.cost_frames if number == "1" else [budget.num_frames]
                print(f"[{number}] costs of a step at {frames} frames", flush=True)
                measured, batch_size = measured_settings(number, budget.scale), options.cost_batch_size
                records.set(number, "costs", costs.measure(measured, budget.scale, frames, batch_size))
        else:
            run_inference(records, corpus, budget, options)
    print(f"Written: {write_report(records)}")


def chosen(settings: list[Setting], names: list[str]) -> list[Setting]:
    """The settings that --setting names; all of them without the option."""
    unknown = sorted(set(names) - {setting.name for setting in settings})
    if unknown:
        known = "; ".join(setting.name for setting in settings)
        raise SystemExit(f"--setting {unknown[0]!r} is not in the experiment. Its settings: {known}.")
    return [setting for setting in settings if not names or setting.name in names]


def recipe_of(setting: Setting, seed: int, corpus: Corpus, budget: Budget) -> dict:
    return {
        "setting": setting.name,
        "seed": seed,
        "fields": setting.fields,
        "arguments": setting.arguments,
        "fusion": setting.fusion,
        "budget": budget.as_recipe(),
        "data": corpus.name,
        **({"more": setting.more()} if setting.more() else {}),
    }


def run_all(number: str, settings: list[Setting], records: Records, corpus, budget, options) -> None:
    """Trains what is missing, seed after seed, so that a stopped experiment has whole seeds."""
    jobs = []
    for seed in options.seeds:
        for setting in settings:
            recipe = recipe_of(setting, seed, corpus, budget)
            if records.has(number, recipe):
                continue
            known = records.find(recipe)
            if known is not None:
                records.add(number, recipe, known["result"], {key: known[key] for key in ORIGIN})
            else:
                jobs.append((recipe, (setting, seed, corpus, budget, options.workers)))
    print(f"[{number}] {TITLES[number]}: {len(jobs)} runs of {budget.steps} steps", flush=True)
    failed, waiting = [], 0
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), begin_worker, (options.threads,)) as pool:
        runs = {pool.submit(train_in_time, options.deadline, *arguments): recipe for recipe, arguments in jobs}
        for run in as_completed(runs):
            recipe = runs[run]
            name = f"{recipe['setting']}, seed {recipe['seed']}"
            if run.exception() is not None:
                failed.append(name)
                print(f"[{number}] {name} failed:", flush=True)
                traceback.print_exception(run.exception())
                continue
            result = run.result()
            if result is None:
                waiting += 1
                continue
            records.add(number, recipe, result)
            print(
                f"[{number}] {name}: inter {result['inter']:.1f}, intra {result['intra']:.1f}, "
                f"{result['cpu_seconds_per_step']:.3f} CPU s per step",
                flush=True,
            )
    if waiting:
        raise SystemExit(
            f"{waiting} of {len(jobs)} runs of experiment {number} were not started within --minutes "
            f"{options.minutes:g}. The same command continues with them."
        )
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}. The others are kept.")


def train_in_time(deadline: float, *arguments) -> dict | None:
    """[`train`], or None if the time is up: in a pool all runs are submitted at once."""
    return None if time.time() > deadline else train(*arguments)


def run_inference(records: Records, corpus: Corpus, budget: Budget, options) -> None:
    """Experiment 4: no training but what experiment 1 lacks."""
    trained = inference.trained_settings(budget.scale)
    run_all("1", trained, records, corpus, budget, options)
    for seed in options.seeds:
        for setting in trained:
            recipe = recipe_of(setting, seed, corpus, budget)
            if not records.has("4", recipe):
                with quietly(options.work / "inference.txt"):
                    result = inference.sweep(setting, seed, corpus, budget, options.workers)
                records.add("4", recipe, result)
                print(f"[4] trained {setting.name}, seed {seed}: {len(result)} settings evaluated", flush=True)
    if "latency" not in records.content["4"]:
        records.set("4", "latency", inference.latency(trained[0], options.seeds[0], corpus, budget))


def begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    # A killed parent would leave its workers training for nobody.
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def find_corpus(options, statistics: dict) -> Corpus:
    """EgoClip where it is given, else a synthetic world of these `WorldStatistics`, rendered if it is not there."""
    work = str(options.work)
    if options.egomcq is not None:
        shards = options.clip_shards
        if (options.egoclip is None or options.videos is None) and shards is None:
            raise SystemExit("--egomcq needs --egoclip and --videos, or --clip-shards.")
        return Corpus(
            options.egoclip,
            options.videos,
            options.egomcq,
            options.egomcq_videos or options.videos or "",
            name=f"{Path(options.egoclip or shards).name} and {Path(options.egomcq).name}",
            work=work,
            cache_gb=options.cache_gb,
            clip_shards=shards,
        )
    sizes = {"train": options.train_videos, "test": options.test_videos}
    seconds = options.video_seconds
    name = "-".join(["world", *statistics])
    folder = options.work / name if statistics or options.world is None else options.world
    world = build_world(
        folder, sizes, seconds, 0, num_workers=options.workers or 1, statistics=WorldStatistics(**statistics)
    )
    return Corpus(
        str(world["train"].egoclip),
        str(world["train"].videos),
        str(world["test"].egomcq),
        str(world["test"].videos),
        name=f"synthetic {name} (version {WORLD_VERSION}, seed 0), {sizes['train']} training and {sizes['test']} test "
        f"videos of {seconds:g} s",
        work=work,
        cache_gb=options.cache_gb,
    )


def parse(argv: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = tuple(TITLES)
    parser.add_argument("--only", type=lambda x: x.split(","), default=["1", "2", "3", "4"], help="e.g. 1,2,3m")
    parser.add_argument(
        "--setting", dest="settings", action="append", default=[], help="only this setting of the table; repeatable"
    )
    parser.add_argument("--no-costs", action="store_true", help="train only; another call measures the costs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new run after so many")
    parser.add_argument("--seeds", type=lambda x: [int(s) for s in x.split(",")], default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode, of each run")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=64, help="clips; one view of each")
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--scale", choices=tuple(PAPER_EDGES), default="tiny")
    parser.add_argument("--vision-encoder", default=Budget.vision_encoder, help="a BEiT, for --scale base")
    parser.add_argument("--text-encoder", default=Budget.text_encoder, help="a BERT, for --scale base")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cost-batch-size", type=int, default=8)
    parser.add_argument("--cost-frames", type=lambda x: [int(n) for n in x.split(",")], help="of experiment 1's costs")
    parser.add_argument("--world", type=Path, help="folder of a rendered world; WORK/world by default")
    parser.add_argument("--train-videos", type=int, default=120, help="of the world")
    parser.add_argument("--test-videos", type=int, default=16, help="of the world")
    parser.add_argument("--video-seconds", type=float, default=60.0, help="of the world")
    for name, what in (
        ("egoclip", "egoclip.csv instead of the world"),
        ("videos", "folder of its videos"),
        ("clip-shards", "folder from `svitt-ego prepare --clip-shards`, instead of these two"),
        ("egomcq", "egomcq.json"),
        ("egomcq-videos", "folder of its videos; --videos otherwise"),
    ):
        parser.add_argument(f"--{name}", help=what)
    parser.add_argument("--cache-gb", type=float, default=8.0, help="decoded clips are kept if they take no more")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"), help="decoded clips, models, logs")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "experiments")
    parser.add_argument("--report", action="store_true", help="only write the tables and pictures")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.only) - set(numbers))
    if unknown:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(numbers)}.")
    options.deadline = time.time() + 60 * options.minutes
    options.cost_frames = options.cost_frames or COST_FRAMES[options.scale]
    return options


if __name__ == "__main__":
    main()
