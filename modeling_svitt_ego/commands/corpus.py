"""`svitt-ego doctor`, `build-egoclip` and `prepare`: these commands check or make a corpus for training."""

import argparse
from pathlib import Path
from typing import Protocol

from .arguments import (
    check_output_file,
    jpeg_quality,
    non_negative_float,
    non_negative_int,
    positive_int,
    positive_or_infinite,
    share,
    x264_crf,
)


class Report(Protocol):
    """The result of doctor, build-egoclip and prepare."""

    def table(self) -> str: ...

    def as_dict(self) -> dict: ...


X264_PRESETS = "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo".split()
LAYOUT_HELP = (
    "layout of the video folder: undivided, egovlp, lavila, avion, epic, epic-flat, epic-avion or egtea; recognised "
    "from the folder if not given"
)


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", help="egoclip.csv")
    parser.add_argument("video_root", help="folder of the videos, in any known layout")
    parser.add_argument("--layout", help=LAYOUT_HELP)
    parser.add_argument("--egomcq", metavar="JSON", help="an egomcq.json to check as well")
    parser.add_argument("--sample", type=positive_int, metavar="N", help="open at most N videos; all if not given")
    parser.add_argument(
        "--num-frames", type=positive_int, default=4, metavar="N", help="count the clips with fewer than N frames"
    )
    parser.add_argument(
        "--num-workers", type=positive_int, default=2, metavar="N", help="number of processes that open videos"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run_doctor(arguments: argparse.Namespace) -> int:
    from ..corpus.doctor import diagnose

    check_output_file(arguments.json, "--json")
    report = diagnose(
        arguments.csv,
        arguments.video_root,
        layout=arguments.layout,
        egomcq=arguments.egomcq,
        sample=arguments.sample,
        num_frames=arguments.num_frames,
        num_workers=arguments.num_workers,
    )
    _show(report, arguments.json)
    return report.exit_code


def add_build_egoclip_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "narration_json", help="narrations in the format of Ego4D: unordered, of one or two annotators"
    )
    parser.add_argument("output", help="egoclip.csv to write; the dropped sentences are listed in a file next to it")
    parser.add_argument(
        "--verb-taxonomy",
        required=True,
        metavar="CSV",
        help="csv with the columns label and group (narration_verb_taxonomy.csv)",
    )
    parser.add_argument(
        "--noun-taxonomy",
        required=True,
        metavar="CSV",
        help="csv with the columns label and group (narration_noun_taxonomy.csv)",
    )
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument(
        "--durations", metavar="FILE", help="ego4d.json, or a csv with the columns video_uid and duration_sec"
    )
    lengths.add_argument(
        "--video-root", metavar="FOLDER", help="folder of the videos; durations are read from the files"
    )
    parser.add_argument("--layout", help=f"with --video-root: {LAYOUT_HELP}")
    parser.add_argument(
        "--drop", nargs="+", default=(), choices=("unsure", "other"), help="leave out sentences with #unsure or #O"
    )
    parser.add_argument(
        "--min-words",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="leave out sentences with fewer than N words, not counting #C C",
    )
    parser.add_argument(
        "--min-seconds",
        type=non_negative_float,
        default=0.0,
        metavar="SECONDS",
        help="widen shorter windows to this length",
    )
    parser.add_argument(
        "--max-seconds",
        type=positive_or_infinite,
        default=float("inf"),
        metavar="SECONDS",
        help="shorten longer windows to this length",
    )
    parser.add_argument(
        "--parquet", metavar="FOLDER", help="also write the table as Parquet files, which load_dataset reads"
    )
    add_shard_arguments(parser, "the tagging")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run_build_egoclip(arguments: argparse.Namespace) -> None:
    from ..corpus.durations import measure_durations, read_durations
    from ..corpus.egoclip_building import Selection
    from ..corpus.egoclip_files import build_egoclip_file, tag_shard

    check_output_file(arguments.output, "output")
    check_output_file(arguments.json, "--json")
    shard = shard_of(arguments)
    files = arguments.narration_json, arguments.output, arguments.verb_taxonomy, arguments.noun_taxonomy
    selection = Selection(tuple(arguments.drop), arguments.min_words, arguments.min_seconds, arguments.max_seconds)
    if shard is not None:
        report = tag_shard(*files, shard)
    else:
        if arguments.durations:
            durations = read_durations(arguments.durations)
        else:
            durations = measure_durations(arguments.narration_json, arguments.video_root, arguments.layout)
        report = build_egoclip_file(*files, durations, selection, arguments.merge)
        if arguments.parquet:
            from ..corpus.parquet_export import export_parquet
            from ..data.egoclip import load_egoclip

            # The taxonomies are the user's, so the numbers of their classes are not those of Ego4D.
            table = load_egoclip(arguments.output, num_verbs=None, num_nouns=None)
            export_parquet(table, arguments.parquet, "egoclip")
    _show(report, arguments.json)


