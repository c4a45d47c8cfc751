"""A user's own teacher, end to end: record, distil, export, reload with diffusers alone, sample."""

import json

import diffusers
import pytest
import torch
from stranger import alone
from tiny import PIPELINES, PROMPTED, TINY, save
from tiny.instance import drawn_by

from ardistill.cli import main
from ardistill.publishing import load
from ardistill.student import Student
from ardistill.student.sample import sample
from ardistill.teacher import Teacher, prepare_vae
from ardistill.trajectories import TrajectoryDataset, load_prompts, record

pytestmark = pytest.mark.slow

PROMPTS = ["a red cat", "a photo of a dog on the moon"]
SCRIPT = """
import json, sys, torch
from diffusers import DiffusionPipeline
images = []
for folder, options in zip(sys.argv[1:-1:2], sys.argv[2:-1:2]):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline.vae).__name__ == "AutoencoderKLAllegro":  # as its card says
        pipeline.vae.enable_tiling()
        pipeline.vae.enable_slicing()
    options = json.loads(options)
    result = pipeline(**options, generator=torch.Generator().manual_seed(0), output_type="pt")
    images.append(result.frames.transpose(1, 2) if hasattr(result, "frames") else next(iter(result.values())))
    if "prompt" in options:
        try:
            pipeline(**options, negative_prompt="bad")
        except ValueError as error:
            assert "absorbed" in str(error)
        else:
            raise AssertionError("a negative prompt was accepted")
torch.save([torch.as_tensor(x) for x in images], sys.argv[-1])
"""


def call(name):
    """What a user gives the exported pipeline."""
    given = {"prompt": PROMPTS[: PIPELINES[name].drawn]} if name in PROMPTED else {"class_labels": [1, 2]}
    return given | PIPELINES[name].call


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every teacher recorded, distilled in 2 steps and exported, by the commands that a user types."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    for name in PIPELINES:
        save(name, folder / name / "teacher")
        command = [
            "record",
            "--teacher",
            folder / name / "teacher",
            "--out",
            folder / name / "data",
            "--solver_steps",
            4,
        ]
        command += ["--num_trajectories", 3, "--num_steps", "[2]", "--guidance_scale", 2.0]
        if name in PROMPTED:
            command += ["--prompts", folder / "prompts.txt"]
        for key, value in PIPELINES[name].size.items():
            command += [f"--{key}", value]
        main([str(x) for x in command])
        command = [
            "distill",
            "--trajectories",
            folder / name / "data",
            "--out",
            folder / name / "run",
            "--num_steps",
            2,
        ]
        command += ["--history_layers", 2, "--training.max_steps", 2, "--training.batch_size", 2]
        main([str(x) for x in command])
        main([str(x) for x in ["export", "--student", folder / name / "run", "--out", folder / name / "export"]])
    return folder


def test_exported_students_draw_with_diffusers_alone(exported, tmp_path):
    pairs = [x for name in PIPELINES for x in (exported / name / "export", json.dumps(call(name)))]
    alone(SCRIPT, *pairs, tmp_path / "images.pt", folder=tmp_path)
    for name, images in zip(PIPELINES, torch.load(tmp_path / "images.pt"), strict=True):
        teacher = Teacher.from_pretrained(
            exported / name / "teacher", guidance_scale=2.0, **PIPELINES[name].size, device="cpu"
        )
        student = Student.from_pretrained(exported / name / "run", device="cpu")
        drawn = PIPELINES[name].drawn
        condition = {"class_labels": torch.tensor([1, 2])} if name == "dit" else teacher.encode(PROMPTS[:drawn])
        noise = PIPELINES[name].noise(drawn, teacher.sample_shape)
        expected = teacher.decode(sample(student, noise, condition)[:, -1], frames=True) / 2 + 0.5
        assert torch.allclose(images.reshape(expected.shape), expected, atol=1e-4), name


@pytest.mark.parametrize("name", PIPELINES)
def test_load_runs_our_own_code(exported, name):
    pipeline = load(exported / name / "export")
    assert type(pipeline).__module__ == "ardistill.core.pipeline"
    assert isinstance(pipeline, getattr(diffusers, type(pipeline).__bases__[1].__name__))


