"""``finetune`` in Python does what the command does."""

import json

import pytest
import torch
from tiny import save

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill, finetune, read_log, save_real
from ardistill.trajectories import TrajectoryDataset, record

TRAINING = TrainingConfig(max_steps=4, batch_size=2, checkpoint_every=2, tracker=None, inputs="student")
ADVERSARIAL = AdversarialConfig(hidden=8, warmup_steps=1)


@pytest.fixture
def folder(tmp_path):
    """A teacher, its trajectories, a distilled student and real data."""
    save("dit", tmp_path / "teacher")
    teacher = Teacher.from_pretrained(tmp_path / "teacher", guidance_scale=1.0, device="cpu")
    record(teacher, tmp_path / "data", 6, solver_steps=4, num_steps=(2,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    distill(student, data, tmp_path / "run", TrainingConfig(max_steps=1, tracker=None), progress=False)
    latents = torch.randn(6, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    save_real(tmp_path / "real.safetensors", latents, {"class_labels": torch.arange(6) % 2})
    return tmp_path


def test_a_student_is_trained_further_and_resumed(folder):
    validated = []

    def validation(teacher, data, pictures):
        def validate(student, step):
            validated.append((teacher.name, len(data), pictures, step))

        return validate

    def train(name, validation):
        return finetune(
            folder / "run", folder / "data", folder / name, real=folder / "real.safetensors", device="cpu",
            training=TRAINING, adversarial=ADVERSARIAL, validation=validation, progress=False,
        )  # fmt: skip

    whole = train("whole", validation)
    assert validated == [(str(folder / "teacher"), 6, folder / "whole" / "samples", step) for step in (2, 4)]
    settings = json.loads((folder / "whole" / "config.json").read_text())
    assert settings["start"]["student"] == str(folder / "run") and settings["adversarial"]["hidden"] == 8
    [line] = read_log(folder / "whole")
    assert line["step"] == 4 and {"g_loss", "d_loss", "recall"} <= line.keys()

    def dies(teacher, data, pictures):
        def validate(student, step):
            raise InterruptedError

        return validate

    with pytest.raises(InterruptedError):
        train("killed", dies)
    resumed = train("killed", None)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not (folder / "killed" / "samples").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(folder):
    save_real(folder / "small.safetensors", torch.zeros(1, 4, 4, 4), {"class_labels": torch.zeros(1).long()})
    with pytest.raises(ValueError, match=r"holds latents \(4, 4, 4\)"):
        finetune(folder / "run", folder / "data", folder / "out", real=folder / "small.safetensors", device="cpu")
    assert not (folder / "out").exists()
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    with pytest.raises(ValueError, match="to be empty or to hold this run"):
        finetune(folder / "run", folder / "data", folder / "other", real=folder / "real.safetensors", device="cpu")


def test_the_log_of_a_run_without_one_is_an_empty_line(tmp_path):
    assert read_log(tmp_path) == [{}]
