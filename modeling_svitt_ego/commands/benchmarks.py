"""The benchmarks of `svitt-ego evaluate`: for each one, its arguments and the evaluator that is built from them."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import FRAME_ORDERS, positive_float, positive_int
from .corpus import shard_of

if TYPE_CHECKING:
    from torch import nn

    from ..evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class Opened:
    """An evaluator and the model that it scores; `model` and `folder` are `None` for a prediction file."""

    evaluator: "Evaluator"
    model: "nn.Module | None" = None
    folder: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        description (`str`): Text for `--help`.
        add_arguments (function of a parser): Adds the arguments that only this benchmark has.
        open (function of the arguments): Checks the arguments and loads the model.
        reads_clips (`bool`): Whether the benchmark has the arguments about clips (`--videos`, `--num-frames`, …).
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    open: Callable[[argparse.Namespace], Opened]
    reads_clips: bool = True


def _open_clips(arguments: argparse.Namespace, scoring: str, make: Callable[..., "Evaluator"]) -> Opened:
    """Calls `make(processor, num_frames, settings, accelerator)` and loads the model that `scoring` needs."""
    import torch
    from accelerate import Accelerator

    from ..evaluation.encoding import EncoderSettings
    from ..evaluation.views import Views
    from ..weights.loading import load_checkpoint, load_processor, local_folder

    # Checked before the weights are loaded, which takes longer.
    for path in (arguments.annotations, arguments.videos):
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no file or folder {path!r}.")
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
    parser.add_argument("--annotations", required=True, metavar="JSON", help="egomcq.json")
    parser.add_argument(
        "--scoring",
        default="dual",
        choices=("dual", "fusion", "ensemble"),
        help="score of a pair: dual is the cosine of both embeddings, fusion the matching head, ensemble the sum of "
        "the cosine and the matching probability",
    )
    # The former name of --frame-order shuffled.
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--shuffle-frames", dest="frame_order", action="store_const", const="shuffled", **hidden)


def _open_egomcq(arguments: argparse.Namespace) -> Opened:
    from ..evaluation.egomcq import EgoMCQEvaluator

    def make(*rest, **fields):
        return EgoMCQEvaluator(arguments.annotations, arguments.videos, *rest, scoring=arguments.scoring, **fields)

    return _open_clips(arguments, arguments.scoring, make)


def _add_egonlq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, metavar="JSON", help="nlq_val.json")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="prediction file to score, in the format of the challenge, VSLNet, GroundNLQ or OSGNet",
    )
    parser.add_argument(
        "--features", metavar="FOLDER", help="folder that `svitt-ego extract … --nlq` wrote, to predict from"
    )
    parser.add_argument(
        "--sliding-window",
        type=positive_int,
        metavar="CELLS",
        help="predict by the cosine of the query with windows of this many feature rows",
    )
    parser.add_argument(
        "--frame-order",
        choices=FRAME_ORDERS,
        help="a control: how the frames of the features' windows must be ordered (`svitt-ego extract --frame-order`)",
    )


def _open_egonlq(arguments: argparse.Namespace) -> Opened:
    from ..evaluation.egonlq import EgoNLQEvaluator, PredictionFileEvaluator
    from ..weights.loading import load_grounding_head, local_folder

    if (arguments.predictions is None) == (arguments.features is None):
        raise ValueError("Give either --predictions, or --features to predict from.")
    folder = local_folder(arguments.folder) if arguments.folder else None
    if arguments.predictions and arguments.frame_order is not None:
        raise ValueError("A prediction file does not say in which order its model saw the frames: no --frame-order.")
    if arguments.predictions:
        return Opened(PredictionFileEvaluator(arguments.annotations, arguments.predictions), None, folder)
    if folder is None and arguments.sliding_window is None:
        raise ValueError("To predict from features, name a grounding head or a sliding window.")
    evaluator = EgoNLQEvaluator(arguments.annotations, arguments.features, arguments.sliding_window)
    made = evaluator.dataset.folder.settings.frame_order
    if arguments.frame_order not in (None, made):
        raise ValueError(
            f"The features in {arguments.features!r} are of {made} frames: extract others into another folder with "
            f"`svitt-ego extract … --nlq … --frame-order {arguments.frame_order}`."
        )
    head = load_grounding_head(folder) if arguments.sliding_window is None else None
    return Opened(evaluator, head, folder)


def _add_ek100(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, metavar="CSV", help="EPIC_100_retrieval_test.csv")
    parser.add_argument("--sentences", required=True, metavar="CSV", help="EPIC_100_retrieval_test_sentence.csv")
    parser.add_argument("--template", default="{}", help="prompt around each sentence, such as '#C C {}'")
    parser.add_argument(
        "--scoring",
        default="dual",
        choices=("dual", "dual-softmax", "rerank"),
        help="dual ranks by cosine, dual-softmax by cosines normalised over the whole test set; rerank orders the "
        "best --top-k of each ranking by the fusion tower",
    )
    parser.add_argument(
        "--top-k", type=positive_int, default=20, help="with rerank: how many items of each ranking are re-ordered"
    )
    parser.add_argument(
        "--temperature", type=positive_float, default=0.05, help="with dual-softmax: temperature of the softmax"
    )
    parser.add_argument("--submission", metavar="FILE", help="also write the submission file of the challenge (.pkl)")
    parser.add_argument(
        "--supervision",
        type=int,
        nargs=3,
        metavar=("PT", "TL", "TD"),
        help="supervision levels that the submission declares: pretraining, training labels, training data",
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
        metavar="FILE",
        help="egoclip.csv, EPIC_100_validation.csv, EGTEA's test_split1.txt, CharadesEgo_v1_test_only1st.csv, or a "
        "csv with the columns video_uid,clip_start,clip_end,label",
    )
    parser.add_argument("--verbs", metavar="CSV", help="verb taxonomy or list of verb classes")
    parser.add_argument("--nouns", metavar="CSV", help="noun taxonomy or list of noun classes")
    examples = {
        "verb": "#C C {verb} it",
        "noun": "#C C uses the {noun}",
        "action": "#C C {verb} the {noun}",
        "label": "#C C {label}",
    }
    for task, example in examples.items():
        parser.add_argument(
            f"--{task}-template",
            action="append",
            metavar="PROMPT",
            help=f"zero-shot prompt for {task} classes, such as '{example}'; several are averaged (give the option "
            "several times)",
        )
    parser.add_argument(
        "--scoring",
        choices=("zero-shot", "head"),
        help="zero-shot by prompts, or by the trained head; without this option, whichever the checkpoint was saved "
        "for",
    )
    parser.add_argument(
        "--task",
        choices=("verb", "noun", "action", "label"),
        help="with a head: which kind of classes it was trained on",
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
            raise ValueError(
                "Name with --task the kind of classes that the head was trained on: verb, noun or action."
            )
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
    "egomcq": Benchmark("multiple choice: which of five clips does the narration describe", _add_egomcq, _open_egomcq),
    "egonlq": Benchmark(
        "natural language queries: recall of a prediction file, a grounding head or a sliding window",
        _add_egonlq,
        _open_egonlq,
        reads_clips=False,
    ),
    "ek100": Benchmark("EPIC-KITCHENS-100 multi-instance retrieval", _add_ek100, _open_ek100),
    "video-classification": Benchmark(
        "classes of verbs, nouns, actions or labels: zero-shot by prompts, or by a trained head",
        _add_classification,
        _open_classification,
    ),
}
