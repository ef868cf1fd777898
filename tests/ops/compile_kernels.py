"""Compiles the Triton kernels for a GPU that need not be there: what they need of it, kernel by kernel.

The operator and ACLA are called as ever, and each kernel's launch compiles for the given compute capability
instead::

    python tests/ops/compile_kernels.py 90

With ``launches`` behind it launches themselves are shown, in pairs: as Triton does them, and as the package
does them once a kernel is known; all but the call of the GPU's driver.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from acla_nas.attention import ACLA, acla_gpu
from acla_nas.ops import gather_triton

CASES = [  # channels, references, keys, side, dtype, side of the references
    (256, 1, 16, 48, torch.bfloat16, 48),
    (256, 5, 16, 48, torch.bfloat16, 48),
    (64, 9, 16, 48, torch.float32, 48),
    (48, 2, 8, 50, torch.float16, 25),
    (180, 2, 16, 33, torch.float32, 33),
    (1, 1, 1, 1, torch.float32, 1),
]


ATTENTION_CASES = [  # channels, keys, side, dtype, options
    (256, 16, 48, torch.bfloat16, {}),
    (64, 16, 48, torch.float32, {}),
    (60, 5, 33, torch.float16, {"softmax": "reference", "shared_mask": True}),
    (256, 16, 48, torch.float32, {"renormalize": True}),
]


class _Driver:
    """Stands for the GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability, cases, attention_cases=()):
    """Yield what each kernel of each case needs, once."""
    triton.runtime.driver.set_active(_Driver(capability))
    acla_gpu._later = lambda numbers: list
    launch, compiled = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.setdefault(kernel.hash, (self.__name__, kernel))

    JITFunction.run = compile_only
    seen = set()
    for call, case in [*((call_operator, c) for c in cases), *((call_attention, c) for c in attention_cases)]:
        name_of_case = call(*case)
        for key in compiled.keys() - seen:
            seen.add(key)
            name, kernel = compiled[key]
            yield {
                "case": name_of_case,
                "kernel": name,
                "warps": kernel.metadata.num_warps,
                **usage(kernel),
            }


def compare_launches(capability, cases, attention_cases):
    """Yield kernel and arguments of each launch: of a first call of each case, and of a second one."""
    triton.runtime.driver.set_active(_Driver(capability))
    acla_gpu._later = lambda numbers: list
    launched = []
    CompiledKernel._init_handles = lambda self: None
    CompiledKernel.run = property(
        lambda self: lambda *arguments: launched.append((self.name, *arguments[:3], *arguments[9:]))
    )
    for call, case in [*((call_operator, c) for c in cases), *((call_attention, c) for c in attention_cases)]:
        calls = []
        for _ in range(2):
            launched.clear()
            call(*case)
            calls.append([_described(launch) for launch in launched])
        yield {"first": calls[0], "second": calls[1]}


def _described(argument):
    if isinstance(argument, torch.Tensor):
        return [str(argument.dtype), list(argument.shape), list(argument.stride())]
    if isinstance(argument, tuple):
        return [_described(part) for part in argument]
    return argument


def call_operator(channels, references, keys, side, dtype, own_side):
    """Call the operator and its backward pass, and return what that is called."""
    value = torch.zeros(1, channels, own_side, own_side, dtype=dtype)
    values = [value.contiguous(memory_format=torch.channels_last)] * references
    offsets = torch.zeros(1, references, keys, 2, side, side)
    weights = offsets[:, :, :, 0].contiguous()
    out = gather_triton.forward(values, offsets, weights)
    gather_triton.backward(torch.zeros_like(out), values, offsets, weights, [True] * (2 + references))
    return f"C={channels} R={references} K={keys} {side}x{side} {str(dtype)[6:]}"


def call_attention(channels, keys, side, dtype, options):
    """Call ACLA and its backward pass, and return what that is called."""
    module = ACLA(channels, keys, 2, **options).to(dtype)
    x = torch.zeros(2, channels, side, side, dtype=dtype, requires_grad=True)
    inside, outside = torch.ones(2, keys, requires_grad=True), torch.ones(2)
    layers = list(module.references.values())
    update, share = acla_gpu.attend(module, x, [x, x], layers, inside, outside, 2)
    (update.float().sum() + share).backward()
    return f"ACLA C={channels} K={keys} {side}x{side} {str(dtype)[6:]} {options}"


def usage(kernel):
    """Return registers and spilled bytes of a thread, how many loads read 16 bytes, of how many, and whether
    matrices are multiplied by what is made for it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needs = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    loads = re.findall(r"ld\.global\S*", kernel.asm["ptx"])
    wide = [load for load in loads if ".v4.b32" in load or ".v2.b64" in load]
    return {
        "registers": int(needs["REG"]),
        "spilled": int(needs["STACK"]) + int(needs["LOCAL"]),
        "loads": len(loads),
        "wide_loads": len(wide),
        "tensor_cores": "mma" in kernel.asm["ptx"],
    }


if __name__ == "__main__":
    show, most = compile_all, None
    if sys.argv[2:] == ["launches"]:
        show = compare_launches
    elif len(sys.argv) > 2:
        most = int(sys.argv[2])
    for row in show(int(sys.argv[1]), CASES[:most], ATTENTION_CASES[:most]):
        print(json.dumps(row), flush=True)
