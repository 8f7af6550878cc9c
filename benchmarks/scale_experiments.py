"""Experiments 1, 2 and 5 at base size on one GPU: a larger synthetic world at 224 px, read from JPEG shards.

    python benchmarks/scale_experiments.py --work runs/scale                          # BEiT-B/16 and BERT-base
    python benchmarks/scale_experiments.py --work runs/try --scale tiny --train-videos 2 --test-videos 6 --steps 2

Stages: the world, its shards, then the experiments. Each call continues where the last one stopped, and starts no new
run after `--minutes`, so that a machine that is lent for minutes is enough; call it until it says that all is done.
Results are one JSON per experiment, tables and pictures, in WORK/results.
"""

import argparse
from pathlib import Path

import experiments

from modeling_svitt_ego.data.clip_shards import ShardSettings, write_clip_shards
from modeling_svitt_ego.demo.synthetic_world import WorldPaths, build_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the world, the shards and the results")
    parser.add_argument("--scale", choices=("base", "tiny"), default="base")
    parser.add_argument("--train-videos", type=int, default=3000, help="each another scene, of 60 s")
    parser.add_argument("--test-videos", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="1,2,5", help="experiments")
    parser.add_argument("--workers", type=int, default=12, help="processes that draw, encode and decode")
    parser.add_argument("--minutes", type=float, default=9.0, help="no new run is started after so many")
    options, others = parser.parse_known_args(argv)

    world, shards = make_corpus(options)
    arguments = [
        *("--only", options.only, "--seeds", options.seeds, "--scale", options.scale, "--steps", str(options.steps)),
        *("--batch-size", str(options.batch_size), "--workers", str(options.workers)),
        *("--minutes", str(options.minutes), "--clip-shards", str(shards), "--work", str(options.work)),
        *("--egomcq", str(world["test"].egomcq), "--egomcq-videos", str(world["test"].videos)),
        *("--results", str(options.work / "results"), *others),
    ]
    experiments.main(arguments + (["--bf16"] if options.scale == "base" else []))


def make_corpus(options) -> tuple[WorldPaths, Path]:
    """The world and the folder of its training clips as shards, both finished."""
    sizes = {"train": options.train_videos, "test": options.test_videos}
    height = 256 if options.scale == "base" else 96  # crops of 224 or 64 px are taken from it
    world = build_world(options.work / "world", sizes, 60.0, 0, height, num_workers=options.workers)
    shards = options.work / "shards"
    settings = ShardSettings(frames_per_clip=8)
    write_clip_shards(world["train"].egoclip, world["train"].videos, shards, settings, num_workers=options.workers)
    return world, shards


if __name__ == "__main__":
    main()
