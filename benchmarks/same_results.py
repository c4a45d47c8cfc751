"""Shows that a change of the code leaves every result as it was, to the bit.

``make`` runs the whole way on one machine (recordings, three trainings, exports, a comparison, cost plans) and writes
the digests of what came out; ``check`` does so again with the code as it is now, and also lets it read and continue
what the earlier code had written. Both print the first entry that differs and end with status 1 if one does.

    python benchmarks/same_results.py make runs/before        # with the code before the change
    python benchmarks/same_results.py check runs/before       # with the code after it

Torch's version and the number of threads (one) have to be the same in both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import pyarrow  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402

TRAINING = ["--training.max_steps=20", "--training.batch_size=4", "--training.checkpoint_every=5",
            "--training.keep_checkpoints=4", "--training.tracker=null"]  # fmt: skip
VARYING = ("ms_per_image", "seconds")
"""Figures that a clock gives."""


def run(*words: Any) -> dict[str, Any]:
    """One command of the command line, with its result as a dict."""
    command = [sys.executable, "-m", "ardistill", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def of_tensors(folder: Path) -> str:
    """Digest of all tensors of the safetensors files in a folder, whatever file each of them lies in."""
    found = {}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name).reshape(-1)
                found[name] = (
                    f"{name}{file.get_slice(name).get_shape()}".encode() + tensor.view(torch.uint8).numpy().tobytes()
                )
    return digest(*(found[name] for name in sorted(found)))


def of_shard(path: Path) -> str:
    """Digest of the columns of a shard; its metadata has a checksum over the teacher's path."""
    table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    return digest(*(buffer.to_pybytes() for chunk in chunks for buffer in chunk.buffers() if buffer is not None))


def of_picture(path: Path) -> str:
    return digest(np.asarray(Image.open(path)).tobytes())


def of_export(folder: Path, **inputs: Any) -> str:
    """Digest of the images that diffusers alone draws from an exported folder."""
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(**inputs, generator=torch.Generator().manual_seed(0), output_type="np").images
    return digest(np.ascontiguousarray(images).tobytes())


def steady(value: Any) -> Any:
    """A result without what a clock gave and without paths."""
    if isinstance(value, dict):
        return {key: steady(x) for key, x in value.items() if key not in (*VARYING, "out", "student")}
    return [steady(x) for x in value] if isinstance(value, list) else value


