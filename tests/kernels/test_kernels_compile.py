"""Every kernel compiled for cards that are not there: it compiles, and no register is spilled on A100 and H100."""

import pytest

from .conftest import INTERPRETED

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel for this platform")
if INTERPRETED:
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from modeling_svitt_ego.model import edge_gradient_kernels, edge_kernels, edge_triton, layer_kernels
from modeling_svitt_ego.model.kernel_launches import KERNELS, launch_of

from .compiled import resources

# What the kernels are asked for: bias looked up (ids per sample) or from tiles (shared ids), and every block attended.
VARIANTS = {
    "patches_forward": {
        "lookup": dict(DENSE=False, TILED=False, SINK=False),
        "tiles": dict(DENSE=False, TILED=True, SINK=False),
        "sinks": dict(DENSE=False, TILED=False, SINK=True),
        "dense": dict(DENSE=True, TILED=False, SINK=False),
    },
    "query_gradients": {
        "lookup": dict(DENSE=False, TILED=False, SINK=False, WITH_TABLE=True, FIXED=False),
        "tiles": dict(DENSE=False, TILED=True, SINK=False, WITH_TABLE=False, FIXED=False),
        "sinks": dict(DENSE=False, TILED=False, SINK=True, WITH_TABLE=True, FIXED=False),
        "fixed": dict(DENSE=False, TILED=False, SINK=False, WITH_TABLE=True, FIXED=True),
        "dense": dict(DENSE=True, TILED=False, SINK=False, WITH_TABLE=True, FIXED=False),
    },
    "key_gradients": {
        "lookup": dict(DENSE=False, TILED=False),
        "tiles": dict(DENSE=False, TILED=True),
        "dense": dict(DENSE=True, TILED=False),
    },
    "table_gradient": {
        "tiles": dict(DENSE=False, FIXED=False),
        "fixed": dict(DENSE=False, FIXED=True),
        "dense": dict(DENSE=True, FIXED=False),
    },
}
CASES = [(kernel, variant) for kernel in KERNELS for variant in VARIANTS[kernel]]


def attention_resources(kernel, variant, precision, head_dim, capability):
    constants = VARIANTS[kernel][variant]
    launch = launch_of(kernel, precision == "fp32", head_dim, capability >= 90)
    constants = constants | dict(
        D=head_dim, DP=head_dim, G=64 if variant == "dense" else 56, BM=launch.BM, BN=launch.BN
    )
    module = edge_kernels if hasattr(edge_kernels, kernel) else edge_gradient_kernels
    pointers = {"TABLE_GRAD": "*i64"} if constants.get("FIXED") else {}
    return resources(getattr(module, kernel), constants, precision, capability, pointers, **launch.options)


@pytest.mark.parametrize(("kernel", "variant"), CASES)
def test_the_base_models_attention_spills_no_register(kernel, variant):
    """Catches a tile too large for the registers: heads of 64 in bf16."""
    for capability in (80, 90, 100):
        used = attention_resources(kernel, variant, "bf16", 64, capability)
        assert capability == 100 or used["spilled"] == 0, (capability, used)
        assert used["shared"] <= 99 * 1024, (capability, used)  # a consumer card's limit


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize(("kernel", "variant"), CASES)
def test_attention_of_every_head_dim_and_precision_spills_no_register(kernel, variant, head_dim, precision):
    for capability in (80, 90):
        used = attention_resources(kernel, variant, precision, head_dim, capability)
        assert used["spilled"] == 0, (capability, used)


RESIDUAL = {**dict.fromkeys(("X", "SUM", "WEIGHT", "BIAS", "SCALE"), "*fp32"), "OTHER": "*fp32", "DX": "*fp32"}
NORM = dict(C=768, SIZE=1024, ROWS=layer_kernels.NORM_ROWS)
COLUMNS = dict(ROWS=layer_kernels.COLUMN_ROWS, COLUMNS=layer_kernels.COLUMN_TILE)
LAYER_CASES = {
    "norm": ("residual_norm_kernel", NORM | dict(RESIDUAL=False, DROP=False, NORM=True), RESIDUAL),
    "residual-norm": ("residual_norm_kernel", NORM | dict(RESIDUAL=True, DROP=True, NORM=True), RESIDUAL),
    "residual": ("residual_norm_kernel", NORM | dict(RESIDUAL=True, DROP=True, NORM=False), RESIDUAL),
    "norm-backward": ("norm_backward_kernel", NORM, RESIDUAL),
    "gelu": ("gelu_kernel", dict(SIZE=layer_kernels.GELU_SIZE), {}),
    "gelu-backward": ("columns_kernel", COLUMNS | dict(C=3072, WRITE=True, DROP=False, GELU=True), {}),
    "mask-and-cast": ("columns_kernel", COLUMNS | dict(C=768, WRITE=True, DROP=True, GELU=False), {"GRAD": "*fp32"}),
    "column-sums": ("columns_kernel", COLUMNS | dict(C=768, WRITE=False, DROP=False, GELU=False), {}),
}


@pytest.mark.parametrize("case", LAYER_CASES)
def test_the_kernels_between_products_spill_no_register(case):
    """Catches rows too wide for the registers, in bf16 autocast of the base model."""
    kernel, constants, pointers = LAYER_CASES[case]
    for capability in (80, 90, 100):
        used = resources(getattr(layer_kernels, kernel), constants, "bf16", capability, pointers, num_warps=4)
        assert used["spilled"] == 0, (capability, used)


# A table in float32 becomes one in float32; of the rest only the halves of q, k and v are read.
SMALL_POINTERS = {"scale_table": {"OUT": "*fp32"}}
HEAD = dict(D=64, DP=64)
SMALL_CASES = {
    "scale_table": dict(SIZE=1024),
    "bias_tiles": dict(G=56, ROWS=64, COLUMNS=64, BM=64, BN=32, TRANSPOSED=False),
    "bias_tiles-transposed": dict(G=56, ROWS=64, COLUMNS=64, BM=64, BN=32, TRANSPOSED=True),
    "cls_forward": HEAD | dict(SIZE=edge_triton.CLS_TOKENS, STEPS=edge_triton.CLS_STEPS),
    "cls_merge": HEAD | dict(SLOTS=32, SIZE=1024),
    "invert_pattern": dict(SIZE=512),
    "cls_gradients": HEAD | dict(SIZE=32),
}


@pytest.mark.parametrize("case", SMALL_CASES)
def test_the_small_kernels_of_attention_compile(case):
    """Catches what the interpreter accepts and the compiler does not: a type that changes in a loop."""
    name = case.split("-")[0]
    kernel = getattr(edge_kernels, name, None) or getattr(edge_gradient_kernels, name)
    for capability in (80, 90, 100):
        used = resources(kernel, SMALL_CASES[case], "bf16", capability, SMALL_POINTERS.get(name, {}), num_warps=4)
        assert used["spilled"] == 0, (capability, used)


@pytest.mark.parametrize("case", ["patches_forward", "query_gradients", "key_gradients"])
def test_the_released_padding_and_odd_head_dims_compile(case):
    constants = VARIANTS[case]["lookup"] | ({"SINK": True} if case != "key_gradients" else {})
    launch = launch_of(case, False, 32, True)
    constants |= dict(D=24, DP=32, G=14, BM=launch.BM, BN=launch.BN)
    kernel = getattr(edge_kernels, case, None) or getattr(edge_gradient_kernels, case)
    assert resources(kernel, constants, "fp16", 90, **launch.options)["spilled"] == 0
