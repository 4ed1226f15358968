#!/usr/bin/env bash
# What the tests of the CUDA path need beside torch's CPU build: Triton's compiler and a stub device. usage: env.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
command -v g++ > /dev/null || { echo "make cuda-lowering compiles tests/cuda/guard.cpp: install g++ and start it again" >&2; exit 1; }
mkdir -p "$folder"
torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
"$python" -m pip install -q --disable-pip-version-check --no-compile --no-deps --upgrade --target "$folder" triton==3.7.1 # the one that torch 2.13 names
g++ -O1 -fPIC -shared -std=c++20 -I"$torch/include" -I"$torch/include/torch/csrc/api/include" "$(dirname "$0")/guard.cpp" \
  -o "$folder/guard.so" -L"$torch/lib" -Wl,-rpath,"$torch/lib" -lc10 -ltorch_cpu
