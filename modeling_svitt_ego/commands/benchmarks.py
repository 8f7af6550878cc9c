"""The benchmarks of `svitt-ego evaluate`, one row each: its arguments, and the evaluator made from them."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import positive_int
from .corpus import shard_of

if TYPE_CHECKING:
    from torch import nn

    from ..evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class Opened:
    """An evaluator and what it scores; model and folder are `None` for a prediction file."""

    evaluator: "Evaluator"
    model: "nn.Module | None" = None
    folder: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        description (`str`): for `--help`.
        add_arguments (function of a parser): adds what only this benchmark takes.
        open (function of the arguments): checks them and loads the model.
        reads_clips (`bool`): whether it takes the arguments of clips (`--videos`, `--num-frames`, …).
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    open: Callable[[argparse.Namespace], Opened]
    reads_clips: bool = True


def _open_clips(arguments: argparse.Namespace, scoring: str, make: Callable[..., "Evaluator"]) -> Opened:
    """`make(processor, num_frames, settings, accelerator)`, with the model that `scoring` needs."""
    import torch
    from accelerate import Accelerator

    from ..evaluation.encoding import EncoderSettings
    from ..evaluation.views import Views
    from ..weights.loading import load_checkpoint, load_processor, local_folder

    # Before the weights: a wrong path should not cost their loading.
    for path in (arguments.annotations, arguments.videos):
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path!r}.")
    settings = EncoderSettings(
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        on_error=arguments.on_error,
        cache=arguments.cache,
        layout=arguments.layout,
        frame_order=arguments.frame_order,
        views=Views(arguments.num_clips, arguments.crops, arguments.flip),
        shard=shard_of(arguments),
        merge=arguments.merge,
    )
    folder = local_folder(arguments.folder)
    accelerator = Accelerator()
    model = load_checkpoint(folder, scoring, getattr(torch, arguments.dtype), accelerator.device)
    num_frames = arguments.num_frames or model.config.vision_config.num_frames
    evaluator = make(load_processor(folder), num_frames, settings, accelerator=accelerator)
    return Opened(evaluator, model, folder)


def _add_egomcq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, help="egomcq.json")
    parser.add_argument(
        "--scoring",
        default="dual",
        choices=("dual", "fusion", "ensemble"),
        help="cosine of the towers, matching head, or cosine plus probability of a match",
    )
    # The older name of --frame-order shuffled.
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--shuffle-frames", dest="frame_order", action="store_const", const="shuffled", **hidden)


def _open_egomcq(arguments: argparse.Namespace) -> Opened:
    from ..evaluation.egomcq import EgoMCQEvaluator

    def make(*rest, **fields):
        return EgoMCQEvaluator(arguments.annotations, arguments.videos, *rest, scoring=arguments.scoring, **fields)

    return _open_clips(arguments, arguments.scoring, make)


def _add_egonlq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, help="nlq_val.json")
    parser.add_argument("--predictions", help="prediction file of the challenge, VSLNet, GroundNLQ or OSGNet")
    parser.add_argument("--features", help="folder that `svitt-ego extract … --nlq` made, to predict from")
    parser.add_argument(
        "--sliding-window",
        type=positive_int,
        metavar="CELLS",
        help="predict by the cosine of windows this long",
    )


def _open_egonlq(arguments: argparse.Namespace) -> Opened:
    from ..evaluation.egonlq import EgoNLQEvaluator, PredictionFileEvaluator
    from ..weights.loading import load_grounding_head, local_folder

    if (arguments.predictions is None) == (arguments.features is None):
        raise ValueError("Give either --predictions, or --features to predict from.")
    folder = local_folder(arguments.folder) if arguments.folder else None
    if arguments.predictions:
        return Opened(PredictionFileEvaluator(arguments.annotations, arguments.predictions), None, folder)
    if folder is None and arguments.sliding_window is None:
        raise ValueError("To predict from features, name a grounding head or a sliding window.")
    evaluator = EgoNLQEvaluator(arguments.annotations, arguments.features, arguments.sliding_window)
    head = load_grounding_head(folder) if arguments.sliding_window is None else None
    return Opened(evaluator, head, folder)


def _add_ek100(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, help="EPIC_100_retrieval_test.csv")
    parser.add_argument("--sentences", required=True, help="EPIC_100_retrieval_test_sentence.csv")
    parser.add_argument("--template", default="{}", help="what is made of a sentence, such as '#C C {}'")
    parser.add_argument(
        "--scoring",
        default="dual",
        choices=("dual", "dual-softmax", "rerank"),
        help="cosines; cosines normalised over the whole test set; or the best of each ranking ordered by the fusion "
        "tower",
    )
    parser.add_argument("--top-k", type=int, default=20, help="with rerank: how many of each ranking")
    parser.add_argument("--temperature", type=float, default=0.05, help="of the dual softmax")
    parser.add_argument("--submission", metavar="FILE", help="also write the challenge's file (.pkl)")
    parser.add_argument(
        "--supervision",
        type=int,
        nargs=3,
        metavar=("PT", "TL", "TD"),
        help="levels that the submission declares: pretraining, training labels, training data",
    )


def _open_ek100(arguments: argparse.Namespace) -> Opened:
    from ..evaluation.ek100 import EK100Evaluator

    def make(*rest, **fields):
        files = arguments.annotations, arguments.sentences, arguments.videos
        return EK100Evaluator(
            *files,
            *rest,
            template=arguments.template,
            scoring=arguments.scoring,
            top_k=arguments.top_k,
            temperature=arguments.temperature,
            submission=arguments.submission,
            supervision=arguments.supervision,
            **fields,
        )

    return _open_clips(arguments, "fusion" if arguments.scoring == "rerank" else "dual", make)


def _add_classification(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations",
        required=True,
        help="egoclip.csv, EPIC_100_validation.csv, EGTEA's test_split1.txt, CharadesEgo_v1_test_only1st.csv, or a "
        "csv of video_uid,clip_start,clip_end,label",
    )
    parser.add_argument("--verbs", help="verb taxonomy or class list (csv)")
    parser.add_argument("--nouns", help="noun taxonomy or class list (csv)")
    for task in ("verb", "noun", "action", "label"):
        parser.add_argument(f"--{task}-template", action="append", help=f"prompt of a {task}; several are averaged")
    parser.add_argument(
        "--scoring", choices=("zero-shot", "head"), help="by default what the checkpoint was saved for"
    )
    parser.add_argument(
        "--task", choices=("verb", "noun", "action", "label"), help="with a head: which classes it tells apart"
    )


def _open_classification(arguments: argparse.Namespace) -> Opened:
    from ..data.labelled_files import load_labelled_clips
    from ..data.taxonomy import read_taxonomy
    from ..evaluation.video_classification import HeadEvaluator, ZeroShotEvaluator, make_tasks
    from ..weights.loading import architectures, classifier_heads, local_folder

    clips = load_labelled_clips(arguments.annotations)
    scoring = arguments.scoring
    if scoring is None:
        saved = architectures(local_folder(arguments.folder))
        scoring = "head" if "SViTTEgoForVideoClassification" in saved else "zero-shot"
    if scoring == "head":
        task = arguments.task or ("label" if "label" in clips.classes else None)
        if task is None and not classifier_heads(local_folder(arguments.folder)):
            raise ValueError("Say with --task what the head tells apart: verb, noun or action.")
        return _open_clips(
            arguments, scoring, lambda *rest, **fields: HeadEvaluator(clips, task, arguments.videos, *rest, **fields)
        )
    verbs, nouns = (read_taxonomy(path) if path else None for path in (arguments.verbs, arguments.nouns))
    given = {name: getattr(arguments, f"{name}_template") for name in ("verb", "noun", "action", "label")}
    tasks = make_tasks(clips, verbs, nouns, {name: value for name, value in given.items() if value})
    return _open_clips(
        arguments, scoring, lambda *rest, **fields: ZeroShotEvaluator(clips, tasks, arguments.videos, *rest, **fields)
    )


BENCHMARKS = {
    "egomcq": Benchmark("multiple choice: which of five clips is meant", _add_egomcq, _open_egomcq),
    "egonlq": Benchmark(
        "natural language queries: recall of a prediction file, of a grounding head or of a sliding window",
        _add_egonlq,
        _open_egonlq,
        reads_clips=False,
    ),
    "ek100": Benchmark("EPIC-KITCHENS-100 multi-instance retrieval", _add_ek100, _open_ek100),
    "video-classification": Benchmark(
        "verbs, nouns, actions or labels: zero-shot by prompts, or by a trained head",
        _add_classification,
        _open_classification,
    ),
}
