"""Triton kernels compile for an H100; the ones of this file show that the check can tell."""

import os
import re
import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import triton
import triton.language as tl

import torchspec
from tests.cuda.cubin import compile_for_h100, resources
from tests.cuda.guard import FOLDER
from tests.cuda.h100 import PROPERTIES
from torchspec.nn import loss_kernels

LOSSES = "torchspec.nn.loss_kernels"
POINTERS = {"logits": "*bf16", "bias": "*fp32", "labels": "*i64", "targets": "*bf16", "rows": "*i64"}
RESULTS = {"loss": "*fp32", "cross_entropy": "*fp32", "overlap": "*fp32", "predictions": "*i64", "size": "i32"}
SIGNATURE = POINTERS | RESULTS | dict.fromkeys(loss_kernels.KINDS, "fp32")
GIVEN = [given for given in product((False, True), repeat=3) if any(given[1:])]  # bias, labels, target; without the last two is no loss
KERNELS = [  # module and kernel of torchspec, signature, constants
    (LOSSES, "_losses", SIGNATURE, dict(zip(("BIASED", "LABELLED", "TAUGHT"), given, strict=True)) | {"BLOCK": loss_kernels.block(*given)})
    for given in GIVEN
]
PARTS = {"_better", "_more", "_bias", "_log_q_and_p"}  # called by kernels
ROOT = Path(__file__).parents[2]
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


def test_every_kernel_of_torchspec_is_listed():
    files = Path(torchspec.__file__).parent.rglob("*.py")
    written = {name for file in files for name in re.findall(r"@triton\.jit\ndef (\w+)", file.read_text())}
    assert written == {kernel for _, kernel, *_ in KERNELS} | PARTS


@pytest.mark.parametrize(("module", "kernel", "signature", "constants"), KERNELS)
def test_every_kernel_of_torchspec_becomes_code(module, kernel, signature, constants, tmp_path):
    """Two programs at a time on a multiprocessor, so that one loads while the other reduces; 128 registers and 8 bytes beside them."""
    kernel = vars(import_module(module))[kernel]
    code = compile_for_h100(kernel, signature, constants, num_warps=loss_kernels.WARPS)
    assert code.startswith(ELF)
    used = resources(code, tmp_path)
    assert 2 * used["REG"] * 32 * loss_kernels.WARPS <= PROPERTIES.regs_per_multiprocessor
    assert used["STACK"] <= 16 and used["LOCAL"] == 0
    assert 2 * used["SHARED"] <= PROPERTIES.shared_memory_per_multiprocessor


def test_the_losses_are_right():
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{FOLDER}"}
    subprocess.run([sys.executable, ROOT / "tests" / "cuda" / "interpreted.py"], env=environment, check=True, timeout=300)
