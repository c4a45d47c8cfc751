import json

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline
from stranger import alone
from tiny import open_gates

from ardistill.publishing import export, load
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, torch
from diffusers import DiffusionPipeline
images = []
for folder in sys.argv[1:-1]:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images.append(pipeline([0, 1, 2], generator=generator, output_type="pt").images)
for options, message in (({"guidance_scale": 4.0}, "absorbed"), ({"num_inference_steps": 9}, "draws in")):
    try:
        pipeline([0], **options)
    except ValueError as error:
        assert message in str(error)
    else:
        raise AssertionError(options)
assert len(pipeline([0]).images) == 1 and pipeline([0]).images[0].size == (8, 8)
torch.save([torch.as_tensor(x) for x in images], sys.argv[-1])
"""


def test_exported_students_load_with_diffusers_alone(teacher, tmp_path):
    """Two different students in one fresh process that cannot import our package."""
    students = []
    for name, steps, layers, target, output in (
        ("state", 4, 2, "state", "solver"),
        ("anchored", 2, 3, "anchored", "solver"),
        ("direct", 3, 1, "denoised", "direct"),
    ):
        config = StudentConfig(teacher.knots(steps), layers, "M4", target, output)
        student = Student.from_teacher(teacher, config).eval()
        open_gates(student)
        if output == "direct":
            for head in student.family.head:
                torch.nn.init.normal_(student.transformer.get_submodule(head).later_weight, std=0.1)
        export(student, teacher, tmp_path / name)
        students.append(student)
    folders = [str(tmp_path / name) for name in ("state", "anchored", "direct")]
    alone(SCRIPT, *folders, tmp_path / "images.pt", folder=tmp_path)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for student, images in zip(students, torch.load(tmp_path / "images.pt"), strict=True):
        expected = sample(student, noise, {"class_labels": torch.arange(3)})[:, -1, :4]
        assert torch.allclose(images, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_export_into_a_used_folder_is_refused(teacher, tmp_path):
    (tmp_path / "file").touch()
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2))
    with pytest.raises(ValueError, match="to be empty"):
        export(student, teacher, tmp_path)


def test_a_latent_students_folder_brings_its_vae_and_class_names(teacher, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    names = {i: f"class {i}" for i in range(5)}
    DiTPipeline(teacher.transformer, vae, teacher.scheduler).save_pretrained(tmp_path / "teacher")
    index = tmp_path / "teacher" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    teacher = Teacher.from_pretrained(tmp_path / "teacher", guidance_scale=1.5)
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(4), 2)).eval()
    open_gates(student)
    export(student, teacher, tmp_path / "student")
    assert (tmp_path / "student" / "samples.png").stat().st_size > 0
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = sample(student, noise, {"class_labels": torch.tensor([2, 4])})[:, -1]
    expected = (teacher.decode(latents) / 2 + 0.5).clamp(0, 1)
    folder, module = tmp_path / "student", next((tmp_path / "student").glob("pipeline_*.py"))
    stranger = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    custom = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(module), trust_remote_code=True)
    ours = load(folder)
    assert isinstance(ours, DiTPipeline) and type(ours).__module__ == "ardistill.core.pipeline"
    for pipeline in (stranger, custom, ours):
        pipeline.set_progress_bar_config(disable=True)
        labels = pipeline.get_label_ids(["class 2", "class 4"])
        images = pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="np").images
        assert torch.allclose(torch.from_numpy(images).permute(0, 3, 1, 2), expected, atol=1e-5)


def test_a_student_of_another_teacher_is_not_exported(teacher, tmp_path):
    config = StudentConfig(teacher.knots(2), 2, teacher="first", fingerprint="0" * 64)
    with pytest.raises(ValueError, match="the student: expected the teacher first"):
        export(Student.from_teacher(teacher, config), teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()
