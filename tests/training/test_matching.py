"""Distribution matching: the fake score begins as the teacher, learns what the student draws, and tells where to go."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import ONE_EACH, TINY, save

from ardistill.cli import main
from ardistill.config import MatchingConfig, TrainingConfig
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher
from ardistill.training import distill, finetune, read_log
from ardistill.training.matching import FakeScore, Matching
from ardistill.trajectories import TrajectoryDataset, record

CONFIG = MatchingConfig(lora_rank=2, updates=2, warmup_steps=2)
TRAINING = TrainingConfig(
    max_steps=8, batch_size=4, checkpoint_every=4, tracker=None, learning_rate=1e-3, ema_decay=0.5, inputs="student"
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_an_untrained_fake_score_is_the_teacher_of_every_family(name):
    """So that the student has no gradient; one update gives it one, and leaves the teacher as it was."""
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), tiny.scheduler(), latent_shape=tiny.latents, guidance_scale=1.0)
    matching = Matching(FakeScore(teacher, CONFIG), CONFIG)
    drawn = torch.randn(2, *tiny.latents, generator=seeded(), requires_grad=True)
    condition = tiny.condition(2)
    (gradient,) = torch.autograd.grad(matching.student_loss(drawn, condition, seeded()), drawn)
    assert gradient.abs().max() < 1e-6
    weights = [x.clone() for x in teacher.transformer.parameters()]
    figures = matching.update(drawn, condition, seeded(), measured=True)
    assert figures.keys() == {"d_loss", "d_gradient_norm"} and figures["d_gradient_norm"] > 0
    (gradient,) = torch.autograd.grad(matching.student_loss(drawn, condition, seeded()), drawn)
    assert gradient.flatten(1).norm(dim=1).min() > 0
    assert all(map(torch.equal, weights, teacher.transformer.parameters()))
    assert all(x.grad is None for x in teacher.transformer.parameters())
    assert matching.update(drawn, condition, seeded(), measured=False) == {}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_gradient_is_that_of_the_paper(make_dit, prediction_type):
    """arXiv:2311.18828, Eq. 7 and 8, by clean estimates from the schedule's own formulas, and guided by hand."""
    from diffusers import DDIMScheduler

    teacher = Teacher(make_dit(), DDIMScheduler(prediction_type=prediction_type), guidance_scale=2.5)
    matching = Matching(FakeScore(teacher, CONFIG), CONFIG)
    condition = {"class_labels": torch.tensor([0, 3])}
    drawn = torch.randn(2, 4, 8, 8, generator=seeded(1))
    for _ in range(3):
        matching.update(drawn, condition, seeded(2))
    moving = drawn.clone().requires_grad_(True)
    matching.student_loss(moving, condition, seeded(3)).backward()

    generator = seeded(3)
    levels = matching.network.levels.draw(2, generator)
    noise = torch.randn(drawn.shape, generator=generator)
    grid = teacher.knots(100)
    alpha, sigma, times = (torch.tensor(x)[levels].view(2, 1, 1, 1) for x in (grid.alpha, grid.sigma, grid.timesteps))
    noised = (alpha * drawn + sigma * noise).float()

    def clean(transformer, labels):
        found = transformer(noised, timestep=times.flatten().float(), class_labels=labels).sample[:, :4].double()
        x = noised.double()
        if prediction_type == "epsilon":
            return (x - sigma * found) / alpha
        return found if prediction_type == "sample" else alpha * x - sigma * found

    with torch.no_grad():
        null = torch.full((2,), teacher.num_classes)
        conditional, unconditional = (clean(teacher.transformer, x) for x in (condition["class_labels"], null))
        real = unconditional + 2.5 * (conditional - unconditional)
        fake = clean(matching.network.transformer, condition["class_labels"])
    expected = (fake - real) / (drawn - real).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(
        moving.grad * drawn.numel(), expected.float(), rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


def test_times_of_each_row_are_those_of_all(teacher):
    guided = Teacher(teacher.transformer, teacher.scheduler, guidance_scale=3.0)
    states, condition = torch.randn(3, 4, 8, 8, generator=seeded()), {"class_labels": torch.arange(3)}
    for scaled in (guided, teacher):
        predict = scaled.guided(states, condition)
        each = predict(states, torch.tensor([900.0, 500.0, 20.0]))
        for row, time in enumerate((900.0, 500.0, 20.0)):
            assert torch.allclose(each[row], predict(states, time)[row], atol=1e-5)


def test_the_fake_score_learns_what_the_student_draws(teacher):
    config = replace(CONFIG, lora_rank=8, learning_rate=5e-3, updates=5)
    matching = Matching(FakeScore(teacher, config), config)
    drawn, condition = torch.full((8, 4, 8, 8), -0.8), {"class_labels": torch.arange(8) % 5}
    losses = [float(matching.update(drawn, condition, seeded())["d_loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def train(teacher, folder, name, validate=None, config=CONFIG):
    data = TrajectoryDataset(folder / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2))
    critic = Matching(FakeScore(teacher, config), config)
    distill(student, data, folder / name, TRAINING, critic=critic, validate=validate, progress=False)
    return student.state_dict() | {f"fake.{k}": v for k, v in critic.network.state_dict().items()}


@pytest.mark.slow
def test_killed_and_resumed_ends_as_if_never_killed(teacher, tmp_path, dies_at_its_first_checkpoint):
    record(teacher, tmp_path / "data", 12, solver_steps=8, num_steps=(2,), shard_size=8, progress=False)
    whole = train(teacher, tmp_path, "whole")
    dies_at_its_first_checkpoint(lambda validate: train(teacher, tmp_path, "killed", validate))
    resumed = train(teacher, tmp_path, "killed")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = train(teacher, tmp_path, "warming", config=replace(CONFIG, warmup_steps=100))
    untrained = Student.from_teacher(teacher, TrajectoryDataset(tmp_path / "data", 2).student_config(history_layers=2))
    assert all(torch.equal(x, plain[name]) for name, x in untrained.state_dict().items())


@pytest.mark.slow
def test_the_command_needs_no_real_images(tmp_path, capsys):
    save("dit", tmp_path / "teacher")
    commands = [
        "record --teacher teacher --out data --num_trajectories 6 --num_steps [2] --solver_steps 4 "
        "--guidance_scale 1.5",
        "distill --trajectories data --out run --num_steps 2 --history_layers 2 --training.max_steps 2 "
        "--training.batch_size 2",
        "finetune --method dmd --student run --trajectories data --out tuned --training.max_steps 6 --json "
        "--training.batch_size 2 --training.checkpoint_every 3 --matching.warmup_steps 2 --matching.lora_rank 2",
    ]
    for command in commands:
        main([str(tmp_path / x) if x in ("teacher", "data", "run", "tuned") else x for x in command.split()])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"loss", "g_loss", "g_weight", "d_loss", "d_gradient_norm"} <= found.keys()
    assert (tmp_path / "tuned" / "matching.png").stat().st_size > 10_000
    assert read_log(tmp_path / "tuned")[-1]["step"] == 6
    settings = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert settings["matching"]["lora_rank"] == 2 and settings["weights"] == {"fake_score": "float32"}
    assert Student.from_pretrained(tmp_path / "tuned").config == Student.from_pretrained(tmp_path / "run").config


@pytest.mark.parametrize(
    "options,message",
    [
        ({"method": "gan"}, "unknown method 'gan'; known: adversarial, dmd"),
        ({"method": "dmd", "real": "real.safetensors"}, "method dmd takes no real images; leave real out"),
        ({}, "real is missing, the file of real images .* method dmd needs none"),
    ],
)
def test_what_does_not_fit_the_method_is_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        finetune("student", "trajectories", tmp_path / "out", **options)
    assert not [*tmp_path.iterdir()]


def test_a_student_of_a_range_of_guidance_is_refused(teacher):
    from ardistill.training.finetune import make_critic

    student = StudentConfig(teacher.knots(2), 1, guidance_range=(1.0, 4.0))
    with pytest.raises(ValueError, match="expected a student of one guidance scale, got one of 1 to 4"):
        make_critic(teacher, student, TRAINING, CONFIG, None)


@pytest.mark.parametrize("options", [{"updates": 0}, {"lora_rank": 0}, {"noise_levels": (0.5, 0.1)}, {"weight": -1.0}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MatchingConfig(**options)
