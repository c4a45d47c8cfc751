"""R+D: heads on the teacher's blocks, real data, and a fine-tuning that survives being killed."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import ONE_EACH, TINY, save

from ardistill.cli import main
from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.families import family_of
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.teacher.vae import scale, unscale
from ardistill.training import distill, encode
from ardistill.training.adversary import Adversary
from ardistill.training.coverage import lies_among
from ardistill.training.discriminator import Discriminator
from ardistill.training.real_images import load_real, save_real
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow

CONFIG = TrainingConfig(
    max_steps=8, batch_size=4, checkpoint_every=4, tracker=None, learning_rate=1e-3, ema_decay=0.5, inputs="student"
)
ADVERSARIAL = AdversarialConfig(hidden=8, warmup_steps=2)


def look(discriminator, latents, condition, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return discriminator.look(latents, condition, discriminator.draw_levels(len(latents), generator), generator)


@pytest.mark.parametrize("name", ONE_EACH)
def test_heads_read_the_image_of_every_block_of_every_family(name):
    """Every block gives all image tokens of a row, and they depend on no other row."""
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), tiny.scheduler(), latent_shape=tiny.latents)
    heads = Discriminator(teacher, ADVERSARIAL)
    blocks = sum(len(getattr(teacher.transformer, x)) for x in family_of(tiny.class_name).block_lists)
    assert len(heads.heads) == blocks
    latents = torch.randn(2, *tiny.latents, generator=torch.Generator().manual_seed(1), requires_grad=True)
    condition = tiny.condition(2)
    seen = look(heads, latents, condition)
    features, times = seen.features, seen.times
    tokens, _ = teacher.family.place_image(
        teacher.transformer, teacher.family.inputs(teacher.transformer, latents, times, condition)
    )
    assert len(features) == blocks and {x.shape[:2] for x in features} == {(2, tokens or features[0].shape[1])}
    heads.judge(seen)[0].mean().backward()
    assert latents.grad[0].abs().max() > 0 and latents.grad[1].abs().max() == 0
    assert all(p.grad is None for p in teacher.transformer.parameters())
    assert not any("teacher" in key for key in heads.state_dict())


RELATIVISTIC = {"loss": "relativistic", "lora_rank": 2, "r2_weight": 0.1, "num_levels": 2}


@pytest.mark.parametrize("options", [{}, RELATIVISTIC])
def test_it_learns_to_tell_and_the_student_to_be_taken_for_real(teacher, options):
    """On two constant images the heads tell real from fake; the generator's gradient then points to the real one."""
    torch.manual_seed(0)
    config = replace(ADVERSARIAL, hidden=16, noise_levels=(0.0, 0.1), learning_rate=5e-3, r1_weight=0.1, **options)
    heads = Discriminator(teacher, config)
    real, labels = torch.full((8, 4, 8, 8), 0.8), {"class_labels": torch.arange(8) % 5}
    adversary = Adversary(heads, real, labels, config)
    fake = torch.full((8, 4, 8, 8), -0.8)
    for step in range(60):
        found = adversary.update(fake, labels, torch.Generator().manual_seed(step))
    assert found["d_real_accuracy"] > 0.9 and found["d_fake_accuracy"] > 0.9
    moving = fake.clone().requires_grad_(True)
    before = [p.clone() for p in heads.parameters()]
    for step in range(20):
        loss = adversary.student_loss(moving, labels, torch.Generator().manual_seed(step))
        gradient = torch.autograd.grad(loss, moving)[0]
        moving = (moving - 0.05 * gradient.sign()).detach().requires_grad_(True)
    assert float(loss) < float(adversary.student_loss(fake, labels, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(before, heads.parameters(), strict=True))


def test_blocks_that_learn_leave_the_teacher_alone_and_are_saved_as_adapters(teacher):
    config = replace(ADVERSARIAL, **RELATIVISTIC, r1_weight=0.1)
    discriminator = Discriminator(teacher, config)
    latents, labels = torch.randn(4, 4, 8, 8), {"class_labels": torch.arange(4)}
    with torch.no_grad():
        untrained = look(Discriminator(teacher, replace(config, lora_rank=0)), latents, labels).features
        assert all(map(torch.equal, look(discriminator, latents, labels).features, untrained))  # B starts at zero
    weights = [x.clone() for x in teacher.transformer.parameters()]
    before = {name: x.clone() for name, x in discriminator.state_dict().items()}
    adversary = Adversary(discriminator, latents, labels, config)
    adversary.update(torch.randn(4, 4, 8, 8), labels, torch.Generator().manual_seed(0))
    assert all(map(torch.equal, weights, teacher.transformer.parameters()))
    moved = {name for name, x in discriminator.state_dict().items() if not torch.equal(x, before[name])}
    adapted = {name for name in before if name.startswith("adapters.")}
    assert len(adapted & moved) == len(adapted) / 2  # at the first step A has no gradient, as B is zero
    assert not any(x.requires_grad for x in teacher.transformer.parameters())
    again = Discriminator(teacher, config, seed=1)
    again.load_state_dict(discriminator.state_dict())
    with torch.no_grad():
        found = [x.judge(look(x, latents, labels)) for x in (again, discriminator)]
    assert torch.equal(*found)


def test_real_and_drawn_images_of_a_pair_have_one_noise_level(teacher, monkeypatch):
    config = replace(ADVERSARIAL, **RELATIVISTIC)
    discriminator, times = Discriminator(teacher, config), []
    kept = discriminator.look
    monkeypatch.setattr(discriminator, "look", lambda *args: times.append(kept(*args).times) or kept(*args))
    latents, labels = torch.randn(4, 4, 8, 8), {"class_labels": torch.arange(4)}
    adversary = Adversary(discriminator, latents, labels, config)
    adversary.update(latents, labels, torch.Generator().manual_seed(0))
    adversary.student_loss(latents, labels, torch.Generator().manual_seed(0))
    assert len(times) == 4 and torch.equal(times[0], times[1]) and torch.equal(times[2], times[3])
    assert len(times[0]) == 8  # two levels an image


def test_noise_levels_at_the_students_own_steps(teacher):
    knots = teacher.knots(4)
    config = replace(ADVERSARIAL, levels="knots", noise_levels=(0.0, 1.0))
    found = Discriminator(teacher, config, knots=knots)
    drawn = found.draw_levels(200, torch.Generator().manual_seed(0)).unique()
    alpha, sigma, _ = found.levels._table[:3, drawn]
    ours = torch.tensor([s / a for a, s in zip(knots.alpha[1:], knots.sigma[1:], strict=True)]).flip(0)
    assert len(drawn) == 4 and torch.allclose((sigma / alpha).flip(0), ours, atol=0.1)
    with pytest.raises(ValueError, match="levels knots needs the student's knots"):
        Discriminator(teacher, config)
    with pytest.raises(ValueError, match="no step of the student begins at a noise level in noise_levels"):
        Discriminator(teacher, replace(config, noise_levels=(0.1, 0.11)), knots=knots)


def test_the_weight_rises(teacher):
    config = replace(ADVERSARIAL, adaptive=False, rise_steps=10, weight=0.5)
    adversary = Adversary(Discriminator(teacher, config), torch.zeros(1, 4, 8, 8), {}, config)
    zero = torch.zeros(())
    found = [float(adversary.weight(zero, zero, zero, done)) for done in (0, 4, 9, 50)]
    assert found == pytest.approx([0.05, 0.25, 0.5, 0.5])


@pytest.mark.parametrize("options", [{"loss": "wasserstein"}, {"levels": "all"}, {"num_levels": 0}, {"rise_steps": -1}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        replace(ADVERSARIAL, **options)


def test_recall_is_the_share_that_the_fakes_cover():
    real = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    real[32:] += 100  # two modes
    collapsed = real[:1] + 1e-3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))

    def recall(fake):
        return float(lies_among(real, fake).float().mean())

    assert recall(real) == 1 and recall(collapsed) < 0.05 and recall(real[:32]) == 0.5


@pytest.fixture
def folder(teacher, tmp_path):
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(2,), shard_size=8, progress=False)
    latents = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    save_real(tmp_path / "real.safetensors", latents, {"class_labels": torch.arange(12) % 5})
    return tmp_path


