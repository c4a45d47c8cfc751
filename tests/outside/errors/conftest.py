"""A recording and a run of the embedded teacher that the tests of errors work on."""

import contextlib
import subprocess
from pathlib import Path

import pytest
import torch
from apart import DISTILL, RECORD
from PIL import Image

from ardistill.cli import main


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A recording and a finished run of the embedded teacher, and images."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        for out, seed in (("data", 0), ("held_out", 1)):
            main([*RECORD.split(), "--out", out, "--seed", str(seed), "--num_trajectories", "6", "--shard_size", "4"])
        main([*DISTILL.split(), "--training.max_steps", "2"])
        for label in range(10):
            Path("images", str(label)).mkdir(parents=True)
            Image.new("L", (28, 28), 25 * label).save(f"images/{label}/one.png")
        Path("prompts.txt").write_text("a cat\n")
        Path("file").touch()
        Path("text.pt").write_text("hello")
        Path("tabs.yaml").write_text("record:\n\tseed: 1\n")
        torch.save(torch.nn.Linear(1, 1), "module.pt")
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of what was made, in the current folder."""
    subprocess.run(["cp", "-r", str(made), str(tmp_path / "world")], check=True)
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"