def of_run(folder: Path) -> dict[str, Any]:
    """The log and the tensors of every checkpoint of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    return {"log": lines} | {path.name: of_tensors(path) for path in checkpoints}


def inputs(root: Path) -> None:
    """Teachers, prompts and real images, made by nothing that is compared."""
    from tiny import save

    for name in ("sd3", "flux"):
        save(name, root / "teachers" / name)
    prompts = ["a red cat", "the moon", "a photo of the dog", "dog on the moon"]
    (root / "prompts.txt").write_text("\n".join(prompts))
    random = np.random.default_rng(0)
    for label in range(10):
        folder = root / "images" / str(label)
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(random.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{i}.png")


def way(root: Path) -> dict[str, Any]:
    """The whole way in a folder that has the inputs; digests of what comes out."""
    teachers, data, runs = root / "teachers", root / "data", root / "runs"
    recorded = ["--solver_steps=8", "--num_steps=[1,2,4]", "--shard_size=8"]
    text = [f"--prompts={root / 'prompts.txt'}", "--height=16", "--width=16"]
    run("record", "--teacher=zoo/fashion", f"--out={data / 'fashion'}", "--num_trajectories=28", *recorded,
        "--guidance_scale=1.25")  # fmt: skip
    run("record", "--teacher=zoo/fashion", f"--out={data / 'held_out'}", "--num_trajectories=20", *recorded,
        "--guidance_scale=1.25", "--seed=1")  # fmt: skip
    run("record", f"--teacher={teachers / 'sd3'}", f"--out={data / 'sd3'}", "--num_trajectories=16", *recorded,
        "--guidance_scale=[1.0,3.0]", *text, "--dtype=float16")  # fmt: skip
    run("record", f"--teacher={teachers / 'flux'}", f"--out={data / 'flux'}", "--num_trajectories=8", *recorded,
        "--guidance_scale=2.0", *text)  # fmt: skip
    run("encode", "--teacher=zoo/fashion", f"--images={root / 'images'}", f"--out={data / 'real.safetensors'}")
    students = {
        "gated": ["fashion", "--history_layers=4", "--num_steps=4"],
        "direct": ["fashion", "--history_layers=2", "--num_steps=2", "--mask=M3", "--target=denoised",
                   "--output=direct", "--gated=false", "--training.sequential=true"],
        "sd3": ["sd3", "--history_layers=2", "--num_steps=4", "--target=anchored", "--training.inputs=mixed"],
        "lora": ["fashion", "--history_layers=3", "--num_steps=4", "--lora_rank=2", "--knots=[0,2,4,6,8]"],
        "flux": ["flux", "--history_layers=2", "--num_steps=2"],
    }  # fmt: skip
    for name, (source, *options) in students.items():
        run("distill", f"--trajectories={data / source}", f"--out={runs / name}", *options, *TRAINING)
    run("finetune", f"--student={runs / 'gated'}", f"--trajectories={data / 'fashion'}", f"--out={runs / 'gan'}",
        f"--real={data / 'real.safetensors'}", *TRAINING, "--adversarial.warmup_steps=5",
        "--adversarial.r1_weight=0.1", "--training.inputs=student")  # fmt: skip
    for name in ("gated", "direct", "sd3", "flux", "gan"):
        run("export", f"--student={runs / name}", f"--out={root / 'exports' / name}")
    return read(root) | results(root)


def read(root: Path) -> dict[str, Any]:
    """Digests of the files of a way."""
    shards = {str(x.relative_to(root)): of_shard(x) for x in sorted((root / "data").rglob("*.arrow"))}
    assert shards
    return {"shards": shards, "conditions": of_tensors(root / "data" / "sd3")} | {
        name: of_run(root / "runs" / name) for name in ("gated", "direct", "sd3", "lora", "flux", "gan")
    }


def results(root: Path) -> dict[str, Any]:
    """What is computed from the files of a way: images and figures."""
    runs, data, exports = root / "runs", root / "data", root / "exports"
    found: dict[str, Any] = {}
    for name in ("gated", "direct", "gan", "lora"):
        path = root / f"{name}.png"
        run("sample", f"--student={runs / name}", f"--out={path}", "--count=10")
        found[f"samples of {name}"] = of_picture(path)
    for name in ("gated", "direct", "gan"):
        found[f"export of {name}"] = of_export(exports / name, class_labels=[0, 3, 7])
    prompts = {"prompt": ["a red cat", "the moon"], "height": 16, "width": 16}
    found |= {f"export of {name}": of_export(exports / name, **prompts) for name in ("sd3", "flux")}
    compared = run("compare", f"--students=[{runs / 'gated'},{runs / 'direct'},{runs / 'gan'}]",
                   f"--trajectories={data / 'held_out'}", f"--out={root / 'comparison'}")  # fmt: skip
    found["compare"] = steady(compared)
    found["evaluate"] = steady(run("evaluate", f"--student={runs / 'gated'}", f"--trajectories={data / 'held_out'}"))
    for teacher in ("DiT-XL/2", "zoo/scenes", root / "teachers" / "flux"):
        name = Path(teacher).name
        found[f"cost of {name}"] = steady(run("cost", f"--teacher={teacher}", "--history_layers=1", "--num_steps=4"))
    return found


def differing(before: Any, after: Any, where: str = "") -> list[str]:
    """Paths of the entries that are not alike."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [x for key in before | after for x in differing(before.get(key), after.get(key), f"{where}/{key}")]
    return [] if before == after else [f"{where}: {str(before)[:200]} before, {str(after)[:200]} now"]


def main() -> None:
    verb, root = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "make":
        inputs(root)
        found = {"torch": torch.__version__} | way(root)
        (root / "digests.json").write_text(json.dumps(found, indent=1))
        print(f"{root / 'digests.json'}: {len(found)} entries")
        return
    before = json.loads((root / "digests.json").read_text())
    again = root.with_name(f"{root.name}-again")
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir(parents=True)
    for name in ("teachers", "images"):
        shutil.copytree(root / name, again / name)
    shutil.copy(root / "prompts.txt", again)
    wrong = differing(before, {"torch": torch.__version__} | way(again))
    old = root.with_name(f"{root.name}-read")  # what the earlier code wrote is read, and gives the same
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(root, old)
    results_of_old = results(old)
    wrong += differing({name: before[name] for name in results_of_old}, results_of_old, "/read by the code of now")
    print("\n".join(wrong) or f"equal: {len(before)} entries made anew, {len(results_of_old)} of the earlier files")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
