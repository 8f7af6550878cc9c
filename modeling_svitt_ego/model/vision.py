"""The video tower: BEiT (arXiv:2106.08254) over all patches of a clip, with sparse edges and pruned nodes.

Letters as in sparsity.py: B batch, N tokens with [CLS] first, n = N - 1 patch tokens, C hidden size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .absolute_positions import AbsolutePositions
from .block_attention import dense_attention, edge_attention, uses_kernels
from .blocks import MLP, eager_attention, mlp_after
from .classification_heads import AttentionPooler
from .configuration_svitt_ego import SViTTEgoVisionConfig, num_kept_tokens
from .flex_blocks import flex_edge_attention
from .fused_layer import is_fusable, keep_factors, mlp_residual, norm_linears, project_residual
from .input_checks import check_frames, check_range
from .lean_linear import linears_after
from .pretrained_svitt_ego import SViTTEgoPreTrainedModel
from .resampling import resample_relative_position_bias
from .sparsity import (
    RelativePositions,
    cls_row,
    edge_attention_reference,
    hash_keys,
    local_blocks,
    motion_scores,
    random_blocks,
    select_tokens,
    take_tokens,
    temporal_blocks,
)

# hash_keys streams: layer numbers draw random blocks, these draw the scores of keep_strategy="random".
_RANDOM_PRUNING_STREAM = 1 << 20


@dataclass
class SViTTEgoVisionOutput(BaseModelOutputWithPooling):
    """
    Output of the video tower.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_kept, hidden_size)`):
            [CLS] and the patch tokens that survived every pruning layer, normalised: what cross-attention sees.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            Normalised mean of the surviving patch tokens, [CLS] left out, taken before `last_hidden_state`'s norm; or,
            by `config.pooling`, the normalised [CLS], or an attention pooling of the normalised patch tokens.
        hidden_states (`tuple`): the embeddings, then the output of each layer, not normalised. After a pruning layer
            they are shorter: `(batch_size, 1 + num_tokens_of_that_layer, hidden_size)`.
        attentions (`tuple`, with `attn_implementation="eager"`): one `(batch_size, num_heads, N, N)` per layer with
            the N tokens that entered it; zero where there is no edge.
        token_ids (`tuple[torch.LongTensor]`): per pruning layer the ids `(batch_size, num_kept)` of the kept tokens,
            t * height * width + y * width + x in the clip, ascending.
    """

    token_ids: tuple[torch.LongTensor, ...] | None = None


class VisionEmbeddings(nn.Module):
    """
    Patches of every frame, frame after frame, behind one [CLS]. Position enters only through the bias, unless the
    configuration says that the tower has an image model's absolute positions.
    """

    def __init__(self, config: SViTTEgoVisionConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.positions = AbsolutePositions(config) if config.absolute_positions else None
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_layernorm else None
        self.pre_layernorm = norm

    def init_own_parameters(self, std: float):
        init.trunc_normal_(self.cls_token, mean=0.0, std=std)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        batch_size, num_frames, channels, height, width = pixel_values_videos.shape
        config = self.config
        if channels != config.num_channels or (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"pixel_values_videos has frames of {channels} x {height} x {width}, but this model takes "
                f"{config.num_channels} x {config.image_size} x {config.image_size}."
            )
        frames = pixel_values_videos.flatten(0, 1).to(self.patch_projection.weight.dtype)
        patches = self.patch_projection(frames).flatten(2).transpose(1, 2)  # (B * T, h * w, C)
        patches = patches.unflatten(0, (batch_size, num_frames))
        if self.positions is not None:
            patches = self.positions(patches)
        tokens = torch.cat([self.cls_token.expand(batch_size, -1, -1), patches.flatten(1, 2)], dim=1)
        return tokens if self.pre_layernorm is None else self.pre_layernorm(tokens)


def directional_bias(window: tuple[int, int, int], num_heads: int, layer: int) -> torch.Tensor:
    """
    Bias table (R, num_heads) with a direction for each head, for training from scratch.

    In even layers heads look one frame back, one frame ahead, at the same frame nearby, and everywhere; in odd layers
    one patch to the left, to the right, up and down, the nearer in time the more; and so on in turn. At the clip's
    first and last frame the first two find nothing and fall back on [CLS], which tells the layers above which end of
    the clip a token is at: with relative positions alone nothing else does.
    """
    dt, dy, dx = torch.meshgrid(*(torch.arange(1 - size, size) for size in window), indexing="ij")  # query - key
    distance = (dy**2 + dx**2).float().sqrt()
    elsewhere = 6.0  # e^-6 of the weight
    if layer % 2 == 0:
        directions = [
            -2 * distance - elsewhere * (dt != 1),
            -2 * distance - elsewhere * (dt != -1),
            -distance - elsewhere * (dt != 0),
            torch.zeros_like(distance),
        ]
    else:
        directions = [
            -2 * ((dy - down) ** 2 + (dx - right) ** 2).float().sqrt() - dt.abs()
            for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ]
    table = torch.stack([directions[head % 4].flatten() for head in range(num_heads)], dim=1)
    return torch.cat([table, torch.zeros(3, num_heads)])


class VisionAttention(nn.Module):
    """Multi-head attention with a 3-D relative position bias, over the pattern's edges or over all pairs."""

    def __init__(self, config: SViTTEgoVisionConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)  # BEiT's key has no bias
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.grid_size = config.image_size // config.patch_size
        num_offsets = (2 * config.num_frames - 1) * (2 * self.grid_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets + 3, config.num_attention_heads))

    def init_own_parameters(self, std: float):
        table = self.relative_position_bias_table
        if self.config.relative_position_init == "directional":
            window = (self.config.num_frames, self.grid_size, self.grid_size)
            init.copy_(table, directional_bias(window, self.num_attention_heads, self.layer).to(table))
        else:
            init.zeros_(table)

    def forward(
        self,
        q: torch.Tensor,  # (B, N, C), and so k and v: projected by the layer, with the norm that comes before
        k: torch.Tensor,
        v: torch.Tensor,
        token_ids: torch.Tensor,  # (1 or B, n)
        num_frames: int,
        block_ids: torch.Tensor | None,  # (M, K) or (B, M, K); None is dense
        need_cls_attention: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        The context (B, N, C) before the output projection, the whole attention (B, H, N, N) if eager, the [CLS] row
        (B, H, N) if needed.
        """
        shape = (*q.shape[:-1], self.num_attention_heads, self.head_dim)
        q, k, v = (x.view(shape).transpose(1, 2) for x in (q, k, v))
        config = self.config
        table = resample_relative_position_bias(
            self.relative_position_bias_table, config.num_frames, num_frames, self.grid_size
        )
        positions = RelativePositions.from_token_ids(token_ids, (num_frames, self.grid_size, self.grid_size))

        attention = cls_attention = None
        implementation = config._attn_implementation
        pattern = (block_ids, config.block_size, config.released_attention, config.num_mirrored_blocks)
        arguments = (q, k, v, table, positions, *pattern)
        if implementation == "flex_attention":
            context, cls_attention = flex_edge_attention(*arguments)
        elif block_ids is None:
            context, attention, cls_attention = self.dense(q, k, v, table, positions)
        elif implementation == "eager":
            context, attention = edge_attention_reference(*arguments)
        else:
            context, cls_attention = edge_attention(*arguments)
        if need_cls_attention and cls_attention is None:
            # Not attention[:, :, 0], rounded in half precision: every implementation ranks by the same numbers.
            with torch.no_grad():  # a ranking: no gradient flows through which tokens are kept
                cls_attention = cls_row(q, k, v, table, positions)[1]
        return context.transpose(1, 2).flatten(2), attention, cls_attention

    def dense(self, q, k, v, table, positions: RelativePositions):
        """All pairs: the context, the attention if eager, the [CLS] row if it comes with them."""
        on_cpu = q.device.type == "cpu"
        if self.config._attn_implementation == "sdpa" and (torch.is_grad_enabled() or on_cpu or uses_kernels(q)):
            # The library's function takes the bias as a (B, H, N, N) mask and, where that needs a gradient, keeps as
            # much for the backward. On a CPU it is also slower without one (1.2 times at 4 frames, 1.4 at 8).
            context, cls_attention = dense_attention(q, k, v, table, positions)
            return context, None, cls_attention
        bias = positions.dense_bias(table).to(q.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, attention = attend(self, q, k, v, bias, scaling=self.scaling, dropout=0.0, is_causal=False)
        return context.transpose(1, 2), attention, None


class VisionLayer(GradientCheckpointingLayer):
    """
    Pre-norm BEiT layer with layer scale. A pruning layer prunes between its attention and its MLP: the MLP works on
    each token alone, so the kept tokens come out the same as when pruning after it (as the release does), for less.
    """

    def __init__(self, config: SViTTEgoVisionConfig, layer: int):
        super().__init__()
        self.keep_strategy = config.keep_strategy
        self.patches_per_frame = config.patches_per_frame
        self.random_stream = _RANDOM_PRUNING_STREAM + layer
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config, layer)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_scale_init_value = config.layer_scale_init_value
        self.lambda_1 = nn.Parameter(torch.empty(config.hidden_size))
        self.lambda_2 = nn.Parameter(torch.empty(config.hidden_size))
        rate = config.drop_path_rate * layer / max(1, config.num_hidden_layers - 1)
        self.drop_path = StochasticDepth(rate, mode="row")

    def init_own_parameters(self, std: float):
        init.constant_(self.lambda_1, self.layer_scale_init_value)
        init.constant_(self.lambda_2, self.layer_scale_init_value)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, N, C)
        token_ids: torch.Tensor,  # (1 or B, n)
        num_frames: int,
        block_ids: torch.Tensor | None,
        num_kept: int | None,  # None where the layer does not prune
        seed: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output and the ids of its tokens, fewer than entered if it prunes."""
        # Submodules are called on tensors alone: accelerate's hooks move every argument that has `.to`, modules too.
        attention = self.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        is_fused = is_fusable(self, hidden_states)
        if is_fused:
            hidden_states, *projected = norm_linears(self.layernorm_before, hidden_states, projections)
        else:
            projected = linears_after(self.layernorm_before, hidden_states, projections)
        by_attention = num_kept is not None and self.keep_strategy == "cls_attn"
        context, _, cls_attention = attention(*projected, token_ids, num_frames, block_ids, by_attention)

        normed = None
        if is_fused:
            norm = self.layernorm_after if num_kept is None else None
            keep = keep_factors(self.drop_path, hidden_states)
            hidden_states, normed = project_residual(
                attention.o_proj, context, self.lambda_1, hidden_states, keep, norm
            )
        else:
            (attended,) = linears_after(None, context, [attention.o_proj], self.lambda_1)
            hidden_states = hidden_states + self.drop_path(attended)
        if num_kept is not None:
            hidden_states, token_ids = self.prune(hidden_states, token_ids, num_frames, cls_attention, num_kept, seed)
        if is_fused:
            keep = keep_factors(self.drop_path, hidden_states)
            hidden_states = mlp_residual(self.mlp, self.layernorm_after, hidden_states, normed, self.lambda_2, keep)
        else:
            transformed = mlp_after(self.layernorm_after, hidden_states, self.mlp, self.lambda_2)
            hidden_states = hidden_states + self.drop_path(transformed)
        return hidden_states, token_ids

    def prune(self, hidden_states, token_ids, num_frames: int, cls_attention, num_kept: int, seed: torch.Tensor):
        """The `num_kept` patch tokens that the keep strategy scores highest, and their ids."""
        if self.keep_strategy == "cls_attn":
            scores = cls_attention.detach()[:, :, 1:].mean(1)  # head mean, (B, n)
        elif self.keep_strategy == "motion":
            scores = motion_scores(hidden_states.detach()[:, 1:], token_ids, num_frames, self.patches_per_frame)
        else:
            scores = hash_keys(seed, self.random_stream, 1, token_ids.shape[1]).expand(hidden_states.shape[0], -1)
        kept = select_tokens(scores, num_kept)
        token_ids = token_ids.expand(hidden_states.shape[0], -1).gather(1, kept)
        return take_tokens(hidden_states, kept), token_ids


class SViTTEgoVisionModel(SViTTEgoPreTrainedModel):
    """
    The video tower alone: clips to token states and one pooled vector each.

    A clip is `(num_frames, num_channels, image_size, image_size)`; its number of frames may differ from
    `config.num_frames`, and an image is a clip of one frame.
    """

    config: SViTTEgoVisionConfig
    base_model_prefix = "vision_model"
    input_modalities = ("video",)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(VisionLayer, index=0),
        "attentions": OutputRecorder(VisionAttention, index=1),
    }

    def __init__(self, config: SViTTEgoVisionConfig):
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        self.layers = nn.ModuleList([VisionLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = AttentionPooler(config) if config.pooling == "attention" else None
        self._range_checked = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_projection

    def set_input_embeddings(self, value: nn.Module):
        self.embeddings.patch_projection = value

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """One vector `(B, C)` per clip from the tokens `(B, N, C)` of the last layer, as `config.pooling` says."""
        if self.pooler is not None:
            return self.pooler(self.pooler_layernorm(hidden_states[:, 1:]))
        pooled = hidden_states[:, 0] if self.config.pooling == "cls" else hidden_states[:, 1:].mean(1)
        return self.pooler_layernorm(pooled)

    def draw_seed(self, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
        """The seed () of a forward's random choices: fixed in evaluation, new at each call in training."""
        if not self.training:
            return torch.tensor(self.config.pattern_seed, device=device, dtype=torch.int64)
        if generator is not None:
            return torch.randint(2**62, (), generator=generator, device=generator.device).to(device)
        return torch.randint(2**62, (), device=device)

    def block_ids(
        self,
        layer: int,
        token_ids: torch.Tensor,
        num_frames: int,
        seed: torch.Tensor,
        random_pattern: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """
        Blocks that each block of a layer attends to, local ones first; None where attention is dense.

        They are (M, K), the same for all clips, unless temporal blocks depend on which tokens of a clip (B, n) are
        left: then (B, M, K).
        """
        config = self.config
        if config.num_random_blocks is None:
            return None
        num_patches = token_ids.shape[1]
        num_blocks = -(-num_patches // config.block_size)
        released = config.released_attention
        local = local_blocks(num_blocks, config.num_local_blocks, released, seed.device)
        if random_pattern is None:
            temporal = None
            if config.num_temporal_blocks:
                temporal = temporal_blocks(
                    token_ids,
                    config.patches_per_frame,
                    num_frames,
                    config.block_size,
                    config.num_temporal_blocks,
                    local,
                )
            random_pattern = random_blocks(
                seed,
                layer,
                num_blocks,
                config.num_local_blocks,
                config.num_random_blocks,
                released,
                temporal,
            )
        elif random_pattern.shape[-2] != num_blocks:
            raise ValueError(
                f"The random pattern of layer {layer} is for {random_pattern.shape[-2]} blocks, but its {num_patches} "
                f"tokens make {num_blocks} blocks of {config.block_size}."
            )
        random_pattern = random_pattern.to(seed.device)
        if random_pattern.dim() == 3:
            if random_pattern.shape[0] == 1:
                random_pattern = random_pattern[0]
            else:
                local = local.expand(random_pattern.shape[0], -1, -1)
        return torch.cat([local, random_pattern], dim=-1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        random_patterns: list[torch.LongTensor] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SViTTEgoVisionOutput:
        r"""
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch_size, num_frames, channels, height, width)`, or
                `(batch_size, channels, height, width)` for images).
            random_patterns (`list[torch.LongTensor]`, *optional*): per layer the ids `(M, K_t + K_r)`, or
                `(B, M, K_t + K_r)`, of all blocks that are not local, instead of computed and drawn ones.
            generator (`torch.Generator`, *optional*): draws the training pattern; the default generator otherwise.
        """
        if pixel_values_videos is None:
            raise ValueError("The video tower needs pixel_values_videos.")
        if pixel_values_videos.dim() == 4:
            pixel_values_videos = pixel_values_videos.unsqueeze(1)
        check_frames(pixel_values_videos, self.config)
        if not torch.compiler.is_compiling():
            self._range_checked = check_range(pixel_values_videos, self._range_checked)
        self.warn_without_attentions(kwargs)
        num_frames = pixel_values_videos.shape[1]
        config = self.config
        hidden_states = self.embeddings(pixel_values_videos)
        token_ids = torch.arange(hidden_states.shape[1] - 1, device=hidden_states.device)[None]
        seed = self.draw_seed(hidden_states.device, generator)

        kept_ids = []
        for index, layer in enumerate(self.layers):
            pattern = None if random_patterns is None else random_patterns[index]
            prunes = index in config.prune_layers and config.keep_rate < 1.0
            hidden_states, token_ids = layer(
                hidden_states,
                token_ids,
                num_frames,
                self.block_ids(index, token_ids, num_frames, seed, pattern),
                num_kept_tokens(token_ids.shape[1], config.keep_rate) if prunes else None,
                seed,
            )
            if prunes:
                kept_ids.append(token_ids)

        return SViTTEgoVisionOutput(
            last_hidden_state=self.layernorm(hidden_states),
            pooler_output=self.pool(hidden_states),
            token_ids=tuple(kept_ids),
        )


__all__ = ["SViTTEgoVisionModel", "SViTTEgoVisionOutput"]