def finetune(teacher, folder, name, validate=None, config=CONFIG, kind=None, **options):
    data = TrajectoryDataset(folder / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2, **(kind or {})))
    adversarial = replace(ADVERSARIAL, **options)
    heads = Discriminator(teacher, adversarial, knots=data.knots)
    adversary = Adversary(heads, *load_real(folder / "real.safetensors", teacher), adversarial)
    distill(student, data, folder / name, config, critic=adversary, validate=validate, progress=False)
    return student.state_dict() | {f"d.{k}": v for k, v in heads.state_dict().items()}


NEW = RELATIVISTIC | {"levels": "knots", "noise_levels": (0.0, 1.0), "r1_weight": 0.1, "rise_steps": 4}


@pytest.mark.parametrize(
    "inputs,options", [("teacher", {}), ("student", {}), ("mixed", {}), ("mixed", NEW)], ids=lambda x: str(bool(x))
)
def test_killed_and_resumed_ends_as_if_never_killed(teacher, folder, inputs, options, dies_at_its_first_checkpoint):
    def train(name, validate=None):
        return finetune(teacher, folder, name, validate, replace(CONFIG, inputs=inputs), **options)

    whole = train("whole")
    dies_at_its_first_checkpoint(lambda validate: train("killed", validate))
    resumed = train("killed")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (folder / "whole" / "metrics.jsonl").read_text() == (folder / "killed" / "metrics.jsonl").read_text()


