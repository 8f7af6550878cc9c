"""How the attention kernels are launched: tile sizes, warps and pipeline stages, by head dim and precision.

The defaults were chosen without a GPU, from what ptxas reports: no register is spilled on sm_80 and sm_90. Values that
were tuned on a card replace them through [`use_launches`].
"""

import functools
from dataclasses import asdict, dataclass

import torch

KERNELS = ("patches_forward", "query_gradients", "key_gradients", "table_gradient")


@dataclass(frozen=True)
class Launch:
    """Tile of queries (BM) and of keys (BN), and how a kernel is compiled."""

    BM: int
    BN: int
    num_warps: int = 4
    num_stages: int = 1

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def default_launch(kernel: str, is_float32: bool, head_dim: int, is_hopper: bool) -> Launch:
    """
    Args:
        kernel (`str`): one of `KERNELS`.
        is_float32 (`bool`): float32 products run on the FMA units, with whole operands in registers.
        head_dim (`int`): padded to a power of two.
        is_hopper (`bool`): compute capability 9.0 and above, whose matrix units read operands from shared memory.
    """
    is_wide = head_dim > 64
    if is_float32:
        if head_dim < 64:
            return Launch(16, 32) if kernel == "key_gradients" else Launch(32, 16)
        return Launch(16, 16, num_warps=8) if is_wide else Launch(32, 32, num_warps=8)
    if kernel == "table_gradient":
        return Launch(64, 32 if is_hopper and not is_wide else 16)
    num_warps = 8 if is_wide else 4
    if kernel == "key_gradients":
        return Launch(32, 64, num_warps)
    if kernel == "patches_forward" and is_hopper and not is_wide:
        return Launch(64, 64, num_warps)
    return Launch(64, 32, num_warps)


_tuned: dict[tuple[str, bool, int], Launch] = {}


def launch_of(kernel: str, is_float32: bool, head_dim: int, is_hopper: bool) -> Launch:
    return _tuned.get((kernel, is_float32, head_dim)) or default_launch(kernel, is_float32, head_dim, is_hopper)


def use_launches(launches: dict[tuple[str, bool, int], Launch]) -> None:
    """Replaces the defaults of some (kernel, is_float32, head_dim) in this process; an empty dict restores all."""
    unknown = [key for key in launches if key[0] not in KERNELS]
    if unknown:
        raise ValueError(f"{unknown} name no kernel; the kernels are {', '.join(KERNELS)}.")
    _tuned.clear()
    _tuned.update(launches)


def on_its_device(function):
    """Triton launches on the current device; inside `function` that is the device of its first argument."""

    @functools.wraps(function)
    def wrapped(tensor, *arguments, **options):
        with torch.cuda.device_of(tensor):
            return function(tensor, *arguments, **options)

    return wrapped


def launches_to_json(launches: dict[tuple[str, bool, int], Launch]) -> dict:
    """`{kernel: {"float32-64" or "half-64": {"BM": …}}}`, as a file of tuned values for one card holds them."""
    content = {}
    for (kernel, is_float32, head_dim), launch in sorted(launches.items()):
        content.setdefault(kernel, {})[f"{'float32' if is_float32 else 'half'}-{head_dim}"] = asdict(launch)
    return content


def launches_from_json(content: dict) -> dict[tuple[str, bool, int], Launch]:
    """The inverse of [`launches_to_json`]."""
    launches = {}
    for kernel, by_case in content.items():
        for case, values in by_case.items():
            precision, head_dim = case.split("-")
            launches[kernel, precision == "float32", int(head_dim)] = Launch(**values)
    return launches
