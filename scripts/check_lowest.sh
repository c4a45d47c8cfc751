#!/usr/bin/env bash
# Runs a part of the tests with the lowest versions of the direct dependencies that pyproject.toml allows. Needs uv.
#
#   scripts/check_lowest.sh [TESTS ...]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} PYTHONPATH=$PWD/src

uv venv -q --python "${PYTHON:-python3}" "$work/venv"
uv pip compile -q --no-config --resolution lowest-direct --python "$work/venv/bin/python" --extra lora --extra text \
  pyproject.toml -o "$work/lowest.txt"
uv pip install -q --no-config --python "$work/venv/bin/python" -r "$work/lowest.txt" hypothesis pytest pytest-timeout ruff torchmetrics
uv pip install -q --no-config --python "$work/venv/bin/python" --no-deps -e . torch-fidelity==0.4.0
if [ $# -eq 0 ]; then
  set -- tests/student tests/families tests/publishing tests/cli/test_cli.py
fi
"$work/venv/bin/python" -m pytest -m "not slow" "$@"
