#!/usr/bin/env bash
# Installs the built wheel into an empty environment and takes it from a recording to an export.
#
#   scripts/check_wheel.sh [WHEEL]     (builds one if none is given; needs uv)
#
# Outside of the checkout, so that nothing but the wheel can be imported.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} HF_HUB_OFFLINE=1

if [ $# -gt 0 ]; then
  wheel=$(realpath "$1")
else
  uv build -q --wheel --out-dir "$work/dist" "$root"
  wheel=$(echo "$work"/dist/*.whl)
fi
uv venv -q --python "${PYTHON:-python3}" "$work/venv"
uv pip install -q --python "$work/venv/bin/python" "$wheel"
cd "$work"
ardistill="$work/venv/bin/ardistill"

"$ardistill" --version
"$work/venv/bin/python" -m ardistill --version
"$ardistill" doctor
"$ardistill" quickstart --help >/dev/null
"$ardistill" record --teacher zoo/fashion --guidance_scale 1.25 --num_trajectories 4 --num_steps "[2]" --out trajectories
"$ardistill" distill --trajectories trajectories --out run --num_steps 2 --history_layers 2 \
  --training.max_steps 2 --training.batch_size 2
"$ardistill" export --student run --out student
"$work/venv/bin/python" - <<'PYTHON'
from importlib.util import find_spec
from pathlib import Path

import ardistill
from diffusers import DiffusionPipeline

package = Path(find_spec("ardistill").origin).parent
assert (package / "py.typed").is_file(), "py.typed is not in the wheel"
assert ardistill.__version__, "no version"
images = DiffusionPipeline.from_pretrained("student", trust_remote_code=True)([0, 1]).images
assert [image.size for image in images] == [(28, 28)] * 2
print(f"ardistill {ardistill.__version__}: recorded, distilled, exported and drawn from the wheel alone")
PYTHON
