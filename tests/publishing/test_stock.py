"""Students that diffusers' own pipeline draws: the call on the card, without this package, of all families."""

import hashlib
import re

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from stranger import alone
from tiny import PIPELINES, save

from ardistill.publishing import export, load, pipeline_source
from ardistill.publishing.stock import stock_form
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher, stock_drawing, stock_knots
from ardistill.trajectories import TrajectoryDataset, nested_indices, record, select_knots

CASES = [(name, "uneven" if x.given_times else "own") for name, x in PIPELINES.items()]
CASES += [(name, "own") for name in ("pixart", "flux", "flux2", "z-image", "lumina2")]
"""Every family, with knots that its pipeline is given, or with those of its own grid, and some with both."""
IMAGES = {"output_type": "pt"}
SCRIPT = """
import sys, torch
import diffusers
for folder in sys.argv[1:]:
    card = open(f"{folder}/README.md").read()
    code = card.split("```python")[1].split("```")[0].replace("this/folder", folder)
    load, call = code.split("\\nimages = ")
    names = {}
    exec(load, names)
    names["pipeline"].set_progress_bar_config(disable=True)
    assert "diffusers_modules" not in type(names["pipeline"]).__module__, type(names["pipeline"])
    torch.manual_seed(0)
    call, result = call.rsplit(").", 1)
    exec("images = " + call + open(f"{folder}/more.txt").read() + ")." + result, names)
    torch.save(names["images"], f"{folder}/images.pt")
"""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: Teacher.from_pretrained(save(name, folder / name), **PIPELINES[name].size) for name in PIPELINES}


@pytest.mark.slow
def test_the_call_on_the_card_draws_what_ours_draws(teachers, tmp_path):
    folders = [tmp_path / kind / name for name, kind in CASES]
    for (name, kind), folder in zip(CASES, folders, strict=True):
        teacher = teachers[name]
        solver = teacher.knots(PIPELINES[name].solver_steps)
        knots = select_knots(solver, (0, 6, 15, 21, 24)) if kind == "uneven" else stock_knots(teacher, solver, 4)
        torch.manual_seed(1)
        student = Student.from_teacher(teacher, StudentConfig(knots, 0)).eval()
        for parameter in student.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        export(student, teacher, folder, picture=__file__)
        assert not [*folder.glob("*.py")]
        more = PIPELINES[name].call | IMAGES
        (folder / "more.txt").write_text("".join(f", {key}={value!r}" for key, value in more.items()))
    alone(SCRIPT, *folders, folder=tmp_path)
    for (name, kind), folder in zip(CASES, folders, strict=True):
        card, pipeline = (folder / "README.md").read_text(), load(folder)
        assert ("num_inference_steps=4" in card) == (kind == "own"), card
        pipeline.set_progress_bar_config(disable=True)
        torch.manual_seed(0)
        given = {"class_labels": [0, 1, 2]} if name == "dit" else {"prompt": "a red cat"}
        expected = pipeline(**given, **PIPELINES[name].call, **IMAGES)[0]
        images = torch.load(folder / "images.pt")
        assert images.shape == expected.shape and torch.allclose(images, expected, atol=2e-4), (name, kind)


@pytest.mark.parametrize(
    "steps,options,reason",
    [
        (4, {"history_layers": 2}, "2 of its layers attend to earlier steps"),
        (4, {"output": "direct"}, "its steps (output direct, target state) are not a solver's"),
        (4, {"target": "anchored"}, "its steps (output solver, target anchored) are not a solver's"),
        (4, {"guidance_range": (1.0, 3.0)}, "it has weights that diffusers' transformer lacks"),
        (5, {}, "DiTPipeline takes no times in its call, and the student's knots are not the grid of 5 steps"),
        (4, {"history_layers": 2, "mask": "M1"}, None),
        (1, {"history_layers": 2}, None),
    ],
)
def test_what_a_stock_pipeline_cannot_draw_says_why(teachers, steps, options, reason):
    teacher = teachers["dit"]
    knots = select_knots(solver := teacher.knots(24), nested_indices(solver.num_steps, steps))
    student = Student.from_teacher(teacher, StudentConfig(knots, **{"history_layers": 0} | options))
    if reason is None:
        assert stock_form(student, teacher).arguments == {"num_inference_steps": steps, "guidance_scale": 1.0}
        return
    with pytest.raises(ValueError, match=re.escape(reason)):
        stock_form(student, teacher)


@pytest.mark.parametrize("name", [name for name, x in PIPELINES.items() if not x.given_times])
def test_no_times_are_given_to_a_pipeline_that_does_not_follow_them(teachers, name):
    uneven = select_knots(teachers[name].knots(PIPELINES[name].solver_steps), (0, 6, 15, 21, 24))
    with pytest.raises(ValueError, match=r"takes (no|other) times in its call"):
        stock_drawing(teachers[name], uneven)


def test_the_card_of_an_export_with_a_module_says_why_it_has_one(teachers, tmp_path):
    teacher = teachers["dit"]
    export(Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2)), teacher, tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert "cannot draw this student: 2 of its layers attend" in card
    source = next((tmp_path / "student").glob("pipeline_*.py")).read_bytes()
    assert hashlib.sha256(source).hexdigest() in card
    assert pipeline_source("DiTPipeline", "DiTTransformer2DModel").encode() == source


def test_a_student_that_was_distilled_at_a_size_says_it(teachers):
    size = {"height": 32, "width": 48}
    for name, given in (("flux", size), ("wan", size | {"num_frames": 5}), ("dit", {})):
        teacher = teachers[name]
        shape = teacher.latent_shape(**given) if given else teacher.sample_shape
        knots = stock_knots(teacher, teacher.knots(24), 4)
        student = Student.from_teacher(teacher, StudentConfig(knots, 0, sample_shapes=(shape,)))
        found = stock_form(student, teacher).arguments
        assert found == {"num_inference_steps": 4, "guidance_scale": 1.0, **given}


def test_stock_knots_are_recorded_states_with_the_pipelines_times(teachers, tmp_path):
    teacher = teachers["wan"]
    solver = teacher.knots(24)
    knots = stock_knots(teacher, solver, 4)
    assert knots.sigma == tuple(solver.sigma[i] for i in (0, 6, 12, 18, 24))
    assert knots.timesteps == (999.0, 900.0, 750.0, 500.0) != tuple(solver.timesteps[i] for i in (0, 6, 12, 18))
    record(teacher, tmp_path / "data", 2, prompts=["a"], solver_steps=8, num_steps=(4,), progress=False)
    knots = stock_knots(teacher, teacher.knots(8), 4)
    data = TrajectoryDataset(tmp_path / "data", knots)
    assert data.student_config(0).knots == knots
    with pytest.raises(ValueError, match="record with a multiple of 5 as --solver_steps"):
        stock_knots(teacher, solver, 5)
    with pytest.raises(ValueError, match="AuraFlowPipeline's grid of 4 steps"):
        stock_knots(teachers["auraflow"], teachers["auraflow"].knots(24), 4)


def test_steps_that_do_not_divide_the_trainings_are_on_the_pipelines_grid(teachers):
    """diffusers' DDIM takes another state than its grid's for 3 steps of 1,000."""
    teacher = teachers["dit"]
    drawing = stock_drawing(teacher, stock_knots(teacher, teacher.knots(24), 3))
    assert isinstance(drawing.scheduler, DPMSolverMultistepScheduler) and drawing.scheduler.config.solver_order == 1
