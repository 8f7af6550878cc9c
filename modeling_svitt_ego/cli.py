"""The `svitt-ego` command."""

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 for findings (doctor), 2 for a usage or input error, with one clear line."""
    parser = argparse.ArgumentParser(prog="svitt-ego", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_demo,
        _add_doctor,
        _add_build_egoclip,
        _add_prepare,
        _add_convert,
        _add_evaluate,
        _add_push,
        _add_extract,
        _add_search,
        _add_ground,
        _add_plan,
    ):
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("SVITT_EGO_DEBUG"):
            raise
        print(f"svitt-ego {arguments.command}: {error}", file=sys.stderr)
        return 2


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="world, pretraining and EgoMCQ in minutes on a CPU")
    parser.add_argument("--output", default="svitt-ego-demo", help="folder for everything that is made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small world and one epoch")
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments) -> None:
    # Imported late: `svitt-ego --help` should not take seconds.
    from .demo import QUICK, run_demo

    run_demo(arguments.output, QUICK if arguments.quick else None, arguments.seed)


def _add_doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="check an EgoClip corpus before a long run")
    parser.add_argument("csv", help="egoclip.csv")
    parser.add_argument("video_root", help="folder of the videos, in any known layout")
    parser.add_argument("--layout", help="undivided, egovlp, lavila or avion; found by looking otherwise")
    parser.add_argument("--egomcq", help="an egomcq.json to check as well")
    parser.add_argument("--sample", type=int, help="open at most this many videos")
    parser.add_argument("--num-frames", type=int, default=4, help="frames per clip, to count clips that have fewer")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--json", help="also write the report to this file")
    parser.set_defaults(run=_run_doctor)


def _run_doctor(arguments) -> int:
    import json
    from pathlib import Path

    from .data.doctor import diagnose

    report = diagnose(
        arguments.csv,
        arguments.video_root,
        layout=arguments.layout,
        egomcq=arguments.egomcq,
        sample=arguments.sample,
        num_frames=arguments.num_frames,
        num_workers=arguments.num_workers,
    )
    print(report.table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    return report.exit_code


def _add_build_egoclip(commands) -> None:
    parser = commands.add_parser("build-egoclip", help="Ego4D's narration.json, or your own, to egoclip.csv")
    parser.add_argument("narration_json", help="narrations as Ego4D has them: unordered, one or two annotators")
    parser.add_argument("output", help="egoclip.csv to write; what was dropped is listed beside it")
    parser.add_argument("--verb-taxonomy", required=True, help="csv of label,group (narration_verb_taxonomy.csv)")
    parser.add_argument("--noun-taxonomy", required=True, help="csv of label,group (narration_noun_taxonomy.csv)")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--durations", help="ego4d.json, or a csv with video_uid and duration_sec")
    lengths.add_argument("--video-root", help="folder of the videos, whose files then tell their length")
    parser.add_argument("--layout", help="with --video-root: undivided, egovlp, lavila or avion")
    parser.add_argument(
        "--drop", nargs="+", default=(), choices=("unsure", "other"), help="leave out sentences with #unsure or #O"
    )
    parser.add_argument(
        "--min-words", type=int, default=0, help="leave out sentences of fewer words, #C C not counted"
    )
    parser.add_argument("--min-seconds", type=float, default=0.0, help="widen shorter windows to this")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="narrow longer windows to this")
    parser.add_argument("--json", help="also write the report to this file")
    parser.set_defaults(run=_run_build_egoclip)


def _run_build_egoclip(arguments) -> None:
    import json
    from pathlib import Path

    from .data.egoclip_building import Selection, build_egoclip_file, measure_durations, read_durations

    selection = Selection(tuple(arguments.drop), arguments.min_words, arguments.min_seconds, arguments.max_seconds)
    if arguments.durations:
        durations = read_durations(arguments.durations)
    else:
        durations = measure_durations(arguments.narration_json, arguments.video_root, arguments.layout)
    report = build_egoclip_file(
        arguments.narration_json,
        arguments.output,
        arguments.verb_taxonomy,
        arguments.noun_taxonomy,
        durations,
        selection,
    )
    print(report.table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")


def _add_prepare(commands) -> None:
    parser = commands.add_parser("prepare", help="raw videos to small H.264 chunks, or to shards of JPEG clips")
    parser.add_argument("video_root", help="folder of <uid>.mp4; for --clip-shards in any known layout")
    parser.add_argument("output", help="folder to make, or to go on with")
    parser.add_argument(
        "--chunk-seconds", type=float, default=600.0, help="600: EgoVLP's layout, 300: LaViLa's, 15: AVION's, 0: whole"
    )
    parser.add_argument("--short-side", type=int, default=256, help="pixels; smaller videos keep their size")
    parser.add_argument("--gop", type=int, default=30, help="frames from key frame to key frame")
    parser.add_argument("--crf", type=int, default=23, help="x264's quality: less is better and larger")
    parser.add_argument("--preset", default="veryfast", help="x264's speed")
    parser.add_argument(
        "--clip-shards", metavar="CSV", help="write the clips of this egoclip.csv as tar shards instead"
    )
    parser.add_argument("--frames-per-clip", type=int, default=16, help="with --clip-shards: JPEG frames of each clip")
    parser.add_argument("--clips-per-shard", type=int, default=1000, help="with --clip-shards")
    parser.add_argument("--jpeg-quality", type=int, default=90, help="with --clip-shards")
    parser.add_argument("--layout", help="with --clip-shards: undivided, egovlp, lavila or avion")
    parser.add_argument("--num-workers", type=int, help="processes; one per core by default")
    parser.add_argument("--json", help="also write the report to this file")
    parser.set_defaults(run=_run_prepare)


def _run_prepare(arguments) -> int:
    import json
    from pathlib import Path

    if arguments.clip_shards:
        from .data.clip_shards import ShardSettings, write_clip_shards

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
        )
    else:
        from .data.prepare import prepare_videos
        from .data.transcoding import Encoding

        encoding = Encoding(arguments.short_side, arguments.gop, arguments.crf, arguments.preset)
        report = prepare_videos(
            arguments.video_root, arguments.output, arguments.chunk_seconds, encoding, arguments.num_workers
        )
    print(report.table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    return report.exit_code


def _add_convert(commands) -> None:
    from .convert_cli import add_convert_arguments, run_convert

    parser = commands.add_parser("convert", help="weights of the published SViTT(-Ego) code to this package's")
    add_convert_arguments(parser)
    parser.set_defaults(run=run_convert)


def _add_push(commands) -> None:
    from .push_cli import add_push_arguments, run_push

    parser = commands.add_parser("push", help="a saved model to the Hub: weights, code, processor, card, one commit")
    add_push_arguments(parser)
    parser.set_defaults(run=run_push)


def _add_extract(commands) -> None:
    from .video_cli import add_extract_arguments, run_extract

    parser = commands.add_parser("extract", help="features of videos and of EgoNLQ queries")
    add_extract_arguments(parser)
    parser.set_defaults(run=run_extract)


def _add_search(commands) -> None:
    from .video_cli import add_search_arguments, run_search

    parser = commands.add_parser("search", help="find moments in your own videos by a sentence")
    add_search_arguments(parser)
    parser.set_defaults(run=run_search)


def _add_ground(commands) -> None:
    from .video_cli import add_ground_arguments, run_ground

    parser = commands.add_parser("ground", help="EgoNLQ predictions of a grounding head, in the challenge's form")
    add_ground_arguments(parser)
    parser.set_defaults(run=run_ground)


def _add_evaluate(commands) -> None:
    from .evaluate_cli import add_evaluate_arguments, run_evaluate

    parser = commands.add_parser("evaluate", help="a saved model on EgoMCQ, EgoNLQ, EK-100 or classes of actions")
    add_evaluate_arguments(parser)
    parser.set_defaults(run=run_evaluate)


def _add_plan(commands) -> None:
    from .plan_cli import add_plan_arguments, run_plan

    parser = commands.add_parser("plan", help="the largest micro-batch that trains on a card of so much memory")
    add_plan_arguments(parser)
    parser.set_defaults(run=run_plan)


if __name__ == "__main__":
    sys.exit(main())
