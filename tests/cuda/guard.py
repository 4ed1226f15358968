"""The first plugin that pytest loads (Makefile): torch asks once, when it is imported, who answers for CUDA devices. guard.cpp does."""

import ctypes
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".interop" / "cuda"  # made by env.sh

if "torch" in sys.modules:
    pytest.exit("tests/cuda needs its stub of a device before torch: start it as `make cuda-lowering`", returncode=2)
ctypes.CDLL(str(FOLDER / "guard.so"))
sys.path.append(str(FOLDER))  # Triton, which torch's CPU build does not bring
