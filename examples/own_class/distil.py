"""Distil a transformer of one's own: from its class to a student that loads without ardistill.

python examples/own_class/distil.py OUT
"""

import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from normed_dit import NormedDiT

from ardistill import TrainingConfig, register_family
from ardistill.evaluation import draw_samples
from ardistill.families import Family
from ardistill.publishing import export
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

# Where it attends, its output layers, and the diffusers pipeline whose loop calls it as the class is called.
ROW = Family(
    block_lists=("blocks",),
    attention=("attention",),
    head=("proj_out",),
    time_embedding="time_embedding",
    pipeline="DiTPipeline",
)


def main(out: Path) -> None:
    """Record, distil in 2 steps, draw and export."""
    register_family(NormedDiT, ROW)
    torch.manual_seed(0)
    transformer = NormedDiT()  # NormedDiT.from_pretrained(...) for your weights
    teacher = Teacher(transformer, DDIMScheduler(), guidance_scale=2.0)
    record(teacher, out / "data", 16, solver_steps=8, num_steps=(2,))
    data = TrajectoryDataset(out / "data", 2, teacher.fingerprint())
    student = Student.from_teacher(teacher, data.student_config(history_layers=4))
    student = distill(student, data, out / "run", TrainingConfig(max_steps=20, batch_size=4))
    draw_samples(student, teacher, out / "samples.png", count=8)
    export(student, teacher, out / "student")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
