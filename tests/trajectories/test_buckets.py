"""Trajectories of several sizes and guidance scales, and students that take the scale as an input."""

import json
from collections import Counter

import diffusers
import pytest
import torch
from tiny import ONE_EACH, TINY, open_gates, save

from ardistill.cli import main
from ardistill.config import TrainingConfig
from ardistill.publishing import load
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher, knots_from_scheduler
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow

KNOTS = knots_from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), 3)


def told(name, history_layers=2):
    """A student with guidance 1 to 4 as input and nonzero new weights, and a student of the same weights without."""
    config = StudentConfig(KNOTS, history_layers, guidance_range=(1.0, 4.0))
    student = Student(TINY[name].transformer(), config)
    absorbed = Student(TINY[name].transformer(), StudentConfig(KNOTS, history_layers))
    open_gates(student)
    open_gates(absorbed)
    return student.eval(), absorbed.eval()


def batch(name):
    inputs = torch.randn(2, 3, *TINY[name].latents, generator=torch.Generator().manual_seed(1))
    condition = TINY[name].condition(2)
    condition.pop("guidance", None)
    return inputs, condition


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_student_is_told_of_the_guidance_of_each_row(name, tmp_path):
    student, absorbed = told(name)
    inputs, condition = batch(name)
    embeds = student.family.embeds_guidance(student.transformer)
    low, high = (condition | {"guidance": torch.tensor(scales)} for scales in ([1.5, 1.5], [1.5, 3.5]))
    with torch.no_grad():
        if embeds:  # the network's own input, no weights of ours
            assert student.state_dict().keys() == absorbed.state_dict().keys()
        else:  # zero weights: not heeded before training
            assert torch.equal(student(inputs, high), absorbed(inputs, condition))
            for module in student.modules():
                if isinstance(getattr(module, "guidance_proj", None), torch.nn.Linear):  # Chroma has another one
                    torch.nn.init.normal_(module.guidance_proj.weight, std=0.1)
        folded = student(inputs, high)
        assert torch.equal(folded[0], student(inputs, low)[0])
        assert not torch.allclose(folded[1], student(inputs, low)[1], atol=1e-4)
        cache: dict = {}
        for step in range(3):
            found = student.step(inputs[:, step], step, high, cache)
            assert (found - folded[:, step]).abs().max() <= 1e-5 * folded.abs().max()
        student.save_pretrained(tmp_path)
        again = Student.from_pretrained(tmp_path, device="cpu")
        assert torch.equal(sample(again, inputs[:, 0], high), sample(student, inputs[:, 0], high))


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_checkpointing_recomputes_under_the_same_guidance(name):
    inputs, condition = batch(name)
    condition["guidance"] = torch.tensor([1.5, 3.5])
    gradients = []
    for options in ({}, {"checkpointing": True}, {"sequential": True}):
        student, _ = told(name)
        for i, module in enumerate(m for m in student.modules() if hasattr(m, "guidance_proj")):
            torch.nn.init.normal_(module.guidance_proj.weight, std=0.1, generator=torch.Generator().manual_seed(i))
        if options.pop("checkpointing", False):
            student.train().enable_gradient_checkpointing()
        loss = student(inputs, condition, **options).square().mean()
        with torch.no_grad():  # another pass before the backward one must not change what is recomputed
            student(inputs, condition | {"guidance": torch.tensor([3.0, 1.0])})
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.equal(gradients[0], gradients[1])
    assert (gradients[0] - gradients[2]).abs().max() <= 1e-5 * gradients[0].abs().max()


@pytest.fixture
def pixart(tmp_path):
    return Teacher.from_pretrained(save("pixart", tmp_path / "teacher"), guidance_scale=2.0, device="cpu")


