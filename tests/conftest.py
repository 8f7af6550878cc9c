"""Shared test set-up: markers, the place of the reference material, and tiny videos made on the spot."""

import os
from pathlib import Path

import pytest
import torch

# Tiny tensors: threads that wait for each other cost far more than they bring (measured: 154 s against 33 s).
torch.set_num_threads(1)

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SVITT_EGO_SHARED", REPO.parent / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden tensors and real videos; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material not found at {SHARED}; set SVITT_EGO_SHARED to its folder")
    return SHARED
