"""A Space for a SViTT-Ego model: find a moment in a video, name its action, see which patches the model keeps."""

import os

import av
import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

MODEL = os.environ.get("MODEL", "USER/MODEL")
WINDOW_SECONDS = 1.0
MAX_WINDOWS = 600  # of a longer video the windows are spread evenly

torch.set_num_threads(os.cpu_count() or 1)
model = AutoModel.from_pretrained(MODEL, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
NUM_FRAMES = model.config.vision_config.num_frames


def duration_of(path: str) -> float:
    with av.open(path) as container:
        if not container.streams.video:
            raise gr.Error("This file has no video stream.")
        if container.duration is None:
            raise gr.Error("This file does not say how long it is.")
        return container.duration / av.time_base


def windows_of(path: str) -> list[tuple[float, float]]:
    duration = duration_of(path)
    count = max(1, min(MAX_WINDOWS, int(duration / WINDOW_SECONDS)))
    length = min(WINDOW_SECONDS, duration)
    starts = np.linspace(0, duration - length, count)
    return [(float(start), float(start + length)) for start in starts]


def pixels(path: str, windows: list[tuple[float, float]]) -> torch.Tensor:
    try:
        clips = [{"path": path, "start": start, "end": end} for start, end in windows]
        return processor(videos=clips, return_tensors="pt")["pixel_values_videos"]
    except (ValueError, OSError) as error:
        raise gr.Error(f"The video cannot be read: {error}") from error


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings, dim=-1)


@torch.no_grad()
def embed_texts(texts: list[str]) -> torch.Tensor:
    return unit(model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output)


def clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


@torch.no_grad()
def search(path: str | None, query: str, progress=gr.Progress()):  # noqa: B008 (Gradio's own way)
    if not path or not query.strip():
        raise gr.Error("Upload a video and type what to look for.")
    windows = windows_of(path)
    embeddings = []
    for first in progress.tqdm(range(0, len(windows), 8), desc="Reading the video"):
        embeddings.append(model.get_video_features(pixels(path, windows[first : first + 8])).pooler_output)
    scores = (unit(torch.cat(embeddings)) @ embed_texts([query]).T)[:, 0]
    best = scores.topk(min(5, len(windows)))
    rows = [
        [clock(windows[i][0]), clock(windows[i][1]), round(score, 3)]
        for score, i in zip(best.values.tolist(), best.indices.tolist())
    ]
    frames = [
        (first_frame(path, windows[i][0]), f"{clock(windows[i][0])}, cosine {score:.3f}")
        for score, i in zip(best.values.tolist(), best.indices.tolist())
    ]
    return rows, frames


def first_frame(path: str, start: float) -> Image.Image:
    with av.open(path) as container:
        stream = container.streams.video[0]
        container.seek(int(start * av.time_base))
        image = None
        for frame in container.decode(stream):
            image = frame.to_image()
            if frame.time is None or frame.time >= start:
                break
    return image


@torch.no_grad()
def label(path: str | None, labels: str, start: float, end: float):
    names = [name.strip() for name in labels.split(",") if name.strip()]
    if not path or not names:
        raise gr.Error("Upload a video and name at least one action.")
    check_window(path, start, end)
    video = unit(model.get_video_features(pixels(path, [(start, end)])).pooler_output)
    logits = video @ embed_texts([f"#C C {name}" for name in names]).T / model.temperature
    return dict(zip(names, logits.softmax(-1)[0].tolist()))


@torch.no_grad()
def kept_patches(path: str | None, start: float, end: float):
    if not path:
        raise gr.Error("Upload a video.")
    check_window(path, start, end)
    clip = pixels(path, [(start, end)])
    token_ids = model.get_video_features(clip).token_ids
    processing = processor.video_processor
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (processing.image_mean, processing.image_std))
    frames = ((clip[0] * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    if not token_ids:
        return [(frame, f"frame {number}: this model keeps every patch") for number, frame in enumerate(frames)]
    patch = model.config.vision_config.patch_size
    side = model.config.vision_config.image_size // patch
    kept = np.zeros(len(frames) * side * side, dtype=bool)
    kept[token_ids[-1][0].numpy()] = True
    mask = kept.reshape(len(frames), side, side).repeat(patch, 1).repeat(patch, 2)[..., None]
    shown = np.where(mask, frames, frames // 5)
    return [(frame, f"frame {number}") for number, frame in enumerate(shown)]


def check_window(path: str, start: float, end: float) -> None:
    duration = duration_of(path)
    if not 0 <= start < end <= duration + 0.05:
        raise gr.Error(f"The window must satisfy 0 <= start < end <= {duration:.2f} seconds.")


with gr.Blocks(title="SViTT-Ego") as app:
    gr.Markdown(
        f"# SViTT-Ego: `{MODEL}`\n"
        "A sparse video-text transformer for first-person video ([paper](https://arxiv.org/abs/2406.09462))."
    )
    video = gr.Video(label="Video", elem_id="video")
    with gr.Tab("Find a moment"):
        query = gr.Textbox(label="What are you looking for?", placeholder="#C C picks up the cup", elem_id="query")
        find = gr.Button("Search", variant="primary", elem_id="find")
        moments = gr.Dataframe(headers=["from", "to", "cosine"], label="Best moments", elem_id="moments")
        pictures = gr.Gallery(label="Frames", columns=5, elem_id="pictures")
        find.click(search, [video, query], [moments, pictures], api_name="search")
    with gr.Tab("Name the action"):
        labels = gr.Textbox(label="Actions, separated by commas", value="opens the box, closes the box")
        with gr.Row():
            start = gr.Number(label="from, in seconds", value=0.0)
            end = gr.Number(label="to, in seconds", value=1.0)
        gr.Button("Compare", variant="primary").click(
            label, [video, labels, start, end], gr.Label(label="Probability"), api_name="label"
        )
    with gr.Tab("Kept patches"):
        gr.Markdown("Dark patches were dropped by the last pruning layer.")
        with gr.Row():
            first = gr.Number(label="from, in seconds", value=0.0)
            last = gr.Number(label="to, in seconds", value=1.0)
        gr.Button("Show", variant="primary").click(
            kept_patches, [video, first, last], gr.Gallery(label="Frames of the clip", columns=4), api_name="kept"
        )

if __name__ == "__main__":
    app.launch()
