import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import open_gates

from ardistill.config import TrainingConfig
from ardistill.student import Student, StudentConfig, sample
from ardistill.training import distill
from ardistill.training.run_folder import truncate_log
from ardistill.trajectories import TrajectoryDataset, record

CONFIG = TrainingConfig(max_steps=6, batch_size=4, checkpoint_every=3, tracker=None, learning_rate=1e-3, ema_decay=0.5)


@pytest.fixture
def folder(teacher, tmp_path):
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(1, 2, 4), shard_size=8, progress=False)
    return tmp_path


def make(teacher, data, target="state", output="solver"):
    student = Student.from_teacher(teacher, StudentConfig(data.knots, 2, "M4", target, output))
    open_gates(student)
    return student


@pytest.mark.parametrize(
    "target,output", [("state", "solver"), ("state", "direct"), ("denoised", "direct"), ("anchored", "solver")]
)
def test_training_lowers_the_loss(teacher, folder, target, output):
    data = TrajectoryDataset(folder / "data", 4, teacher.fingerprint())
    student = make(teacher, data, target, output)
    config = TrainingConfig(max_steps=30, batch_size=20, tracker=None, learning_rate=1e-3, ema_decay=0.5)
    distill(student, data, folder / "run", config, progress=False)
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_a_second_training_into_a_folder_is_refused_while_the_first_goes_on(teacher, folder, monkeypatch):
    data = TrajectoryDataset(folder / "data", 4)
    monkeypatch.setattr("ardistill.training.run_folder._LOCK_TIMEOUT", 0.1)
    refused = []

    def second(_student, step):
        with pytest.raises(ValueError, match=r"run is being trained in by another process .*; wait for it") as error:
            distill(make(teacher, data), data, folder / "run", CONFIG, progress=False)
        refused.append((step, error))

    first = distill(make(teacher, data), data, folder / "run", CONFIG, validate=second, progress=False)
    assert [step for step, _ in refused] == [3, 6]
    again = distill(make(teacher, data), data, folder / "run", CONFIG, progress=False)  # the first training has ended
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_where_nothing_can_be_locked_a_warning_is_logged_and_training_continues(teacher, folder, monkeypatch, caplog):
    def no_locks(self):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("ardistill.training.run_folder.FileLock.acquire", no_locks)
    data = TrajectoryDataset(folder / "data", 4)
    distill(make(teacher, data), data, folder / "run", CONFIG, progress=False)
    assert "cannot be locked (No locks available): make sure that only one process trains" in caplog.text


