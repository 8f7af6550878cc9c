"""Tiny annotation files and videos for the data tests, made on the spot; the videos' grey level tells the frame."""

import json
from pathlib import Path

import numpy as np

COLUMNS = (
    "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text "
    "tag_verb tag_noun"
).split()


def write_video(path, num_frames, fps=10, first=0, size=(32, 48), gop=10, noise=0):
    """A video of grey frames: frame i has the level `grey(first + i)`, plus at most `noise` per pixel."""
    import av

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": str(gop), "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(num_frames):
            picture = np.full((*size, 3), grey(first + i), dtype=np.uint8)
            if noise:
                random = np.random.default_rng(first + i).integers(-noise, noise + 1, size)
                picture = (picture + random[..., None]).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


def grey(frame):
    """Levels 20, 28 … 236 and again: neighbours differ by more than the codec's error."""
    return 20 + 8 * (frame % 28)


def frame_numbers(clip):
    """The frames (modulo 28) that a (T, H, W, 3) clip shows."""
    return [round((float(frame.mean()) - 20) / 8) for frame in clip]


def egoclip_row(number, **changes):
    row = {
        "clip_idx": number,
        "video_uid": "video-a",
        "video_dur": 20.0,
        "narration_source": "narration_pass_1",
        "narration_ind": number,
        "narration_time": 1.5 + number,
        "clip_start": 1.0 + number,
        "clip_end": 2.0 + number,
        "clip_text": f"#C C picks item {number}",
        "tag_verb": [number % 5],
        "tag_noun": [number % 7, 10 + number % 3],
    }
    return {**row, **changes}


def write_egoclip(path, rows, columns=COLUMNS, newline="\n", end="\n"):
    """Rows are dicts, or strings/bytes that are written as they are."""
    lines = ["\t".join(columns).encode()]
    for row in rows:
        if isinstance(row, dict):
            row = "\t".join(str(row[name]) for name in columns)
        lines.append(row if isinstance(row, bytes) else row.encode())
    Path(path).write_bytes(newline.encode().join(lines) + end.encode())
    return Path(path)


def egomcq_item(uids, answer=0, types=None, text="#C C opens a box", start=1.0):
    clips = {
        str(i): {
            "video_uid": uid,
            "clip_start": start + i,
            "clip_end": start + i + 1,
            "clip_text": f"choice {i}",
            "tag_verb": [i],
            "tag_noun": "[3, 4]",
        }
        for i, uid in enumerate(uids)
    }
    types = types if types is not None else (2 if len(set(uids)) == 1 else 1)
    return {"query": {"clip_text": text}, "choices": clips, "answer": answer, "types": types}


def write_json(path, content):
    Path(path).write_text(json.dumps(content), encoding="utf-8")
    return Path(path)
