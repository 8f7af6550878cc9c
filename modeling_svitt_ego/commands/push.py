"""`svitt-ego push`: a saved model to the Hub, in one commit."""

import argparse


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder that save_pretrained, the demo or convert wrote")
    parser.add_argument("repo", help="its name on the Hub: USER/MODEL")
    parser.add_argument("--private", action="store_true", help="of a new repository; an existing one stays as it is")
    parser.add_argument("--revision", help="branch; made if it does not exist")
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--token", help="with write access; otherwise that of `hf auth login` or HF_TOKEN")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="JSON",
        help="what `svitt-ego evaluate` wrote, for the card, which is then written again; may be given several times",
    )
    parser.add_argument(
        "--leaderboard",
        action="append",
        default=[],
        metavar="BENCHMARK=USER/DATASET",
        help="also write .eval_results for the benchmark's data set on the Hub; may be given several times",
    )
    parser.add_argument("--license", help="of the weights, such as apache-2.0, for a card that is made")
    parser.add_argument("--training-data", help="what it was trained on, in words, for a card that is made")


def run_push(arguments: argparse.Namespace) -> None:
    from ..hub.upload import find_parts, push_folder

    parts = find_parts(arguments.folder)
    print(f"{arguments.folder}: {len(parts.files) + 1} files for {arguments.repo}", flush=True)
    if parts.left_out:
        print(f"not sent: {', '.join(parts.left_out)}", flush=True)
    wrong = [entry for entry in arguments.leaderboard if entry.count("=") != 1 or entry.count("/") != 1]
    if wrong:
        raise ValueError(f"--leaderboard takes BENCHMARK=USER/DATASET, not {wrong[0]!r}.")
    options = {"license": arguments.license, "training_data": arguments.training_data}
    info = push_folder(
        arguments.folder,
        arguments.repo,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.message,
        token=arguments.token,
        evaluations=arguments.evaluation,
        leaderboards=dict(entry.split("=") for entry in arguments.leaderboard),
        **{name: value for name, value in options.items() if value is not None},
    )
    print(f"{info.commit_url}")


__all__ = ["add_push_arguments", "run_push"]
