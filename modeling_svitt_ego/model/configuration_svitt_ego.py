"""Configuration of SViTT-Ego (arXiv:2406.09462): vision, text and fusion towers and the sparsity of each.

Defaults are the published settings: BEiT-B/16 at 224 px, BERT-base cut into 9 text and 3 fusion layers,
(K_l, K_r, G) = (1, 3, 56), q_v = 0.7 after vision layers 4, 7, 10 (1-based), q_m = 0.1, 4 frames, projection 256.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .configuration_base import SViTTEgoConfigBase, check_heads, check_pruning, refuse_unknown_keys

# Text towers of the library that serve as they are; model types.
OTHER_TEXT_TOWERS = ("clip_text_model", "siglip_text_model")
KEEP_STRATEGIES = ("cls_attn", "random", "motion")


@strict
class SViTTEgoVisionConfig(SViTTEgoConfigBase):
    r"""
    The video tower: BEiT (arXiv:2106.08254) over all patches of a clip, with edge and node sparsity (SViTT,
    arXiv:2304.08809, sections 3.2 and 3.3).

    Args:
        image_size (`int`): height and width of a frame in pixels.
        patch_size (`int`): height and width of a patch in pixels; must divide `image_size`.
        num_channels (`int`): colour channels of a frame.
        num_frames (`int`): frames the relative position tables are made for. A clip with another number of frames
            is accepted: the tables are resampled in time (`resample_relative_position_bias`).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`), hidden_act (`str`),
            layer_norm_eps (`float`), initializer_range (`float`): as in BEiT.
        layer_scale_init_value (`float`): initial value of both layer scales.
        relative_position_init (`str`): what the bias tables start as: `"zeros"` (BEiT), or `"directional"`, ours for
            training from scratch: heads that look one frame back, one ahead, nearby, and in odd layers one patch to
            each side. From zeros a small model did not find out about the order of frames.
        drop_path_rate (`float`): stochastic depth rate of the last layer; it grows linearly from 0.
        absolute_positions (`bool`): add learnt positions to the patches, those of a place in every frame and those of
            a frame; for towers that start from an image model (CLIP, SigLIP).
        pre_layernorm (`bool`): normalise the embeddings before the first layer, as CLIP does.
        pooling (`str`): the clip's vector is the `"mean"` of the patch tokens, that of [CLS] (`"cls"`, CLIP), or an
            `"attention"` pooling of the patch tokens by a learnt query (SigLIP).
        num_local_blocks (`int`): K_l, local blocks that a query block attends to: odd (the block itself and as many
            on either side, circularly) or 0.
        num_temporal_blocks (`int`): K_t, blocks that hold the places of the query block's tokens in other frames, half
            of them in the frames before and half in those after; even. 0 is the published pattern. Where `block_size`
            divides the patches of a frame and no token is pruned, 2 is the same place one frame back and one ahead, 4
            also two frames back and ahead, 6 four, 8 eight: the distances double, so that few blocks span a long
            clip, and the distances between follow when these exceed it. Elsewhere these places straddle blocks, of
            which those that hold most are taken first (`sparsity.temporal_blocks`): at block size 56 and 196 patches a
            frame, two hold half each, so 2 covers one half back and the other half ahead, and 4 covers both. After
            pruning by attention or motion every clip has blocks that follow its own kept tokens. A block in the first
            or the last frame takes random blocks instead of those that it lacks.
        num_random_blocks (`int` or `None`): K_r, random blocks in addition. `None` is dense attention.
        block_size (`int`): G, tokens in a block.
        keep_rate (`float`): q_v, share of the patch tokens kept at each pruning layer, in (0, 1]; [CLS] always stays.
        prune_layers (`list[int]`): zero-based layers that prune.
        keep_strategy (`str`): `"cls_attn"` keeps the tokens that [CLS] attends to most (published), `"random"` a
            random set (the same for every clip of a batch), `"motion"` (ours) those that differ most from the same
            place in the frame before or after. It needs two frames, and compares hidden states, so that a moving
            camera counts as motion too.
        pattern_seed (`int`): seed of the random blocks (and of `"random"` pruning) in evaluation mode. Training draws
            a new pattern at every forward.
        released_attention (`bool`): reproduce three traits of the released SViTT code that its trained weights depend
            on: zero keys of the last block's padding take part in the softmax (their logit is the patch-to-[CLS]
            bias); where fewer than K_l + K_r blocks are left the random blocks repeat local ones, which then count
            twice; and with K_l of 3 or more, the logits of the neighbour r blocks ahead go with the bias and the
            values of the neighbour r blocks back. `False` masks the padding, attends each block once, and takes the
            keys, bias and values of one block together. The third trait has no kernels: on a GPU, plain operations
            compute it, several times slower, and "flex_attention" refuses it.

    When pruning has left fewer than K_l + K_t + K_r blocks, every block is attended once: the layer is dense.
    """

    model_type = "svitt_ego_vision_model"
    base_config_key = "vision_config"
    auto_classes = {
        "AutoConfig": "configuration_svitt_ego.SViTTEgoVisionConfig",
        "AutoModel": "vision.SViTTEgoVisionModel",
    }

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 4
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    layer_scale_init_value: float = 0.1
    relative_position_init: str = "zeros"
    drop_path_rate: float | int = 0.1
    absolute_positions: bool = False
    pre_layernorm: bool = False
    pooling: str = "mean"
    num_local_blocks: int = 1
    num_temporal_blocks: int = 0
    num_random_blocks: int | None = 3
    block_size: int = 56
    keep_rate: float | int = 0.7
    prune_layers: list[int] | tuple[int, ...] = (3, 6, 9)
    keep_strategy: str = "cls_attn"
    pattern_seed: int = 0
    released_attention: bool = False

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        self.prune_layers = list(self.prune_layers)
        super().__post_init__(**kwargs)

    @property
    def patches_per_frame(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_mirrored_blocks(self) -> int:
        """Local blocks whose keys and values the released code takes from opposite neighbours; 0 where none are."""
        is_mirrored = self.released_attention and self.num_random_blocks is not None and self.num_local_blocks > 1
        return self.num_local_blocks if is_mirrored else 0

    def tokens_per_layer(self, num_frames: int | None = None) -> list[int]:
        """Patch tokens that enter each layer, [CLS] not counted, for clips of `num_frames` frames."""
        tokens, counts = (num_frames or self.num_frames) * self.patches_per_frame, []
        for layer in range(self.num_hidden_layers):
            counts.append(tokens)
            if layer in self.prune_layers:
                tokens = num_kept_tokens(tokens, self.keep_rate)
        return counts

    def validate_architecture(self):
        """Part of the `@strict` validation: runs when a configuration is made, saved and loaded."""
        check_heads(self.hidden_size, self.num_attention_heads)
        check_pruning(self.keep_rate, self.prune_layers, self.num_hidden_layers, self.keep_strategy, KEEP_STRATEGIES)
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size != 0:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}).")
        if self.relative_position_init not in ("zeros", "directional"):
            raise ValueError(
                f"relative_position_init ('{self.relative_position_init}') must be 'zeros' or 'directional'."
            )
        if self.pooling not in ("mean", "cls", "attention"):
            raise ValueError(f"pooling ('{self.pooling}') must be 'mean', 'cls' or 'attention'.")
        if self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be at least 1.")
        if self.num_random_blocks is None:
            return
        if self.block_size < 1:
            raise ValueError(f"block_size ({self.block_size}) must be at least 1.")
        if self.num_local_blocks < 0 or (self.num_local_blocks > 0 and self.num_local_blocks % 2 == 0):
            raise ValueError(f"num_local_blocks ({self.num_local_blocks}) must be odd or 0.")
        if self.num_random_blocks < 0:
            raise ValueError(f"num_random_blocks ({self.num_random_blocks}) must be at least 0, or None for dense.")
        if self.num_temporal_blocks < 0 or self.num_temporal_blocks % 2 == 1:
            raise ValueError(f"num_temporal_blocks ({self.num_temporal_blocks}) must be even: half back, half ahead.")
        if self.num_temporal_blocks and self.released_attention:
            raise ValueError(
                f"num_temporal_blocks ({self.num_temporal_blocks}) must be 0 with released_attention=True: the "
                "released code has no temporal blocks."
            )
        numbers = (self.num_local_blocks, self.num_temporal_blocks, self.num_random_blocks)
        tokens = self.num_frames * self.patches_per_frame
        blocks = math.ceil(tokens / self.block_size)
        if sum(numbers) > blocks and not self.released_attention:
            raise ValueError(
                f"num_local_blocks + num_temporal_blocks + num_random_blocks ({' + '.join(map(str, numbers))} = "
                f"{sum(numbers)}) is more than the {blocks} blocks that {tokens} tokens make at block_size "
                f"{self.block_size}; use num_random_blocks=None for dense attention."
            )


@strict
class SViTTEgoTextConfig(SViTTEgoConfigBase):
    r"""
    The text tower: the first layers of BERT (arXiv:1810.04805), without pooler. Fields as in `BertConfig`;
    `num_hidden_layers` (9 of BERT-base's 12) is the depth before fusion.
    """

    model_type = "svitt_ego_text_model"
    base_config_key = "text_config"
    auto_classes = {
        "AutoConfig": "configuration_svitt_ego.SViTTEgoTextConfig",
        "AutoModel": "text.SViTTEgoTextModel",
    }

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 9
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    cls_token_id: int | None = 101
    mask_token_id: int | None = 103

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of the `@strict` validation: runs when a configuration is made, saved and loaded."""
        check_heads(self.hidden_size, self.num_attention_heads)


@strict
class SViTTEgoFusionConfig(SViTTEgoConfigBase):
    r"""
    The cross-modal tower: the last layers of BERT with cross-attention from text to video tokens in each (SViTT,
    section 3.1), which prunes video tokens by the attention of the text's [CLS] (section 3.3).

    Args:
        encoder_hidden_size (`int`): width of the video tokens.
        keep_rate (`float`): q_m, share of the video tokens that later fusion layers see, in (0, 1]; the video's [CLS]
            always stays.
        prune_layers (`list[int]`): zero-based fusion layers after whose cross-attention tokens are pruned. (The
            released code counts BERT layers: its layer 9 is fusion layer 0.)
        keep_strategy (`str`): `"cls_attn"` scores by the text's [CLS] row, `"avg_attn"` by the mean over text rows.
        Others as in [`SViTTEgoTextConfig`].
    """

    model_type = "svitt_ego_fusion_model"
    base_config_key = "cross_modal_config"  # not fusion_config, which from_pretrained takes for kernel fusions
    auto_classes = {"AutoConfig": "configuration_svitt_ego.SViTTEgoFusionConfig"}

    hidden_size: int = 768
    encoder_hidden_size: int = 768
    num_hidden_layers: int = 3
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    keep_rate: float | int = 0.1
    prune_layers: list[int] | tuple[int, ...] = (0,)
    keep_strategy: str = "cls_attn"

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        self.prune_layers = list(self.prune_layers)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of the `@strict` validation: runs when a configuration is made, saved and loaded."""
        check_heads(self.hidden_size, self.num_attention_heads)
        check_pruning(
            self.keep_rate, self.prune_layers, self.num_hidden_layers, self.keep_strategy, ("cls_attn", "avg_attn")
        )


@strict
class SViTTEgoConfig(SViTTEgoConfigBase):
    r"""
    The whole model: three towers and what joins them.

    Args:
        vision_config, text_config, cross_modal_config (`dict` or configuration): the towers. The text tower may also
            be the library's CLIP or SigLIP text model, by its own configuration.
        projection_dim (`int`): width of the space in which clips and narrations are compared.
        temperature_init (`float`): initial temperature of the contrastive loss. SViTT-Ego's released configuration
            says 0.18, SViTT's 0.07.
        temperature_min, temperature_max (`float`): the learnt temperature is kept in this range.
        contrastive_loss (`str`): `"ego_nce"` (EgoVLP, arXiv:2206.01670: clips that share a verb and a noun are
            positives) or `"info_nce"`.
        ego_nce_form (`str`): `"log_sum"` (the log of the summed probability of all positives; EgoVLP) or `"sup_con"`
            (the mean of their log-probabilities; HelpingHands).
        contrastive_weight, vtm_weight, mlm_weight (`float`): weights of the three pretraining objectives; 0 leaves
            one out, and the towers that only it needs are not run.
        mlm_probability (`float`): share of the text tokens selected for masked language modelling.
        tie_word_embeddings (`bool`): the masked language modelling decoder shares the word embeddings' weight.
        initializer_range (`float`): standard deviation of the projections' and heads' initial weights.
        classifier_heads (`dict[str, int]` or list of pairs, *optional*): of the video classifier: names and numbers of
            classes of several heads, such as `{"verb": 97, "noun": 300}`. `num_labels` is then their sum. Kept as a
            list of pairs, because the order of the heads is that of the logits, and JSON files are sorted by key.
        action_pairs (list of `[verb, noun]`, *optional*): of a head `"action"` that is trained jointly: which classes
            of verb and noun each of its classes stands for. EPIC-KITCHENS-100 does not number its actions.
        classifier_pooling (`str`): what the video classifier sees: `"mean"`, the video tower's pooled vector, or
            `"attention"`, a learnt query over its tokens (the attentive probe).
        use_text_mask (`bool`): whether text embeddings leave padding out. SigLIP's text tower was trained on padded
            texts without a mask, and reads its vector from the last place.
    """

    model_type = "svitt_ego"
    auto_classes = {
        "AutoConfig": "configuration_svitt_ego.SViTTEgoConfig",
        "AutoModel": "modeling_svitt_ego.SViTTEgoModel",
        "AutoModelForPreTraining": "modeling_svitt_ego.SViTTEgoForPreTraining",
        "AutoModelForMultipleChoice": "modeling_svitt_ego.SViTTEgoForMultipleChoice",
        "AutoModelForVideoClassification": "modeling_svitt_ego.SViTTEgoForVideoClassification",
    }
    sub_configs = {
        "vision_config": SViTTEgoVisionConfig,
        "text_config": SViTTEgoTextConfig,
        "cross_modal_config": SViTTEgoFusionConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    cross_modal_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    temperature_init: float = 0.18
    temperature_min: float = 0.001
    temperature_max: float = 0.5
    contrastive_loss: str = "ego_nce"
    ego_nce_form: str = "log_sum"
    contrastive_weight: float | int = 1.0
    vtm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    mlm_probability: float = 0.5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    classifier_heads: dict | list | None = None
    action_pairs: list | None = None
    classifier_pooling: str = "mean"
    use_text_mask: bool = True

    @property
    def num_frames(self) -> int:
        """Frames of a clip, as `pipeline("video-classification")` asks for them."""
        return self.vision_config.num_frames

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        if self.classifier_heads is not None:
            self.classifier_heads = [list(head) for head in dict(self.classifier_heads).items()]
            if self.id2label is None:
                kwargs.setdefault("num_labels", sum(self.head_sizes.values()))
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if value is None:
                setattr(self, name, config_class())
            elif isinstance(value, dict):
                kind = value.get("model_type") or config_class.model_type
                if name == "text_config" and kind in OTHER_TEXT_TOWERS:
                    setattr(self, name, AutoConfig.for_model(**value))
                else:
                    setattr(self, name, config_class(**value))
        super().__post_init__(**kwargs)

    @property
    def head_sizes(self) -> dict[str, int]:
        """Names and numbers of classes of the video classifier's heads, in the order of its logits; empty for one."""
        return dict(self.classifier_heads or ())

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if values.get("classifier_heads") is not None:  # a dict that was set on the object later
            values["classifier_heads"] = [list(head) for head in self.head_sizes.items()]
        return values

    def validate_architecture(self):
        """Part of the `@strict` validation: runs when a configuration is made, saved and loaded."""
        vision, text, fusion = self.vision_config, self.text_config, self.cross_modal_config
        if fusion.hidden_size != text.hidden_size:
            raise ValueError(
                f"cross_modal_config.hidden_size ({fusion.hidden_size}) must equal text_config.hidden_size "
                f"({text.hidden_size}): the fusion layers continue the text tower."
            )
        if fusion.encoder_hidden_size != vision.hidden_size:
            raise ValueError(
                f"cross_modal_config.encoder_hidden_size ({fusion.encoder_hidden_size}) must equal "
                f"vision_config.hidden_size ({vision.hidden_size})."
            )
        if not 0.0 < self.temperature_min <= self.temperature_init <= self.temperature_max:
            raise ValueError(
                f"temperature_init ({self.temperature_init}) must be in [temperature_min, temperature_max] = "
                f"[{self.temperature_min}, {self.temperature_max}], above 0."
            )
        if self.contrastive_loss not in ("ego_nce", "info_nce"):
            raise ValueError(f"contrastive_loss ('{self.contrastive_loss}') must be 'ego_nce' or 'info_nce'.")
        if self.ego_nce_form not in ("log_sum", "sup_con"):
            raise ValueError(f"ego_nce_form ('{self.ego_nce_form}') must be 'log_sum' or 'sup_con'.")
        if not 0.0 < self.mlm_probability < 1.0:
            raise ValueError(f"mlm_probability ({self.mlm_probability}) must be in (0, 1).")
        if self.classifier_pooling not in ("mean", "attention"):
            raise ValueError(f"classifier_pooling ('{self.classifier_pooling}') must be 'mean' or 'attention'.")
        sizes = self.head_sizes
        if self.classifier_heads is not None and (
            not sizes or min(sizes.values()) < 1 or sum(sizes.values()) != self.num_labels
        ):
            raise ValueError(
                f"classifier_heads ({sizes}) must name at least one head, each with a class or more, and num_labels "
                f"({self.num_labels}) must be the sum of their classes."
            )
        if self.action_pairs is not None and len(self.action_pairs) != sizes.get("action"):
            raise ValueError(
                f"action_pairs names {len(self.action_pairs)} pairs of verb and noun; the head 'action' has "
                f"{sizes.get('action', 0)} classes."
            )
        for name in ("contrastive_weight", "vtm_weight", "mlm_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative.")


def num_kept_tokens(num_tokens: int, keep_rate: float) -> int:
    """Tokens that a pruning layer keeps of `num_tokens`: ceil(keep_rate * num_tokens), at least one."""
    return max(1, math.ceil(keep_rate * num_tokens))


for _config in (SViTTEgoConfig, SViTTEgoVisionConfig, SViTTEgoTextConfig, SViTTEgoFusionConfig):
    _config.register_for_auto_class()

__all__ = ["SViTTEgoConfig", "SViTTEgoFusionConfig", "SViTTEgoTextConfig", "SViTTEgoVisionConfig"]
