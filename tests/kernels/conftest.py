"""Triton's interpreter multiplies the integers that it stores bfloat16 in, and truncates; here both are corrected."""

import os
from contextlib import contextmanager

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="run with TRITON_INTERPRET=1, as .ci/run does")


def _compute_in_bfloat16_as_a_gpu_does():
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def as_float32(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def cast(self, x, dtype):
        if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16)
            return TensorHandle(rounded.numpy().view(np.uint16).reshape(x.data.shape), dtype.scalar)
        return (
            as_float32(x)
            if dtype.scalar == tl.float32 and x.dtype.scalar == tl.bfloat16
            else cast_impl(self, x, dtype)
        )

    create_dot, cast_impl = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(self, as_float32(a), as_float32(b), *rest)
    InterpreterBuilder.cast_impl = cast


if INTERPRETED:
    _compute_in_bfloat16_as_a_gpu_does()


@contextmanager
def kernels_on_cpu():
    """Inside, tensors on a CPU take the path that tensors on a GPU take."""
    from modeling_svitt_ego.model.edge_triton import KERNEL_DEVICES

    KERNEL_DEVICES.add("cpu")
    try:
        yield
    finally:
        KERNEL_DEVICES.discard("cpu")
