"""Memory of training: bytes kept for the backward, bytes alive at the peak, and the largest batch that fits a card.

The bytes are counted on tensors without data (torch's fake tensors), so no card is needed and none is asked. What a
card takes in addition, CUDA's context and what its allocator cannot use, is assumed.
"""

import bisect
import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm
from transformers.initialization import no_init_weights

from ..model import block_attention
from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.modeling_svitt_ego import SViTTEgoModel

GIB = 2**30
CARDS_GIB = (8, 12, 16, 24, 40, 80)
# Assumed, not measured: CUDA's context and workspaces, and what the allocator cannot use.
RESERVE_GIB = 1.0
# Peaks are counted at these batches. Up to the last but one the chunks of attention scores grow with the batch.
COUNTED_BATCHES = (1, 8, 16, 32)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """
    Counts what autograd keeps for the backward inside the `with` block.

    ```python
    with SavedBytes(exclude=model.parameters()) as saved:
        loss = model(**batch).loss
    saved.total  # bytes; a storage counts once, however many tensors or views of it are kept
    ```

    Tensors that a checkpointed layer will recompute are not kept and do not count.
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


class LiveBytes(TorchDispatchMode):
    """
    Counts the bytes of the tensors made inside the `with` block that are alive, in the forward and in the backward.

    ```python
    with LiveBytes(exclude=[*model.parameters(), *batch.values()]) as live:
        model(**batch).loss.backward()
    live.peak  # bytes; a storage counts once, from when it is made until nothing refers to it
    ```
    """

    def __init__(self, exclude=()):
        self._alive = {x.untyped_storage()._cdata for x in exclude}
        self.now = self.peak = 0
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int):
        self._alive.discard(key)
        self.now -= size


@dataclass
class TrainingMemory:
    """
    Bytes that a training step of the dual encoder (EgoNCE, bf16 autocast, fused AdamW, the Trainer's default) takes.

    Attributes:
        num_parameters (`int`): all are trained, in float32.
        peaks (`dict[int, int]`): by micro-batch, the most that forward and backward have alive at once, beyond
            weights, gradients, optimizer and the batch itself.
        batch_bytes (`int`): of one clip with its narration.
    """

    num_parameters: int
    peaks: dict[int, int]
    batch_bytes: int = 0

    @property
    def states(self) -> int:
        """Weight, gradient and AdamW's two moments, 4 bytes each. Gradient accumulation holds gradients all along."""
        return 16 * self.num_parameters

    @property
    def per_clip(self) -> float:
        """Bytes that one clip more takes in a large batch."""
        first, last = sorted(self.peaks)[-2:]
        return (self.peaks[last] - self.peaks[first]) / (last - first) + self.batch_bytes

    def peak(self, batch_size: int) -> float:
        """Between two counted batches on the line through them, beyond the last on the last line."""
        counted = sorted(self.peaks)
        place = min(max(bisect.bisect_left(counted, batch_size), 1), len(counted) - 1)
        low, high = counted[place - 1 : place + 1]
        slope = (self.peaks[high] - self.peaks[low]) / (high - low)
        return self.states + self.peaks[low] + slope * (batch_size - low) + self.batch_bytes * batch_size

    def largest_batch(self, gib: float, reserve_gib: float = RESERVE_GIB) -> int:
        """Largest micro-batch that fits a card of `gib`; 0 if not even one clip does."""
        room = (gib - reserve_gib) * GIB
        return bisect.bisect_right(range(1, 1 << 20), room, key=self.peak)


def count_bytes(
    config: SViTTEgoConfig,
    batch_size: int,
    num_frames: int,
    text_length: int,
    checkpointing: bool,
    bf16: bool = True,
    on_cpu: bool = False,
) -> tuple[int, int]:
    """
    The dual encoder's training step: bytes that the forward keeps for the backward, and the most that is alive at
    once. Not counted are the parameters, their gradients (there from before, as in gradient accumulation) and the
    batch.

    Args:
        bf16 (`bool`): in bfloat16 autocast, or in float32.
        on_cpu (`bool`): with a CPU's chunks of attention scores, or with a GPU's, which are larger.
    """
    with _chunks_of(on_cpu), FakeTensorMode():
        model = _fake_model(config)
        if checkpointing:
            # transformers 5.23 gave it a new name, and warns at the old one.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        batch = training_batch(config, batch_size, num_frames, text_length)
        known = [*parameters, *(parameter.grad for parameter in parameters), *batch.values()]
        with LiveBytes(known) as live:
            with SavedBytes(known) as saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch, return_loss=True).loss
            loss.backward()
    return saved.total, live.peak


@contextmanager
def _chunks_of(on_cpu: bool) -> Iterator[None]:
    """
    Inside, attention takes the chunks of a CPU or of a GPU.

    The tensors without data are always on a CPU: torch's autograd engine needs the device that they name.
    """
    names = () if on_cpu else ("CPU_CHUNK_ELEMENTS", "CPU_DENSE_CHUNK_ELEMENTS")
    before = {name: getattr(block_attention, name) for name in names}
    try:
        for name in names:
            setattr(block_attention, name, block_attention.CHUNK_ELEMENTS)
        yield
    finally:
        for name, value in before.items():
            setattr(block_attention, name, value)


def _fake_model(config: SViTTEgoConfig) -> SViTTEgoModel:
    with no_init_weights():  # there is no data to initialise
        return SViTTEgoModel._from_config(copy.deepcopy(config), attn_implementation="sdpa").train()


def training_batch(
    config: SViTTEgoConfig, batch_size: int, num_frames: int, text_length: int
) -> dict[str, torch.Tensor]:
    """Clips and narrations for a step with EgoNCE, in EgoClip's numbers of verb and noun groups."""
    vision = config.vision_config
    return {
        "pixel_values_videos": torch.zeros(
            batch_size, num_frames, vision.num_channels, vision.image_size, vision.image_size
        ),
        "input_ids": torch.ones(batch_size, text_length, dtype=torch.int64),
        "attention_mask": torch.ones(batch_size, text_length, dtype=torch.int64),
        "verb_tags": torch.ones(batch_size, 118),
        "noun_tags": torch.ones(batch_size, 582),
    }


def training_memory(
    config: SViTTEgoConfig,
    num_frames: int | None = None,
    text_length: int = 30,
    checkpointing: bool = False,
    desc: str | None = None,
    **counting,
) -> TrainingMemory:
    """
    The memory that the dual encoder of `config` takes in training.

    Args:
        num_frames (`int`, *optional*): frames of a clip; the configuration's otherwise.
        text_length (`int`): tokens of a narration.
        checkpointing (`bool`): with gradient checkpointing of every layer.
        desc (`str`, *optional*): shows a progress bar with this text; a base model takes half a minute.
        counting (*optional*): `bf16` and `on_cpu` of [`count_bytes`].
    """
    num_frames = num_frames or config.vision_config.num_frames
    batches = tqdm(COUNTED_BATCHES, desc=desc, unit="batch size", disable=desc is None)
    peaks = {b: count_bytes(config, b, num_frames, text_length, checkpointing, **counting)[1] for b in batches}
    with FakeTensorMode():
        num_parameters = sum(parameter.numel() for parameter in _fake_model(config).parameters())
        batch_bytes = sum(x.nbytes for x in training_batch(config, 1, num_frames, text_length).values())
    return TrainingMemory(num_parameters, peaks, batch_bytes)
