"""The real DiT-XL/2-256 architecture with random weights: record, one distillation step, one 4-step sample.

    python benchmarks/dit_xl2.py [--json FILE]

Each part is a process of its own; seconds, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, record, sample
from ardistill.planning import transformer_config


def make(folder: Path) -> float:
    """A teacher's folder: random everywhere, or the zero gates would hide the work."""
    torch.manual_seed(0)
    config = transformer_config("DiT-XL/2")
    transformer = DiTTransformer2DModel(**{k: v for k, v in config.items() if k != "_class_name"})
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    transformer.save_pretrained(folder / "teacher" / "transformer")
    DDIMScheduler().save_pretrained(folder / "teacher" / "scheduler")
    return sum(p.numel() for p in transformer.parameters())


def record_two(folder: Path) -> float:
    """Two trajectories of 24 guided steps, three of four channels guided."""
    teacher = Teacher.from_pretrained(folder / "teacher", guidance_scale=1.5, guidance_channels=3)
    began = time.perf_counter()
    record(teacher, folder / "trajectories", 2, num_steps=(4,), progress=False)
    return time.perf_counter() - began


def distill_one_step(folder: Path) -> float:
    """S = 4, N = 6, batch 1, AdamW and EMA, blocks checkpointed; the run ends with a student on disk."""
    teacher = Teacher.from_pretrained(folder / "teacher")
    data = TrajectoryDataset(folder / "trajectories", 4, teacher.fingerprint())
    student = Student(teacher.transformer.requires_grad_(True), data.student_config(history_layers=6))
    del teacher
    config = TrainingConfig(max_steps=1, batch_size=1, gradient_checkpointing=True, tracker=None)
    began = time.perf_counter()
    distill(student, data, folder / "run", config, progress=False)
    return time.perf_counter() - began


def sample_once(folder: Path) -> float:
    """One image, four steps, from the student on disk."""
    student = Student.from_pretrained(folder / "run")
    noise, condition = torch.randn(1, 4, 32, 32), {"class_labels": torch.tensor([207])}
    began = time.perf_counter()
    drawn = sample(student, noise, condition)
    assert drawn.isfinite().all()
    return time.perf_counter() - began


PARTS = {"parameters": make, "record": record_two, "distill": distill_one_step, "sample": sample_once}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--part", nargs=2, help="one part and its folder, in this process")
    args = parser.parse_args()
    if args.part:
        value = PARTS[args.part[0]](Path(args.part[1]))
        print(json.dumps([value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            value, peak = json.loads(done.stdout.splitlines()[-1])
            found[part] = {"value" if part == "parameters" else "seconds": value, "peak_gib": peak / 2**30}
            print(part, found[part], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
