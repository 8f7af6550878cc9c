"""`svitt-ego evaluate`: a saved model on a benchmark → one JSON and a table with published numbers beside."""

import shlex
import sys
from pathlib import Path

COMMANDS = {
    "egomcq": "multiple choice: which of five clips is meant",
    "egonlq": "natural language queries: recall of a prediction file, of a grounding head or of a sliding window",
    "ek100": "EPIC-KITCHENS-100 multi-instance retrieval, zero-shot",
    "video-classification": "verbs, nouns, actions or labels: zero-shot by prompts, or by a trained head",
}


def add_evaluate_arguments(parser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, text in COMMANDS.items():
        benchmark = benchmarks.add_parser(name, help=text, description=text)
        if name == "egonlq":
            benchmark.add_argument(
                "folder", nargs="?", help="saved model that made the predictions, or grounding head"
            )
        else:
            benchmark.add_argument("folder", help="saved model: a folder, or a name on the Hub")
        _ARGUMENTS[name](benchmark)
        if name != "egonlq":
            _add_clip_arguments(benchmark)
        benchmark.add_argument("--output", help="the JSON to write; evaluation_<benchmark>.json by default")
        benchmark.add_argument("--dataset", help="what this is asked on, if it is not the published benchmark")


def _add_egomcq(parser) -> None:
    parser.add_argument("--annotations", required=True, help="egomcq.json")
    parser.add_argument("--scoring", default="dual", choices=("dual", "fusion", "ensemble"))
    parser.add_argument("--shuffle-frames", action="store_true", help="each clip's frames in a wrong order")


def _add_egonlq(parser) -> None:
    parser.add_argument("--annotations", required=True, help="nlq_val.json")
    parser.add_argument("--predictions", help="the challenge's prediction file")
    parser.add_argument("--features", help="folder that `svitt-ego extract … --nlq` made, to predict from")
    parser.add_argument(
        "--sliding-window", type=int, metavar="CELLS", help="predict by cosine, with windows this long"
    )


def _add_ek100(parser) -> None:
    parser.add_argument("--annotations", required=True, help="EPIC_100_retrieval_test.csv")
    parser.add_argument("--sentences", required=True, help="EPIC_100_retrieval_test_sentence.csv")
    parser.add_argument("--template", default="{}", help="what is made of a sentence, such as '#C C {}'")


def _add_classification(parser) -> None:
    parser.add_argument(
        "--annotations",
        required=True,
        help="egoclip.csv, EPIC_100_validation.csv, or video_uid,clip_start,clip_end,label",
    )
    parser.add_argument("--verbs", help="verb taxonomy or class list (csv)")
    parser.add_argument("--nouns", help="noun taxonomy or class list (csv)")
    for task in ("verb", "noun", "action", "label"):
        parser.add_argument(f"--{task}-template", action="append", help=f"prompt of a {task}; several are averaged")
    parser.add_argument(
        "--scoring", choices=("zero-shot", "head"), help="by default what the checkpoint was saved for"
    )
    parser.add_argument("--task", choices=("verb", "noun", "label"), help="with a head: which classes it tells apart")


_ARGUMENTS = {
    "egomcq": _add_egomcq,
    "egonlq": _add_egonlq,
    "ek100": _add_ek100,
    "video-classification": _add_classification,
}


def _add_clip_arguments(parser) -> None:
    parser.add_argument("--videos", required=True, help="folder of the videos, in any known layout")
    parser.add_argument("--layout", help="undivided, egovlp, lavila or avion; found by looking otherwise")
    parser.add_argument("--num-frames", type=int, help="frames per clip; the model's own number by default")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode, per device")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--cache", help="folder for embeddings: a stopped run goes on where it was")
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "wrong"),
        help="at an unreadable clip: stop, or count what needs it as wrong and list it",
    )


def run_evaluate(arguments) -> int:
    report, folder, device = _RUNS[arguments.benchmark](arguments)
    if report is None:  # not the main process
        return 0
    command = shlex.join(["svitt-ego", *sys.argv[1:]])
    report = report.with_origin(arguments.folder, folder, command, device)
    output = Path(arguments.output or f"evaluation_{arguments.benchmark.replace('-', '_')}.json")
    report.save(output)
    print(report.table())
    print(f"Written: {output}")
    return 0


