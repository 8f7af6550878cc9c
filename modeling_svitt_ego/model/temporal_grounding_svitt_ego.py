"""Temporal grounding on features: which span of a video answers a query (VSLNet, arXiv:2004.13931, compact).

video cells ─┐ shared encoder                       ┌ highlight: is this cell inside, or near, the answer?
             ├──────────────── context-query ───────┤
query tokens ┘ (conv, attention)  attention          └ x highlight → start LSTM → end LSTM → start and end logits

Departures from VSLNet: no table of positions, so a video may have any length (the convolutions and the LSTMs know
order); padding is masked before every convolution; and the cosine of each cell with the query in the space in which
SViTT-Ego was pretrained is a feature of the cell, so the head starts from what the dual encoder already knows.
Letters: B batch, T cells, L query tokens, D hidden size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_base import SViTTEgoConfigBase, refuse_unknown_keys
from .pipeline_temporal_grounding import custom_pipelines

logger = logging.get_logger(__name__)


@strict
class SViTTEgoTemporalGroundingConfig(SViTTEgoConfigBase):
    r"""
    Args:
        video_dim (`int`): width of a cell's feature; with `use_similarity` the encoder's `projection_dim`.
        text_dim (`int`): width of a query token's feature, the text tower's `hidden_size`.
        hidden_size, num_attention_heads (`int`), hidden_dropout_prob (`float`): of the head.
        num_conv_layers, conv_kernel_size (`int`): depthwise separable convolutions of the shared encoder.
        use_similarity (`bool`): give the head the cosine of each cell with the query.
        highlight_margin (`float`): cells within this share of the answer's length, on each side of
            it, count as highlighted too.
        highlight_weight (`float`): weight of the highlighting loss relative to the span loss.
        windows_per_second (`float`), window_seconds (`float`, *optional*), num_frames (`int`): how the features were
            made; see `features.WindowSettings`.
        feature_kind (`str`): of the features, `"projected"` or `"pooled"`.
        encoder_fingerprint (`str`): checkpoint that made the features; others are refused.
        nms_threshold (`float`): of two predicted spans that overlap by more (IoU), only the better one is kept.
    """

    model_type = "svitt_ego_temporal_grounding"
    auto_classes = {
        "AutoConfig": "temporal_grounding_svitt_ego.SViTTEgoTemporalGroundingConfig",
        "AutoModel": "temporal_grounding_svitt_ego.SViTTEgoForTemporalGrounding",
    }

    video_dim: int = 256
    text_dim: int = 768
    hidden_size: int = 128
    num_attention_heads: int = 8
    hidden_dropout_prob: float | int = 0.2
    num_conv_layers: int = 4
    conv_kernel_size: int = 7
    use_similarity: bool = True
    highlight_margin: float | int = 0.1
    highlight_weight: float | int = 5.0
    windows_per_second: float | int = 1.875
    window_seconds: float | int | None = None
    num_frames: int = 4
    feature_kind: str = "projected"
    encoder_fingerprint: str = ""
    nms_threshold: float | int = 0.5

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of the `@strict` validation: runs when a configuration is made, saved and loaded."""
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size ({self.conv_kernel_size}) must be odd.")
        if self.highlight_margin < 0 or self.highlight_weight < 0:
            raise ValueError(
                f"highlight_margin ({self.highlight_margin}) and highlight_weight ({self.highlight_weight}) must not "
                "be negative."
            )
        if self.feature_kind not in ("projected", "pooled"):
            raise ValueError(f"feature_kind ('{self.feature_kind}') must be 'projected' or 'pooled'.")
        if not 0 <= self.nms_threshold <= 1:
            raise ValueError(f"nms_threshold ({self.nms_threshold}) must be in [0, 1].")


