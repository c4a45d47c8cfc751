"""Weights that are not trained, in float32, bfloat16 or int8: the same teacher, told apart where results differ."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from ardistill import devices
from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.devices import resolve_weights
from ardistill.files import Store, fingerprints, save_tensors, stored_fingerprint, weight_fingerprint
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher
from ardistill.training import base_weights, distill
from ardistill.training.discriminator import Discriminator
from ardistill.trajectories import Manifest, OnlineTrajectories, TrajectoryDataset, record, recording_weights

BLOCKS = 3
ROUNDING = 2**-9
"""Largest relative error of rounding to bfloat16: half of its spacing, 2^-8."""
OUTPUT = (8 * BLOCKS + 4) * ROUNDING
"""Bound of the relative error of an output in bfloat16: in a block 4 products, 2 norms and 2 sums are rounded, at both
ends of the network 4 numbers; as if all errors added up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_dit):
    """A teacher's folder, its weights in float32 in several files."""
    transformer = make_dit(BLOCKS)
    path = tmp_path_factory.mktemp("weights") / "teacher"
    transformer.save_pretrained(path / "transformer", max_shard_size="60KB")
    DDIMScheduler(clip_sample=False).save_pretrained(path / "scheduler")
    return path


@pytest.fixture(scope="module")
def teachers(folder):
    """Type of weights -> the teacher."""
    return {
        name: Teacher.from_pretrained(folder, weights=name, device="cpu") for name in ("float32", "bfloat16", "int8")
    }


def test_the_teacher_is_the_same_however_its_weights_are_loaded(folder, teachers, tmp_path):
    assert len([*(folder / "transformer").glob("*.safetensors")]) > 2
    expected = weight_fingerprint(teachers["float32"].transformer.state_dict())
    for name, teacher in teachers.items():
        assert teacher.weights == name and teacher.fingerprint() == expected
    exact, rounded = (teachers[name].transformer.state_dict() for name in ("float32", "bfloat16"))
    assert all(torch.equal(x.bfloat16(), rounded[name]) for name, x in exact.items())
    pickled = tmp_path / "pickled"
    DDIMScheduler(clip_sample=False).save_pretrained(pickled / "scheduler")
    teachers["float32"].transformer.save_pretrained(pickled / "transformer", safe_serialization=False)
    assert Teacher.from_pretrained(pickled, weights="bfloat16", device="cpu").fingerprint() == expected


def test_large_files_are_hashed_once_and_anew_when_they_change(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fingerprints, "LARGE", 0)
    monkeypatch.setattr(fingerprints, "_known", {})
    file, hashed = folder.parent / "one" / "x.safetensors", []
    file.parent.mkdir(exist_ok=True)

    def found(value, dtype):
        tensors = {"b": torch.full((3, 5), value, dtype=dtype), "a": torch.tensor(2.0)}
        if value:
            save_tensors(tensors, file)
        monkeypatch.setattr(fingerprints, "_known", {})  # as a new process begins
        return stored_fingerprint([file], {"b": (3, 5), "a": ()}, lambda: hashed.append(1) or tensors)

    before = found(0.5, torch.float32)
    assert (
        before == found(0, None) == found(0.5, torch.bfloat16) == found(0.5, torch.float16) != found(0.25, torch.half)
    )
    assert len([*tmp_path.rglob("*.json")]) == 4 and not hashed
    assert stored_fingerprint([file], {"b": (3, 5)}, lambda: hashed.append(1) or {"b": torch.ones(1)}) and hashed


def test_types_that_the_device_or_the_installation_lacks_are_refused_in_one_line(folder, monkeypatch):
    assert resolve_weights("auto", "cpu") == "float32"
    with pytest.raises(ValueError, match=r"expected a GPU for weights nf4, got cpu; choose weights int8 or bfloat16"):
        Teacher.from_pretrained(folder, weights="nf4", device="cpu")
    with pytest.raises(ValueError, match=r"unknown weights 'fp8'; known: auto, float32, bfloat16, int8, nf4"):
        Teacher.from_pretrained(folder, weights="fp8")
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"weights int8 needs torchao: pip install 'ardistill\[quantised\]'"):
        Teacher.from_pretrained(folder, weights="int8", device="cpu")


def test_int8_is_as_close_as_its_steps_and_all_weights_of_it_are_not_trained(teachers):
    layer, exact = (teachers[x].transformer.transformer_blocks[0].ff.net[0].proj for x in ("int8", "float32"))
    steps = exact.weight.abs().amax(1, keepdim=True) / 127
    error = (layer.weight.dequantize().float() - exact.weight).abs()
    assert (error <= (0.5 + 127 * 3 * ROUNDING) * steps).all()  # the weight, its scale and their product in bfloat16
    config = StudentConfig(teachers["int8"].knots(2), 2)
    with pytest.raises(ValueError, match=r"to train all of them, got int8, which cannot be trained; train adapters"):
        Student.from_teacher(teachers["int8"], config)
    with pytest.raises(ValueError, match=r"to train all of them, got nf4"):
        base_weights("nf4", "nowhere", 0, torch.device("cpu"))
    expected = Student.from_teacher(teachers["float32"], config).state_dict()
    found = Student.from_teacher(teachers["bfloat16"], config).state_dict()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())  # read again, in float32