def _prepare(arguments, scoring: str):
    """Folder, model, processor, number of frames and the encoder's settings."""
    import torch
    from accelerate import Accelerator

    from ..weights.checkpoint import load_checkpoint, load_processor, local_folder

    # Before the weights: a wrong path should not cost their loading.
    for path in (arguments.annotations, arguments.videos):
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path!r}.")
    folder = local_folder(arguments.folder)
    accelerator = Accelerator()
    model = load_checkpoint(folder, scoring, getattr(torch, arguments.dtype)).to(accelerator.device)
    settings = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.num_workers,
        "accelerator": accelerator,
        "on_error": arguments.on_error,
        "cache": arguments.cache,
        "layout": arguments.layout,
    }
    num_frames = arguments.num_frames or model.config.vision_config.num_frames
    return folder, model, load_processor(folder), num_frames, settings


def _finish(report, arguments, folder, settings):
    """Adds the settings of the run; the report is the main process's."""
    accelerator = settings["accelerator"]
    if not accelerator.is_main_process:
        return None, folder, accelerator.device
    report.details.update(
        dtype=arguments.dtype,
        num_processes=accelerator.num_processes,
        annotations=Path(arguments.annotations).name,
    )
    return report, folder, accelerator.device


def _run_egomcq(arguments):
    from ..evaluation.egomcq import EgoMCQEvaluator

    folder, model, processor, num_frames, settings = _prepare(arguments, arguments.scoring)
    evaluator = EgoMCQEvaluator(
        arguments.annotations, arguments.videos, processor, num_frames, scoring=arguments.scoring, **settings
    )
    report = evaluator.report(model, arguments.shuffle_frames, arguments.dataset)
    return _finish(report, arguments, folder, settings)


def _run_ek100(arguments):
    from ..evaluation.ek100 import EK100Evaluator

    folder, model, processor, num_frames, settings = _prepare(arguments, "dual")
    evaluator = EK100Evaluator(
        arguments.annotations,
        arguments.sentences,
        arguments.videos,
        processor,
        num_frames,
        template=arguments.template,
        **settings,
    )
    return _finish(evaluator.report(model, arguments.dataset), arguments, folder, settings)


def _run_classification(arguments):
    from ..data.taxonomy import read_taxonomy
    from ..evaluation.zero_shot import VideoClassificationEvaluator, load_labelled_clips, make_tasks
    from ..weights.checkpoint import architectures, local_folder

    clips = load_labelled_clips(arguments.annotations)
    scoring = arguments.scoring
    if scoring is None:
        saved = architectures(local_folder(arguments.folder))
        scoring = "head" if "SViTTEgoForVideoClassification" in saved else "zero-shot"
    if scoring == "head":
        task = arguments.task or ("label" if "label" in clips.classes else None)
        if task is None:
            raise ValueError("Say with --task what the head tells apart: verb or noun.")
    else:
        verbs, nouns = (read_taxonomy(path) if path else None for path in (arguments.verbs, arguments.nouns))
        given = {name: getattr(arguments, f"{name}_template") for name in ("verb", "noun", "action", "label")}
        tasks = make_tasks(clips, verbs, nouns, {name: value for name, value in given.items() if value})
    folder, model, processor, num_frames, settings = _prepare(arguments, scoring)
    evaluator = VideoClassificationEvaluator(clips, arguments.videos, processor, num_frames, **settings)
    if scoring == "head":
        report = evaluator.head(model, task, arguments.dataset)
    else:
        report = evaluator.zero_shot(model, tasks, arguments.dataset)
    return _finish(report, arguments, folder, settings)


def _run_egonlq(arguments):
    from ..evaluation.egonlq import evaluate_egonlq, predict_from_features, read_predictions
    from ..weights.checkpoint import local_folder

    if (arguments.predictions is None) == (arguments.features is None):
        raise ValueError("Give either --predictions, or --features to predict from.")
    folder = local_folder(arguments.folder) if arguments.folder else None
    if arguments.predictions:
        predictions, protocol = read_predictions(arguments.predictions), {}
        protocol["details"] = {"predictions": Path(arguments.predictions).name}
    else:
        predictions, protocol = predict_from_features(
            arguments.annotations, arguments.features, folder, arguments.sliding_window
        )
    report = evaluate_egonlq(arguments.annotations, predictions, dataset=arguments.dataset, **protocol)
    return report, folder, None


_RUNS = {
    "egomcq": _run_egomcq,
    "egonlq": _run_egonlq,
    "ek100": _run_ek100,
    "video-classification": _run_classification,
}
