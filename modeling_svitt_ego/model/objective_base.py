"""What a training objective is, and what it sees of a batch.

How to add a loss
-----------------
Write one file like `contrastive.py` and put an instance into `OBJECTIVES` (objectives.py), or into one model's list:
`model.objectives = [MyLoss(weight=1.0)]`. The model's forward (on one process and over several), gradient caching and
the freezing of parameters that no objective reaches all loop over `model.objectives`; none of them changes.

* A loss of the two embeddings (InfoNCE, max-margin, soft relevance …) subclasses [`EmbeddingObjective`] and writes
  `of_rows`, the mean loss of some rows of the similarity matrices, once.
* Any other loss subclasses [`Objective`] and writes `loss`, and `in_cached_step` if it is to train under
  gradient caching too; masked_language.py is the example for a loss of each clip by itself, matching.py for one whose
  token states meet across the batch.

Letters: b rows of this process, B rows over all processes, r rows of a slice of the b, d projection_dim.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_svitt_ego import SViTTEgoConfig
from .row_exchange import gather_rows

# Rows of the similarity matrix held at once in a cached step: memory (1024, B), never (b, B).
ROWS_AT_ONCE = 1024


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_vectors(embeds: torch.Tensor) -> torch.Tensor:
    """Embeddings of length 1; the length is taken in float32 at least."""
    return F.normalize(at_least_float32(embeds), dim=-1).to(embeds.dtype)


# ------------------------------------------------------------------------------------------- what an objective sees


class Columns:
    """
    The inputs of a batch by name: this process's rows with `own`, those of all processes with `everyone`.

    Args:
        parts (list of `dict[str, torch.Tensor]`): the batch, or its micro-batches in order.
        gather (`bool`): with False, everyone's rows are this process's own.
    """

    def __init__(self, parts: Sequence[Mapping[str, torch.Tensor | None]], gather: bool = False) -> None:
        self.parts = parts
        self.gather = gather
        self._own: dict[str, torch.Tensor | None] = {}
        self._everyone: dict[str, torch.Tensor | None] = {}

    def own(self, name: str) -> torch.Tensor | None:
        """`(b, …)`, or None where a part of the batch has no such input."""
        if name not in self._own:
            values = [part.get(name) for part in self.parts]
            missing = any(value is None for value in values)
            self._own[name] = None if missing else values[0] if len(values) == 1 else torch.cat(values)
        return self._own[name]

    def everyone(self, name: str) -> torch.Tensor | None:
        """`(B, …)`, or None."""
        if name not in self._everyone:
            own = self.own(name)
            self._everyone[name] = gather_rows(own)[0] if self.gather and own is not None else own
        return self._everyone[name]


@dataclass
class Rows:
    """
    r clips and their r narrations, to be compared with all B.

    Args:
        videos, texts (`torch.Tensor` of shape `(r, d)`): unit embeddings; row i of both is one clip.
        all_videos, all_texts (`torch.Tensor` of shape `(B, d)`): those of everyone.
        temperature (`torch.Tensor` of shape `(1,)`).
        columns ([`Columns`]): the other inputs.
        start (`int`): which of the b rows of `columns` is the first of these.
        first (`int`): which of the B is the first of these: clip i's own narration is column `first + i`.
    """

    videos: torch.Tensor
    texts: torch.Tensor
    all_videos: torch.Tensor
    all_texts: torch.Tensor
    temperature: torch.Tensor
    columns: Columns
    start: int = 0
    first: int = 0

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def cosines_per_video(self) -> torch.Tensor:
        """`(r, B)`: these clips with all narrations."""
        return product(self.videos, self.all_texts)

    @property
    def cosines_per_text(self) -> torch.Tensor:
        """`(r, B)`: these narrations with all clips."""
        return product(self.texts, self.all_videos)

    @property
    def logits_per_video(self) -> torch.Tensor:
        """`(r, B)`: cosines over the temperature."""
        return product(self.videos / self.temperature, self.all_texts)

    @property
    def logits_per_text(self) -> torch.Tensor:
        return product(self.texts, self.all_videos / self.temperature)

    def own(self, name: str) -> torch.Tensor | None:
        """The input `name` of these rows, `(r, …)`."""
        column = self.columns.own(name)
        return None if column is None else column[self.start : self.start + len(self)]

    def everyone(self, name: str) -> torch.Tensor | None:
        """The input `name` of all rows, `(B, …)`."""
        return self.columns.everyone(name)


def product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Similarities, also under autocast in float32 at least: bf16 rounds logits of 100 to half units."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.T


@dataclass
class Batch:
    """
    One forward of the towers, as `Objective.loss` sees it.

    Args:
        outputs ([`SViTTEgoOutput`]): of both towers; an objective may add its logits.
        input_ids, attention_mask (`torch.LongTensor` of shape `(b, sequence_length)`).
        columns ([`Columns`]): the inputs that objectives name in `columns`.
        temperature (`torch.Tensor` of shape `(1,)`): inside its range.
        gather (`bool`): compare with the rows of all processes.
        generator (`torch.Generator`, *optional*): for all draws.
    """

    outputs: Any
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    columns: Columns
    temperature: torch.Tensor
    gather: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Makes `rows` ([`Rows`]), all b rows: in every objective the same graph."""
        towers = self.outputs.vision_model_output, self.outputs.text_model_output
        videos, texts = (F.normalize(at_least_float32(tower.pooler_output), dim=-1) for tower in towers)
        if len(videos) != len(texts):
            raise ValueError(f"A loss needs one text for each clip; got {len(videos)} clips and {len(texts)} texts.")
        (all_videos, first), (all_texts, _) = (gather_rows(x) if self.gather else (x, 0) for x in (videos, texts))
        temperature = at_least_float32(self.temperature)
        self.rows = Rows(videos, texts, all_videos, all_texts, temperature, self.columns, first=first)


