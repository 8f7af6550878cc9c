"""What training keeps in memory: bytes saved for the backward, and from them the batch that fits a card.

The bytes are counted on tensors without data (torch's fake tensors), so no card is needed and none is asked: the sum
is an estimate.
"""

import copy
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from . import block_attention
from .configuration_svitt_ego import SViTTEgoConfig
from .modeling_svitt_ego import SViTTEgoModel

GIB = 2**30
CARDS_GIB = (8, 12, 16, 24, 40, 80)
# Assumed, not measured: CUDA's context and workspaces, and what the allocator cannot use.
RESERVE_GIB = 1.0


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """
    Counts what autograd keeps for the backward inside the `with` block.

    ```python
    with SavedBytes(exclude=model.parameters()) as saved:
        loss = model(**batch).loss
    saved.total  # bytes; a storage counts once, however many tensors or views of it are kept
    ```

    Tensors that a checkpointed layer will compute again are not kept and do not count.
    """

    def __init__(self, exclude=()):
        self._exclude = {x.untyped_storage()._cdata for x in exclude}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.total = 0
        super().__init__(self._note, lambda x: x)

    def __enter__(self) -> "SavedBytes":
        super().__enter__()
        return self

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._exclude:
            self._storages[storage._cdata] = storage  # held, so that its address is not given out again
        return tensor

    def __exit__(self, *exception):
        self.total = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()  # the graph refers to this object: the backward must be able to free them
        return super().__exit__(*exception)


@dataclass
class TrainingMemory:
    """
    Bytes that a training step of the dual encoder (EgoNCE, AdamW, bf16 autocast) takes on a card, as a function of the
    micro-batch.

    Attributes:
        num_parameters (`int`): all are trained, in float32.
        saved_fixed, saved_per_clip (`float`): bytes kept for the backward, whatever the batch (the weights' bfloat16
            copies) and per clip with its narration: a line through the counts at batches 1 and 2.
        transient_fixed, transient_per_clip (`float`): largest need of the moment in the backward, an upper estimate:
            one chunk of attention scores, the gradients of the widest activation and, with checkpointing, the layer
            that is computed again.
    """

    num_parameters: int
    saved_fixed: float
    saved_per_clip: float
    transient_fixed: float
    transient_per_clip: float

    @property
    def states(self) -> int:
        """Weight, gradient and AdamW's two moments, 4 bytes each."""
        return 16 * self.num_parameters

    def saved(self, batch_size: int) -> float:
        return self.saved_fixed + self.saved_per_clip * batch_size

    def peak(self, batch_size: int) -> float:
        in_backward = self.saved(batch_size) + self.transient_fixed + self.transient_per_clip * batch_size
        in_optimizer = 4 * self.num_parameters  # temporaries of AdamW over all weights at once
        return self.states + max(in_backward, in_optimizer)

    def largest_batch(self, gib: float, reserve_gib: float = RESERVE_GIB) -> int:
        """Largest micro-batch that fits a card of `gib`; 0 if not even one clip does."""
        room = (gib - reserve_gib) * GIB
        if self.peak(1) > room:
            return 0
        per_clip = self.saved_per_clip + self.transient_per_clip
        return int((room - self.states - self.saved_fixed - self.transient_fixed) // per_clip)


def count_saved_bytes(
    config: SViTTEgoConfig, batch_size: int, num_frames: int, text_length: int, checkpointing: bool
) -> int:
    """Bytes that the dual encoder's forward in bfloat16 autocast keeps for the backward, parameters not counted."""
    with FakeTensorMode():
        model = _fake_model(config)
        if checkpointing:
            # transformers 5.23 gave it a new name, and warns at the old one.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        vision = config.vision_config
        batch = {
            "pixel_values_videos": torch.empty(
                batch_size, num_frames, vision.num_channels, vision.image_size, vision.image_size
            ),
            "input_ids": torch.ones(batch_size, text_length, dtype=torch.int64),
            "attention_mask": torch.ones(batch_size, text_length, dtype=torch.int64),
            "verb_tags": torch.ones(batch_size, 118),
            "noun_tags": torch.ones(batch_size, 582),
        }
        with SavedBytes(model.parameters()) as saved, torch.autocast("cpu", torch.bfloat16):
            model(**batch, return_loss=True)
    return saved.total


def _fake_model(config: SViTTEgoConfig) -> SViTTEgoModel:
    with no_init_weights():  # there is no data to initialise
        return SViTTEgoModel._from_config(copy.deepcopy(config), attn_implementation="sdpa").train()


def training_memory(
    config: SViTTEgoConfig, num_frames: int | None = None, text_length: int = 30, checkpointing: bool = False
) -> TrainingMemory:
    """
    The model of memory of `config`'s dual encoder.

    Args:
        num_frames (`int`, *optional*): frames of a clip; the configuration's otherwise.
        text_length (`int`): tokens of a narration.
        checkpointing (`bool`): with gradient checkpointing of every layer.
    """
    vision = config.vision_config
    num_frames = num_frames or vision.num_frames
    one, two = (count_saved_bytes(config, b, num_frames, text_length, checkpointing) for b in (1, 2))
    with FakeTensorMode():
        num_parameters = sum(p.numel() for p in _fake_model(config).parameters())

    tokens = 1 + vision.tokens_per_layer(num_frames)[0]
    width, inner, half = vision.hidden_size, vision.intermediate_size, 2
    # In the backward of a layer: two gradients of the MLP's width and seven of the model's (blocks of q, k, v, the
    # output's gradient, and the gradients of q, k and v).
    per_clip = tokens * half * (2 * inner + 7 * width)
    # A chunk of scores: bias, weights and their gradient in float32, two copies in bfloat16, and the gathered keys,
    # values and their gradients, which are as large as the scores where block_size equals the head's width.
    fixed = block_attention.CHUNK_ELEMENTS * (3 * 4 + 2 * half + 4 * half)
    if checkpointing:
        # One layer's share is computed again and kept while the backward is in it: the first, which has most tokens.
        whole = [count_saved_bytes(config, b, num_frames, text_length, False) for b in (1, 2)]
        by_tokens = sum(vision.tokens_per_layer(num_frames)) / vision.tokens_per_layer(num_frames)[0]
        per_clip += (whole[1] - whole[0]) / by_tokens
        fixed += half * num_parameters  # autocast's copies of the weights are alive until the forward ends
    return TrainingMemory(num_parameters, 2 * one - two, two - one, fixed, per_clip)
