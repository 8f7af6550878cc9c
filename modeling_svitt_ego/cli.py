"""The `svitt-ego` command."""

import argparse
import os
import sys

from .commands import convert, corpus, demo, evaluate, export, plan, push, space, video

# name, help, what adds its arguments, what does it
COMMANDS = (
    ("demo", "world, pretraining and EgoMCQ in minutes on a CPU", demo.add_demo_arguments, demo.run_demo),
    ("doctor", "check an EgoClip corpus before a long run", corpus.add_doctor_arguments, corpus.run_doctor),
    (
        "build-egoclip",
        "Ego4D's narration.json, or your own, to egoclip.csv",
        corpus.add_build_egoclip_arguments,
        corpus.run_build_egoclip,
    ),
    (
        "prepare",
        "raw videos to small H.264 chunks, or to shards of JPEG clips",
        corpus.add_prepare_arguments,
        corpus.run_prepare,
    ),
    (
        "convert",
        "weights of the published SViTT(-Ego) code to this package's",
        convert.add_convert_arguments,
        convert.run_convert,
    ),
    (
        "evaluate",
        "a saved model on EgoMCQ, EgoNLQ, EK-100 or classes of actions",
        evaluate.add_evaluate_arguments,
        evaluate.run_evaluate,
    ),
    (
        "push",
        "a saved model to the Hub: weights, code, processor, card, one commit",
        push.add_push_arguments,
        push.run_push,
    ),
    (
        "space",
        "a folder for a Gradio Space: search, names of actions, kept patches",
        space.add_space_arguments,
        space.run_space,
    ),
    (
        "export",
        "a saved model for onnxruntime, or as a torch.export archive",
        export.add_export_arguments,
        export.run_export,
    ),
    ("extract", "features of videos and of EgoNLQ queries", video.add_extract_arguments, video.run_extract),
    ("search", "find moments in your own videos by a sentence", video.add_search_arguments, video.run_search),
    (
        "ground",
        "EgoNLQ predictions of a grounding head, in the challenge's form",
        video.add_ground_arguments,
        video.run_ground,
    ),
    (
        "plan",
        "the largest micro-batch that trains on a card of so much memory",
        plan.add_plan_arguments,
        plan.run_plan,
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 for findings (doctor), 2 for a usage or input error, with one clear line."""
    parser = argparse.ArgumentParser(prog="svitt-ego", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, add_arguments, run in COMMANDS:
        command = commands.add_parser(name, help=text)
        add_arguments(command)
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("SVITT_EGO_DEBUG"):
            raise
        print(f"svitt-ego {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
