"""Compiles a kernel for a card that is not there, and asks ptxas what it needs."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Pointers whose type does not follow from the precision of q, k and v; scalars are int32 unless they are listed.
POINTERS = {
    **dict.fromkeys(("CODES", "IDS"), "*i64"),
    **dict.fromkeys(("COUNTS", "LISTS"), "*i32"),
    **dict.fromkeys(("TABLE", "LSE", "DELTA", "PARTS", "SCORES", "KEY_PARTS", "QUERY_PARTS", "FACTOR"), "*fp32"),
    **dict.fromkeys(("KEEP", "MEAN", "RSTD", "WEIGHT_GRAD", "BIAS_GRAD", "SUMS", "TABLE_GRAD"), "*fp32"),
}
FLOATS = ("scale", "natural_scale", "factor", "eps")


def resources(kernel, constants: dict, precision: str, capability: int, pointers=(), **options) -> dict[str, int]:
    """
    Registers per thread, spilled bytes and shared memory of a kernel.

    Args:
        constants (`dict`): the kernel's constexpr arguments.
        precision (`str`): "bf16", "fp16" or "fp32", of the pointers that are not listed above or in `pointers`.
        capability (`int`): 80, 90 or 100.
        options: num_warps, num_stages.
    """
    types = {**POINTERS, "TILES": "*fp32" if precision == "fp32" else "*fp16", **dict(pointers)}
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.isupper() and name not in ("B", "H", "N", "M", "S", "R"):
            signature[name] = types.get(name, f"*{precision}")
            aligned[(place,)] = [["tt.divisibility", 16]]
        elif name in FLOATS:
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if re.fullmatch("[qkvg]_[bhn]", name):  # strides of heads of 16 elements and more
                aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = _ptxas(compiled.asm["ptx"], capability)
    return {**used, "shared": compiled.metadata.shared}


def _ptxas(ptx: str, capability: int) -> dict[str, int]:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    blackwell = folder / "ptxas-blackwell"
    program = blackwell if capability >= 100 and blackwell.exists() else folder / "ptxas"
    arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(program), "-v", f"-arch={arch}", "-o", "/dev/null", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    return {"registers": int(registers[1]), "spilled": int(spilled[1])}