@pytest.mark.parametrize("name", PROMPTED)
def test_solver_draws_what_the_teachers_own_pipeline_draws(exported, name):
    """Guided, from the same noise and prompts, on the pipeline's own times: encoders, signs, scales and decoder."""
    folder, tiny = exported / name / "teacher", PIPELINES[name]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if name == "allegro":
        prepare_vae(pipeline.vae)
    prompts = PROMPTS[: tiny.prompts]
    given = call(name) | tiny.guided | {"prompt": prompts, "num_inference_steps": 4}
    if tiny.scheduler:
        pipeline.scheduler = tiny.scheduler(pipeline.scheduler)
    result = pipeline(**given, generator=torch.Generator().manual_seed(0), output_type="pt")
    images = drawn_by(result)
    negative = {"negative_prompt": tiny.negative_prompt} if tiny.negative_prompt else {}
    teacher = Teacher.from_pretrained(folder, guidance_scale=2.0, **tiny.size, **negative, device="cpu")
    if tiny.scheduler and TINY[tiny.tiny].flow:
        teacher.scheduler = pipeline.scheduler
    noise = tiny.noise(len(prompts), teacher.sample_shape)
    solved = teacher.solve_ode(noise, teacher.encode(prompts), teacher.knots(4))
    expected = teacher.decode(solved.states[:, -1], frames=True) / 2 + 0.5
    assert torch.allclose(images.reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("name", PROMPTED)
def test_prompts_are_encoded_once_and_stored_once(exported, name):
    data = TrajectoryDataset(exported / name / "data", 2)
    assert data.prompts == PROMPTS and data.labels.tolist() == [0, 1, 0]
    folder = exported / name / "teacher"
    teacher = Teacher.from_pretrained(folder, guidance_scale=2.0, **PIPELINES[name].size, device="cpu")
    encoded = teacher.encode(PROMPTS) | {"guidance": torch.full((2,), 2.0)}
    for row, prompt in enumerate(data.labels.tolist()):
        for key, value in data[row]["condition"].items():
            assert torch.allclose(value.float(), encoded[key][prompt].float(), atol=1e-5)


def test_what_does_not_fit_the_teacher_is_refused(exported, tmp_path, teacher):
    for name, pipeline, message in (
        ("ltx", "LTXConditionPipeline", "LTXConditionPipeline, which is not supported: it places a video's frames"),
        ("wan", "Kandinsky5T2VPipeline", "Kandinsky5T2VPipeline, which is not supported"),
        ("wan", "WanImageToVideoPipeline", "its call takes image, which recordings do not hold; use a teacher whose"),
    ):
        folder = tmp_path / pipeline
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        for part in ("transformer", "scheduler"):
            (folder / part).symlink_to(exported / name / "teacher" / part)
        with pytest.raises(ValueError, match=message):
            Teacher.from_pretrained(folder)
    pixart = Teacher.from_pretrained(exported / "pixart" / "teacher")
    with pytest.raises(ValueError, match="conditioned on text: give it prompts"):
        record(pixart, tmp_path / "data", 4, solver_steps=4, num_steps=(2,))
    with pytest.raises(ValueError, match="leave the prompts out"):
        record(teacher, tmp_path / "data", 4, prompts=["a"], solver_steps=4, num_steps=(2,))
    with pytest.raises(ValueError, match="multiples of 4 pixels, got 15x16"):
        Teacher.from_pretrained(exported / "flux" / "teacher", height=15, width=16)
    with pytest.raises(ValueError, match="both height and width"):
        Teacher.from_pretrained(exported / "flux" / "teacher", height=16)
    assert not (tmp_path / "data").exists()


def test_prompts_come_from_a_file_or_a_data_set(tmp_path, monkeypatch):
    lines = [{"prompt": prompt, "other": 1} for prompt in PROMPTS]
    (tmp_path / "prompts.txt").write_text("\n\n".join(PROMPTS))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "me" / "prompts").mkdir(parents=True)  # as a Hub id is read, from a folder of that name
    (tmp_path / "me" / "prompts" / "train.jsonl").write_text((tmp_path / "prompts.jsonl").read_text())
    (tmp_path / "me" / "others").mkdir()
    (tmp_path / "me" / "others" / "train.jsonl").write_text('{"words": "a"}')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a')
    (tmp_path / "numbers.jsonl").write_text('{"prompt": "a"}\n{"prompt": 5}')
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([PROMPTS[0] + " ", *PROMPTS[1:]]).encode())
    (tmp_path / "separated.jsonl").write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for source in ("prompts.txt", "prompts.jsonl", "me/prompts", "marked.txt"):
        assert load_prompts(source) == PROMPTS
    assert load_prompts("separated.jsonl") == ["a\u2028b"]
    for source, message in (
        ("me/others", "expected a column prompt or text or caption, one alone, found words"),
        ("me/absent", "cannot be read as a data set"),
        ("me/absent-2.47M", "cannot be read as a data set"),
        ("numbers.jsonl", "prompt 2: expected text, got 5"),
        ("absent.txt", "a text or JSONL file, or the id"),
        ("empty.txt", "holds no prompts"),
        ("torn.jsonl", "expected one JSON object"),
    ):
        with pytest.raises(ValueError, match=message):
            load_prompts(source)
