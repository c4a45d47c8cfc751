"""Students compared in Python, as the commands evaluate and compare do."""

import json

import pytest

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.config import JudgeConfig
from ardistill.evaluation import compare_students, evaluate, evaluation_folder, run_of
from ardistill.evaluation.judge import Judge
from ardistill.evaluation.runs import trained_in, trained_on

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:12 samples for 128 features")]


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """Two runs of the embedded teacher, with 1 and 2 steps, and held-out trajectories."""
    folder = tmp_path_factory.mktemp("way")
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    for name, count, seed in (("train", 4, 0), ("held_out", 12, 1)):
        record(teacher, folder / name, count, solver_steps=2, num_steps=(1, 2), seed=seed, progress=False)
    for num_steps in (1, 2):
        data = TrajectoryDataset(folder / "train", num_steps)
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        training = TrainingConfig(max_steps=1, batch_size=2, tracker=None)
        distill(student, data, folder / f"run-{num_steps}", training, progress=False)
    return folder


def test_students_are_compared_with_the_first_as_baseline(way):
    students = [way / "run-2", way / "run-1"]
    found = compare_students(students, way / "held_out", way / "compared")
    assert list(found.arms) == ["teacher", "solver_1", "solver_2", "run-2", "run-1"]
    assert found.baseline == "run-2" and list(found.intervals) == ["solver_1", "solver_2", "run-1"]
    assert found.with_history == ()  # the baseline has history, too
    assert found.selected == min(("run-2", "run-1"), key=lambda name: found.arms[name]["fd"])
    assert [x.name for x in found.headlines] == ["as fast as the teacher", found.headlines[1].name]
    assert found.feature_network == "fashion-classifier" and found.folder == way / "compared"
    assert {name: len(x["free_running"]) for name, x in found.error_per_step.items()} == {"run-2": 2, "run-1": 1}
    names = {"metrics.json", "report.html", "samples.png", "exposure_bias.png", "figures.md"}
    assert {path.name for path in (way / "compared").iterdir()} == names
    assert json.loads((way / "compared" / "metrics.json").read_text()) == found.to_dict()
    assert (way / "compared" / "figures.md").read_text() == found.markdown()


def test_a_loaded_teacher_gives_the_same_figures(way):
    by_name = evaluate(way / "run-1", way / "held_out")
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    loaded = evaluate(way / "run-1", way / "held_out", way / "loaded", teacher=teacher, device="cpu")
    assert by_name.folder == evaluation_folder(way / "run-1") == way / "run-1" / "evaluation"
    for arm, figures in by_name.arms.items():
        assert {**figures, "ms_per_image": 0} == {**loaded.arms[arm], "ms_per_image": 0}


def test_another_teacher_is_refused(way):
    emoji = Teacher.from_pretrained("zoo/emoji", guidance_scale=1.25)
    with pytest.raises(ValueError, match=r"expected the teacher zoo/fashion .* got another teacher, zoo/emoji"):
        evaluate(way / "run-1", way / "held_out", way / "refused", teacher=emoji)
    unguided = Teacher.from_pretrained("zoo/fashion")
    with pytest.raises(ValueError, match=r"guidance scale, 1\.25 to 1\.25, got 1;"):
        evaluate(way / "run-1", way / "held_out", way / "refused", teacher=unguided)
    assert not (way / "refused").exists()


def test_bad_choices_of_students_are_refused(way):
    with pytest.raises(ValueError, match="one student or more"):
        compare_students([], way / "held_out", way / "refused")
    with pytest.raises(ValueError, match="different names"):
        compare_students([way / "run-1", way / "run-1" / "student"], way / "held_out", way / "refused")
    with pytest.raises(ValueError, match="expected held-out trajectories"):
        compare_students([way / "run-1"], way / "train", way / "refused")


def test_a_student_is_traced_to_its_run(way):
    run = way / "run-1"
    assert run_of(run) == run_of(run / "student") == run_of(run / "adapters") == (run, "")
    (step,) = (run / "checkpoints").glob("step-*")
    assert run_of(step) == (run, f"-{step.name}")
    assert evaluation_folder(step) == run / f"evaluation-{step.name}"
    assert run_of(way / "held_out") == (way / "held_out", "")
    assert trained_in(step) == run and trained_on(run) == (0, None)
    (way / "link").symlink_to(run / "student")
    assert run_of(way / "link") == (way / "link", "") and trained_in(way / "link") == run


def test_an_embedded_teachers_own_features_come_with_its_reference():
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    judge = Judge.from_config(JudgeConfig(features="fashion-classifier"), teacher)
    assert judge.text_scores == {} and judge.reference is not None
