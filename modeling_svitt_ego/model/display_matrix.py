"""How a decoded picture is shown: turned by quarters, mirrored, or as it is (the display matrix of MP4 and others)."""

import struct

import numpy as np

from .video_source import Unreadable

IDENTITY = (1, 0, 0, 1)


def display_matrix(frame) -> tuple[int, int, int, int]:
    """
    The signs (a, b, c, d) of a PyAV frame's display matrix: the pixel (x, y) is shown at (a x + c y, b x + d y).

    Raises:
        Unreadable: The picture is not turned by a multiple of 90 degrees.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")  # what iterating gives differs between PyAV 18 and 19
    if stored is None:
        return IDENTITY
    entries = struct.unpack("=9i", bytes(stored)[:36])
    a, b, c, d = entries[0], entries[1], entries[3], entries[4]
    largest = max(map(abs, (a, b, c, d)))
    if largest == 0:
        return IDENTITY
    signs: tuple = tuple(0 if abs(value) < 0.01 * largest else 1 if value > 0 else -1 for value in (a, b, c, d))
    if [value != 0 for value in signs] not in ([True, False, False, True], [False, True, True, False]):
        raise Unreadable("its picture is turned by an angle that is not a multiple of 90 degrees.")
    return signs


def is_mirrored(matrix: tuple[int, int, int, int]) -> bool:
    """Whether the picture is shown as in a mirror, with or without a rotation."""
    a, b, c, d = matrix
    return a * d - b * c < 0


def upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A view of `(height, width, 3)` pixels as they are shown."""
    a, b, c, d = matrix
    if a == 0:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
