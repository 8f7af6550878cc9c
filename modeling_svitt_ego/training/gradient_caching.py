"""Exact contrastive batches larger than memory: gradient caching (GradCache, arXiv:2101.06983, section 3).

A contrastive loss compares every row with every other, so averaging the losses of small batches is another loss. Here
each optimizer step takes one large batch in micro-batches:

1. embed: both towers over each micro-batch without a graph; only the embeddings are kept, and where the random state
   stood;
2. contrast: the loss of the whole batch, over all processes, and its gradient by each embedding;
3. match (only with vtm_weight): the hard negatives, drawn from the whole batch, go through the fusion tower in
   micro-batches; their gradient by the token states is kept, by the process whose rows they are;
4. towers: each micro-batch again, now with a graph and from its own random state, so that dropout, drop path and the
   random edge pattern repeat; the kept gradients are applied to what comes out. The true pairs' matching and masked
   language modelling, which concern one row each, are computed here.

Loss and gradients are those of one large step in which each micro-batch draws its own random numbers. The price is
one more forward of the towers. On the device only one micro-batch's activations live at a time, and (b, d) embeddings.
On the host lie the clips, waiting for pass 4: b * T * 3 * H * W * 4 bytes (half of it in bf16 or fp16), 1.2 GB for
512 clips of 4 frames of 224 x 224; with vtm_weight also the token states and their gradient, 8 * N * C bytes per clip.
Of several processes, each sends the token states that others drew: on the device lie at most as many rows as all
processes' micro-batches have together, if all drew from one process.

Letters: b rows of this process's share, B of all processes, m of a micro-batch, d projection_dim.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..model.losses import gather_rows, itself, sample_hard_negatives, shared_action
from .objectives import at_least_float32, negative_labels, summed_cross_entropy
from .row_exchange import RowExchange, largest_of_processes, mean_over_processes, world_size

# Rows of the similarity matrix held at once: memory (1024, B), never (b, B).
ROWS_AT_ONCE = 1024

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
        keep (`Callable`, *optional*): applied to each when it is read: what lies on the host until the second pass.
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
        """Forgets one that is done with, so that the next step's do not come on top."""
        self.read[number] = None


class RandomState:
    """Where the random numbers of the CPU and of `device` stand."""

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.device = None if device.type == "cpu" else device
        if self.device is not None:
            self.on_device = torch.get_device_module(device).get_rng_state(device)

    @contextmanager
    def replayed(self):
        """Inside, random numbers repeat from here; outside, they go on as if nothing had been drawn."""
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

    def pick(self, rows: list[int], length: int, like: torch.Tensor) -> torch.Tensor:
        """`(len(rows), length, C)` on the device of `like`, with zeros behind the shorter ones."""
        picked = self.rows[0].new_zeros(len(rows), length, *self.rows[0].shape[1:])
        for into, row in zip(picked, rows):
            into[: len(self.rows[row])] = self.rows[row]
        return picked.to(like.device)

    def add_gradient(self, rows: list[int], gradient: torch.Tensor) -> None:
        for row, of_row in zip(rows, gradient.cpu()):
            self.gradients[row] += of_row[: len(self.gradients[row])]

    def gradient(self, first: int, count: int, device: torch.device) -> torch.Tensor:
        return torch.stack(self.gradients[first : first + count]).to(device)


@dataclass
class _Embedded:
    """What is kept of a micro-batch between its two passes, besides its inputs."""

    first: int  # its first row in the share
    size: int
    random_state: RandomState
    videos: torch.Tensor  # (m, d), unit length over the temperature
    texts: torch.Tensor  # (m, d), unit length
    tags: tuple[torch.Tensor | None, torch.Tensor | None]  # verbs (m, num_verbs), nouns (m, num_nouns)
    attention_mask: torch.Tensor  # (m, L)
    mlm: tuple[torch.Tensor, torch.Tensor] | None = None  # corrupted ids and labels (m, L)


