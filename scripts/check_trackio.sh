#!/usr/bin/env bash
# Trains with Trackio, in an environment of its own on top of .venv, and reads back what it kept. Needs uv.
#
#   scripts/check_trackio.sh
#
# Trackio asks for another Pillow than requirements.lock has, so that the tests cannot be run with it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} HF_HUB_OFFLINE=1
python=${PYTHON:-.venv/bin/python}

uv venv -q --python "$python" "$work/venv"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$work/locked.pth"
mv "$work/locked.pth" "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
uv pip install -q --python "$work/venv/bin/python" "trackio>=0.43"
PYTHONPATH=$PWD/src TRACKIO_DIR=$work/trackio "$work/venv/bin/python" scripts/check_trackio.py "$work"
