"""`svitt-ego extract`, `search` and `ground`: their arguments and their output."""

import argparse

from .arguments import FRAME_ORDERS, check_output_file, device, positive_float, positive_int, window_seconds
from .corpus import add_shard_arguments, shard_of
from .running import list_failures


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="folder or Hub name of a SViTT-Ego model with its processor")
    add("--device", type=device, help="cuda, cuda:1, mps or cpu; if not given, the accelerator if there is one")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="number of windows embedded at once")
    add(
        "--windows-per-second",
        type=positive_float,
        default=1.875,
        metavar="RATE",
        help="features per second of video; 1.875 (30 fps / 16 frames) is the rate of the published features",
    )
    add(
        "--window-seconds",
        type=window_seconds,
        metavar="SECONDS",
        help="length of the window that the model sees for each feature, or 'stride' for the time between two "
        "features; the default is 'stride', and 1.0 for `extract --nlq`, as in examples/train_egonlq.py",
    )
    add("--num-frames", type=positive_int, default=4, metavar="T", help="number of frames of a window")


def _window_settings(arguments: argparse.Namespace, kind: str):
    from ..features.windows import NLQ_WINDOW_SECONDS, WindowSettings

    seconds = arguments.window_seconds
    if seconds is None and getattr(arguments, "nlq", None):
        seconds = NLQ_WINDOW_SECONDS
    seconds = None if seconds == "stride" else seconds
    frame_order = getattr(arguments, "frame_order", "natural")
    return WindowSettings(arguments.windows_per_second, seconds, arguments.num_frames, kind, frame_order)


def _load(arguments: argparse.Namespace):
    from ..weights.loading import load_dual_encoder

    return load_dual_encoder(arguments.model, arguments.device)


def add_extract_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="VIDEO_OR_FOLDER", help="a video, or a folder that is searched for videos with sub-folders")
    add("output", metavar="OUT", help="folder of the features, to create or to continue after an interrupted run")
    _add_model_arguments(parser)
    add(
        "--features",
        choices=("projected", "pooled", "tokens"),
        default="projected",
        help="embeddings after the projection (comparable with texts), before it, or the states of all tokens",
    )
    add("--frame-order", default="natural", choices=FRAME_ORDERS, help="of a window's frames; others are controls")
    formats = {"dest": "layout", "choices": ("pt", "npz", "hdf5")}
    add("--format", default="pt", help="file format: VSLNet reads pt, GroundNLQ npz", **formats)
    add("--layout", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **formats)  # its name in 0.1.0
    add("--dtype", choices=("float32", "float16"), default="float32", help="data type of the video features")
    add(
        "--nlq",
        nargs="+",
        default=(),
        metavar="JSON",
        help="EgoNLQ files (nlq_*.json): extract only their videos, and also write features of their clips and "
        "queries",
    )
    add_shard_arguments(parser, "the videos and queries")


def run_extract(arguments: argparse.Namespace) -> int:
    """Exit code 0, or 1 if a video could not be read."""
    from ..features.extraction import FAILURES, extract
    from ..features.source_videos import check_source

    for path in (arguments.source, *arguments.nlq):
        check_source(path)
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
    print(
        f"{len(result.finished)} videos with {windows} windows in {arguments.output} ({result.num_reused} videos were "
        "finished before)"
    )
    if arguments.nlq:
        print(f"{result.num_texts} queries; {result.num_without_text} more queries have no text")
    if result.failures:
        print(f"{len(result.failures)} videos could not be read; run the same command again to retry them:")
        print(list_failures(result.failures, f"{arguments.output}/{FAILURES}"))
    return 1 if result.failures else 0


def _load_engine(arguments: argparse.Namespace):
    if arguments.engine == "torch":
        return _load(arguments)
    from transformers import AutoProcessor

    from ..export.engine import OnnxDualEncoder

    if arguments.device not in (None, "cpu"):
        raise ValueError(f"--engine onnx runs on the CPU, not on {arguments.device!r}.")
    return OnnxDualEncoder(arguments.model), AutoProcessor.from_pretrained(arguments.model)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="videos, or folders that are searched for videos with sub-folders")
    add("query", metavar="QUERY", help="a sentence in quotes")
    _add_model_arguments(parser)
    add("--top-k", type=positive_int, default=5, metavar="N", help="number of moments to show")
    add("--html", default="found.html", metavar="FILE", help="page on which the moments are shown and played")
    add("--cache", metavar="FOLDER", help="folder that keeps the features; a folder in HF_HOME if not given")
    add(
        "--engine",
        choices=("torch", "onnx"),
        default="torch",
        help="library that computes the embeddings; for onnx, --model is a folder that `svitt-ego export` wrote",
    )
    add("--no-cache", action="store_true", help="do not keep the features")


def run_search(arguments: argparse.Namespace) -> int:
    """Exit code 0, or 1 if a video could not be read."""
    from pathlib import Path

    from ..features.index_cache import make_index_cache
    from ..features.search import DEFAULT_CACHE, VideoIndex
    from ..features.search_page import check_page_path, write_page
    from ..features.source_videos import check_source

    if Path(arguments.query).exists():
        raise ValueError(
            f"The last argument must be the query, but {arguments.query!r} is a file or folder: add the sentence to "
            "search for."
        )
    for path in arguments.videos:
        check_source(path)
    check_page_path(arguments.html)
    cache = None if arguments.no_cache else arguments.cache or DEFAULT_CACHE
    if cache is not None:
        make_index_cache(cache)
    model, processor = _load_engine(arguments)
    index = VideoIndex.build(
        model, processor, arguments.videos, _window_settings(arguments, "projected"), cache, arguments.batch_size
    )
    moments = index.search(arguments.query, arguments.top_k)
    for rank, moment in enumerate(moments, 1):
        print(f"{rank}. {moment}")
    page = write_page(arguments.html, arguments.query, moments, index)
    print(f"Page: {page}")
    if index.failures:
        print(f"{len(index.failures)} videos could not be read and were not searched:")
        print(list_failures(index.failures, str(page)))
    return 1 if index.failures else 0


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("head", metavar="HEAD", help="folder or Hub name of a grounding head (examples/train_egonlq.py trains one)")
    add("features", metavar="FEATURES", help="folder that `svitt-ego extract … --nlq JSON` wrote")
    add("nlq", metavar="JSON", help="queries to predict: nlq_val.json or nlq_test_unannotated.json")
    add("output", metavar="OUT", help="prediction file to write, in the format of the Ego4D challenge")
    add("--device", type=device, help="cuda, cuda:1, mps or cpu; if not given, the accelerator if there is one")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="number of queries processed at once")


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
        f"{len(data)} of {len(data) + without} queries in {arguments.output}; left out were {data.num_without_text} "
        f"queries without text and {data.num_without_features} of videos that could not be read"
    )