def add_shard_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--shard I/N` and `--merge` to a command whose work several machines can share."""
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--shard",
        metavar="I/N",
        help=f"process only part I (0 to N - 1) of {what}; several parts may run at the same time on one output",
    )
    parts.add_argument(
        "--merge", action="store_true", help="after all parts have run: check that nothing is missing and join them"
    )


def shard_of(arguments: argparse.Namespace):
    """The [`Shard`] that `--shard` names, or None."""
    from ..files.sharding import Shard

    return None if arguments.shard is None else Shard.parse(arguments.shard)


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "video_root",
        help="folder with <uid>.mp4, also in sub-folders; with --clip-shards, a video folder in any known layout",
    )
    parser.add_argument("output", help="folder to create, or to continue after an interrupted run")
    parser.add_argument(
        "--chunk-seconds",
        type=non_negative_float,
        default=600.0,
        metavar="SECONDS",
        help="length of a chunk: 600 as in EgoVLP, 300 as in LaViLa, 15 as in AVION; 0 does not divide the videos",
    )
    parser.add_argument(
        "--short-side",
        type=positive_int,
        default=256,
        metavar="PIXELS",
        help="shorter side of the result; smaller videos keep their size",
    )
    parser.add_argument(
        "--gop", type=positive_int, default=30, metavar="FRAMES", help="number of frames between two key frames"
    )
    parser.add_argument(
        "--crf", type=x264_crf, default=23, help="x264's rate factor, 0 to 51; lower means better and larger"
    )
    parser.add_argument(
        "--preset",
        default="veryfast",
        choices=X264_PRESETS,
        metavar="PRESET",
        help=f"x264's preset: {', '.join(X264_PRESETS)}; slower ones make smaller files",
    )
    parser.add_argument(
        "--clip-shards", metavar="CSV", help="write the clips of this egoclip.csv as tar shards instead of videos"
    )
    parser.add_argument(
        "--frames-per-clip",
        type=positive_int,
        default=16,
        metavar="N",
        help="with --clip-shards: number of frames of each clip",
    )
    parser.add_argument(
        "--clips-per-shard",
        type=positive_int,
        default=1000,
        metavar="N",
        help="with --clip-shards: number of clips in each tar file",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=jpeg_quality,
        default=90,
        metavar="Q",
        help="with --clip-shards: JPEG quality of the frames, 1 to 100",
    )
    parser.add_argument(
        "--max-failure-share",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="with --clip-shards: stop if more than this share of the clips is unreadable",
    )
    parser.add_argument("--layout", help=f"with --clip-shards: {LAYOUT_HELP}")
    add_shard_arguments(parser, "the videos (with --clip-shards, of the tar files)")
    parser.add_argument(
        "--num-workers", type=positive_int, metavar="N", help="number of processes; one per core if not given"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run_prepare(arguments: argparse.Namespace) -> int:
    check_output_file(arguments.json, "--json")
    shard = shard_of(arguments)
    if arguments.clip_shards:
        from ..data.clip_shards import ShardSettings, write_clip_shards

        settings = ShardSettings(
            arguments.frames_per_clip, arguments.clips_per_shard, arguments.short_side, arguments.jpeg_quality
        )
        report = write_clip_shards(
            arguments.clip_shards,
            arguments.video_root,
            arguments.output,
            settings,
            layout=arguments.layout,
            num_workers=arguments.num_workers,
            shard=shard,
            merge=arguments.merge,
            max_failure_share=arguments.max_failure_share,
        )
    else:
        from ..corpus.prepare import prepare_videos
        from ..corpus.transcoding import Encoding

        report = prepare_videos(
            arguments.video_root,
            arguments.output,
            arguments.chunk_seconds,
            Encoding(arguments.short_side, arguments.gop, arguments.crf, arguments.preset),
            arguments.num_workers,
            shard,
            arguments.merge,
        )
    _show(report, arguments.json)
    return report.exit_code


def _show(report: Report, file: str | None) -> None:
    """Prints the table of the report; with `--json`, also writes the whole report."""
    from ..files.writing import write_json

    print(report.table())
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_json(file, report.as_dict())
