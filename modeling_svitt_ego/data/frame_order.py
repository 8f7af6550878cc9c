"""Frame order as a control for every benchmark: what a model loses in another order is what it owes to time.

A model that scores the natural order no higher than the others has not used the order of the frames.
"""

import numpy as np

FRAME_ORDERS = {
    "natural": "the frames in their order",
    "shuffled": "the frames in a wrong order, drawn from a seed per clip",
    "reversed": "the last frame first",
    "repeated": "the middle frame repeated as often as the clip has frames",
}
# What a report says was done to its input; nothing for the natural order.
CONDITIONS = {
    "natural": None,
    "shuffled": "frames shuffled",
    "reversed": "frames reversed",
    "repeated": "middle frame repeated",
}


def check_frame_order(frame_order: str) -> str:
    if frame_order not in FRAME_ORDERS:
        raise ValueError(f"frame_order ({frame_order!r}) must be one of {', '.join(FRAME_ORDERS)}.")
    return frame_order


def ordered_frames(num_frames: int, frame_order: str, seed: int) -> np.ndarray:
    """
    Which frame of the clip comes at each place, `(num_frames,)`.

    Args:
        frame_order (`str`): one of [`FRAME_ORDERS`].
        seed (`int`): of a shuffled order, such as the number of the clip.
    """
    check_frame_order(frame_order)
    if frame_order == "shuffled":
        return wrong_order(num_frames, seed)
    if frame_order == "reversed":
        return np.arange(num_frames)[::-1]
    if frame_order == "repeated":
        return np.full(num_frames, num_frames // 2)
    return np.arange(num_frames)


def wrong_order(num_frames: int, seed: int) -> np.ndarray:
    """A permutation of the frames that is not the identity (of one frame there is no other)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_frames)
    while num_frames > 1 and (order == np.arange(num_frames)).all():
        order = rng.permutation(num_frames)
    return order
