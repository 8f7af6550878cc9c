"""The protocol of an evaluation in words, for its report: crop, window and failures."""

from collections.abc import Sequence
from pathlib import Path

from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor


def describe_failures(failures: Sequence[dict], num_items_affected: int, on_error: str) -> dict:
    """
    The part of a report about clips that could not be read.

    Reports are published, so files are named by their base names only.
    """
    policy = (
        "an unreadable clip ends the run" if on_error == "raise" else "what needs an unreadable clip counts as wrong"
    )
    return {
        "policy": policy,
        "num_failed": len(failures),
        "num_items_affected": num_items_affected,
        "first": [_without_folder(failure) for failure in failures[:20]],
    }


def _without_folder(failure: dict) -> dict:
    path = Path(failure["path"])
    reason = failure["reason"].replace(str(path), path.name).replace(f"{path.parent}/", "")
    return failure | {"path": path.name, "reason": reason}


def describe_crop(processor: SViTTEgoProcessor | SViTTEgoVideoProcessor) -> str:
    """How the processor resizes and crops a frame."""
    video = getattr(processor, "video_processor", processor)
    steps = []
    if video.do_resize:
        size = dict(video.size)
        if "height" in size:
            steps.append(f"resized to {size['height']} x {size['width']}, aspect ratio not kept")
        else:
            steps.append(f"resized to {', '.join(f'{name} {value}' for name, value in size.items())}")
        steps[-1] += "" if video.antialias else ", without antialiasing"
    if getattr(video, "do_center_crop", None):
        crop = dict(video.crop_size)
        steps.append(f"centre crop of {crop['height']} x {crop['width']}")
    return "; ".join(steps) or "frames as they are"


def describe_window(num_frames: int) -> str:
    """The rule of [`EgoClipDataset`] with `sampling="middle"`."""
    return (
        "start to end of the annotation in seconds, clamped to the video; the middle frame of each of "
        f"{num_frames} equal segments"
    )