def test_until_the_warm_up_is_over_the_discriminator_learns_alone(teacher, folder):
    data = TrajectoryDataset(folder / "data", 2)
    plain = Student.from_teacher(teacher, data.student_config(history_layers=2))
    warming = finetune(teacher, folder, "warming", warmup_steps=100)
    assert all(torch.equal(value, warming[name]) for name, value in plain.state_dict().items())
    log = [json.loads(line) for line in (folder / "warming" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["d_gradient_norm"] > 0 and "g_loss" not in log[-1]
    adversarial = finetune(teacher, folder, "adversarial", warmup_steps=0)
    name = "transformer.proj_out_2.weight"
    assert not torch.equal(plain.state_dict()[name], adversarial[name])


def test_the_adaptive_weight_of_heads_per_step_and_of_adapters(teacher, folder):
    config = replace(CONFIG, max_steps=3, inputs="teacher")
    finetune(teacher, folder, "direct", config=config, kind={"target": "anchored", "output": "direct"})
    log = json.loads((folder / "direct" / "metrics.jsonl").read_text())
    assert 0 < log["g_weight"] < 1e4  # unbounded in the first step's head, which the loss does not reach
    with pytest.raises(ValueError, match=r"set --adversarial\.adaptive false"):
        finetune(teacher, folder, "lora", config=config, kind={"lora_rank": 2})
    finetune(teacher, folder, "fixed", config=config, kind={"lora_rank": 2}, adaptive=False)


def test_the_adaptive_weight_makes_both_gradients_as_large(teacher, folder):
    data = TrajectoryDataset(folder / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2))
    states, _denoised, condition = data.stacked(slice(4))
    adversarial = replace(ADVERSARIAL, weight=0.5)
    heads = Discriminator(teacher, adversarial)
    adversary = Adversary(heads, *load_real(folder / "real.safetensors", teacher), adversarial)
    estimates = student(states[:, :-1], condition)
    regression = (estimates - states[:, 1:]).square().mean()
    loss = adversary.student_loss(estimates[:, -1], condition, torch.Generator().manual_seed(0))
    last = student.transformer.proj_out_2.weight
    weight = adversary.weight(regression, loss, last)
    ours, theirs = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (regression, weight * loss))
    assert theirs == pytest.approx(0.5 * float(ours), rel=1e-3)
    fixed = Adversary(heads, adversary.latents, adversary.real_condition, replace(adversarial, adaptive=False))
    assert float(fixed.weight(regression, loss, last)) == 0.5


