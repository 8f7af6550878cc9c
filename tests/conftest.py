"""Shared test set-up: markers, the place of the reference material, and tiny videos made on the spot."""

import os
import signal
from pathlib import Path

import pytest
import torch

# huggingface_hub reads it once, at its import, and the tests' own Hub on this machine would be refused too.
os.environ.pop("HF_HUB_OFFLINE", None)

# Tiny tensors: threads that wait for each other cost far more than they bring (measured: 154 s against 33 s).
torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def bind_vpx_encoders() -> None:
    """
    Encodes a few frames of VP8 and VP9, so that PyAV's encoders are bound to the libvpx that PyAV brings.

    decord loads its own libvpx with global symbols. Encoders that are first used after that find the other library
    and fail ("ABI version mismatch").
    """
    import io

    import av
    import numpy as np

    for codec in ("libvpx", "libvpx-vp9"):
        with av.open(io.BytesIO(), "w", format="webm") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for level in (0, 128, 255):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


bind_vpx_encoders()

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SVITT_EGO_SHARED", REPO.parent / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden tensors and real videos; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material not found at {SHARED}; set SVITT_EGO_SHARED to its folder")
    return SHARED