def test_gates_learn_at_their_own_rate(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    before = {}
    after = {}
    for rate in (1.0, 30.0):
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        before = {name: x.clone() for name, x in student.state_dict().items()}
        config = replace(CONFIG, max_steps=1, gate_rate=rate)
        after[rate] = distill(student, data, folder / f"run{rate}", config, progress=False).state_dict()
    for name, slow in after[1.0].items():
        factor = 30 if name.endswith("history_gate") else 1  # AdamW's first step is the rate times the gradient's sign
        torch.testing.assert_close(after[30.0][name] - before[name], factor * (slow - before[name]))


def test_a_run_whose_gates_have_their_own_rate_resumes_equal_to_the_bit(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    whole, cut = (Student.from_teacher(teacher, StudentConfig(data.knots, 2)) for _ in range(2))
    config = replace(CONFIG, gate_rate=30.0)
    distill(whole, data, folder / "whole", config, progress=False)

    def stop(_student, step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(cut, data, folder / "cut", config, validate=stop, progress=False)
    cut = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
    distill(cut, data, folder / "cut", config, progress=False)
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in whole.state_dict().items())


def test_gates_open_in_training(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
    gates = [p for name, p in student.named_parameters() if name.endswith("history_gate")]
    assert len(gates) == 2 and not any(gates)
    distill(student, data, folder / "run", replace(CONFIG, max_steps=3), progress=False)
    assert all(gates)
    again = Student.from_pretrained(folder / "run", device="cpu")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())


def weights_after(teacher, data, folder, **options):
    config = replace(CONFIG, **options)
    return distill(make(teacher, data), data, folder, config, progress=False).state_dict()


def test_accumulated_passes_equal_one_large_batch(teacher, tmp_path):
    """There is one trajectory, so that the rows drawn do not matter; it has more solver steps than the student, because
    AdamW amplifies gradients that are only rounding.
    """
    record(teacher, tmp_path / "data", 1, solver_steps=8, num_steps=(4,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)
    whole = weights_after(teacher, data, tmp_path / "whole", batch_size=6, max_steps=4)
    parts = weights_after(teacher, data, tmp_path / "parts", batch_size=2, gradient_accumulation_steps=3, max_steps=4)
    for name in whole:  # a key's bias has a gradient that is only rounding, which AdamW amplifies
        assert torch.allclose(whole[name], parts[name], atol=1e-5) or name.endswith("to_k.bias"), name


def test_checkpointed_training_equals_plain_training(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    plain = weights_after(teacher, data, folder / "plain")
    checkpointed = weights_after(teacher, data, folder / "checkpointed", gradient_checkpointing=True)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_bf16_keeps_weights_in_fp32_and_stays_near(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    full = weights_after(teacher, data, folder / "full")
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of a process's state is fixed
    half = weights_after(teacher, data, folder / "half", mixed_precision="bf16")
    assert {value.dtype for value in half.values()} == {torch.float32}
    differing = [name for name in full if not torch.equal(full[name], half[name])]
    assert differing and all((full[name] - half[name]).abs().max() < 0.01 for name in differing)
    losses = [
        [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("full", "half")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_ema_weights_are_saved_and_validated(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    shown = []

    def validate(student, step):
        shown.append((step, {name: value.clone() for name, value in student.state_dict().items()}, student.training))

    student = distill(make(teacher, data), data, folder / "run", CONFIG, validate=validate, progress=False)
    assert [(step, training) for step, _, training in shown] == [(3, False), (6, False)]
    saved = Student.from_pretrained(folder / "run", device="cpu").state_dict()
    [file] = (folder / "run" / "checkpoints" / "step-00000006").glob("*.safetensors")
    trained = {name: value for name, value in load_file(file).items() if name.startswith("student.")}
    for name, value in student.state_dict().items():
        assert torch.equal(value, shown[-1][1][name]) and torch.equal(value, saved[name])
    assert any(not torch.equal(value, saved[name.removeprefix("student.")]) for name, value in trained.items())


def test_resumed_equals_uninterrupted(teacher, folder, dies_at_its_first_checkpoint):
    data = TrajectoryDataset(folder / "data", 4)
    whole = distill(make(teacher, data), data, folder / "whole", CONFIG, progress=False)

    def train(validate=None):
        return distill(make(teacher, data), data, folder / "killed", CONFIG, validate=validate, progress=False)

    dies_at_its_first_checkpoint(train)
    assert not (folder / "killed" / "student").exists()
    resumed = train()
    assert (folder / "killed" / "metrics.jsonl").read_text() == (folder / "whole" / "metrics.jsonl").read_text()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("output,target", [("solver", "state"), ("direct", "anchored")])
def test_a_checkpoint_is_a_student_too(teacher, folder, output, target):
    data = TrajectoryDataset(folder / "data", 4)
    seen = {}

    def validate(student, step):
        seen[step] = {name: value.clone() for name, value in student.state_dict().items()}

    student = make(teacher, data, target, output)
    distill(student, data, folder / "run", CONFIG, validate=validate, progress=False)
    for step, weights in seen.items():
        path = folder / "run" / "checkpoints" / f"step-{step:08d}"
        found = Student.from_pretrained(path, device="cpu")
        assert found.config == student.config and not found.training
        assert all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())
    next(path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000006 is broken .* is cut"):
        Student.from_pretrained(path)


def test_only_the_damaged_lines_of_a_log_are_removed(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 10}\n{"step": 2\xff}\n[1]\n{"step": 30}\n{"step": 40}\n{"st')
    truncate_log(tmp_path, 30, 60)
    assert log.read_bytes() == b'{"step": 10}\n{"step": 30}\n'


def test_recorded_states_are_the_teachers(teacher, folder):
    data = TrajectoryDataset(folder / "data", 2)
    noise = teacher.noise(0, 1, 8)
    labels = (torch.arange(8) + 8) % 5
    solved = teacher.solve_ode(noise, {"class_labels": labels}, teacher.knots(8))
    rows = torch.stack([data[i]["states"] for i in range(8, 16)])
    assert torch.equal(rows, solved.states[:, [0, 4, 8]])
    assert torch.equal(torch.stack([data[i]["denoised"] for i in range(8, 16)]), solved.denoised[:, [3, 7]])


def test_recording_again_makes_what_is_missing(teacher, folder):
    path = folder / "data" / "shard-00001.arrow"
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        TrajectoryDataset(folder / "data", 2)
    record(teacher, folder / "data", 20, solver_steps=8, num_steps=(1, 2, 4), shard_size=8, progress=False)
    assert path.read_bytes() == before


def test_recorded_in_bf16_is_near_and_says_so(teacher, tmp_path):
    options = {"solver_steps": 8, "num_steps": (2,), "shard_size": 8, "progress": False}
    for precision in ("no", "bf16"):
        record(teacher, tmp_path / precision, 8, mixed_precision=precision, **options)
    exact, near = (TrajectoryDataset(tmp_path / name, 2).stacked()[0] for name in ("no", "bf16"))
    assert torch.equal(exact[:, 0], near[:, 0]) and near.dtype == torch.float32
    assert 0 < (exact - near).abs().mean() < 0.05 * exact.abs().mean()
    with pytest.raises(ValueError, match="holds other trajectories"):
        record(teacher, tmp_path / "no", 8, mixed_precision="bf16", **options)
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp8'"):
        record(teacher, tmp_path / "other", 8, mixed_precision="fp8", **options)


def test_bad_input_is_named(teacher, folder):
    with pytest.raises(ValueError, match="another teacher"):
        TrajectoryDataset(folder / "data", 2, fingerprint="0" * 64)
    with pytest.raises(ValueError, match="lacks states"):
        TrajectoryDataset(folder / "data", 8)
    with pytest.raises(ValueError, match="expected 1 to 8 steps"):
        TrajectoryDataset(folder / "data", 9)
    with pytest.raises(ValueError, match="holds other trajectories"):
        record(teacher, folder / "data", 19, solver_steps=8, num_steps=(1, 2, 4), shard_size=8)
    data = TrajectoryDataset(folder / "data", 4)
    with pytest.raises(ValueError, match="not the student's knots"):
        distill(make(teacher, TrajectoryDataset(folder / "data", 2)), data, folder / "run", CONFIG)
    stranger = replace(data.student_config(history_layers=2), teacher="other", fingerprint="0" * 64)
    with pytest.raises(ValueError, match="the trajectories: expected the teacher other"):
        distill(Student.from_teacher(teacher, stranger), data, folder / "run", CONFIG)
    guided = replace(data.student_config(history_layers=2), guidance_range=(4.0, 4.0))
    with pytest.raises(ValueError, match=r"says guidance \(4.0, 4.0\), its trajectories have \(1.0, 1.0\)"):
        distill(Student.from_teacher(teacher, guided), data, folder / "run", CONFIG)
    for options in ({"max_steps": 0}, {"ema_decay": 1.0}, {"mixed_precision": "fp8"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrainingConfig(**options)
    assert not (folder / "run").exists()
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    with pytest.raises(ValueError, match="to be empty or to hold this run"):
        distill(make(teacher, data), data, folder / "other", CONFIG)
    path = folder / "data" / "shard-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is cut"):  # opening reads no shard; the first access reads all of it
        TrajectoryDataset(folder / "data", 2)[0]
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(ValueError, match="checksum"):
        TrajectoryDataset(folder / "data", 2)[0]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is cut: expected"):
        TrajectoryDataset(folder / "data", 2)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mask", ["M1", "M2", "M3", "M4"])
@pytest.mark.parametrize("target,output", [("state", "solver"), ("denoised", "direct"), ("anchored", "solver")])
def test_the_students_own_inputs_are_its_rollout_folded(teacher, folder, target, output, mask, gated):
    """A step-by-step pass with gradients equals a rollout without gradients, then a folded pass on its inputs."""
    data = TrajectoryDataset(folder / "data", 4)
    states, _denoised, condition = data.stacked(slice(4))
    found = []
    for on_policy in (True, False):
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2, mask, target, output, gated))
        open_gates(student)
        inputs = states[:, :-1]
        if not on_policy:
            estimates, noise = sample(student, states[:, 0], condition), states[:, 0]
            inputs = torch.stack([noise, *(student.next_input(estimates[:, s], noise, s) for s in range(3))], dim=1)
        estimates = student(inputs, condition, on_policy=on_policy)
        estimates.square().mean().backward()
        found.append((estimates.detach(), torch.cat([p.grad.flatten() for p in student.parameters()])))
    for ours, folded in zip(*found, strict=True):
        assert (ours - folded).abs().max() <= 2e-5 * folded.abs().max()


def test_gradients_flow_through_the_last_inputs_as_asked(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    states, _denoised, condition = data.stacked(slice(4))
    student = make(teacher, data)
    norms = {}
    for through in range(4):
        estimates = student(states[:, :-1], condition, on_policy=True, through_steps=through)
        recomputed = student(states[:, :-1], condition, sequential=True, on_policy=True, through_steps=through)
        gradients = []
        for final in (estimates[:, -1], recomputed[:, -1]):
            student.zero_grad()
            final.square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
        norms[through] = gradients[0]
    assert all(not torch.allclose(norms[i], norms[i + 1], rtol=1e-3) for i in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["student", "mixed"])
def test_training_on_its_own_inputs_resumes_and_lowers_the_loss(teacher, folder, inputs, dies_at_its_first_checkpoint):
    data = TrajectoryDataset(folder / "data", 4)
    config = replace(CONFIG, inputs=inputs, max_steps=30, checkpoint_every=15, batch_size=20)
    whole = distill(make(teacher, data), data, folder / "whole", config, progress=False)
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert inputs == "mixed" or lines[-1]["loss"] < lines[0]["loss"]  # with mixed, the logged batches differ in kind

    def train(validate=None):
        return distill(make(teacher, data), data, folder / "killed", config, validate=validate, progress=False)

    dies_at_its_first_checkpoint(train)
    resumed = train()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
