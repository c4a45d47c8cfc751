"""Work happens where the given model is, else on the best device there is; what a person keeps is on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import pkgutil
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from pretend_device import DEVICE, PretendDevice
from refusals import Refusal, check_refusal
from tiny import PIPELINES, TINY, open_gates, save

import ardistill
from ardistill.config import AdversarialConfig, MatchingConfig, TrainingConfig
from ardistill.core.knots import Knots
from ardistill.devices import best_device, resolve_device
from ardistill.evaluation import (
    Judge,
    Sampler,
    compare_samplers,
    distance_to_solver,
    draw_samples,
    exposure_bias,
    feature_network,
    validation_grid,
)
from ardistill.evaluation.cost import latency_ms
from ardistill.publishing import export
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.adversary import Adversary
from ardistill.training.matching import FakeScore, Matching
from ardistill.training.real_images import save_real
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow


@pytest.fixture
def pretend():
    with PretendDevice() as mode:
        yield mode


def test_the_best_device_is_there_within_alone():
    assert best_device() == torch.device("cpu")
    with PretendDevice():
        assert best_device() == resolve_device() == resolve_device("auto") == DEVICE
    assert best_device() == torch.device("cpu")


def test_the_device_has_an_accelerators_rules(pretend):
    here, there = torch.ones(2, device="pretend"), torch.ones(2)
    for wrong in (lambda: here + there, lambda: torch.randn(2, generator=torch.Generator(), device="pretend")):
        with pytest.raises(RuntimeError, match="expected"):
            wrong()
    assert float((here + here.clone()).sum()) == 4.0
    assert pretend.events == ["wait"]
    torch.ones(3).to("pretend").cpu()
    assert pretend.events == ["wait", "to device", "to host"]


def _way(name: str, folder: Path, shared: Path) -> dict[str, torch.Tensor]:
    """The whole way from record to export, no device named anywhere.

    Args:
        name: A key of `PIPELINES`.
        folder: Where this way writes.
        shared: The teacher's folder.

    Returns:
        What is compared between two devices: trajectories, samples, decoded images and the student's weights.
    """
    teacher = Teacher.from_pretrained(shared, guidance_scale=1.5, **(SIZES.get(name) or PIPELINES[name].size))
    texts = ["a red cat", "a dog on the moon", "a photo of the moon", "the dog"] if teacher.takes_text else None
    record(teacher, folder / "data", 4, prompts=texts, solver_steps=2, num_steps=[1, 2], progress=False)
    data = TrajectoryDataset(folder / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2))
    open_gates(student)
    settings = {"max_steps": 2, "batch_size": 2, "tracker": None, "learning_rate": 1e-6}
    validate = validation_grid(teacher, data, folder / "samples", count=2)
    student = distill(student, data, folder / "run", TrainingConfig(**settings), validate=validate, progress=False)
    read = Student.from_pretrained(folder / "run")
    states, denoised, condition = data.stacked()
    drawn = sample(read, states[:, 0], condition)
    images = teacher.decode(states[:, -1])
    judge = Judge(feature_network(_Pooled()))
    arms = {"teacher": Sampler.of_teacher(teacher, 2), "student": Sampler.of_student(student)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few samples for their features
        found = compare_samplers(teacher, images, arms, states[:, 0], condition, judge, labels=data.labels)
    exposure_bias(read, teacher, states, denoised, condition, data.manifest.knots)
    distance_to_solver(read, teacher, states[:, 0], condition)
    real = {key: x for key, x in condition.items() if key != "guidance"}
    save_real(folder / "real.safetensors", states[:, -1], real)
    adversary = Adversary.of_real(
        teacher, folder / "real.safetensors", AdversarialConfig(warmup_steps=1, adaptive=True)
    )
    tuned = TrainingConfig(**settings, inputs="student")
    distill(read.requires_grad_(True), data, folder / "tuned", tuned, critic=adversary, progress=False)
    distill(read.requires_grad_(True), data, folder / "matched", tuned, critic=_matching(teacher), progress=False)
    export(student, teacher, folder / "export")
    draw_samples(student, teacher, folder / "samples.npz", count=2, prompts=texts)
    return {
        "states": states,
        "drawn": drawn,
        "images": found.images["student"],
        "weights": torch.cat([x.detach().flatten().cpu() for x in student.parameters()]),
    }


class _Pooled(torch.nn.Module):
    """Features of images, (n, c): their channels' means."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