@pytest.mark.parametrize("output,target", [("solver", "state"), ("direct", "anchored")])
@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_a_student_with_adapters_on_such_a_base(teachers, tmp_path, name, output, target):
    teacher, condition = teachers[name], {"class_labels": torch.arange(3)}
    knots, noise = teacher.knots(2), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {
        "lora_rank": 2,
        "output": output,
        "target": target,
        "guidance_range": (1.0, 2.0),
        "fingerprint": teacher.fingerprint(),
    }
    for layers in (0, 2):
        student = Student.from_teacher(teacher, StudentConfig(knots, layers, **options)).eval()
        if output == "solver":
            solved = teacher.solve_ode(noise, condition, knots).states[:, -1]
            assert torch.equal(sample(student, noise, condition)[:, -1], solved)  # B is zero, gates are closed
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    for part, parameter in student.named_parameters():
        if parameter.requires_grad and ".lora_A" not in part:
            nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    folded = student(inputs, condition)
    folded.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)
    with torch.no_grad():
        apart = (student(inputs, condition, sequential=True) - folded).norm() / folded.norm()
        assert apart <= OUTPUT  # other shapes may be summed in another order, which rounding then amplifies
        student.save_pretrained(tmp_path / "student")
        merged = Student.from_pretrained(tmp_path / "student", "cpu")
        assert {x.dtype for x in merged.transformer.state_dict().values()} == {torch.float32}
        layer = student.transformer.transformer_blocks[0].ff.net[0].proj
        base = layer.base_layer.weight
        base = (base.dequantize() if name == "int8" else base).float()
        expected = base + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.equal(merged.transformer.transformer_blocks[0].ff.net[0].proj.weight, expected)
        assert (merged(inputs, condition) - folded).norm() / folded.norm() <= OUTPUT
        student.save_adapters(tmp_path / "adapters")
        assert torch.equal(Student.from_adapters(teacher, tmp_path / "adapters")(inputs, condition), folded)


@pytest.mark.slow
def test_a_recording_is_continued_in_its_own_type(teachers, tmp_path):
    options = {"solver_steps": 2, "num_steps": (2,), "progress": False}
    plain = record(teachers["float32"], tmp_path / "plain", 2, **options)
    assert (
        "weights" not in json.loads((tmp_path / "plain" / "manifest.json").read_text()) and plain.weights == "float32"
    )
    made = record(teachers["bfloat16"], tmp_path / "made", 2, **options)
    assert (made.weights, made.fingerprint) == ("bfloat16", plain.fingerprint) and made.recording != plain.recording
    assert Manifest.read(Store(tmp_path / "made")) == made
    assert recording_weights(tmp_path / "made", "auto", "cpu") == "bfloat16"
    assert recording_weights(tmp_path / "none", "auto", "cpu") == "float32"
    with pytest.raises(ValueError, match=r"weights is 'bfloat16' there, 'float32' asked for"):
        record(teachers["float32"], tmp_path / "made", 4, **options)
    with pytest.raises(ValueError, match=r"with weights 'bfloat16', got 'float32'; make it with the recorded value"):
        OnlineTrajectories(tmp_path / "made", 2, teachers["float32"])
    record(teachers["bfloat16"], tmp_path / "made", 4, **options)
    recorded, online = (
        TrajectoryDataset(tmp_path / "made", 2),
        OnlineTrajectories(tmp_path / "made", 2, teachers["bfloat16"]),
    )
    assert torch.equal(recorded.stacked()[0], online.stacked()[0])
    exact = TrajectoryDataset(tmp_path / "plain", 2).stacked()[0][:, -1]
    assert 0 < (recorded.stacked()[0][:2, -1] - exact).norm() / exact.norm() <= 2 * OUTPUT  # a rounding for each step


@pytest.mark.slow
def test_training_on_a_bfloat16_base_resumes_to_the_bit(teachers, tmp_path, dies_at_its_first_checkpoint):
    teacher = teachers["bfloat16"]
    record(teacher, tmp_path / "data", 8, solver_steps=4, num_steps=(2,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    config = data.student_config(history_layers=2, lora_rank=2)
    training = TrainingConfig(max_steps=6, batch_size=4, checkpoint_every=3, learning_rate=5e-3, tracker=None)

    def train(name, base=teacher, validate=None):
        student = Student.from_teacher(base, config)
        return distill(student, data, tmp_path / name, training, validate=validate, progress=False)

    whole = train("whole").state_dict()
    dies_at_its_first_checkpoint(lambda validate: train("killed", validate=validate))
    assert base_weights("auto", tmp_path / "killed", 2, torch.device("cpu")) == "bfloat16"
    with pytest.raises(ValueError, match=r"weights.base is 'bfloat16' there, 'float32' asked for"):
        train("killed", teachers["float32"])
    assert all(torch.equal(x, whole[name]) for name, x in train("killed").state_dict().items())


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_the_discriminators_teacher_may_be_of_such_a_type(teachers, name):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    condition, slopes = {"class_labels": torch.arange(4)}, {}
    for kind in ("float32", name):
        judge = Discriminator(teachers[kind], AdversarialConfig(hidden=8))
        generator = torch.Generator().manual_seed(4)
        seen = judge.look(latents, condition, judge.draw_levels(4, generator), generator)
        assert {x.dtype for x in seen.features} == {torch.float32}
        (slopes[kind],) = torch.autograd.grad(judge.judge(seen).mean(), latents)
    exact = slopes["float32"]
    limit = 2 * OUTPUT if name == "bfloat16" else 0.2  # forwards and backwards; int8 has steps of a half to 1 in 127
    assert 0 < (slopes[name] - exact).norm() / exact.norm() <= limit
