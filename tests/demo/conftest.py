"""Students of an embedded teacher after a few training steps, for the page to draw with."""

from pathlib import Path

import pytest

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, record


@pytest.fixture(scope="session", autouse=True)
def gradios_files(tmp_path_factory):
    """Gradio's copies of what pages show are the test's, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs ``four`` and ``two``, named after their steps."""
    folder = tmp_path_factory.mktemp("demo")
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    record(teacher, folder / "data", 4, solver_steps=4, num_steps=(2, 4), progress=False)
    for name, steps in (("four", 4), ("two", 2)):
        data = TrajectoryDataset(folder / "data", steps)
        student = Student.from_teacher(teacher, data.student_config(history_layers=2))
        training = TrainingConfig(max_steps=2, batch_size=2, learning_rate=1e-3, tracker=None, ema_decay=0.5)
        distill(student, data, folder / name, training, progress=False)
    return folder
