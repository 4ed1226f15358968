#!/usr/bin/env bash
# A virtual environment with SGLang for text models on CPU. usage: sglang_env.sh FOLDER
# The wheel is made for CUDA: what it requires for GPUs, images and sound stays out, and sglang_cpu/ stands in for the two
# modules that its CPU path imports all the same.
set -euo pipefail
folder=$1
version=0.5.23
here=$(dirname "$0")
unused='^(torch|torchaudio|torchvision|torchcodec|cuda-python|flash-attn|flashinfer|humming|nvidia|nvshmem|sgl-|sglang-kernel|tilelang|quack'
unused+='|timm|decord|av|deepseek|tml-|apache|mistral|modelscope|smg|blobfile|anthropic|kernels|openai-harmony)'
python3 -m venv "$folder"
pip=("$folder/bin/python" -m pip -q --disable-pip-version-check)
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
"${pip[@]}" install --no-compile torch==2.13.0
"${pip[@]}" download --no-deps -d "$wheel" "sglang==$version"
"$folder/bin/python" "$here/requires.py" "$wheel"/sglang-*.whl | grep -v -i -E "$unused" > "$wheel/requirements.txt"
"${pip[@]}" install --no-compile torch==2.13.0 -r "$wheel/requirements.txt"
"${pip[@]}" install --no-compile --no-deps "$wheel"/sglang-*.whl
cp -r "$here"/sglang_cpu/* "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for _ in 1 2 3 4 5 6; do # modules that it imports without requiring them on CPU
  missing=$("$folder/bin/python" -c 'import sglang.srt.entrypoints.http_server' 2>&1 | sed -n "s/^ModuleNotFoundError: No module named '\([^'.]*\).*/\1/p")
  [ -n "$missing" ] || break
  "${pip[@]}" install --no-compile --no-deps "$missing"
done
"${pip[@]}" install --no-compile "ray[default,train]==2.60.0" omegaconf datasets matplotlib # what torchspec needs beside SGLang
"$folder/bin/python" -c 'import sglang; print("sglang", sglang.__version__)'