@dataclass
class SViTTEgoTemporalGroundingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with positions): span loss plus weighted highlighting loss.
        start_logits, end_logits (`torch.FloatTensor` of shape `(batch_size, num_cells)`): of the first and the last
            cell of the answer; the lowest number of the type at padding.
        highlight_logits (`torch.FloatTensor` of shape `(batch_size, num_cells)`): inside the answer or not.
    """

    loss: torch.FloatTensor | None = None
    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    highlight_logits: torch.FloatTensor | None = None


class GroundingEncoder(nn.Module):
    """Depthwise separable convolutions, then self-attention; pre-norm residuals. Shared by cells and tokens."""

    def __init__(self, config: SViTTEgoTemporalGroundingConfig):
        super().__init__()
        size, kernel = config.hidden_size, config.conv_kernel_size
        self.norms = nn.ModuleList([nn.LayerNorm(size) for _ in range(config.num_conv_layers)])
        self.depthwise = nn.ModuleList(
            [
                nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size, bias=False)
                for _ in range(config.num_conv_layers)
            ]
        )
        self.pointwise = nn.ModuleList([nn.Linear(size, size) for _ in range(config.num_conv_layers)])
        self.attention_norm = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(
            size, config.num_attention_heads, config.hidden_dropout_prob, batch_first=True
        )
        self.output_norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for norm, depthwise, pointwise in zip(self.norms, self.depthwise, self.pointwise):
            # Padding is zero for the convolution, or a video's end would depend on its batch.
            inside = norm(states) * mask[..., None]
            inside = depthwise(inside.transpose(1, 2)).transpose(1, 2)
            states = states + self.dropout(F.relu(pointwise(inside)))
        normed = self.attention_norm(states)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=~mask, need_weights=False)
        states = states + self.dropout(attended)
        return states + self.dropout(self.output(self.output_norm(states)))


class ContextQueryAttention(nn.Module):
    """Trilinear attention both ways (BiDAF, arXiv:1611.01603; VSLNet, section 3.2), then the pooled query."""

    def __init__(self, config: SViTTEgoTemporalGroundingConfig):
        super().__init__()
        size = config.hidden_size
        self.context_weight = nn.Linear(size, 1, bias=False)
        self.query_weight = nn.Linear(size, 1, bias=False)
        self.product_weight = nn.Parameter(torch.empty(size))
        self.merge = nn.Linear(4 * size, size)
        self.pool = nn.Linear(size, 1, bias=False)
        self.concatenate = nn.Linear(2 * size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def init_own_parameters(self):
        init.normal_(self.product_weight, std=self.product_weight.shape[0] ** -0.5)

    def forward(self, context, query, context_mask, query_mask) -> torch.Tensor:
        c, q = self.dropout(context), self.dropout(query)
        scores = self.context_weight(c) + self.query_weight(q).transpose(1, 2)
        scores = scores + (c * self.product_weight) @ q.transpose(1, 2)  # (B, T, L)
        to_query = masked(scores, query_mask[:, None]).softmax(2)
        to_context = masked(scores, context_mask[..., None]).softmax(1)
        attended = to_query @ query  # (B, T, D)
        returned = to_query @ (to_context.transpose(1, 2) @ context)  # (B, T, D)
        states = self.merge(torch.cat([context, attended, context * attended, context * returned], dim=-1))
        weights = masked(self.pool(query).squeeze(-1), query_mask).softmax(-1)
        pooled = (weights[..., None] * query).sum(1, keepdim=True).expand_as(states)
        return self.concatenate(torch.cat([states, pooled], dim=-1))


class SpanPredictor(nn.Module):
    """Where the answer starts, and, conditioned on that, where it ends (VSLNet, section 3.2)."""

    def __init__(self, config: SViTTEgoTemporalGroundingConfig):
        super().__init__()
        size = config.hidden_size
        # Forward only: after the last cell comes padding, which a backward pass would read first.
        self.start_lstm = nn.LSTM(size, size, batch_first=True)
        self.end_lstm = nn.LSTM(size, size, batch_first=True)
        self.start_head = nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(), nn.Linear(size, 1))
        self.end_head = nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(), nn.Linear(size, 1))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        starts, _ = self.start_lstm(states)
        ends, _ = self.end_lstm(starts)
        start_logits = self.start_head(torch.cat([starts, states], dim=-1)).squeeze(-1)
        end_logits = self.end_head(torch.cat([ends, states], dim=-1)).squeeze(-1)
        return masked(start_logits, mask), masked(end_logits, mask)


class SViTTEgoForTemporalGrounding(PreTrainedModel):
    """
    Finds the span of a video that answers a query, from the features of `svitt-ego extract`.

    ```python
    head = AutoModel.from_pretrained(folder, trust_remote_code=True)
    outputs = head(video_features=cells, text_features=tokens, text_embeds=query)
    head.spans(outputs)[0]  # [(first cell, last cell, probability), …], best first
    ```
    """

    config: SViTTEgoTemporalGroundingConfig
    config_class = SViTTEgoTemporalGroundingConfig
    base_model_prefix = "grounding"
    main_input_name = "video_features"
    # The Trainer would otherwise divide the loss by a count of labels; it is a mean over queries already.
    accepts_loss_kwargs = False

    def save_pretrained(self, *args, **kwargs):
        self.config.custom_pipelines = custom_pipelines()
        return super().save_pretrained(*args, **kwargs)

    def __init__(self, config: SViTTEgoTemporalGroundingConfig):
        super().__init__(config)
        size = config.hidden_size
        self.video_norm = nn.LayerNorm(config.video_dim)
        self.video_projection = nn.Linear(config.video_dim + config.use_similarity, size)
        self.text_norm = nn.LayerNorm(config.text_dim)
        self.text_projection = nn.Linear(config.text_dim, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = GroundingEncoder(config)
        self.attention = ContextQueryAttention(config)
        self.highlight = nn.Linear(size, 1)
        self.predictor = SpanPredictor(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.LSTM):
            for weight in module.parameters():
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, ContextQueryAttention):
            module.init_own_parameters()

    @can_return_tuple
    def forward(
        self,
        video_features: torch.FloatTensor,
        text_features: torch.FloatTensor,
        text_embeds: torch.FloatTensor | None = None,
        video_mask: torch.BoolTensor | None = None,
        text_mask: torch.BoolTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> SViTTEgoTemporalGroundingOutput:
        r"""
        Args:
            video_features (`torch.FloatTensor` of shape `(batch_size, num_cells, video_dim)`).
            text_features (`torch.FloatTensor` of shape `(batch_size, num_tokens, text_dim)`): of the query's tokens.
            text_embeds (`torch.FloatTensor` of shape `(batch_size, video_dim)`): the query in the space of the cells;
                needed with `config.use_similarity`.
            video_mask, text_mask (`torch.BoolTensor` of shapes `(batch_size, num_cells)` and `(batch_size,
                num_tokens)`, *optional*): false at padding, which comes last.
            start_positions, end_positions (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, num_answers)`,
                *optional*): first and last cell of the answer, or of each of a query's answers, filled up with -100;
                for the loss.
        """
        for name, features in (("video_features", video_features), ("text_features", text_features)):
            if features.dim() != 3 or features.numel() == 0:
                raise ValueError(f"{name} must have a shape of three sizes above 0; got {tuple(features.shape)}.")
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            logger.warning_once("SViTTEgoForTemporalGrounding returns neither attentions nor hidden states.")
        if video_mask is None:
            video_mask = torch.ones(video_features.shape[:2], dtype=torch.bool, device=video_features.device)
        if text_mask is None:
            text_mask = torch.ones(text_features.shape[:2], dtype=torch.bool, device=text_features.device)
        cells = self.video_norm(video_features)
        if self.config.use_similarity:
            if text_embeds is None:
                raise ValueError("This head was made with use_similarity=True and needs text_embeds.")
            cosine = F.normalize(video_features, dim=-1) @ F.normalize(text_embeds, dim=-1)[..., None]  # (B, T, 1)
            cells = torch.cat([cells, standardised(cosine, video_mask[..., None])], dim=-1)
        cells = self.encoder(self.video_projection(self.dropout(cells)), video_mask)
        tokens = self.encoder(self.text_projection(self.dropout(self.text_norm(text_features))), text_mask)
        states = self.attention(cells, tokens, video_mask, text_mask)
        highlight_logits = self.highlight(states).squeeze(-1)
        states = states * highlight_logits.sigmoid()[..., None]  # query-guided highlighting
        start_logits, end_logits = self.predictor(states, video_mask)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.span_loss(start_logits, end_logits, start_positions, end_positions)
            target = self.highlighted(start_positions, end_positions, video_mask.shape[1])
            loss = loss + self.config.highlight_weight * highlighting_loss(highlight_logits, target, video_mask)
        return SViTTEgoTemporalGroundingOutput(loss, start_logits, end_logits, masked(highlight_logits, video_mask))

    @staticmethod
    def span_loss(start_logits, end_logits, start_positions, end_positions) -> torch.Tensor:
        pairs = (start_logits, start_positions), (end_logits, end_positions)
        return sum(cross_entropy_of_any(logits, positions) for logits, positions in pairs)

    def highlighted(self, start_positions, end_positions, num_cells: int) -> torch.Tensor:
        """(B, T) bool: the answers' cells, and a margin of the answer's length on either side."""
        starts, ends = (positions.view(len(positions), -1, 1) for positions in (start_positions, end_positions))
        margin = (self.config.highlight_margin * (ends - starts + 1)).round()
        place = torch.arange(num_cells, device=starts.device)
        return ((place >= starts - margin) & (place <= ends + margin)).any(1)  # filling, at -100, is before all cells

    @torch.no_grad()
    def spans(
        self, outputs: SViTTEgoTemporalGroundingOutput, num_spans: int = 5
    ) -> list[list[tuple[int, int, float]]]:
        """For each query its best spans (first cell, last cell, probability), no two of which overlap much."""
        # Double: where a likely end precedes a likely start, products of what is left are below float32's range.
        starts = outputs.start_logits.cpu().double().softmax(-1)
        ends = outputs.end_logits.cpu().double().softmax(-1)
        return [best_spans(start, end, num_spans, self.config.nms_threshold) for start, end in zip(starts, ends)]


def best_spans(
    start_probabilities: torch.Tensor, end_probabilities: torch.Tensor, num_spans: int, nms_threshold: float
) -> list[tuple[int, int, float]]:
    """The spans of largest start times end probability, after non-maximum suppression; vectors of shape `(T,)`."""
    joint = torch.triu(start_probabilities[:, None] * end_probabilities)
    # Neighbours of one peak fill the top of the list, so far more candidates than spans.
    values, places = joint.flatten().topk(min(joint.numel(), 200 * num_spans))
    first, last = places // joint.shape[1], places % joint.shape[1]
    possible = (first <= last) & (values > 0)
    spans = torch.stack([first, last + 1], dim=1)[possible].float()
    kept = temporal_nms(spans, values[possible], nms_threshold, num_spans)
    first, last, values = first[possible][kept], last[possible][kept], values[possible][kept]
    return list(zip(first.tolist(), last.tolist(), values.tolist()))


def temporal_nms(spans: torch.Tensor, scores: torch.Tensor, threshold: float, count: int) -> torch.Tensor:
    """Indices of at most `count` spans `(N, 2)`, best first, none overlapping a better kept one by IoU > threshold."""
    left = torch.argsort(scores, descending=True, stable=True)
    kept = []
    while len(left) and len(kept) < count:
        best, left = left[0], left[1:]
        kept.append(best)
        shared = torch.minimum(spans[left, 1], spans[best, 1]) - torch.maximum(spans[left, 0], spans[best, 0])
        shared = shared.clamp(min=0)
        union = (spans[left, 1] - spans[left, 0]) + (spans[best, 1] - spans[best, 0]) - shared
        left = left[shared <= threshold * union]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long, device=spans.device)


def cross_entropy_of_any(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Minus the log of the summed probability of the right cells; with a single one, the cross-entropy."""
    place = torch.arange(logits.shape[1], device=logits.device)
    right = (positions.view(len(positions), -1, 1) == place).any(1)  # (B, T)
    return -masked(logits.float().log_softmax(-1), right).logsumexp(-1).mean()


def highlighting_loss(logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over real cells; a highlighted cell counts twice (VSLNet's code)."""
    weights = mask * (1.0 + target)
    losses = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return (losses * weights).sum() / mask.sum()


def masked(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def standardised(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the real cells of each video: queries differ in the level of their cosines."""
    count = mask.sum(1, keepdim=True)
    values = torch.where(mask, values, 0.0)
    centred = torch.where(mask, values - values.sum(1, keepdim=True) / count, 0.0)
    return centred * torch.rsqrt((centred**2).sum(1, keepdim=True) / count + 1e-6)


SViTTEgoTemporalGroundingConfig.register_for_auto_class()
SViTTEgoForTemporalGrounding.register_for_auto_class("AutoModel")

__all__ = [
    "SViTTEgoForTemporalGrounding",
    "SViTTEgoTemporalGroundingConfig",
    "SViTTEgoTemporalGroundingOutput",
]
