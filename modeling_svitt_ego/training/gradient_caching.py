"""Exact contrastive batches larger than memory: gradient caching (GradCache, arXiv:2101.06983, section 3).

A contrastive loss compares every row with every other, so averaging the losses of small batches is another loss. Here
each optimizer step takes one large batch in micro-batches:

1. embed: both towers over each micro-batch without a graph; only the embeddings and the random state are kept;
2. contrast: the loss of the whole batch, over all processes, and its gradient by each embedding;
3. match (only with vtm_weight): the hard negatives, drawn from the whole batch, go through the fusion tower in
   micro-batches; their gradient by the token states is kept, by the process whose rows they are;
4. towers: each micro-batch again, now with a graph and from its own random state, which repeats dropout, drop path and
   the random edge pattern; the kept gradients are applied to the outputs. The true pairs' matching and masked language
   modelling, which concern one row each, are computed here.

The objectives themselves write what they do in passes 2 to 4 (`CachedObjective` in model/objective_base.py).

Loss and gradients are those of one large step in which each micro-batch draws its own random numbers. The price is
one more forward of the towers. On the device only one micro-batch's activations live at a time, and (b, d) embeddings.
The clips wait on the host for pass 4: b * T * 3 * H * W * 4 bytes (half of it in bf16 or fp16), 1.2 GB for
512 clips of 4 frames of 224 x 224; with vtm_weight also the token states and their gradient, 8 * N * C bytes per clip.
Of several processes, each sends the token states that others drew: the device holds at most as many rows as all
processes' micro-batches have together, if all drew from one process.

Letters: b rows of this process's share, B of all processes, m of a micro-batch, d projection_dim.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..model.objective_base import CachedObjective, Columns, at_least_float32
from ..model.objectives import trained_objectives
from ..model.row_exchange import gather_rows

_TOWER_INPUTS = ("pixel_values_videos", "input_ids", "attention_mask", "token_type_ids")


class MicroBatchSampler(Sampler[list[int]]):
    """
    Batches of another sampler, cut into micro-batches of at most `size` rows; the last of each may be smaller.

    The sampler must deal with processes itself (`num_replicas`, `rank`): every process keeps whole batches.
    """

    drop_last = True

    def __init__(self, batches, size: int) -> None:
        self.batches = batches
        self.batch_size = size  # read by accelerate
        self.per_batch = -(-batches.batch_size // size)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) * self.per_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            for first in range(0, len(batch), self.batch_size):
                yield batch[first : first + self.batch_size]


class MicroBatches:
    """
    The micro-batches of one step, read from the loader when first asked for, so that embedding overlaps with decoding.

    Args:
        iterator: over micro-batches.
        count (`int`): how many make the step.
        keep (`Callable`, *optional*): applied to each when it is read: what is kept on the host until the second pass.
    """

    def __init__(self, iterator: Iterator, count: int, keep: Callable | None = None) -> None:
        self.iterator = iterator
        self.count = count
        self.keep = keep
        self.read: list = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int):
        if not 0 <= number < self.count:
            raise IndexError(number)
        while len(self.read) <= number:
            batch = next(self.iterator)
            self.read.append(batch if self.keep is None else self.keep(batch))
        return self.read[number]

    def __iter__(self) -> Iterator:
        for number in range(self.count):
            yield self[number]

    def release(self, number: int) -> None:
        """Forgets a finished micro-batch, which frees its memory before the next step."""
        self.read[number] = None


class RandomState:
    """The state of the random number generators of the CPU and of `device`."""

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.device = None if device.type == "cpu" else device
        if self.device is not None:
            self.on_device = torch.get_device_module(device).get_rng_state(device)

    @contextmanager
    def replayed(self):
        """Inside the context, random numbers repeat from this state; outside, they continue as if none were drawn."""
        devices = {} if self.device is None else {"device_type": self.device.type}
        with torch.random.fork_rng([] if self.device is None else [self.device], **devices):
            torch.set_rng_state(self.cpu)
            if self.device is not None:
                torch.get_device_module(self.device).set_rng_state(self.on_device, self.device)
            yield


class TokenStates:
    """Token states of all rows on the host, and the gradient by each, with rows of different lengths."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []  # (length, C) each
        self.gradients: list[torch.Tensor] = []

    def add(self, states: torch.Tensor) -> None:
        states = states.detach().cpu()
        self.rows.extend(states)
        self.gradients.extend(at_least_float32(torch.zeros_like(states)))  # unscaled, fp16 would lose small ones

    def pick(self, rows: list[int], length: int, device: torch.device) -> torch.Tensor:
        """`(len(rows), length, C)` on the device, with zeros behind the shorter ones."""
        picked = self.rows[0].new_zeros(len(rows), length, *self.rows[0].shape[1:])
        for into, row in zip(picked, rows):
            into[: len(self.rows[row])] = self.rows[row]
        return picked.to(device)

    def add_gradient(self, rows: list[int], gradient: torch.Tensor) -> None:
        for row, of_row in zip(rows, gradient.cpu()):
            self.gradients[row] += of_row[: len(self.gradients[row])]

    def gradient(self, first: int, count: int, device: torch.device) -> torch.Tensor:
        return torch.stack(self.gradients[first : first + count]).to(device)


