"""The interpreter multiplies bfloat16 as the integers that it stores them in; here the products are corrected."""

import os
from contextlib import contextmanager

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="run with TRITON_INTERPRET=1, as .ci/run does")


def _multiply_bfloat16_as_numbers():
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def as_float32(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    create_dot = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(self, as_float32(a), as_float32(b), *rest)


if INTERPRETED:
    _multiply_bfloat16_as_numbers()


@contextmanager
def kernels_on_cpu():
    """Inside, tensors on a CPU take the path that tensors on a GPU take."""
    from modeling_svitt_ego.model.edge_triton import KERNEL_DEVICES

    KERNEL_DEVICES.add("cpu")
    try:
        yield
    finally:
        KERNEL_DEVICES.discard("cpu")
