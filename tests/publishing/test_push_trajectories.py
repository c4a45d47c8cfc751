"""Recordings pushed to the stand-in of the Hub, and read back from there."""

import os
import subprocess
import sys

import pytest
import torch
from hub_server import Hub
from huggingface_hub import DatasetCard

from ardistill import TrainingConfig, TrajectoryDataset, distill, push_trajectories, record
from ardistill.publishing import export
from ardistill.publishing.origin import find_origin
from ardistill.student import Student
from ardistill.trajectories import export_parquet

OPTIONS = {"solver_steps": 4, "num_steps": (2,), "shard_size": 4, "progress": False}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        hub.point_here(monkeypatch, tmp_path / "home")
        yield hub


@pytest.fixture
def recorded(teacher, tmp_path):
    record(teacher, tmp_path / "data", 10, **OPTIONS)
    return tmp_path / "data"


def test_a_student_is_trained_from_a_pushed_recording(hub, recorded, teacher, tmp_path):
    """What is read through hf:// is the recording, to the bit; the run and then the card name the data set."""
    assert push_trajectories(recorded, "me/recording", license="mit") == f"{hub.url}/datasets/me/recording"
    assert [x.name for x in tmp_path.iterdir() if "parquet" in x.name] == []  # nothing is left behind
    there = hub.repositories["dataset", "me/recording"]
    assert there.commits[1:] == ["10 trajectories (ardistill 0.1.0)"]
    here, pushed = TrajectoryDataset(recorded, 2), TrajectoryDataset("hf://datasets/me/recording", 2)
    rows = torch.arange(10)
    assert torch.equal(here.batch(rows)["states"], pushed.batch(rows)["states"])
    card = DatasetCard(there.files["README.md"].decode())
    assert card.data.license == "mit" and 'load_dataset("me/recording"' in card.text
    assert 'TrajectoryDataset("hf://datasets/me/recording"' in card.text
    student = Student.from_teacher(teacher, pushed.student_config(history_layers=1))
    distill(student, pushed, tmp_path / "run", TrainingConfig(max_steps=1, batch_size=2, tracker=None), progress=False)
    assert find_origin(tmp_path / "run", teacher, datasets=["me/other"]).datasets == ["me/recording", "me/other"]
    export(student.eval(), teacher, tmp_path / "export", run=tmp_path / "run")
    assert "datasets:\n- me/recording\n" in (tmp_path / "export" / "README.md").read_text()


def test_an_interrupted_push_goes_on_and_a_grown_recording_replaces(hub, recorded, teacher, tmp_path):
    hub.large_from = 2000
    hub.fails("POST", "/commit/", times=100)
    with pytest.raises(ValueError, match="the push was interrupted"):
        push_trajectories(recorded, "me/recording")
    assert (tmp_path / ".data.parquet").is_dir() and len(hub.objects) >= 3
    hub.mend()
    stored = set(hub.objects)
    hub.requests.clear()
    push_trajectories(recorded, "me/recording")
    assert not {path.rpartition("/")[2] for kind, path in hub.requests if kind == "PUT"} & stored
    record(teacher, recorded, 14, **OPTIONS)
    push_trajectories(recorded, "me/recording", out=tmp_path / "kept")
    files = [x for x in hub.repositories["dataset", "me/recording"].files if x.startswith("data/")]
    assert sorted(files) == [f"data/train-0000{i}-of-00004.parquet" for i in range(4)]
    assert len(TrajectoryDataset("hf://datasets/me/recording", 2)) == 14
    hub.requests.clear()
    push_trajectories(tmp_path / "kept", "me/recording")  # the Parquet form itself
    assert not any("/commit/" in path for _, path in hub.requests)


def test_what_is_no_recording_or_another_one_is_refused(hub, recorded, teacher, tmp_path):
    with pytest.raises(ValueError, match=r"expected trajectories \(manifest.json\)"):
        push_trajectories(tmp_path, "me/recording")
    hub.add("me/mine", {"data.csv": b"1"}, kind="dataset")
    with pytest.raises(ValueError, match="me/mine holds something that ardistill did not write"):
        push_trajectories(recorded, "me/mine")
    push_trajectories(recorded, "me/recording")
    record(teacher, tmp_path / "other", 4, seed=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"me/recording holds another recording .seed is 0 there, 1 asked for"):
        push_trajectories(tmp_path / "other", "me/recording")
    (recorded / "shard-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.arrow is missing"):
        push_trajectories(recorded, "me/half")
    assert ("dataset", "me/half") not in hub.repositories


@pytest.mark.slow
def test_datasets_loads_a_pushed_recording_from_the_hub(hub, recorded, tmp_path):
    export_parquet(recorded, tmp_path / "parquet", progress=False)
    push_trajectories(tmp_path / "parquet", "me/recording")
    script = """
import datasets, sys
rows = datasets.load_dataset("me/recording", split="train").with_format("numpy")
print(len(rows), rows[9]["states"].reshape(-1, *rows[9]["shape"]).shape, sorted(rows.column_names))
"""
    environment = os.environ | hub.environment(tmp_path / "stranger")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    columns = ["denoised", "guidance_scale", "index", "label", "shape", "states"]
    assert done.stdout.strip() == f"10 (3, 4, 8, 8) {columns}"
