"""The random part of a picture that training sees, the same in every frame of a clip."""

import math

import torch


def random_part(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, by torchvision's RandomResizedCrop, with a generator."""
    for _ in range(10):
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + draws[0] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + draws[1] * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
    # No part of such a shape fits: the largest in the middle whose shape is nearest to it.
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w