@dataclass
class MicroBatch:
    """The part of a micro-batch that is kept between its two passes, apart from its clips."""

    number: int
    first: int  # its first row in the share
    size: int
    random_state: RandomState
    inputs: dict[str, torch.Tensor]  # all but the clips
    attention_mask: torch.Tensor  # (m, L)
    embeddings: tuple[torch.Tensor, torch.Tensor]  # videos and texts, (m, d), not normalised


class CachedStep:
    """
    One step on a contrastive batch in micro-batches, and all of its state: [`CachedRows`] of objective_base.py.

    Call `start()` once, then `micro_batch(i)` for each in order; or `advance()` as often as there are micro-batches.

    Args:
        model: what is called for every pass, as wrapped for training (DDP, autocast, PEFT).
        core: the bare [`SViTTEgoModel`] or a subclass inside it; `core.objectives` says what is trained.
        batches ([`MicroBatches`]): dicts of the model's inputs.
        prepare (`Callable`): puts a micro-batch on the device.
        backward (`Callable`): `loss.backward()`, or accelerate's, which scales the loss in fp16.
        no_sync (`Callable`): context in which gradients are not exchanged between processes.
        loss_scale (`Callable`): the factor by which `backward` scales, 1 without a GradScaler.
        gather (`bool`): contrast with the rows of all processes.

    Attributes:
        loss_info (`dict`): as in [`SViTTEgoOutput`], complete after the last micro-batch.
        videos, texts (`torch.Tensor` of shape `(b, d)`), temperature (`(1,)`): what pass 1 kept, leaves whose `grad`
            pass 2 fills.
        text_states, video_states, masks ([`TokenStates`]): kept where an objective asks for them.
    """

    def __init__(
        self,
        model: Callable,
        core,
        batches: MicroBatches,
        prepare: Callable = lambda batch: batch,
        backward: Callable = lambda loss: loss.backward(),
        no_sync: Callable | None = None,
        loss_scale: Callable[[], float] = lambda: 1.0,
        gather: bool = False,
    ) -> None:
        self.model = model
        self.core = core
        self.batches = batches
        self.prepare = prepare
        self.backward = backward
        self.no_sync = no_sync
        self.loss_scale = loss_scale
        self.gather = gather
        self.device = next(core.parameters()).device
        self.objectives = [objective.in_cached_step(self) for objective, _ in trained_objectives(core)]
        self.keeps_token_states = any(objective.keeps_token_states for objective in self.objectives)
        self.text_states, self.video_states, self.masks = TokenStates(), TokenStates(), TokenStates()
        self.parts: list[MicroBatch] = []
        self.num_done = 0
        self.loss_info: dict[str, torch.Tensor] = {}

    @property
    def num_rows(self) -> int:
        """b, rows of this process's share."""
        return sum(part.size for part in self.parts)

    @property
    def is_done(self) -> bool:
        return self.num_done == len(self.batches)

    # ------------------------------------------------------------------------------------------------------- passes

    def start(self) -> torch.Tensor:
        """Passes 1 to 3; returns the loss so far, weighted."""
        for inputs in self.batches:
            self._embed(inputs)
        self.videos, self.texts = (
            at_least_float32(torch.cat(of_parts)).requires_grad_()
            for of_parts in zip(*(part.embeddings for part in self.parts))
        )
        self.first = gather_rows(self.videos.detach()[:, :1])[1] if self.gather else 0
        self.columns = Columns([part.inputs for part in self.parts], self.gather)
        return self._count([(objective, objective.across_rows()) for objective in self.objectives])

    def micro_batch(self, number: int) -> torch.Tensor:
        """Pass 4 of one micro-batch, gradients included; returns its part of the loss, weighted."""
        part = self.parts[number]
        inputs = self.prepare(self.batches[number])
        surrogate, losses = self.model(run_inside=lambda core: self._towers(core, part, inputs))
        self.backward(surrogate)
        return self._count(list(zip(self.objectives, losses)))

    def advance(self) -> torch.Tensor:
        """Pass 4 of the next micro-batch, which is then forgotten."""
        loss = self.micro_batch(self.num_done)
        self.batches.release(self.num_done)
        self.num_done += 1
        return loss

    def run(self, loss: Callable, weight: float) -> torch.Tensor:
        """Calls `loss(core)` inside the wrapped model and walks `weight` times it back; returns it, detached."""
        with nullcontext() if self.no_sync is None else self.no_sync():
            found = self.model(run_inside=loss)
            self.backward(weight * found)
        return found.detach()

    def _embed(self, inputs: dict) -> None:
        state = RandomState(self.device)
        inputs = self.prepare(inputs)

        def towers(core):
            outputs = core.encode(*tower_inputs(inputs))
            states = outputs.text_model_output.last_hidden_state, outputs.vision_model_output.last_hidden_state
            # A copy, because what FSDP has put together is freed after the forward.
            embeddings = outputs.vision_model_output.pooler_output, outputs.text_model_output.pooler_output
            return *embeddings, core.temperature.detach().clone(), *states

        with torch.no_grad():
            videos, texts, temperature, text_states, video_states = self.model(run_inside=towers)
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        if self.keeps_token_states:
            self.text_states.add(text_states)
            self.video_states.add(video_states)
            self.masks.add(mask)
        if not self.parts:
            self.temperature = at_least_float32(temperature).requires_grad_()
        kept = {
            name: value
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and name != "pixel_values_videos"
        }
        part = MicroBatch(len(self.parts), self.num_rows, len(videos), state, kept, mask, (videos, texts))
        self.parts.append(part)

    def _towers(self, core, part: MicroBatch, inputs: dict) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """A scalar whose gradient is this micro-batch's part of the whole loss's, and the losses in it."""
        with part.random_state.replayed():
            outputs = core.encode(*tower_inputs(inputs))
        terms = [(tensor * gradient).sum() for tensor, gradient in self._gradients(core, part, outputs)]
        losses = [objective.of_micro_batch(core, part, outputs) for objective in self.objectives]
        terms += [objective.weight * loss for objective, loss in zip(self.objectives, losses) if loss is not None]
        return sum(terms), [None if loss is None else loss.detach() for loss in losses]

    def _gradients(self, core, part: MicroBatch, outputs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What this micro-batch's outputs pass on, and the gradient kept for it."""
        rows = slice(part.first, part.first + part.size)
        for leaf, output in ((self.videos, outputs.vision_model_output), (self.texts, outputs.text_model_output)):
            if leaf.grad is not None:
                yield output.pooler_output, leaf.grad[rows]
        if self.temperature.grad is not None:
            # In every micro-batch its share, because DDP waits for this gradient in the last one.
            yield core.temperature, self.temperature.grad * (part.size / self.num_rows)
        if self.keeps_token_states:
            for kept, output in (
                (self.text_states, outputs.text_model_output),
                (self.video_states, outputs.vision_model_output),
            ):
                yield output.last_hidden_state, kept.gradient(part.first, part.size, self.device)

    def _count(self, losses: list[tuple[CachedObjective, torch.Tensor | None]]) -> torch.Tensor:
        """The weighted sum of losses, each added to `loss_info` by its name."""
        total = torch.zeros((), device=self.device, dtype=self.videos.dtype)
        for running, loss in losses:
            if loss is not None:
                name = running.objective.name
                total = total + running.weight * loss
                self.loss_info[name] = self.loss_info.get(name, 0) + loss
            self.loss_info |= running.loss_info
        return total


def tower_inputs(inputs: dict) -> list[torch.Tensor | None]:
    return [inputs.get(name) for name in _TOWER_INPUTS]