class CachedRows(Protocol):
    """What a cached step (training/gradient_caching.py) holds between its passes; see there."""

    core: Any
    gather: bool
    device: torch.device
    parts: list[Any]
    num_rows: int
    first: int
    columns: Columns
    videos: torch.Tensor
    texts: torch.Tensor
    temperature: torch.Tensor
    text_states: Any
    video_states: Any
    masks: Any

    def loss_scale(self) -> float: ...

    def run(self, loss: Callable[[Any], torch.Tensor], weight: float) -> torch.Tensor: ...


# ---------------------------------------------------------------------------------------------- what an objective is


class CachedObjective:
    """
    An objective's part in one cached step. The sum of all losses it returns is the loss of the whole batch.

    Attributes:
        loss_info (`dict`): further values to log.
    """

    # Whether the token states of all rows are kept on the host, for `across_rows`.
    keeps_token_states = False

    def __init__(self, objective: Any, step: CachedRows) -> None:
        self.objective = objective
        self.step = step
        self.weight = objective.weight_in(step.core.config)
        self.loss_info: dict[str, torch.Tensor] = {}

    def across_rows(self) -> torch.Tensor | None:
        """
        What couples rows, from what the step keeps; not weighted, without graph.

        The gradient of the weighted loss is added to that of `step.videos`, `step.texts` and `step.temperature`, or
        to the token states of `step.text_states` and `step.video_states`.
        """
        return None

    def of_micro_batch(self, core, part, outputs) -> torch.Tensor | None:
        """The loss of each row by itself, of one micro-batch, with graph; not weighted."""
        return None


class Objective:
    """
    One loss.

    Args:
        weight (`float`, *optional*): its weight in the sum; by default that of the configuration, the field
            `<name>_weight` (1 if there is none).

    Class attributes:
        name (`str`): its key in `loss_info`.
        needs (`tuple[str, ...]`): attributes that a model must have to train it, such as a head.
        reaches (`tuple[str, ...]`): parameters outside the towers' layers that its gradient reaches, by the
            beginnings of their names. What only objectives of weight 0 name is frozen.
        columns (`tuple[str, ...]`): the inputs that it reads in addition to clips and texts.
    """

    name: str = ""
    needs: tuple[str, ...] = ()
    reaches: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __init__(self, weight: float | None = None) -> None:
        self.weight = weight

    def weight_in(self, config: SViTTEgoConfig) -> float:
        return getattr(config, f"{self.name}_weight", 1.0) if self.weight is None else self.weight

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has the parts that it needs."""
        return all(hasattr(model, part) for part in self.needs)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The loss of a batch, not weighted, and further values to log.

        With `batch.gather`, the mean over the processes of the losses, and of their gradients, must be that of one
        process with everyone's rows.
        """
        raise NotImplementedError

    def in_cached_step(self, step: CachedRows) -> CachedObjective:
        """Its part in one step of gradient caching; made before the first pass."""
        raise NotImplementedError(f"{type(self).__name__} does not train with contrastive_batch_size.")


# --------------------------------------------------------------------------------------------- losses of embeddings


class EmbeddingObjective(Objective):
    """A loss of the embeddings of clips and narrations. A subclass writes [`of_rows`] and nothing else."""

    reaches = ("vision_model.pooler_layernorm", "video_projection", "text_projection", "temperature")

    def of_rows(self, config: SViTTEgoConfig, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The mean over the rows given of their losses, in both directions, and the means of what is logged.

        A subclass that leaves the temperature alone (by `cosines_per_video`) takes it out of `reaches`.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.of_rows(model.config, batch.rows)

    def in_cached_step(self, step: CachedRows) -> CachedObjective:
        return _CachedEmbeddingObjective(self, step)


class _CachedEmbeddingObjective(CachedObjective):
    def across_rows(self) -> torch.Tensor:
        step = self.step
        own, everyone = compared_with(step)
        # Separate leaves: the rows come in slices, but the backward of normalising and gathering runs once.
        own_leaves, all_leaves = ([x.detach().requires_grad_() for x in pair] for pair in (own, everyone))
        total = torch.zeros((), device=step.device, dtype=own[0].dtype)
        for rows in slices(step, own_leaves, all_leaves, step.temperature):
            share = len(rows) / step.num_rows
            loss, info = self.objective.of_rows(step.core.config, rows)
            (self.weight * share * loss).backward()
            total += share * loss.detach()
            for name, value in info.items():
                self.loss_info[name] = self.loss_info.get(name, 0) + share * value.detach()
        pairs = [*zip(own, own_leaves), *zip(everyone, all_leaves)]
        reached = [(tensor, leaf.grad) for tensor, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])
        return total


def compared_with(step: CachedRows) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Unit videos and texts `(b, d)` of a cached step, and those of everyone `(B, d)`; with graph."""
    own = [F.normalize(x, dim=-1) for x in (step.videos, step.texts)]
    return own, [gather_rows(x)[0] if step.gather else x for x in own]


def slices(step: CachedRows, own, everyone, temperature: torch.Tensor) -> Iterator[Rows]:
    """All rows of a cached step, at most `ROWS_AT_ONCE` at a time."""
    (videos, texts), (all_videos, all_texts) = own, everyone
    for start in range(0, step.num_rows, ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        first = step.first + start
        yield Rows(videos[some], texts[some], all_videos, all_texts, temperature, step.columns, start, first)
