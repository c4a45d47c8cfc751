"""Exports of students of every family, and how each is loaded and drawn with beside the stock pipeline."""

import pytest
import torch
from diffusers import DiffusionPipeline
from publish import STORAGE
from tiny import PIPELINES, PROMPTED, open_gates, save

from ardistill.publishing import export
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher

TEXT = {"prompt": ["a red cat", "the moon"]}
ALL_CALLS = {name: (TEXT if name in PROMPTED else {"class_labels": [1, 2]}) | PIPELINES[name].call for name in STORAGE}
ALL_CALLS["wan"]["num_frames"] = 5
CALLS = {name: ALL_CALLS[name] for name in ("dit", "sd3", "flux", "pixart")}
"""Arguments of a call of every family's tiny pipeline; `CALLS` has four of different kinds."""
KINDS = {
    "plain": {"history_layers": 0, "target": "anchored"},  # with the target "state", no module would be needed
    "history": {"history_layers": 2},
    "heads": {"history_layers": 1, "output": "direct"},
    "softmax": {"history_layers": 2, "gated": False},
    "guided": {"history_layers": 1, "guidance_range": (1.0, 3.0)},
}
FULL = [("dit", "plain"), ("flux", "plain"), *((name, "history") for name in CALLS)]
MORE = [*FULL, ("dit", "heads"), ("flux", "heads"), ("dit", "softmax"), ("sd3", "guided")]


class Exports:
    """Folder of an export, made when first asked for; ``teacher`` is the folder of the teacher."""

    def __init__(self, root):
        self.root, self.made = root, {}

    def __call__(self, name, kind):
        root, made = self.root, self.made
        if (name, "teacher") not in made:
            made[name, "teacher"] = save(name, root / name / "teacher")
        if (name, kind) not in made:
            size = {key: x for key, x in ALL_CALLS[name].items() if key in ("height", "width", "num_frames")}
            teacher = Teacher.from_pretrained(made[name, "teacher"], guidance_scale=2.0, **size)
            torch.manual_seed(1)
            student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), **KINDS[kind])).eval()
            open_gates(student)
            for key, parameter in student.named_parameters():
                if key.endswith(("later_weight", "guidance_proj.weight")):
                    torch.nn.init.normal_(parameter, std=0.1)
            export(student, teacher, root / name / kind)
            made[name, kind] = root / name / kind
        return made[name, kind]


def opened(folder, **options):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def control(folder, **options):
    pipeline = DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, name, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    given = {**ALL_CALLS[name], "output_type": "pt", "generator": generator, **options}
    if "_student" not in vars(pipeline):  # stock
        given |= {"num_inference_steps": 2} | ({"guidance_scale": 1.0} if name == "dit" else {})
    drawn = pipeline(**given)
    return drawn.frames if hasattr(drawn, "frames") else drawn.images


def near(images, expected):
    """Weights that were read again may lie at another alignment, which changes the last bits."""
    return torch.allclose(images, expected, atol=1e-5)


def same_as_stock(exported, name, kind, change, tolerance=0.0):
    """The export draws the same image after a change, where the stock pipeline does not raise."""
    pipeline = opened(exported(name, kind))
    expected = draw(pipeline, name)
    stock = control(exported(name, "teacher"))
    try:
        draw(change(stock) or stock, name)
    except Exception as error:
        with pytest.raises(type(error)) as raised:
            draw(change(pipeline) or pipeline, name)
        assert str(raised.value).partition("<")[0] == str(error).partition("<")[0]
        return None
    changed = change(pipeline) or pipeline
    images = draw(changed, name)
    assert (images.float() - expected).abs().max() <= max(tolerance, 1e-5)
    return changed
