"""`svitt-ego extract`, `search` and `ground`: arguments and what is printed. Heavy imports wait until they are run."""

import argparse

from .arguments import check_output_file, device, positive_float, positive_int, window_seconds
from .corpus import add_shard_arguments, shard_of


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="folder or Hub name of a SViTT-Ego model with its processor")
    add("--device", type=device, help="cuda, cuda:1, mps or cpu; the accelerator if there is one")
    add("--batch-size", type=positive_int, default=32, help="windows embedded at once")
    add(
        "--windows-per-second",
        type=positive_float,
        default=1.875,
        help="features per second of video; the published ones have 30 fps / 16 frames = 1.875",
    )
    add(
        "--window-seconds",
        type=window_seconds,
        metavar="SECONDS",
        help="length of the window that the model sees for each feature, or 'stride': one stride, which is the "
        "default, except for `extract --nlq`: 1.0, as examples/train_egonlq.py",
    )
    add("--num-frames", type=positive_int, default=4, help="frames of a window")


def _window_settings(arguments: argparse.Namespace, kind: str):
    from ..features.windows import NLQ_WINDOW_SECONDS, WindowSettings

    seconds = arguments.window_seconds
    if seconds is None and getattr(arguments, "nlq", None):
        seconds = NLQ_WINDOW_SECONDS
    seconds = None if seconds == "stride" else seconds
    return WindowSettings(arguments.windows_per_second, seconds, arguments.num_frames, kind)


def _load(arguments: argparse.Namespace):
    from ..weights.loading import load_dual_encoder

    return load_dual_encoder(arguments.model, arguments.device)


def add_extract_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="VIDEO_OR_FOLDER", help="a video, or a folder with videos in it or in its sub-folders")
    add("output", metavar="OUT", help="folder of the features, to create or to resume")
    _add_model_arguments(parser)
    add(
        "--features", choices=("projected", "pooled", "tokens"), default="projected", help="before or after projection"
    )
    formats = {"dest": "layout", "choices": ("pt", "npz", "hdf5")}
    add("--format", default="pt", help="files that VSLNet (pt) or GroundNLQ (npz) read", **formats)
    add("--layout", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **formats)  # its name in 0.1.0
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the video features")
    add("--nlq", nargs="+", default=(), metavar="JSON", help="nlq_*.json: their videos only; also clips and queries")
    add_shard_arguments(parser, "the videos and queries")


def run_extract(arguments: argparse.Namespace) -> int:
    """Exit code 0, or 1 if a video could not be read."""
    from ..features.extraction import FAILURES, extract

    model, processor = _load(arguments)
    result = extract(
        model,
        processor,
        arguments.source,
        arguments.output,
        _window_settings(arguments, arguments.features),
        arguments.layout,
        arguments.dtype,
        arguments.nlq,
        arguments.batch_size,
        shard_of(arguments),
        arguments.merge,
    )
    windows = sum(row["num_windows"] for row in result.finished.values())
    print(f"{len(result.finished)} videos ({result.num_reused} were there), {windows} windows in {arguments.output}")
    if arguments.nlq:
        print(f"{result.num_texts} queries; {result.num_without_text} more have no text")
    for uid, reason in result.failures.items():
        print(f"failed: {uid}: {reason}")
    if result.failures:
        print(
            f"{len(result.failures)} videos failed, listed in {arguments.output}/{FAILURES}; run again to retry them"
        )
    return 1 if result.failures else 0


def _load_engine(arguments: argparse.Namespace):
    if arguments.engine == "torch":
        return _load(arguments)
    from transformers import AutoProcessor

    from ..export.engine import OnnxDualEncoder

    if arguments.device not in (None, "cpu"):
        raise ValueError(f"--engine onnx computes on the CPU, not on {arguments.device!r}.")
    return OnnxDualEncoder(arguments.model), AutoProcessor.from_pretrained(arguments.model)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="videos, or folders of them")
    add("query", metavar="QUERY", help="a sentence, in quotes")
    _add_model_arguments(parser)
    add("--top-k", type=positive_int, default=5, help="moments to show")
    add("--html", default="found.html", metavar="FILE", help="page with the moments' pictures")
    add("--cache", metavar="FOLDER", help="where the features are kept; below HF_HOME by default")
    add(
        "--engine",
        choices=("torch", "onnx"),
        default="torch",
        help="what computes the embeddings; onnx: --model is a folder that `svitt-ego export` wrote",
    )
    add("--no-cache", action="store_true", help="keep nothing")


def run_search(arguments: argparse.Namespace) -> int:
    """Exit code 0, or 1 if a video could not be read."""
    from pathlib import Path

    from ..features.search import DEFAULT_CACHE, VideoIndex
    from ..features.search_page import check_page_path, write_page

    if Path(arguments.query).exists():
        raise ValueError(f"The last argument is the query, but {arguments.query!r} is a file: what is looked for?")
    check_page_path(arguments.html)
    cache = None if arguments.no_cache else arguments.cache or DEFAULT_CACHE
    model, processor = _load_engine(arguments)
    index = VideoIndex.build(
        model, processor, arguments.videos, _window_settings(arguments, "projected"), cache, arguments.batch_size
    )
    moments = index.search(arguments.query, arguments.top_k)
    for rank, moment in enumerate(moments, 1):
        print(f"{rank}. {moment}")
    print(f"Page: {write_page(arguments.html, arguments.query, moments, index)}")
    for path, reason in index.failures.items():
        print(f"not searched: {path}: {reason}")
    return 1 if index.failures else 0


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("head", metavar="HEAD", help="folder or Hub name of a grounding head (examples/train_egonlq.py trains one)")
    add("features", metavar="FEATURES", help="folder that `svitt-ego extract … --nlq JSON` made")
    add("nlq", metavar="JSON", help="nlq_val.json, nlq_test_unannotated.json")
    add("output", metavar="OUT", help="prediction file to write, as the Ego4D challenge takes it")
    add("--device", type=device, help="cuda, cuda:1, mps or cpu; the accelerator if there is one")
    add("--batch-size", type=positive_int, default=32, help="queries at once")


def run_ground(arguments: argparse.Namespace) -> None:
    from ..features.egonlq_features import EgoNLQFeatures
    from ..features.grounding import ground, write_predictions
    from ..weights.loading import load_grounding_head

    check_output_file(arguments.output, "OUT")
    head = load_grounding_head(arguments.head, arguments.device)
    data = EgoNLQFeatures.from_json(arguments.nlq, arguments.features)
    write_predictions(arguments.output, data.rows, ground(head, data, arguments.batch_size))
    without = data.num_without_text + data.num_without_features
    print(
        f"{len(data)} of {len(data) + without} queries in {arguments.output}; left out: {data.num_without_text} "
        f"without text, {data.num_without_features} of videos that could not be read"
    )
