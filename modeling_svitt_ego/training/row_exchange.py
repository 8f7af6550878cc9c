"""Rows that lie with other processes: asked for by number, sent by their owner, their gradient sent back.

Hard negatives are drawn from the rows of all processes; only the token states of those drawn are sent, not everyone's.

Letters: b rows of each process, B of all. Row r of the B is row r % b of process r // b, as `gather_rows` has them.
"""

import torch
import torch.distributed as dist


def world_size(gather: bool = True) -> int:
    """Processes that take part; 1 without a process group."""
    return dist.get_world_size() if gather and dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(count: torch.Tensor, gather: bool = True) -> torch.Tensor:
    """
    A number per process, averaged over them, without gradient.

    The divisor of a sum over this process's share whose average over the processes shall be the mean over everything,
    also where shares have different numbers of terms.
    """
    if world_size(gather) == 1:
        return count
    total = count.detach().clone().float()
    dist.all_reduce(total)
    return total / world_size()


def largest_of_processes(number: int, device: torch.device, gather: bool = True) -> int:
    if world_size(gather) == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


class RowExchange:
    """
    Args:
        wanted (`torch.LongTensor` of shape `(k,)`): numbers, among the B, of the rows that this process wants; all
            processes construct it at the same time, each with its own.
        num_rows (`int`): b, the same on all processes.
        gather (`bool`): False: the rows are this process's own, nothing is sent.

    Attributes:
        rows (`torch.LongTensor`): which of its own b rows this process sends, with repetitions.
    """

    def __init__(self, wanted: torch.Tensor, num_rows: int, gather: bool = True) -> None:
        self.world = world_size(gather)
        if self.world == 1:
            self.rows = wanted
            return
        owner = wanted // num_rows
        self.order = owner.argsort(stable=True)  # requests lie by owner, as what comes back does
        counts = owner.bincount(minlength=self.world)
        asked = torch.empty_like(counts)
        dist.all_to_all_single(asked, counts)
        self.received, self.sent = counts.tolist(), asked.tolist()  # per process
        self.rows = self._all_to_all(wanted[self.order], self.received, self.sent) % num_rows

    def _all_to_all(self, rows: torch.Tensor, give: list[int], take: list[int]) -> torch.Tensor:
        result = rows.new_empty(sum(take), *rows.shape[1:])
        dist.all_to_all_single(result, rows.contiguous(), take, give)
        return result

    def send(self, states: torch.Tensor) -> torch.Tensor:
        """From this process's `rows` (len(rows), …) to the wanted ones `(k, …)`. No gradient; see [`fetch`]."""
        if self.world == 1:
            return states
        received = self._all_to_all(states, self.sent, self.received)
        return torch.empty_like(received).index_copy_(0, self.order, received)

    def send_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """From the wanted rows' gradient `(k, …)` to that of `rows` `(len(rows), …)`."""
        return gradient if self.world == 1 else self._all_to_all(gradient[self.order], self.received, self.sent)

    def fetch(self, states: torch.Tensor) -> torch.Tensor:
        """
        The wanted rows `(k, …)` of everyone's `states` `(b, …)`, with gradient.

        Gradients come back from every process's loss, summed; averaged by data parallelism, they are the gradient of
        the mean of the local losses, as with `gather_rows`.
        """
        return _Sent.apply(states[self.rows], self)


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(context, states, exchange):
        context.exchange = exchange
        return exchange.send(states)

    @staticmethod
    def backward(context, gradient):
        return context.exchange.send_back(gradient), None
