"""What a card says, checked by huggingface_hub's own reading of it; the sources are real files of a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import ModelCard
from tiny_students import make

from ardistill import TrainingConfig, TrajectoryDataset, distill, record
from ardistill.files import sealed_json
from ardistill.publishing import export
from ardistill.publishing.card import loading_with_own_module, model_card
from ardistill.publishing.origin import Origin, find_origin, teacher_license
from ardistill.student import Student
from ardistill.teacher import Teacher, hub_id, public_name

METRICS = {
    "arms": {
        "teacher": {"fd": 1.0, "nfe": 48},
        "solver_2": {"fd": 9.0},
        "mine": {"fd": 3.1234567, "fd_to_teacher": 0.5, "kid": None, "recall": float("nan"), "nfe": 2, "seeds": 1},
    },
    "feature_network": "fashion-classifier",
    "num_samples": 140,
    "baseline": "mine",
}


@pytest.fixture
def named(teacher, tmp_path):
    """The tiny teacher in a folder with a card."""
    teacher.transformer.save_pretrained(tmp_path / "teacher" / "transformer")
    teacher.scheduler.save_pretrained(tmp_path / "teacher" / "scheduler")
    card = "---\nlicense: other\nlicense_name: house\nlicense_link: https://example.org/l\n---\n# Teacher\n"
    (tmp_path / "teacher" / "README.md").write_text(card)
    return Teacher.from_pretrained(tmp_path / "teacher", guidance_scale=1.0, device="cpu")


@pytest.fixture
def run(named, tmp_path):
    """A run of it with an evaluation, whose figures stand for measured ones."""
    record(named, tmp_path / "data", 4, solver_steps=4, num_steps=(2,), shard_size=2, progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(named, data.student_config(history_layers=2))
    training = TrainingConfig(max_steps=2, batch_size=2, tracker=None, gradient_checkpointing=True)
    distill(student, data, tmp_path / "runs" / "mine", training, progress=False)
    evaluation = tmp_path / "runs" / "mine" / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps(METRICS))
    (evaluation / "figures.md").write_text("| arm | FD |")
    (evaluation / "samples.png").write_bytes(b"a picture")
    return tmp_path / "runs" / "mine"


def test_the_card_of_a_run(run, named, tmp_path):
    student = Student.from_pretrained(run, "cpu")
    export(student, named, tmp_path / "out", run=run, datasets=["me/recording"])
    card = ModelCard.load(tmp_path / "out" / "README.md")  # a damaged model-index would be refused here
    data = card.data
    assert (data.license, data.license_name, data.license_link) == ("other", "house", "https://example.org/l")
    assert data.library_name == "diffusers" and data.datasets == ["me/recording"] and "ardistill" in data.tags
    assert data.pipeline_tag == "unconditional-image-generation" and data.base_model is None
    assert data.get("base_model_relation") is None and data.model_name == "mine"
    found = {x.metric_type: x for x in data.eval_results}
    assert {name: x.metric_value for name, x in found.items()} == {"fd": 3.12346, "fd_to_teacher": 0.5, "nfe": 2}
    assert found["fd"].metric_name == "FD-fashion-classifier" and found["fd"].dataset_name.endswith("of teacher")
    assert found["fd"].metric_args == {"feature_network": "fashion-classifier", "num_samples": 140}
    for said in (
        "| arm | FD |", "![Samples](samples.png)", "- Teacher: teacher, weights", "Trajectories: 4, of seed 0",
        "Training: 2 steps, batch_size 2", "gradient_checkpointing: true", "Versions: ardistill 0.1.0, torch",
        "hours of cpu", "figures are of 140 samples", "`house`, inherited from the teacher's card",
    ):  # fmt: skip
        assert said in card.text, said
    assert str(tmp_path) not in str(card)  # no path of this machine
    assert (tmp_path / "out" / "samples.png").read_bytes() == b"a picture"


def test_the_time_of_a_run_is_counted_over_its_checkpoints(run):
    found = json.loads((run / "environment.json").read_text())
    assert 0 < found["device_seconds"]["cpu"] < 600 and found["dataset"] is None


def test_a_checkpoint_a_start_and_a_discriminator_are_said(run, named):
    path = run / "config.json"
    settings = {key: x for key, x in json.loads(path.read_text()).items() if key != "seal"}
    path.write_bytes(
        sealed_json(settings | {"start": {"student": "/home/someone/first"}, "adversarial": {"hidden": 3}})
    )
    student = Student.from_pretrained(run, "cpu")
    origin = find_origin(run / "checkpoints" / "step-00000002", named)
    card = model_card(student, loading_with_own_module(student, Path(__file__), "it has history"), origin=origin)
    for said in ("Training: step 2 of 2 steps", "started from another student, first,", "judged its last step"):
        assert said in card
    assert "not measured" in card and "/home/someone" not in card and not origin.metrics


def test_what_is_not_known_is_not_said(run, named):
    student = Student.from_pretrained(run, "cpu")
    text = model_card(student, loading_with_own_module(student, Path(__file__), "it has history"))
    data = ModelCard(text).data
    assert data.license is None and data.eval_results is None and data.datasets is None and "widget" not in data
    assert "The run that trained it is not known" in text and "None is named here" in text and "Cost" not in text
    (run / "environment.json").unlink()
    assert "Versions" not in model_card(student, "", origin=find_origin(run, named))


def test_a_student_of_a_teacher_on_the_hub_takes_prompts():
    student = make("pixart-sigma")
    student.config = replace(student.config, teacher="org/model@main:fp16")
    origin = Origin(
        name="x", metrics=METRICS | {"feature_network": "inception", "prompts": [*"abcd"], "baseline": "mine"}
    )
    data = ModelCard(model_card(student, "", origin=origin, relation="adapter")).data
    assert data.base_model == "org/model" and data["base_model_relation"] == "adapter"
    assert data["widget"] == [{"text": x} for x in "abc"] and data.pipeline_tag == "text-to-image"
    found = {x.metric_type: x.metric_name for x in data.eval_results}
    assert found == {"fid": "FID", "fid_to_teacher": "FID to teacher", "nfe": "NFE"}
    student.config = replace(student.config, sample_shapes=((4, 8, 8, 8),))
    assert ModelCard(model_card(student, "")).data.pipeline_tag == "text-to-video"


def test_where_a_teacher_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("org/model", "org/model@v1", "zoo/fashion", "/a/folder", "", "teachers/mine", "DiT.pt")
    (tmp_path / "teachers" / "mine").mkdir(parents=True)
    assert [hub_id(x) for x in names] == ["org/model", "org/model", None, None, None, None, None]
    shown = ["org/model", "org/model", "zoo/fashion", "folder", "an unnamed teacher", "mine", "DiT.pt"]
    assert [public_name(x) for x in names] == shown


def test_licences(named, tmp_path):
    assert teacher_license("") == teacher_license(str(tmp_path)) == teacher_license("org/unknown") == {}
    assert teacher_license("zoo/fashion") == {"license": "mit"}
    house = teacher_license(named.name)
    assert find_origin(None, named).license == house == find_origin(None, named, "other").license
    given = find_origin(None, named, "mit")
    assert given.license == {"license": "mit"} and given.teacher_license == house
    for text in ("no metadata", "---\nlicense: [\n---\n", "---\ntags: [x]\n---\n", "---\n3\n---\n"):
        (tmp_path / "teacher" / "README.md").write_text(text)
        assert teacher_license(named.name) == {}
    with pytest.raises(ValueError, match="expected Hub ids of data sets, such as you/recording, got 'mine'"):
        find_origin(None, named, datasets=["mine"])


def test_the_licence_of_a_teacher_on_the_hub(tmp_path, monkeypatch):
    with Hub() as hub:
        hub.point_here(monkeypatch, tmp_path / "home")
        card = "---\nlicense: other\nlicense_name: house\nlicense_link: LICENSE.md\n---\n"
        hub.add("org/model", {"README.md": card.encode()})
        link = f"{hub.url}/org/model/blob/main/LICENSE.md"
        expected = {"license": "other", "license_name": "house", "license_link": link}
        assert teacher_license("org/model") == expected
    assert teacher_license("org/model") == expected  # the Hub is gone, its cache is there


def test_damaged_figures_are_refused_before_anything_is_written(run, named, tmp_path):
    (run / "evaluation" / "metrics.json").write_text('{"arms": ')
    with pytest.raises(ValueError, match=r"metrics.json cannot be read .*; delete it"):
        export(Student.from_pretrained(run, "cpu"), named, tmp_path / "out", run=run)
    assert not (tmp_path / "out").exists()
