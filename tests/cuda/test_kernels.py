"""Triton kernels compile for an H100; the ones of this file show that the check can tell."""

from importlib import import_module
from pathlib import Path

import pytest
import triton
import triton.language as tl

import torchspec
from tests.cuda.cubin import compile_for_h100

KERNELS: dict[str, tuple[dict[str, str], dict[str, int]]] = {}  # "module:kernel" of torchspec -> signature, constants; none so far
ELF = b"\x7fELF"


@triton.jit
def row_sums(x, sums, columns, WIDTH: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, WIDTH)
    value = tl.load(x + row * columns + column, mask=column < columns, other=0.0)
    tl.store(sums + row, tl.sum(value.to(tl.float32), 0))


@triton.jit
def long_product(x, y, out, ROWS: tl.constexpr, LENGTH: tl.constexpr):
    """x [ROWS, LENGTH] @ y [LENGTH, ROWS], both whole in shared memory."""
    row, place = tl.arange(0, ROWS), tl.arange(0, LENGTH)
    a, b = tl.load(x + row[:, None] * LENGTH + place), tl.load(y + place[:, None] * ROWS + row)
    tl.store(out + row[:, None] * ROWS + row, tl.dot(a, b))


def test_a_kernel_becomes_code():
    assert compile_for_h100(row_sums, {"x": "*bf16", "sums": "*fp32", "columns": "i32"}, {"WIDTH": 1024}).startswith(ELF)


def test_a_kernel_that_wants_too_much_shared_memory_is_refused():
    """2 x 64 x 1024 numbers of 2 bytes: 256 KiB, of 227."""
    with pytest.raises(triton.runtime.errors.OutOfResources):
        compile_for_h100(long_product, {"x": "*bf16", "y": "*bf16", "out": "*fp32"}, {"ROWS": 64, "LENGTH": 1024})


def test_every_kernel_of_torchspec_becomes_code():
    files = Path(torchspec.__file__).parent.rglob("*.py")
    assert sum(file.read_text().count("@triton.jit") for file in files) == len(KERNELS), "list the kernel in KERNELS"
    for name, (signature, constants) in KERNELS.items():
        module, _, kernel = name.partition(":")
        assert compile_for_h100(vars(import_module(module))[kernel], signature, constants).startswith(ELF), name
