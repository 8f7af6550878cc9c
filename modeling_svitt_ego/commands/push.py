"""`svitt-ego push`: uploads a saved model to the Hub in one commit."""

import argparse


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder that save_pretrained, the demo, a training run or convert wrote")
    parser.add_argument("repo", help="name of the repository on the Hub: USER/MODEL")
    parser.add_argument(
        "--private",
        action="store_true",
        help="make a new repository private; the visibility of an existing one does not change",
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to commit to, created if it does not exist; main if not given"
    )
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument(
        "--token", help="token with write access; if not given, that of `hf auth login` or of HF_TOKEN"
    )
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="JSON",
        help="results of `svitt-ego evaluate`, from which the card is written; may be given several times",
    )
    parser.add_argument(
        "--leaderboard",
        action="append",
        default=[],
        metavar="BENCHMARK=USER/DATASET",
        help="also write .eval_results for the leaderboard of this data set on the Hub; may be given several times",
    )
    parser.add_argument(
        "--license", metavar="NAME", help="with a new card: license of the weights, such as apache-2.0"
    )
    parser.add_argument(
        "--training-data", metavar="TEXT", help="with a new card: description of the training data, in words"
    )


def run_push(arguments: argparse.Namespace) -> None:
    from ..hub.upload import find_parts, push_folder

    parts = find_parts(arguments.folder)
    print(f"{arguments.folder}: {len(parts.files) + 1} files for {arguments.repo}", flush=True)
    if parts.left_out:
        print(f"not uploaded: {', '.join(parts.left_out)}", flush=True)
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
