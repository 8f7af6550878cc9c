"""Where the features of a whole video are: cells that tile it, and what the model sees for each.

|----cell 0----|----cell 1----|----cell 2----|--3--|        cells tile [0, duration), the last may be shorter
    |--------window 1--------|                              a window is centred on its cell, kept inside the video
"""

import math

import numpy as np

# A last cell shorter than this share of a whole one joins the cell before it: rounding of the duration, not content.
_SHORTEST_CELL = 0.1


def cell_bounds(duration: float, windows_per_second: float) -> np.ndarray:
    """`(num_cells, 2)` seconds: start and end of each cell; together they are [0, duration)."""
    stride = 1 / windows_per_second
    starts = np.arange(max(1, math.ceil(duration / stride - _SHORTEST_CELL))) * stride
    return np.stack([starts, np.append(starts[1:], duration)], axis=1)


def window_bounds(duration: float, windows_per_second: float, window_seconds: float | None = None) -> np.ndarray:
    """`(num_cells, 2)` seconds: what the model sees for each cell; the cell itself without `window_seconds`."""
    cells = cell_bounds(duration, windows_per_second)
    if window_seconds is None:
        return cells
    length = min(window_seconds, duration)
    starts = np.clip(cells.mean(axis=1) - length / 2, 0, duration - length)
    return np.stack([starts, starts + length], axis=1)


__all__ = ["cell_bounds", "window_bounds"]