def test_shards_have_one_size_each_and_rows_a_guidance_scale(pixart, tmp_path):
    shapes = [(4, 8, 8), (4, 6, 10)]
    options = {"solver_steps": 4, "num_steps": (2,), "shard_size": 3, "progress": False}
    options |= {"prompts": ["a", "red cat"], "guidance_range": (1.0, 3.0), "sample_shapes": shapes}
    record(pixart, tmp_path / "data", 18, **options)
    data = TrajectoryDataset(tmp_path / "data", 2, pixart.fingerprint())
    assert [len(rows) for rows in data.rows_by_shape] == [9, 9]
    assert data.guidance.min() >= 1 and data.guidance.max() <= 3 and len(data.guidance.unique()) == 18
    for bucket, shape in zip(data.rows_by_shape, shapes, strict=True):
        states, denoised, condition = data.stacked(bucket)
        assert states.shape == (9, 3, *shape) and denoised.shape == (9, 2, *shape)
        row = {name: value[:1] for name, value in condition.items()}
        alone = Teacher(pixart.transformer, pixart.scheduler, float(row["guidance"]), companions=pixart.companions)
        row.pop("guidance")
        solved = alone.solve_ode(states[:1, 0], row, pixart.knots(4))
        assert (solved.states[:, -1] - states[:1, -1]).abs().max() <= 1e-5 * states.abs().max()
    drawn = Counter()
    for seed in range(20):
        rows = data.draw(4, torch.Generator().manual_seed(seed))
        shape = {tuple(data[int(row)]["states"].shape[1:]) for row in rows}
        assert len(shape) == 1
        drawn.update(shape)
    assert set(drawn) == set(shapes)
    with pytest.raises(ValueError, match="expected trajectories of one size"):
        data.stacked()
    with pytest.raises(ValueError, match="expected 2 shards or more"):
        record(pixart, tmp_path / "few", 3, **options)
    with pytest.raises(ValueError, match="lowest first"):
        record(pixart, tmp_path / "few", 18, **options | {"guidance_range": (3.0, 1.0)})
    student = Student.from_teacher(pixart, data.student_config(history_layers=2))
    config = TrainingConfig(max_steps=4, batch_size=2, checkpoint_every=2, tracker=None)
    distill(student, data, tmp_path / "run", config, progress=False)
    again = Student.from_pretrained(tmp_path / "run", device="cpu")
    assert again.config == student.config and again.config.takes_guidance
    assert again.config.sample_shapes == tuple(shapes)


def test_settings_meet_every_class(teacher, tmp_path):
    """Shapes are not in step with the labels, whatever the shard size."""
    options = {"solver_steps": 1, "num_steps": (1,), "shard_size": 5, "progress": False}
    record(teacher, tmp_path / "data", 80, sample_shapes=[(4, 8, 8), (4, 4, 4)], **options)
    data = TrajectoryDataset(tmp_path / "data", 1)
    orders = {tuple(data.manifest.shape_of(shard) for shard in (2 * i, 2 * i + 1)) for i in range(8)}
    assert orders == {(0, 1), (1, 0)}
    with pytest.raises(ValueError, match="noise of shape"):
        teacher.solve_ode(torch.zeros(1, 4, 8, 4), {"class_labels": torch.tensor([0])}, teacher.knots(1))
    with pytest.raises(ValueError, match="squares alone"):
        teacher.latent_shape(8, 4)
    with pytest.raises(ValueError, match="1: it draws images, got 5"):
        teacher.latent_shape(8, 8, 5)


