"""The command line of SViTT-Ego, a sparse video-text transformer for first-person video."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import __version__
from .commands import convert, corpus, demo, evaluate, export, plan, push, space, train, video
from .commands.arguments import CommandParser
from .commands.running import DEBUG_HELP, run, same_command
from .commands.terminal import make_printable


@dataclass(frozen=True)
class Command:
    """
    Args:
        name (`str`): The word after `svitt-ego`.
        description (`str`): Text for `--help`.
        add_arguments (function of a parser): Adds the arguments.
        run (function of the arguments): Does the work and returns the exit status; `None` means 0.
        stopped (`str`): Says what an interrupted run keeps.
        continues (`bool`): Whether the same command continues where it was interrupted.
        resume_option (`str`, *optional*): The option that it needs for that.
    """

    name: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    stopped: str = "nothing was written"
    continues: bool = False
    resume_option: str | None = None

    def after_an_interrupt(self, argv: list[str]) -> str:
        """Says what an interrupted run keeps, and which command continues it or starts again."""
        if not self.continues:
            return f"{self.stopped}; start again with: {same_command(argv)}"
        missing = self.resume_option is not None and self.resume_option not in argv
        return f"{self.stopped}; continue with: {same_command([*argv, *[self.resume_option] * missing])}"


COMMANDS = (
    Command(
        "demo",
        "render a synthetic world, pretrain on it and evaluate EgoMCQ, in minutes on a CPU",
        demo.add_demo_arguments,
        demo.run_demo,
        "the output folder is kept",
    ),
    Command("doctor", "check an EgoClip corpus before a long run", corpus.add_doctor_arguments, corpus.run_doctor),
    Command(
        "build-egoclip",
        "convert Ego4D's narration.json, or your own narrations, to egoclip.csv",
        corpus.add_build_egoclip_arguments,
        corpus.run_build_egoclip,
    ),
    Command(
        "prepare",
        "convert raw videos to small H.264 chunks, or to shards of JPEG clips",
        corpus.add_prepare_arguments,
        corpus.run_prepare,
        "finished files are kept",
        continues=True,
    ),
    Command(
        "convert",
        "convert weights of the published SViTT(-Ego) code to this package",
        convert.add_convert_arguments,
        convert.run_convert,
    ),
    Command(
        "evaluate",
        "evaluate a saved model on EgoMCQ, EgoNLQ, EK-100 or classes of actions",
        evaluate.add_evaluate_arguments,
        evaluate.run_evaluate,
        "the embeddings computed so far are kept if --cache was given",
        continues=True,
    ),
    Command(
        "push",
        "upload a saved model to the Hub: weights, code, processor and card in one commit",
        push.add_push_arguments,
        push.run_push,
        "the repository on the Hub did not change",
        continues=True,
    ),
    Command(
        "space",
        "write the folder of a Gradio Space that shows search, action names and kept patches",
        space.add_space_arguments,
        space.run_space,
    ),
    Command(
        "export",
        "export a saved model for onnxruntime, or as a torch.export archive",
        export.add_export_arguments,
        export.run_export,
    ),
    Command(
        "extract",
        "extract features of videos and of EgoNLQ queries",
        video.add_extract_arguments,
        video.run_extract,
        "the features of finished videos are kept",
        continues=True,
    ),
    Command(
        "search",
        "find moments in your own videos with a sentence",
        video.add_search_arguments,
        video.run_search,
        "the features of finished videos are kept in the cache",
        continues=True,
    ),
    Command(
        "ground",
        "predict EgoNLQ windows with a grounding head, in the challenge's file format",
        video.add_ground_arguments,
        video.run_ground,
    ),
    Command(
        "pretrain",
        "pretrain on EgoClip with EgoNCE, matching and masked language modelling",
        train.add_training_arguments,
        train.run_pretrain,
        "checkpoints are kept",
        continues=True,
        resume_option="--resume",
    ),
    Command(
        "finetune",
        "train a video classifier on labelled clips: all weights, LoRA or a linear probe",
        train.add_training_arguments,
        train.run_finetune,
        "checkpoints are kept",
        continues=True,
        resume_option="--resume",
    ),
    Command(
        "plan",
        "compute the largest micro-batch that fits into the memory of a card",
        plan.add_plan_arguments,
        plan.run_plan,
    ),
)


def main(argv: list[str] | None = None) -> int:
    """
    Runs a command.

    Returns:
        The exit status: 0; 1 if doctor found something or files could not be read; 2 after a usage or input error;
        130 after Ctrl-C; 143 after SIGTERM.
    """
    make_printable()
    parser = CommandParser(prog="svitt-ego", description=__doc__, epilog=DEBUG_HELP)
    parser.add_argument("--version", action="version", version=f"svitt-ego {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        description = f"{command.description[0].upper()}{command.description[1:]}."
        subparser = commands.add_parser(
            command.name, help=command.description, description=description, epilog=DEBUG_HELP
        )
        command.add_arguments(subparser)
        subparser.set_defaults(chosen=command)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # --help, --version or a usage error, all printed
        return end.code
    chosen = arguments.chosen
    stopped = chosen.after_an_interrupt(sys.argv[1:] if argv is None else argv)
    return run(f"svitt-ego {chosen.name}", lambda: chosen.run(arguments), stopped)


if __name__ == "__main__":
    sys.exit(main())
