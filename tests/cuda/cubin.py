"""One Triton kernel, compiled for an H100."""

import re
import subprocess
from pathlib import Path

import triton
from triton.compiler import ASTSource

from tests.cuda.h100 import TARGET


def compile_for_h100(
    kernel: triton.JITFunction, signature: dict[str, str], constants: dict[str, int | float | bool], **options: int
) -> bytes:
    """signature: argument -> type ("*bf16", "*fp32", "*i64", "i32", "fp32"); constants: tl.constexpr argument -> value;
    options: num_warps, num_stages where the launch gives them.

    Returns what a GPU loads. What the compiler or ptxas refuses raises, and so does more shared memory than one program can have.
    """
    signature = signature | dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=TARGET, options=options)
    compiled._init_handles()  # as at a launch: checks what the kernel asks for against the card
    return compiled.asm["cubin"]


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """What one thread (REG, STACK: bytes that did not fit registers) and one program (SHARED: bytes) take."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    listing = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file], check=True, capture_output=True, text=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", listing)}
