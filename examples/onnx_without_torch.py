"""Finds the second of a video that fits a sentence best, with onnxruntime and tokenizers but without PyTorch.

    svitt-ego export svitt-ego-demo/model exported                  # where PyTorch is installed
    python examples/onnx_without_torch.py --model exported video.mp4 "#C C opens the box"     # where it is not

The frames are read by PyAV and resized by Pillow. PyTorch's resize differs from Pillow's by one grey level here and
there, so the cosines differ a little from those of `svitt-ego search`. `svitt-ego search --engine onnx` itself needs
PyTorch, for reading and resizing, but not for the towers.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

TEXT_TOKENS = 32  # as the processor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video")
parser.add_argument("sentence", help="what to look for, as a narration")
parser.add_argument("--model", required=True, type=Path, help="folder that svitt-ego export --format onnx wrote")
parser.add_argument("--seconds", type=float, default=1.0, help="length of a window (default: %(default)s)")
parser.add_argument("--top-k", type=int, default=3, help="how many windows to print (default: %(default)s)")
arguments = parser.parse_args()

# 1. What the exported folder says about itself.
export = json.loads((arguments.model / "export.json").read_text())
processor = json.loads((arguments.model / "processor_config.json").read_text())
settings, num_frames = processor["video_processor"], export["num_frames"]
if processor["text_cleaning"] != "none" or not settings["antialias"]:
    parser.error("This example resizes with antialiasing and takes sentences as they are; this model does not.")
video_tower, text_tower = (
    onnxruntime.InferenceSession(arguments.model / f"{name}.onnx", providers=["CPUExecutionProvider"])
    for name in ("video", "text")
)

# 2. The windows: `num_frames` frames each, the middle ones of equal parts. A frame lasts until the next one begins.
size = (settings["size"]["width"], settings["size"]["height"])
windows: list[list[np.ndarray]] = []
with av.open(arguments.video) as container:
    first = previous = None
    for frame in container.decode(video=0):
        first = frame.time if first is None else first
        begun = frame.time - first - 1e-3
        while previous is not None:
            number = sum(map(len, windows))
            wanted = (number // num_frames + (number % num_frames + 0.5) / num_frames) * arguments.seconds
            if wanted >= begun:
                break
            if number % num_frames == 0:
                windows.append([])
            windows[-1].append(np.asarray(previous.to_image().resize(size, Image.Resampling(settings["resample"]))))
        previous = frame
windows = [window for window in windows if len(window) == num_frames]
if not windows:
    parser.error(f"{arguments.video} is shorter than one window of {arguments.seconds} s.")


# 3. Embeddings of unit length.
def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
embeddings = []
for start in range(0, len(windows), 8):
    frames = np.stack(windows[start : start + 8]).astype(np.float32) * settings["rescale_factor"]
    pixels = ((frames - mean) / std).transpose(0, 1, 4, 2, 3)  # (windows, num_frames, 3, height, width)
    embeddings.append(video_tower.run(["video_embeds"], {"pixel_values_videos": np.ascontiguousarray(pixels)})[0])
tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
tokenizer.enable_truncation(TEXT_TOKENS)
ids = np.array([tokenizer.encode(arguments.sentence).ids], dtype=np.int64)
sentence = text_tower.run(["text_embeds"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
cosines = (unit(np.concatenate(embeddings)) @ unit(sentence).T)[:, 0]

# 4. The best windows first.
for number in np.argsort(-cosines)[: arguments.top_k]:
    print(f"{cosines[number]:7.3f}  {number * arguments.seconds:.1f} to {(number + 1) * arguments.seconds:.1f} s")
