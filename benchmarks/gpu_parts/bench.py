"""The clock of benchmarks/gpu.py: CUDA events on a GPU; a dry run on a CPU computes everything and times nothing."""

import gc
import statistics
import time
from contextlib import contextmanager

import torch

from modeling_svitt_ego.model.edge_triton import KERNEL_DEVICES


class OutOfTime(Exception):
    """The next measurement would not end within the budget."""


class Bench:
    """
    Args:
        is_dry (`bool`): tiny sizes on a CPU, in triton's interpreter. Every time and every peak is then None.
        seconds (`float`): budget of the whole run.
    """

    def __init__(self, is_dry: bool, seconds: float):
        self.is_dry = is_dry
        self.device = "cpu" if is_dry else "cuda"
        self.deadline = time.monotonic() + seconds

    def needs(self, seconds: float) -> None:
        left = self.deadline - time.monotonic()
        if left < seconds and not self.is_dry:
            raise OutOfTime(f"{left:.0f} s were left and about {seconds:.0f} s are needed")

    def milliseconds(self, run, rounds: int = 4) -> float | None:
        """Median over `rounds`, after two runs that compile and warm up."""
        run()
        if self.is_dry:
            return None
        run()
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return round(statistics.median(times), 3)

    def peak_megabytes(self, run) -> float | None:
        """The most that is allocated during `run`, above what was there before it."""
        if self.is_dry:
            run()
            return None
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6)

    def launches(self, run) -> int | None:
        """Kernels that the host launches in one run."""
        if self.is_dry:
            run()
            return None
        run()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run()
            torch.cuda.synchronize()
        names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
        return sum(event.count for event in profile.key_averages() if event.key.startswith(names))

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16)

    def release(self) -> None:
        gc.collect()
        if not self.is_dry:
            torch.cuda.empty_cache()


@contextmanager
def kernels(are_used: bool, device: str):
    """Inside, attention and layers on `device` are computed by the Triton kernels, or by plain operations."""
    before = set(KERNEL_DEVICES)
    KERNEL_DEVICES.add(device) if are_used else KERNEL_DEVICES.discard(device)
    try:
        yield
    finally:
        KERNEL_DEVICES.clear()
        KERNEL_DEVICES.update(before)
