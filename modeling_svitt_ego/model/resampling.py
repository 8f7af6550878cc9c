"""Relative position bias tables for another number of frames or another picture size (SViTT, arXiv:2304.08809).

A table (R, H) holds one row per offset (dt, dy, dx), R = (2T-1)(2S-1)(2S-1) + 3 for T frames of S x S patches; its
last three rows belong to [CLS] and are kept as they are. With T = 1 it is BEiT's (arXiv:2106.08254).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .absolute_positions import resample_frame_embedding

TIME_MODES = ("symmetric", "released")


def resample_relative_position_bias(
    table: torch.Tensor, frames: int, new_frames: int, size: int, mode: str = "symmetric"
) -> torch.Tensor:
    """
    Bias table (R, H) made for `frames` frames, resampled for `new_frames` over the same span of time.

    Args:
        size (`int`): patches along a frame's side.
        mode (`str`):
            `"symmetric"`: a frame of the new clip lasts frames / new_frames of an old one, so the offset dt reads the
            old table at dt * frames / new_frames, between two offsets linearly and never beyond the last.
            `"released"`: nearest neighbour over the dt axis, as the SViTT release does. Not symmetric: from 4 to 8
            frames dt = +1 reads the old 0, but dt = -1 the old -1.
            From one frame, both repeat the spatial table for every dt.
    """
    if frames == new_frames:
        return table
    if mode not in TIME_MODES:
        raise ValueError(f"mode ('{mode}') must be one of {', '.join(TIME_MODES)}.")
    space = (2 * size - 1) ** 2
    by_time = table[:-3].view(2 * frames - 1, space, -1)
    if mode == "released":
        across = by_time.reshape(1, 2 * frames - 1, -1).transpose(1, 2)  # (1, space * H, dt)
        resampled = F.interpolate(across, size=2 * new_frames - 1, mode="nearest")
        resampled = resampled.transpose(1, 2).reshape(2 * new_frames - 1, space, -1)
    else:
        offsets = torch.arange(-(new_frames - 1), new_frames, device=table.device, dtype=torch.float32)
        source = (offsets * frames / new_frames).clamp(-(frames - 1), frames - 1) + (frames - 1)
        low = source.floor().long()
        high = (low + 1).clamp(max=2 * frames - 2)
        share = (source - low).to(table.dtype)[:, None, None]
        resampled = by_time[low] * (1 - share) + by_time[high] * share
    return torch.cat([resampled.flatten(0, 1), table[-3:]])


def resize_relative_position_bias(table: torch.Tensor, frames: int, size: int, new_size: int) -> torch.Tensor:
    """
    Bias table (R, H) for frames of `size` x `size` patches, resized for `new_size` x `new_size`: BEiT's rule.

    The old offsets are placed on a geometric grid that reaches as far as the new ones, because near offsets
    matter more than far ones; a bicubic spline through them is read at the new integer offsets. Every dt by itself.
    Shrinking is nearly a crop, since the grid's ratio ends at 1.01.
    """
    if size == new_size:
        return table
    matrix = cubic_spline_matrix(_geometric_offsets(size, new_size), _integer_offsets(new_size)).to(table.device)
    old, new = 2 * size - 1, 2 * new_size - 1
    planes = table[:-3].view(2 * frames - 1, old, old, -1).to(matrix.dtype)
    resized = torch.einsum("yi,xj,tijh->tyxh", matrix, matrix, planes).reshape((2 * frames - 1) * new * new, -1)
    return torch.cat([resized.to(table.dtype), table[-3:]])


def _integer_offsets(size: int) -> torch.Tensor:
    return torch.arange(-(size - 1), size, dtype=torch.float64)


def _geometric_offsets(size: int, new_size: int) -> torch.Tensor:
    """2 * size - 1 offsets 0, ±1, ±(1 + q), ±(1 + q + q²), …, the last as near to new_size - 1 as q in [1.01, 1.5]."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (size - 1)) / (1 - q) > new_size - 1:
            high = q
        else:
            low = q
    steps = q ** torch.arange(size - 1, dtype=torch.float64)
    positive = steps.cumsum(0)
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])


def cubic_spline_matrix(x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """
    The matrix (len(points), len(x)) that takes values at `x` to the interpolating cubic spline's values at `points`.

    The spline's knots leave out the second and the last but one of `x` ("not a knot"), as FITPACK's do, which
    `scipy.interpolate.RectBivariateSpline` wraps. Points outside [x[0], x[-1]] read the border.
    """
    if len(x) < 4:
        raise ValueError(f"A cubic spline needs 4 values or more, not {len(x)}.")
    knots = torch.cat([x[:1].expand(4), x[2:-2], x[-1:].expand(4)])
    return torch.linalg.solve(_cubic_basis(knots, x), _cubic_basis(knots, points.clamp(x[0], x[-1])), left=False)


def _cubic_basis(knots: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (len(points), len(knots) - 4) of the cubic B-splines on `knots` (Cox and de Boor's recursion)."""
    interval = torch.searchsorted(knots, points, right=True).sub(1).clamp(3, len(knots) - 5)
    basis = F.one_hot(interval, len(knots) - 1).to(points.dtype)
    for degree in (1, 2, 3):
        start, end = knots[: -degree - 1], knots[degree + 1 :]  # spline i lives on [knots[i], knots[i + degree + 1]]
        rising = _share(points[:, None] - start, knots[degree:-1] - start)
        falling = _share(end - points[:, None], end - knots[1:-degree])
        basis = rising * basis[:, :-1] + falling * basis[:, 1:]
    return basis


def _share(numerator: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """numerator / width, 0 where knots coincide."""
    return torch.where(width > 0, numerator / width.clamp(min=torch.finfo(width.dtype).tiny), 0.0)


@torch.no_grad()
def resize_frames(vision_model: nn.Module, num_frames: int, mode: str = "symmetric", keep_rate: float | None = None):
    """
    Re-base a video tower in place to clips of `num_frames` frames; all or nothing. See
    [`SViTTEgoPreTrainedModel.resize_frames`].
    """
    config = vision_model.config
    if mode not in TIME_MODES:
        raise ValueError(f"mode ('{mode}') must be one of {', '.join(TIME_MODES)}.")
    changes = {"num_frames": num_frames} | ({} if keep_rate is None else {"keep_rate": keep_rate})
    type(config).from_dict(config.to_dict() | changes)  # raises if the fields do not go together
    attentions = [layer.attention for layer in vision_model.layers]
    tables = [
        resample_relative_position_bias(
            attention.relative_position_bias_table.detach(), config.num_frames, num_frames, attention.grid_size, mode
        )
        for attention in attentions
    ]
    for attention, table in zip(attentions, tables):
        requires_grad = attention.relative_position_bias_table.requires_grad
        attention.relative_position_bias_table = nn.Parameter(table.clone(), requires_grad=requires_grad)
    positions = vision_model.embeddings.positions
    if positions is not None:
        old = positions.frame_embedding
        frames = resample_frame_embedding(old.detach(), num_frames)
        positions.frame_embedding = nn.Parameter(frames.clone(), requires_grad=old.requires_grad)
    for name, value in changes.items():
        setattr(config, name, value)


__all__ = [
    "TIME_MODES",
    "cubic_spline_matrix",
    "resample_relative_position_bias",
    "resize_frames",
    "resize_relative_position_bias",
]
