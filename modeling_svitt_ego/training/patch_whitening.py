"""A first layer that sees detail from the first step.

Neighbouring pixels are similar, so a random patch projection shows little more than mean colours, and a tower that is
trained from scratch learns colours long before shapes. Initialising it with the principal components of the patches,
each scaled to the same variance, makes all of them equally visible. Pretrained towers do not need this.
"""

import torch
import torch.nn.functional as F

from ..model.vision import SViTTEgoVisionModel


@torch.no_grad()
def whiten_patch_projection(
    vision_model: SViTTEgoVisionModel, pixel_values_videos: torch.Tensor, standard_deviation: float = 0.7
) -> None:
    """
    Sets the patch projection to the first `hidden_size` principal components of the patches of some clips.

    Args:
        vision_model: changed in place.
        pixel_values_videos (`torch.Tensor`): (clips, frames, channels, height, width), normalised as in training; at
            least as many patches as a patch has values.
        standard_deviation (`float`): of each channel of the projected patches.
    """
    projection = vision_model.embeddings.patch_projection
    patches = F.unfold(
        pixel_values_videos.flatten(0, 1).float(), projection.kernel_size, stride=projection.stride
    ).transpose(1, 2)
    patches = patches.flatten(0, 1)
    number, values = patches.shape
    if number < values or projection.out_channels > values:
        raise ValueError(
            f"{number} patches of {values} values each cannot whiten {projection.out_channels} channels: give at "
            f"least {values} patches, and no more channels than values."
        )
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / number)
    variances, directions = (x[..., -projection.out_channels :] for x in (variances, directions))
    # The floor limits the scale of directions that hardly occur, such as those of a constant border.
    weight = standard_deviation * (directions / (variances + 1e-5 * variances[-1]).sqrt()).T
    projection.weight.copy_(weight.view_as(projection.weight))
    projection.bias.copy_(-weight @ mean)
