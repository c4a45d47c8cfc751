"""Bad arguments of functions and classes."""

import pytest
import torch
from cli.bad_input import Case, check

import ardistill
from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, record, sample
from ardistill.config import AdversarialConfig
from ardistill.evaluation import feature_network
from ardistill.teacher import Companions
from ardistill.training.real_images import load_real
from ardistill.trajectories import load_prompts


def tiny_config(**options: object) -> StudentConfig:
    return TrajectoryDataset("data", 4).student_config(**{"history_layers": 1, **options})


def fashion(**options: object) -> Teacher:
    return Teacher.from_pretrained("zoo/fashion", **{"guidance_scale": 1.25, **options})


def run_student() -> Student:
    return Student.from_pretrained("run")


LABELS = {"class_labels": torch.zeros(2, dtype=torch.long)}
CALLED = {
    "dataset-draws": (lambda: TrajectoryDataset("data", 4, draws="columns"), "unknown draws 'columns'"),
    "dataset-teacher": (lambda: TrajectoryDataset("data", 4, "0" * 64), "got another teacher"),
    "dataset-knots": (lambda: TrajectoryDataset("data", [0, 9]), "rising from 0 to 8"),
    "config-mask": (lambda: tiny_config(mask="M5"), "unknown mask 'M5'"),
    "config-output": (lambda: tiny_config(output="raw"), "unknown output 'raw'"),
    "student-shape": (lambda: run_student()(torch.zeros(2, 3, 1, 28, 28), LABELS), "expected inputs"),
    "student-rank": (lambda: run_student()(torch.zeros(2, 28), LABELS), "expected inputs"),
    "sample-shape": (lambda: sample(run_student(), torch.zeros(2, 28), LABELS), "expected noise"),
    "sample-rows": (lambda: sample(run_student(), torch.zeros(3, 1, 28, 28), LABELS), r"\(3, 1, 28, 28\) and \[2\]"),
    "teacher-labels": (lambda: fashion().check_condition({"class_labels": torch.tensor([11])}), r"labels in 0\.\.9"),
    "teacher-dtype": (lambda: fashion().encode(["a cat"]), "class labels"),
    "record-dtype": (lambda: record(fashion(), "out", 4, dtype="int8"), "unknown dtype 'int8'"),
    "record-prompts": (lambda: record(fashion(), "out", 4, prompts=["cat"]), "leave the prompts out"),
    "record-type": (lambda: record(fashion(), "out", 4, solver_steps=4, num_steps=()), "num_steps"),
    "prompts": (lambda: load_prompts("a/b/c"), "a text or JSONL file"),
    "real": (lambda: load_real("noise.bin", fashion()), "no file of real latents"),
    "training": (lambda: TrainingConfig(through_steps=1), "needs inputs student"),
    "adversarial": (lambda: AdversarialConfig(hidden=0), "hidden of 1 or more"),
    "pipeline-part": (lambda: Companions("foreign")["vae"], "a part of diffusers or transformers.*'os'"),
    "pipeline-index": (lambda: Companions("list"), "expected the index of a diffusers pipeline, got list"),
    "features": (lambda: feature_network("noise.bin"), "noise.bin cannot be read as a TorchScript file"),
    "load": (lambda: ardistill.load("empty"), "empty"),
    "adapters": (lambda: Student.from_adapters(fashion(), "empty"), "distil with lora_rank"),
    "distill-data": (
        lambda: distill(run_student(), TrajectoryDataset("data", 1), "out", TrainingConfig()), "not the student's knots"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLED)
def test_bad_calls_are_named_in_one_line_and_leave_nothing(world, capsys, name):
    act, said = CALLED[name]
    check(Case(act, said), world, capsys)