def test_a_user_chooses_size_and_guidance_of_what_is_drawn(pixart, tmp_path, capsys):
    """The commands, from record to the exported pipeline."""
    (tmp_path / "prompts.txt").write_text("a red cat\nthe moon")
    record_ = ["record", "--teacher", tmp_path / "teacher", "--out", tmp_path / "data", "--num_trajectories", 8]
    record_ += ["--prompts", tmp_path / "prompts.txt", "--guidance_scale", "[1.0, 3.0]", "--shard_size", 2]
    record_ += ["--height", "[16, 16]", "--width", "[16, 24]", "--solver_steps", 4, "--num_steps", "[2]"]
    distill_ = ["distill", "--trajectories", tmp_path / "data", "--out", tmp_path / "run", "--num_steps", 2]
    distill_ += ["--history_layers", 2, "--training.max_steps", 2, "--training.batch_size", 2]
    for command in (record_, distill_, ["export", "--student", tmp_path / "run", "--out", tmp_path / "export"]):
        main([str(x) for x in command])
    student = Student.from_pretrained(tmp_path / "run", device="cpu")
    assert student.config.guidance_scale == 2 and student.config.sample_shapes == ((4, 8, 8), (4, 8, 12))
    generator = torch.Generator().manual_seed(3)
    for module in student.modules():  # 2 steps of training say little
        if hasattr(module, "guidance_proj"):
            torch.nn.init.normal_(module.guidance_proj.weight, std=0.1, generator=generator)
    student.transformer.save_pretrained(tmp_path / "export" / "transformer")
    stranger = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)
    condition = pixart.encode(["a red cat"])
    given = {"prompt": "a red cat", "height": 16, "width": 24, "use_resolution_binning": False, "clean_caption": False}
    images = {}
    for scale in (None, 1.0, 3.0):
        noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        told = condition | ({} if scale is None else {"guidance": torch.tensor([scale])})
        expected = pixart.decode(sample(student, noise, told)[:, -1]) / 2 + 0.5
        for pipeline in (stranger, load(tmp_path / "export")):
            pipeline.set_progress_bar_config(disable=True)
            options = given if scale is None else given | {"guidance_scale": scale}
            found = pipeline(**options, generator=torch.Generator().manual_seed(0), output_type="pt").images
            assert torch.allclose(found, expected, atol=1e-4)
        images[scale] = expected
    assert not torch.allclose(images[1.0], images[3.0], atol=1e-3)
    with pytest.raises(ValueError, match=r"distilled at guidance 1 to 3, got 9"):
        stranger(**given, guidance_scale=9.0)
    assert "Guidance of 1 to 3 is an input" in (tmp_path / "export" / "README.md").read_text()
    draw = ["sample", "--student", tmp_path / "run", "--out", tmp_path / "drawn.npz", "--count", 2, "--json"]
    draw += ["--prompt", "the moon", "--height", 16, "--width", 24]
    main([str(x) for x in [*draw, "--guidance_scale", 3.0]])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["count"] == 2
    with pytest.raises(SystemExit):
        main([str(x) for x in [*draw, "--guidance_scale", 9.0]])
    assert "distilled at guidance 1 to 3, got 9" in capsys.readouterr().err


def test_a_video_students_frames(tmp_path):
    save("wan", tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a red cat\nthe moon")
    command = ["record", "--teacher", "teacher", "--out", "data", "--num_trajectories", "4", "--guidance_scale", "2.0"]
    command += ["--prompts", "prompts.txt", "--height", "16", "--width", "16", "--num_frames", "5"]
    command += ["--solver_steps", "4", "--num_steps", "[2]"]
    distill_ = ["distill", "--trajectories", "data", "--out", "run", "--num_steps", "2", "--history_layers", "2"]
    distill_ += ["--training.max_steps", "2", "--training.batch_size", "2"]
    for arguments in (command, distill_, ["export", "--student", "run", "--out", "out"]):
        main([str(tmp_path / x) if x in ("teacher", "data", "prompts.txt", "run", "out") else x for x in arguments])
    student = Student.from_pretrained(tmp_path / "run", device="cpu")
    assert student.config.sample_shapes == ((4, 3, 8, 8),)
    teacher = Teacher.from_pretrained(tmp_path / "teacher", height=16, width=16, num_frames=5, device="cpu")
    noise = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = sample(student, noise, teacher.encode(["a red cat"]))[:, -1]
    pipeline = load(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": "a red cat", "height": 16, "width": 16, "num_frames": 5, "output_type": "latent"}
    found = pipeline(**given, generator=torch.Generator().manual_seed(0)).frames
    assert found.shape == drawn.shape and torch.allclose(found, drawn, atol=1e-4)
    with pytest.raises(ValueError, match="1 and a multiple of 2, got 4"):
        teacher.latent_shape(16, 16, 4)
    with pytest.raises(ValueError, match="expected both height and width"):
        Teacher.from_pretrained(tmp_path / "teacher", num_frames=5)
