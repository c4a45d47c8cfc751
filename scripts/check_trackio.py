"""Trains a student with Trackio and reads scalars, settings and grids back from its database: check_trackio.sh."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import TRACKIO_DIR

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.training import read_log


def main(folder: Path) -> None:
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25, device="cpu")
    record(teacher, folder / "data", 4, solver_steps=4, num_steps=(1, 2), progress=False)
    data = TrajectoryDataset(folder / "data", 2)
    for max_steps in (2, 3):  # the second resumes the first
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        config = TrainingConfig(max_steps=max_steps, batch_size=2, tracker="trackio", checkpoint_every=1)
        distill(
            student,
            data,
            folder / "run",
            config,
            validate=lambda _, step: np.full((6, 8, 3), step, np.uint8),
            progress=False,
        )
    runs = SQLiteStorage.get_run_records("ardistill")
    assert [x["name"] for x in runs] == ["run", "run"], runs
    lines = [line for x in runs for line in SQLiteStorage.get_logs("ardistill", run_id=x["id"])]
    losses = {x["step"]: x["loss"] for x in lines if "loss" in x}
    assert list(losses) == [2, 3] and losses[3] == read_log(folder / "run")[-1]["loss"], losses
    grids = {x["step"]: x["samples"]["file_path"] for x in lines if "samples" in x}
    assert list(grids) == [1, 2, 3], grids
    for step, name in grids.items():
        kept = np.asarray(Image.open(TRACKIO_DIR / "media" / name).convert("RGB"))
        assert np.array_equal(kept, np.full((6, 8, 3), step, np.uint8)), name
    config = SQLiteStorage.get_run_config("ardistill", run_id=runs[-1]["id"])
    assert config["training"]["max_steps"] == 3 and config["student"]["history_layers"] == 1, config
    print(f"Trackio received the losses {losses}, the settings and {len(grids)} grids")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
