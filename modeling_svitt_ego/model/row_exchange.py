"""Rows held by other processes: gathered as a whole, or requested by number with their gradient sent back.

Contrastive losses compare with the embeddings of all processes, which are gathered. Hard negatives are drawn from the
rows of all processes too, but only the token states of the drawn rows are sent, not everyone's.

Letters: b rows of each process, B of all. Row r of the B is row r % b of process r // b.
"""

import torch
import torch.distributed as dist


def gather_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    The rows of all processes, and which of them is this process's first.

    Gradients come back from every process's loss, summed; averaged by data parallelism, they are the gradient of the
    mean of the local losses. Without process group, or with one process, the tensor comes back as it is.
    """
    if world_size() == 1:
        return tensor, 0
    rows = torch.tensor([tensor.shape[0]], device=tensor.device)
    counts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(counts, rows)
    if any(int(count) != tensor.shape[0] for count in counts):
        raise ValueError(
            "The processes have batches of different sizes "
            f"({', '.join(str(int(count)) for count in counts)} rows): drop the last, incomplete batch."
        )
    return _Gathered.apply(tensor), dist.get_rank() * tensor.shape[0]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        context.rows = tensor.shape[0]
        rows = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        first = dist.get_rank() * context.rows
        return gradient[first : first + context.rows]


def world_size(gather: bool = True) -> int:
    """The number of processes that take part; 1 without a process group."""
    return dist.get_world_size() if gather and dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(count: torch.Tensor, gather: bool = True) -> torch.Tensor:
    """
    A number per process, averaged over them, without gradient.

    A loss that each process sums over its own terms and divides by this number averages over the processes to the
    mean over all terms, also where processes have different numbers of terms.
    """
    if world_size(gather) == 1:
        return count
    total = count.detach().clone().float()
    dist.all_reduce(total)
    return total / world_size()


def largest_of_processes(number: int, device: torch.device, gather: bool = True) -> int:
    """The largest of one number per process."""
    if world_size(gather) == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


class RowExchange:
    """
    Sends rows to the processes that request them, and their gradient back.

    Args:
        wanted (`torch.LongTensor` of shape `(k,)`): numbers, among the B, of the rows that this process requests. All
            processes construct the exchange at the same time, each with its own requests.
        num_rows (`int`): b, the same on all processes.
        gather (`bool`): with False, the rows are this process's own and nothing is sent.

    Attributes:
        rows (`torch.LongTensor`): which of its own b rows this process sends, with repetitions.
    """

    def __init__(self, wanted: torch.Tensor, num_rows: int, gather: bool = True) -> None:
        self.world = world_size(gather)
        if self.world == 1:
            self.rows = wanted
            return
        owner = wanted // num_rows
        self.order = owner.argsort(stable=True)  # requests are sorted by owner, and so is what comes back
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
        return states[self.rows] if self.world == 1 else _Sent.apply(states[self.rows], self)


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(context, states, exchange):
        context.exchange = exchange
        return exchange.send(states)

    @staticmethod
    def backward(context, gradient):
        return context.exchange.send_back(gradient), None