@pytest.mark.parametrize("name", ["dit", "sd3", "qwen-image", "flux2"])
def test_images_are_encoded_as_they_are_decoded(name, tmp_path):
    teacher = Teacher.from_pretrained(save(name, tmp_path / "teacher"), height=16, width=16, device="cpu")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = teacher.encode_images(images)
    assert latents.shape == (2, *teacher.sample_shape)
    vae = teacher.companions["vae"]
    again = scale(vae, unscale(vae, latents))
    assert torch.allclose(again.reshape(latents.shape), latents, atol=1e-5)


def test_from_images_to_a_finetuned_student_by_the_commands(tmp_path, capsys):
    """Two classes in subfolders, images of any size; and captions for a teacher of text."""
    save("dit", tmp_path / "teacher")
    for i in range(6):
        path = tmp_path / "images" / ("0", "1")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 30), (40 * i, 0, 255 - 40 * i)).save(path)
    teacher = ["--teacher", str(tmp_path / "teacher")]
    main(["encode", *teacher, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "real.safetensors")])
    loaded = Teacher.from_pretrained(tmp_path / "teacher", device="cpu")
    latents, condition = load_real(tmp_path / "real.safetensors", loaded)
    assert latents.shape == (6, 4, 8, 8) and condition["class_labels"].tolist() == [0, 0, 0, 1, 1, 1]
    commands = [
        ["record", *teacher, "--out", "data", "--num_trajectories", "6", "--num_steps", "[2]", "--solver_steps", "4"],
        ["distill", "--trajectories", "data", "--out", "run", "--num_steps", "2", "--history_layers", "2"],
        ["finetune", "--student", "run", "--trajectories", "data", "--real", "real.safetensors", "--out", "tuned"],
    ]
    commands[0] += ["--guidance_scale", "1.5"]
    commands[1] += ["--training.max_steps", "2", "--training.batch_size", "2"]
    commands[2] += ["--training.max_steps", "20", "--training.batch_size", "2", "--training.checkpoint_every", "10"]
    commands[2] += ["--adversarial.warmup_steps", "5", "--adversarial.hidden", "8", "--json"]
    for command in commands:
        main([str(tmp_path / x) if x in ("data", "run", "tuned", "real.safetensors") else x for x in command])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"loss", "g_loss", "g_weight", "d_loss", "d_real_accuracy", "diversity", "recall"} <= set(found)
    assert (tmp_path / "tuned" / "adversarial.png").stat().st_size > 10_000
    assert Student.from_pretrained(tmp_path / "tuned").config == Student.from_pretrained(tmp_path / "run").config


def test_captioned_images_and_bad_input(tmp_path, teacher):
    pixart = Teacher.from_pretrained(save("pixart", tmp_path / "pixart"), device="cpu")
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(3):
        Image.new("L", (16, 16), 80 * i).save(tmp_path / "images" / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": f"a {i}"})
    with pytest.raises(ValueError, match="expected columns image and prompt or text or caption"):
        encode(str(tmp_path / "images"), pixart, tmp_path / "real.safetensors")
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert encode(str(tmp_path / "images"), pixart, tmp_path / "real.safetensors", limit=2) == 2
    latents, condition = load_real(tmp_path / "real.safetensors", pixart)
    assert latents.shape == (2, 4, 8, 8) and condition["encoder_hidden_states"].shape[0] == 2
    with pytest.raises(ValueError, match="which the teacher does not take"):
        load_real(tmp_path / "real.safetensors", teacher)
    with pytest.raises(ValueError, match="make one with `ardistill encode`"):
        load_real(tmp_path / "absent.safetensors", teacher)
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "real.safetensors").read_bytes()[:300])
    with pytest.raises(ValueError, match="is no file of real latents"):
        load_real(tmp_path / "torn.safetensors", teacher)
    save_real(tmp_path / "small.safetensors", torch.zeros(1, 4, 4, 4), {"class_labels": torch.zeros(1).long()})
    with pytest.raises(ValueError, match=r"holds latents \(4, 4, 4\), the teacher's are \(4, 8, 8\)"):
        load_real(tmp_path / "small.safetensors", teacher)
    for options in ({"noise_levels": (0.5, 0.1)}, {"hidden": 0}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AdversarialConfig(**options)
