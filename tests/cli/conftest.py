"""Trajectories and a student of the embedded teacher, and files that are neither."""

import os
import shutil

import pytest
import torch

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.training.real_images import save_real


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Trajectories and a student of the embedded teacher, and files that are no such thing."""
    folder = tmp_path_factory.mktemp("made")
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    record(teacher, folder / "data", 4, solver_steps=8, num_steps=(1, 4), shard_size=2, progress=False)
    data = TrajectoryDataset(folder / "data", 4)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    distill(student, data, folder / "run", TrainingConfig(max_steps=1, batch_size=2, tracker=None))
    for name, size in (("real", 8), ("fits", 28)):
        save_real(folder / f"{name}.safetensors", torch.zeros(2, 1, size, size), {"class_labels": torch.arange(2)})
    (folder / "empty").mkdir()
    for name, text in {"full/notes.txt": "mine", "empty.txt": "\n", "rows.jsonl": '{"words": "a cat"}\n'}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "foreign/vae").mkdir(parents=True)
    (folder / "foreign/model_index.json").write_text('{"vae": ["os", "system"]}')
    (folder / "list").mkdir()
    (folder / "list/model_index.json").write_text("[]")
    (folder / "noise.bin").write_bytes(bytes(range(128, 256)))
    shutil.copy(folder / "noise.bin", folder / "noise.pt")
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """What was made, in the current folder; linked, not copied."""
    shutil.copytree(made, tmp_path / "world", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"
