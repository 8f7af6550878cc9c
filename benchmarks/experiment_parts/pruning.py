"""Other choices of the tokens to keep, for experiment 6: they replace `VisionLayer.prune` of a model's layers.

Each keeps as many tokens as the model's own choice, by the attention of [CLS], would.
"""

import functools

import torch
import torch.nn.functional as F

from modeling_svitt_ego.model.sparsity import motion_scores, select_tokens, take_tokens


def install_pruner(vision_model, name: str | None) -> None:
    """Makes every layer of the video tower choose its tokens by `PRUNE[name]`; None leaves the model's own choice."""
    if name is None:
        return
    for layer in vision_model.layers:
        layer.prune = functools.partial(PRUNE[name], vision_model.config.patches_per_frame)


def farthest_first(states: torch.Tensor, num_kept: int) -> torch.Tensor:
    """(B, num_kept) ascending indices: greedy k-centre by cosine, from the token that is farthest from the mean."""
    states = F.normalize(states, dim=-1)
    rows = torch.arange(states.shape[0], device=states.device)
    distance = (states - states.mean(1, keepdim=True)).norm(dim=-1)
    chosen = []
    for number in range(num_kept):
        best = distance.argmax(dim=1)
        to_best = (states - states[rows, best][:, None]).norm(dim=-1)
        distance = to_best if number == 0 else torch.minimum(distance, to_best)
        distance[rows, best] = -1.0
        chosen.append(best)
    return torch.stack(chosen, dim=1).sort(dim=1).values


def merge_dropped(hidden_states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """
    [CLS] and the kept tokens, each averaged with the dropped ones that are most like it by cosine (as ToMe merges,
    arXiv:2210.09461): `(B, 1 + num_kept, C)`.
    """
    patches = hidden_states[:, 1:]
    unit = F.normalize(patches.detach(), dim=-1)
    similarity = unit @ unit.gather(1, kept[..., None].expand(-1, -1, unit.shape[-1])).transpose(1, 2)
    target = similarity.argmax(dim=2)
    # A kept token goes to its own place, whatever is like it.
    target = target.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    total = torch.zeros_like(hidden_states[:, : kept.shape[1]])
    total = total.scatter_add(1, target[..., None].expand_as(patches), patches)
    count = torch.zeros(kept.shape, dtype=patches.dtype, device=kept.device)
    count = count.scatter_add(1, target, torch.ones_like(target, dtype=patches.dtype))
    return torch.cat([hidden_states[:, :1], total / count[..., None]], dim=1)


def novelty(states: torch.Tensor, token_ids: torch.Tensor, patches_per_frame: int) -> torch.Tensor:
    """
    (B, n) distances of each token to the most similar one, at any place, one frame before or after: motion with the
    camera's own movement searched for. Infinite where nothing is left of both frames. `token_ids` are (1 or B, n).
    """
    states, frames = states.float(), token_ids // patches_per_frame
    neighbours = (frames[:, :, None] - frames[:, None, :]).abs() == 1
    return torch.cdist(states, states).masked_fill(~neighbours, torch.inf).amin(dim=2)


def _choose(hidden_states, token_ids, kept):
    ids = token_ids.expand(hidden_states.shape[0], -1)
    return take_tokens(hidden_states, kept), ids.gather(1, kept)


def _random(patches_per_frame, hidden_states, token_ids, num_frames, cls_attention, num_kept, seed):
    scores = torch.rand(hidden_states.shape[0], token_ids.shape[1], device=hidden_states.device)
    return _choose(hidden_states, token_ids, select_tokens(scores, num_kept))


def _motion(patches_per_frame, hidden_states, token_ids, num_frames, cls_attention, num_kept, seed):
    scores = motion_scores(hidden_states[:, 1:].detach(), token_ids, num_frames, patches_per_frame)
    return _choose(hidden_states, token_ids, select_tokens(scores, num_kept))


def _novel(patches_per_frame, hidden_states, token_ids, num_frames, cls_attention, num_kept, seed):
    scores = novelty(hidden_states[:, 1:].detach(), token_ids, patches_per_frame)
    return _choose(hidden_states, token_ids, select_tokens(scores, num_kept))


def _diverse(patches_per_frame, hidden_states, token_ids, num_frames, cls_attention, num_kept, seed):
    return _choose(hidden_states, token_ids, farthest_first(hidden_states[:, 1:].detach(), num_kept))


def _merged(patches_per_frame, hidden_states, token_ids, num_frames, cls_attention, num_kept, seed):
    kept = select_tokens(cls_attention.detach()[:, :, 1:].mean(1), num_kept)
    return merge_dropped(hidden_states, kept), token_ids.expand(hidden_states.shape[0], -1).gather(1, kept)


PRUNE = {"random": _random, "motion": _motion, "novel": _novel, "diverse": _diverse, "merged": _merged}
