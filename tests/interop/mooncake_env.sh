#!/usr/bin/env bash
# The system libraries that Mooncake loads, unpacked into FOLDER/lib without touching the system. usage: mooncake_env.sh FOLDER
set -euo pipefail
folder=$1
packages=(libibverbs1 librdmacm1 libnuma1 libnl-3-200 libnl-route-3-200)
mkdir -p "$folder/lib"
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
cd "$unpacked"
if ! apt-get download -q "${packages[@]}" > log 2>&1; then
  echo "mooncake_env.sh: ${packages[*]} cannot be downloaded ($(tail -1 log)); the Mooncake tests are skipped unless the system has them"
  exit 0
fi
for package in *.deb; do dpkg-deb -x "$package" .; done
find usr/lib lib -name '*.so*' -exec cp -P {} "$OLDPWD/$folder/lib/" \; 2> /dev/null || true