SIZES = {"cogview4": {"height": 96, "width": 96}, "flux2": {"height": 32, "width": 32}}
"""Sizes whose image tokens are as many as no prompt has."""


@pytest.mark.parametrize("name", PIPELINES)
def test_case_01_every_family_encodes_solves_draws_and_decodes_on_an_accelerator(name, tmp_path):
    """No device is named; all is done on the accelerator, and what is kept is on the CPU and as a CPU makes it."""

    def drawn():
        teacher = Teacher.from_pretrained(
            save(name, tmp_path / "teacher"), guidance_scale=1.5, **(SIZES.get(name) or PIPELINES[name].size)
        )
        texts = ["a red cat", "a dog on the moon"][: PIPELINES[name].prompts]
        condition = teacher.encode(texts) if teacher.takes_text else {"class_labels": torch.tensor([1, 2])}
        noise = teacher.noise(0, 0, len(next(iter(condition.values()))))
        student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2)).eval()
        open_gates(student)
        solved = teacher.solve_ode(noise, condition, teacher.knots(1)).states[:, -1]
        sampled = sample(student, noise, condition)[:, -1]
        return [solved, sampled, teacher.decode(solved, frames=True)]

    expected = drawn()
    with PretendDevice():
        found = drawn()
    assert [x.device for x in found] == [DEVICE, DEVICE, torch.device("cpu")]
    assert all(torch.allclose(x.cpu(), y, atol=1e-3) for x, y in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """A family's name -> its teacher's folder, and what the whole way gives with nothing set."""

    @cache
    def run(name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp(name)
        save(name, folder / "teacher")
        found = _way(name, folder, folder / "teacher")
        AcceleratorState._reset_state(reset_partial_state=True)
        return folder / "teacher", found

    return run


@pytest.mark.parametrize("name", ["dit", "sd3", "wan"])
def test_case_01_the_whole_way_on_an_accelerator(name, on_the_cpu, tmp_path):
    """No device is named, and all is done on the accelerator; what is kept is on the CPU and as a CPU makes it."""
    teacher, expected = on_the_cpu(name)
    with PretendDevice():
        found = _way(name, tmp_path / "pretend", teacher)
        assert found.pop("drawn").device == DEVICE
    assert json.loads((tmp_path / "pretend/run/environment.json").read_text())["device"] == "a pretended accelerator"
    for key, value in found.items():
        assert value.device.type == "cpu"
        assert torch.allclose(value, expected[key], atol=1e-3), f"{key}: {(value - expected[key]).abs().max()}"


@pytest.mark.parametrize(
    ("name", "default"), [("dit", DEVICE), ("dit", torch.float64), ("dit", torch.bfloat16), ("sd3", torch.bfloat16)]
)
def test_case_01_what_a_user_set_as_torchs_default_changes_nothing(name, default, on_the_cpu, tmp_path):
    """Neither torch.set_default_device nor torch.set_default_dtype: noise, times and guidance have their own."""
    teacher, expected = on_the_cpu(name)
    is_device = isinstance(default, torch.device)
    try:
        with PretendDevice() if is_device else contextlib.nullcontext():
            (torch.set_default_device if is_device else torch.set_default_dtype)(default)
            found = _way(name, tmp_path / "set", teacher)
            found["drawn"] = found["drawn"].cpu()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for key, value in found.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, expected[key], rtol=1e-4, atol=1e-3), key


def test_case_01_the_device_that_is_measured_is_the_one_waited_for(pretend, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.get_device_module(DEVICE), "synchronize", waited.append)
    latency_ms(lambda: None, repeats=1, device="pretend:0")
    latency_ms(lambda: None, repeats=1, device="cpu")
    assert waited == [DEVICE, DEVICE]


def _adversary(teacher, folder):
    real = {"class_labels": torch.arange(4)}
    save_real(folder / "real.safetensors", torch.randn(4, *teacher.sample_shape), real)
    return Adversary.of_real(teacher, folder / "real.safetensors", AdversarialConfig())


def _matching(teacher):
    options = MatchingConfig(warmup_steps=1, updates=1, lora_rank=2)
    return Matching(FakeScore(teacher, options), options)


def test_case_01_a_fake_score_made_on_one_device_trains_on_another(pretend, teacher):
    matching = _matching(teacher)
    for device in ("cpu", "pretend"):
        matching.to(device)
        before = [x.detach().cpu().clone() for x in matching.network.adapters]
        drawn, condition = torch.randn(2, *teacher.sample_shape), {"class_labels": torch.arange(2).to(device)}
        matching.update(drawn.to(device), condition, torch.Generator())
        assert matching.student_loss(drawn.to(device), condition, torch.Generator()).device.type == device
        assert not all(map(torch.equal, before, [x.detach().cpu() for x in matching.network.adapters]))
    matching.load_state_dict(matching.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_case_02_a_fake_score_beside_a_teacher_of_any_dtype(dtype, teacher):
    teacher.transformer.to(dtype)
    matching, condition = _matching(teacher), {"class_labels": torch.arange(2)}
    drawn = torch.randn(2, *teacher.sample_shape, requires_grad=True)
    found = matching.update(drawn, condition, torch.Generator())
    assert all(math.isfinite(x) for x in found.values())
    assert matching.student_loss(drawn, condition, torch.Generator()).dtype == torch.float32


def test_case_01_an_adversary_made_on_one_device_trains_on_another(pretend, teacher, tmp_path):
    adversary = _adversary(teacher, tmp_path)
    for device in ("cpu", "pretend"):
        adversary.to(device)
        before = adversary.network.time.weight.detach().cpu().clone()
        fake = torch.randn(2, *teacher.sample_shape).to(device)
        adversary.update(fake, {"class_labels": torch.arange(2).to(device)}, torch.Generator())
        assert not torch.equal(before, adversary.network.time.weight.detach().cpu())
    adversary.load_state_dict(adversary.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_case_02_an_adversary_reads_a_teacher_of_any_dtype(dtype, teacher, tmp_path):
    teacher.transformer.to(dtype)
    adversary = _adversary(teacher, tmp_path)
    found = adversary.update(
        torch.randn(2, *teacher.sample_shape), {"class_labels": torch.arange(2)}, torch.Generator()
    )
    assert all(math.isfinite(x) for x in found.values())


def test_case_01_a_student_with_a_head_per_step_trains_on_an_accelerator(pretend, teacher, tmp_path):
    """Its heads are made of a layer whose weight is no plain tensor, as a quantised one's is none."""
    teacher.to("pretend")
    record(teacher, tmp_path / "data", 4, solver_steps=2, num_steps=[2], progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1, output="direct"))
    settings = TrainingConfig(max_steps=1, batch_size=2, tracker=None)
    assert distill(student, data, tmp_path / "run", settings, progress=False).device == DEVICE


def _functions():
    """Every function and method of the package."""
    for module in pkgutil.walk_packages(ardistill.__path__, "ardistill."):
        found = importlib.import_module(module.name)
        for value in vars(found).values():
            members = vars(value).values() if inspect.isclass(value) else [value]
            for member in members:
                member = getattr(member, "__func__", member)
                if inspect.isfunction(member) and (member.__module__ or "").startswith("ardistill"):
                    yield member


def test_case_01_no_function_has_the_cpu_as_its_default_device():
    defaults = {
        f"{function.__module__}.{function.__qualname__}": parameter.default
        for function in _functions()
        for parameter in inspect.signature(function).parameters.values()
        if "device" in parameter.name and parameter.default is not parameter.empty
    }
    assert len(defaults) > 20 and set(defaults.values()) <= {None, "auto"}, defaults


def test_of_several_processes_each_has_an_accelerator_and_accelerates_flag_is_heeded(pretend, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device("pretend", 3 % torch.accelerator.device_count())
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert best_device() == torch.device("cpu")


def test_a_model_stays_where_its_user_put_it(pretend, teacher, tmp_path):
    """A teacher on the CPU is recorded, distilled, compared and drawn with there, though there is an accelerator."""
    record(teacher, tmp_path / "data", 4, solver_steps=2, num_steps=[2], progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    settings = TrainingConfig(max_steps=1, batch_size=2, tracker=None)
    student = distill(student, data, tmp_path / "run", settings, progress=False)
    assert teacher.device == student.device == torch.device("cpu")
    assert "to device" not in pretend.events
    states, _, condition = data.stacked()
    moved = Student.from_pretrained(tmp_path / "run")
    assert moved.device == DEVICE
    drawn = sample(moved, states[:, 0], condition).cpu()
    assert torch.allclose(drawn, sample(student, states[:, 0], condition), rtol=1e-4, atol=1e-3)
    assert distance_to_solver(moved, teacher, states[:, 0], condition) >= 0  # on two devices at once


def test_two_trainings_of_one_process_may_differ_in_device_and_precision(teacher, tmp_path):
    record(teacher, tmp_path / "data", 4, solver_steps=2, num_steps=[2], progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    settings = {"max_steps": 1, "batch_size": 2, "tracker": None}
    for name, precision in (("no", "no"), ("bf16", "bf16")):
        distill(student, data, tmp_path / name, TrainingConfig(**settings, mixed_precision=precision), progress=False)
    with PretendDevice():
        student.to("pretend").requires_grad_(True)
        found = distill(student, data, tmp_path / "pretend", TrainingConfig(**settings), progress=False)
        assert found.device == DEVICE


RECORD = "record --teacher zoo/fashion --num_trajectories 2 --guidance_scale 1 --solver_steps 2 --num_steps [1]"
_KNOTS = Knots("flow", (1000.0,), (0.0, 1.0), (1.0, 0.0))
NONE_LIKE_IT = "expected auto or a device that this machine has"
REFUSALS = {
    "unknown-kind": Refusal(f"{RECORD} --out out --device gpu", NONE_LIKE_IT, "such as cpu or cuda:0, got 'gpu'"),
    "absent-index": Refusal(f"{RECORD} --out out --device cuda:99", NONE_LIKE_IT, "such as cpu or cuda:0"),
    "absent-kind": Refusal(f"{RECORD} --out out --device hpu", NONE_LIKE_IT, "such as cpu or cuda:0"),
    "no-numbers": Refusal(f"{RECORD} --out out --device meta", NONE_LIKE_IT, "such as cpu.*hold no values"),
    "misspelt-index": Refusal(f"{RECORD} --out out --device cuda:x", NONE_LIKE_IT, "such as cpu or cuda:0"),
    "empty": Refusal(
        [*RECORD.split(), "--out", "out", "--device", ""], "value for --device, got an empty one", "name one"
    ),
    "distill": Refusal("distill --trajectories x --out y --device gpu", NONE_LIKE_IT, "such as cpu"),
    "finetune": Refusal(
        "finetune --student x --trajectories x --real x --out y --device gpu", NONE_LIKE_IT, "such as cpu"
    ),
    "sample": Refusal("sample --student x --device gpu", NONE_LIKE_IT, "such as cpu"),
    "encode": Refusal("encode --teacher zoo/fashion --images x --out y --device gpu", NONE_LIKE_IT, "such as cpu"),
    "cost": Refusal("cost --teacher zoo/fashion --device gpu", NONE_LIKE_IT, "such as cpu"),
    "recipe": Refusal("compare --recipe recipe.yaml --device gpu", NONE_LIKE_IT, "such as cpu"),
    "teacher": Refusal(lambda: Teacher.from_pretrained("zoo/emoji", device="gpu"), NONE_LIKE_IT, "such as cpu"),
    "student": Refusal(lambda: Student.from_pretrained("nowhere", "gpu"), NONE_LIKE_IT, "such as cpu"),
    "features": Refusal(lambda: feature_network("fashion-classifier", device="gpu"), NONE_LIKE_IT, "such as cpu"),
    "judge": Refusal(lambda: Judge.zoo("fashion", "cuda:99"), NONE_LIKE_IT, "such as cpu"),
    "autocast": Refusal(
        lambda: _half_under_another_autocast(), "torch.float16, autocast asks for", "leave autocast out"
    ),
}


def test_case_02_weights_of_16_bits_are_not_trained(teacher, tmp_path):
    record(teacher, tmp_path / "data", 4, solver_steps=2, num_steps=[2], progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1)).half()
    with pytest.raises(ValueError, match=r"torch\.float16; train student\.float\(\), with mixed_precision bf16"):
        distill(student, data, tmp_path / "run", TrainingConfig(max_steps=1, batch_size=2), progress=False)
    assert not (tmp_path / "run").exists()


def _half_under_another_autocast():
    teacher = Teacher(TINY["dit"].transformer().half(), DDIMScheduler())
    with torch.autocast("cpu", torch.bfloat16):
        teacher.solve_ode(torch.randn(1, 4, 8, 8), {"class_labels": torch.tensor([0])}, _KNOTS)


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_with_its_remedy(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"record": {"teacher": "zoo/fashion", "guidance_scale": 1, "num_trajectories": 2}, "distill": {}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "arms": {"one": {}}}))
    check_refusal(REFUSALS[name], capsys)
    assert [x.name for x in tmp_path.iterdir()] == ["recipe.yaml"]