class CachedStep:
    """
    One step on a contrastive batch in micro-batches. Call `start()` once, then `micro_batch(i)` for each in order.

    Args:
        model: what is called for every pass, as wrapped for training (DDP, autocast, PEFT).
        core: the bare [`SViTTEgoModel`] or a subclass inside it; its configuration says which objectives run.
        batches ([`MicroBatches`]): dicts of the model's inputs.
        prepare (`Callable`): puts a micro-batch on the device.
        backward (`Callable`): `loss.backward()`, or accelerate's, which scales the loss in fp16.
        no_sync (`Callable`): context in which gradients are not exchanged between processes.
        loss_scale (`Callable`): the factor by which `backward` scales, 1 without a GradScaler.
        gather (`bool`): contrast with the rows of all processes.

    Attributes:
        loss_info (`dict`): as in [`SViTTEgoOutput`], complete after the last micro-batch.
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
        config = core.config
        self.contrastive_weight = config.contrastive_weight
        self.vtm_weight = getattr(config, "vtm_weight", 0) if hasattr(core, "vtm_head") else 0
        self.mlm_weight = getattr(config, "mlm_weight", 0) if hasattr(core, "mlm_head") else 0
        if not self.contrastive_weight and not self.vtm_weight and not self.mlm_weight:
            raise ValueError("Every objective that this model has has weight 0.")
        self.device = next(core.parameters()).device
        self.embedded: list[_Embedded] = []
        self.loss_info: dict[str, torch.Tensor] = {}

    @property
    def num_rows(self) -> int:
        """b, rows of this process's share."""
        return sum(part.size for part in self.embedded)

    # ------------------------------------------------------------------------------------------------------- passes

    def start(self) -> torch.Tensor:
        """Passes 1 to 3; returns the loss so far (contrastive, and matching of the negatives), weighted."""
        self.text_states, self.video_states = TokenStates(), TokenStates()
        for inputs in self.batches:
            self._embed(inputs)
        self.videos, self.texts = (
            at_least_float32(torch.cat([getattr(part, name) for part in self.embedded])).requires_grad_()
            for name in ("videos", "texts")
        )
        loss = torch.zeros((), device=self.device, dtype=self.videos.dtype)
        if self.contrastive_weight:
            loss = loss + self._contrast()
        if self.mlm_weight:
            self._corrupt()
        if self.vtm_weight:
            loss = loss + self._match_negatives()
        return loss

    def micro_batch(self, number: int) -> torch.Tensor:
        """Pass 4 of one micro-batch, gradients included; returns its part of the loss, weighted."""
        part = self.embedded[number]
        inputs = self.prepare(self.batches[number])
        surrogate, found = self.model(run_inside=lambda core: self._towers(core, part, inputs))
        self.backward(surrogate)
        loss = torch.zeros((), device=self.device, dtype=self.videos.dtype)
        for name, weight in (("vtm", self.vtm_weight), ("mlm", self.mlm_weight)):
            if name in found:
                loss = loss + weight * found[name]
                self.loss_info[name] = self.loss_info.get(name, 0) + found[name]
        return loss

    def _embed(self, inputs: dict) -> None:
        state = RandomState(self.device)
        inputs = self.prepare(inputs)

        def towers(core):
            outputs = core.encode(*tower_inputs(inputs))
            states = outputs.text_model_output.last_hidden_state, outputs.vision_model_output.last_hidden_state
            return *core.compared(outputs.video_embeds, outputs.text_embeds), *states

        with torch.no_grad():
            videos, texts, text_states, video_states = self.model(run_inside=towers)
        if self.vtm_weight:
            self.text_states.add(text_states)
            self.video_states.add(video_states)
        mask = inputs.get("attention_mask")
        part = _Embedded(
            first=self.num_rows,
            size=len(videos),
            random_state=state,
            videos=videos,
            texts=texts,
            tags=(inputs.get("verb_tags"), inputs.get("noun_tags")),
            attention_mask=torch.ones_like(inputs["input_ids"]) if mask is None else mask,
        )
        if "mlm_input_ids" in inputs:
            part.mlm = inputs["mlm_input_ids"], inputs["mlm_labels"]
        self.embedded.append(part)

    def _contrast(self) -> torch.Tensor:
        """Weighted contrastive loss of all rows; leaves its gradient in `videos.grad` and `texts.grad`."""
        b = self.num_rows
        everyone = [gather_rows(x) if self.gather else (x, 0) for x in (self.videos, self.texts)]
        (all_videos, first), (all_texts, _) = everyone
        # Leaves of their own: the rows come in slices, but the gathering is walked back once.
        ends = [x.detach().requires_grad_() for x in (all_videos, all_texts)]
        loss, num_positives = torch.zeros((), device=self.device, dtype=self.videos.dtype), 0.0
        for rows, positives in self._positives(len(all_videos), first, self.gather):
            part = self.core.contrast_rows(
                self.videos[rows] @ ends[1].T, self.texts[rows] @ ends[0].T, positives, first + rows.start
            )
            part = part * (len(positives) / b)
            (self.contrastive_weight * part).backward()
            loss += part.detach()
            num_positives += positives.sum()
        torch.autograd.backward([all_videos, all_texts], [end.grad for end in ends])
        self.loss_info |= {
            "contrastive": loss,
            "temperature": self.core.temperature.detach().squeeze().clone(),
            "positives_per_clip": num_positives / b,
        }
        return self.contrastive_weight * loss

    def _positives(self, columns: int, first: int, gather: bool) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of the b rows with their mask of positives `(rows, columns)`."""
        b = self.num_rows
        by_action = self.core.config.contrastive_loss == "ego_nce"
        if by_action:
            verbs, nouns = (self._tags(kind) for kind in (0, 1))
            all_verbs, all_nouns = (gather_rows(x)[0] if gather else x for x in (verbs, nouns))
        for start in range(0, b, ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, b))
            if by_action:
                yield rows, shared_action(verbs[rows], nouns[rows], all_verbs, all_nouns, first + start)
            else:
                yield rows, itself(rows.stop - start, columns, first + start, self.device)

    def _tags(self, kind: int) -> torch.Tensor:
        tags = [part.tags[kind] for part in self.embedded]
        if any(tag is None for tag in tags):
            raise ValueError(
                "contrastive_loss='ego_nce' needs verb_tags and noun_tags; set contrastive_loss='info_nce' to train "
                "without them."
            )
        return torch.cat(tags)

    def _corrupt(self) -> None:
        """Masks the texts of the whole share at once, so that the mean over selected tokens is known beforehand."""
        for number, part in enumerate(self.embedded):
            if part.mlm is None:
                ids = self.batches[number]["input_ids"].to(self.device)
                part.mlm = self.core.corrupt(ids, part.attention_mask)
        masked = sum((part.mlm[1] != -100).sum() for part in self.embedded)
        self.num_masked = mean_over_processes(masked, self.gather).clamp(min=1 / world_size(self.gather))

    def _match_negatives(self) -> torch.Tensor:
        """
        Weighted matching loss of the negatives of all rows, whose gradient by the token states is kept.

        For each text one clip and for each clip one text of all processes' rows, drawn by similarity.
        """
        b = self.num_rows
        videos, texts = self.videos.detach(), self.texts.detach()
        (all_videos, first), (all_texts, _) = (gather_rows(x) if self.gather else (x, 0) for x in (videos, texts))
        video_ids, text_ids = (
            torch.cat(
                [
                    sample_hard_negatives(of[rows] @ to.T, mask)
                    for rows, mask in self._positives(len(to), first, self.gather)
                ]
            )
            for of, to in ((texts, all_videos), (videos, all_texts))
        )
        num_negatives = (video_ids >= 0).sum() + (text_ids >= 0).sum()
        # The matching loss is a mean over all pairs.
        self.num_pairs = mean_over_processes(b + num_negatives, self.gather)
        self.loss_info["vtm_negatives_per_clip"] = num_negatives / (2 * b)
        masks = TokenStates()  # travel as the states do
        for part in self.embedded:
            masks.add(part.attention_mask)
        longest = largest_of_processes(max(len(row) for row in masks.rows), self.device, self.gather)
        total = torch.zeros((), device=self.device, dtype=self.videos.dtype)
        for part in self.embedded:
            rows = slice(part.first, part.first + part.size)
            own = torch.arange(rows.start, rows.stop, device=self.device) + first
            clips, narrations = (torch.where(ids[rows] < 0, own, ids[rows]) for ids in (video_ids, text_ids))
            labels = negative_labels(torch.cat([video_ids[rows], text_ids[rows]]))
            of_texts = RowExchange(torch.cat([own, narrations]), b, self.gather)
            of_videos = RowExchange(torch.cat([clips, own]), b, self.gather)
            text_rows, video_rows = of_texts.rows.tolist(), of_videos.rows.tolist()
            mask = of_texts.send(masks.pick(text_rows, longest, own))
            text_states = of_texts.send(self.text_states.pick(text_rows, longest, own)).requires_grad_()
            num_tokens = len(self.video_states.rows[0])
            video_states = of_videos.send(self.video_states.pick(video_rows, num_tokens, own)).requires_grad_()

            def match(core, text_states=text_states, mask=mask, video_states=video_states, labels=labels):
                return summed_cross_entropy(core.match(text_states, mask, video_states), labels) / self.num_pairs

            with nullcontext() if self.no_sync is None else self.no_sync():
                loss = self.model(run_inside=match)
                self.backward(self.vtm_weight * loss)
            # `backward` scaled them; pass 4 goes through it again.
            scale = self.loss_scale()
            self.text_states.add_gradient(text_rows, of_texts.send_back(at_least_float32(text_states.grad) / scale))
            self.video_states.add_gradient(
                video_rows, of_videos.send_back(at_least_float32(video_states.grad) / scale)
            )
            total += loss.detach()
        self.loss_info["vtm"] = total
        return self.vtm_weight * total

    def _towers(self, core, part: _Embedded, inputs: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A scalar whose gradient is this micro-batch's part of the whole loss's, and what it measured."""
        with part.random_state.replayed():
            outputs = core.encode(*tower_inputs(inputs))
        rows = slice(part.first, part.first + part.size)
        text_states = outputs.text_model_output.last_hidden_state
        video_states = outputs.vision_model_output.last_hidden_state
        terms, found = [], {}
        if self.contrastive_weight:
            videos, texts = core.compared(outputs.video_embeds, outputs.text_embeds)
            terms += [(videos * self.videos.grad[rows]).sum(), (texts * self.texts.grad[rows]).sum()]
        if self.vtm_weight:
            for states, kept in ((text_states, self.text_states), (video_states, self.video_states)):
                terms.append((states * kept.gradient(part.first, part.size, self.device)).sum())
            logits = core.match(text_states, part.attention_mask, video_states)
            pairs = summed_cross_entropy(logits, logits.new_ones(part.size, dtype=torch.long)) / self.num_pairs
            terms.append(self.vtm_weight * pairs)
            found["vtm"] = pairs.detach()
        if self.mlm_weight:
            ids, labels = part.mlm
            logits = core.predict_masked(ids, part.attention_mask, video_states).flatten(0, 1)
            masked = summed_cross_entropy(logits, labels.flatten()) / self.num_masked
            terms.append(self.mlm_weight * masked)
            found["mlm"] = masked.detach()
        return sum(terms), found


def tower_inputs(inputs: dict) -> list[torch.Tensor | None]:
    return [inputs.get(name) for name in _TOWER_INPUTS]
