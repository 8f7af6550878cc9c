"""The `svitt-ego` command."""

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 for findings (doctor), 2 for a usage or input error, with one clear line."""
    parser = argparse.ArgumentParser(prog="svitt-ego", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_demo, _add_doctor, _add_convert):
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


def _add_convert(commands) -> None:
    from .convert_cli import add_convert_arguments, run_convert

    parser = commands.add_parser("convert", help="weights of the published SViTT(-Ego) code to this package's")
    add_convert_arguments(parser)
    parser.set_defaults(run=run_convert)


if __name__ == "__main__":
    sys.exit(main())
