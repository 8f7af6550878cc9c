"""`svitt-ego export`: exports a saved model for onnxruntime, or as a `torch.export` archive."""

import argparse

from .arguments import positive_int


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or Hub name of a SViTT-Ego model with its processor")
    add("out", metavar="OUT", help="new folder (onnx) or new .pt2 file (archive)")
    add("--format", choices=("onnx", "archive"), default="onnx", help="format of the export")
    add("--num-frames", type=positive_int, metavar="T", help="frames per clip; the number of the model if not given")
    add("--int8-text", action="store_true", help="with --format onnx: quantise the text tower dynamically to int8")
    add(
        "--int8-video",
        metavar="VIDEOS",
        help="with --format onnx: quantise the video tower to int8, calibrated on windows of these videos (a file or "
        "a folder)",
    )
    add(
        "--calibration-clips",
        type=positive_int,
        default=32,
        metavar="N",
        help="with --int8-video: number of clips for the calibration",
    )


def run_export(arguments: argparse.Namespace) -> None:
    from ..weights.loading import load_dual_encoder

    if arguments.format == "archive" and (arguments.int8_text or arguments.int8_video):
        raise ValueError("--int8-text and --int8-video need --format onnx.")
    model, processor = load_dual_encoder(arguments.model, "cpu")
    if arguments.format == "archive":
        from ..export.archive import export_archive

        error = export_archive(model, arguments.out, arguments.num_frames)
        print(f"{arguments.out}: differs from PyTorch by at most {error:.1e} of the largest value")
        return
    from ..export.onnx import export_onnx

    calibration = None
    if arguments.int8_video:
        calibration = _calibration(processor, arguments, model.config.vision_config.num_frames)
    towers = export_onnx(model, processor, arguments.out, arguments.num_frames, arguments.int8_text, calibration)
    for tower in towers:
        print(
            f"{arguments.out}/{tower.file}: {tower.megabytes:.1f} MB, {tower.precision}, largest difference to "
            f"PyTorch {tower.max_error:.1e}, lowest cosine {tower.min_cosine:.5f}"
        )


def _calibration(processor, arguments: argparse.Namespace, num_frames: int) -> list:
    """Batches of clips from the middle of evenly spaced windows of the videos."""
    from itertools import islice

    from ..features.windows import WindowSettings, find_videos, read_windows, windows

    clips, settings = [], WindowSettings(num_frames=arguments.num_frames or num_frames)
    videos = find_videos(arguments.int8_video)
    for video in videos:
        spans = windows(video.duration(), settings)
        share = -(-arguments.calibration_clips // len(videos))
        spans = spans[:: max(1, len(spans) // share)]
        for clip in islice(read_windows(video, spans, settings.num_frames), share):
            batch = processor.video_processor([clip], do_sample_frames=False, return_tensors="pt")
            clips.append(batch["pixel_values_videos"].numpy())
    return clips[: arguments.calibration_clips]
