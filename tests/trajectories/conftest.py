"""Recordings of a tiny teacher of classes and of one of text."""

import pytest
from tiny import save
from trajectories.recordings import OPTIONS

from ardistill.teacher import Teacher
from ardistill.trajectories import (
    record,
)


@pytest.fixture
def recorded(teacher, tmp_path):
    record(teacher, tmp_path / "data", 22, **OPTIONS)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def with_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    teacher = Teacher.from_pretrained(save("pixart", folder / "teacher"), guidance_scale=2.0, device="cpu")
    record(teacher, folder / "data", 8, prompts=["a", "red cat", "a"], **OPTIONS)
    return teacher, folder / "data"
