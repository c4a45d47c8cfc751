"""Training passes as a CUDA graph: equal to plain ones on CUDA; elsewhere a stand-in repeats what was captured."""

import contextlib
import importlib
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_students import batch, make

from ardistill.config import TrainingConfig
from ardistill.student import Student
from ardistill.training import distill
from ardistill.training.batches import Batch
from ardistill.training.graphed import BEFORE, GraphedPass, graphs
from ardistill.training.losses import regression_loss
from ardistill.training.run_folder import read_log
from ardistill.trajectories import TrajectoryDataset, record

loop = importlib.import_module("ardistill.training.distill")
CONFIG = TrainingConfig(max_steps=12, batch_size=4, checkpoint_every=6, tracker=None, learning_rate=1e-3)
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def stand_in(monkeypatch):
    """A graph that repeats the captured pass on its own inputs; counts its replays."""
    counted = SimpleNamespace(replays=0, captured=None)

    class Graph:
        def replay(self):
            counted.replays += 1
            held = counted.captured
            gradients = [x.grad for x in held._parameters]
            for parameter in held._parameters:
                parameter.grad = None
            held._reported.copy_(held._run(held._held))
            for parameter, kept in zip(held._parameters, held._gradients, strict=True):
                if kept is not None:
                    kept.copy_(parameter.grad)
            assert all(x is None for x in gradients)  # nobody adds to what the pass before left

    class Watched(GraphedPass):
        def _capture(self, given):
            counted.captured = self
            super()._capture(given)

    @contextlib.contextmanager
    def graph(_graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        yield

    generator = SimpleNamespace(clone_state=lambda: None, graphsafe_set_state=lambda state: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    monkeypatch.setattr(loop, "GraphedPass", Watched)
    monkeypatch.setattr(loop, "graphs", lambda *_: True)
    return counted


def test_a_graphed_training_equals_a_plain_one_also_when_it_is_resumed(
    teacher, tmp_path, stand_in, monkeypatch, dies_at_its_first_checkpoint
):
    record(teacher, tmp_path / "data", 20, solver_steps=4, num_steps=(4,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)

    def train(name, validate=None):
        student = Student.from_teacher(teacher, data.student_config(history_layers=2))
        return distill(student, data, tmp_path / name, CONFIG, validate=validate, progress=False).state_dict()

    whole = train("whole")
    assert stand_in.replays == CONFIG.max_steps - BEFORE
    dies_at_its_first_checkpoint(lambda validate: train("killed", validate))
    resumed = train("killed")
    with monkeypatch.context() as plainly:
        plainly.setattr(loop, "graphs", lambda *_: False)
        plain = train("plain")
    assert all(torch.equal(x, plain[name]) and torch.equal(x, resumed[name]) for name, x in whole.items())
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "plain")


def passes_of(name, device="cpu"):
    """A pass of a tiny student, its parameters, and a function that gives batches of some rows."""
    student = make(name).to(device).train()
    parameters = [x for x in student.parameters() if x.requires_grad]

    def run(given):
        estimates = student(given.inputs, given.condition)
        loss, errors = regression_loss(estimates, given.targets, torch.ones(4, device=device))
        loss.backward()
        return errors

    def draw(rows, seed):
        inputs, condition = batch(name, rows)
        torch.manual_seed(seed)
        noise = torch.randn(2, *inputs.shape).to(device)
        condition = student.family.place(condition, torch.device(device))
        return Batch(noise[0], noise[1], condition, False, torch.Generator())

    return run, parameters, draw


def gradients_of(call, parameters, given):
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(5)  # dropout of labels
    reported = call(given).clone()
    return reported, [None if x.grad is None else x.grad.clone() for x in parameters]


def same(ours, theirs, tolerance=0.0):
    pairs = [(ours[0], theirs[0]), *zip(ours[1], theirs[1], strict=True)]
    assert all((x is None) == (y is None) for x, y in pairs)
    return all((x - y).abs().max() <= tolerance * y.abs().max() for x, y in pairs if x is not None)


def test_other_shapes_run_as_they_are(stand_in):
    run, parameters, draw = passes_of("dit")
    graphed = loop.GraphedPass(run, parameters)
    for seed, rows in enumerate([2, 2, 2, 2, 2, 3, 2]):
        given = draw(rows, seed)
        assert same(gradients_of(graphed, parameters, given), gradients_of(run, parameters, given))
    assert stand_in.replays == 3


def test_only_one_process_on_cuda_without_a_discriminator_has_a_graph():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert graphs(CONFIG, cuda, 1, False) and not graphs(replace(CONFIG, cuda_graph=False), cuda, 1, False)
    assert not any((graphs(CONFIG, cpu, 1, False), graphs(CONFIG, cuda, 2, False), graphs(CONFIG, cuda, 1, True)))
    with pytest.raises(ValueError, match=r"cuda_graph needs a single process on CUDA.* got 1 process\(es\) on cpu"):
        graphs(replace(CONFIG, cuda_graph=True), cpu, 1, False)
    for option in ({"gradient_accumulation_steps": 2}, {"sequential": True}, {"gradient_checkpointing": True}):
        assert not graphs(replace(CONFIG, **option), cuda, 1, False)
        with pytest.raises(ValueError, match=f"cuda_graph and {next(iter(option))} exclude each other"):
            replace(CONFIG, cuda_graph=True, **option)


@on_cuda
@pytest.mark.parametrize("name", ["dit", "pixart-alpha", "sd3", "flux", "wan", "auraflow", "hunyuandit"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_cuda_graph_leaves_the_gradients_of_a_plain_pass(name, autocast):
    run, parameters, draw = passes_of(name, "cuda")

    def cast(given):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return run(given)

    graphed = GraphedPass(cast, parameters)
    for seed, rows in enumerate([2, 2, 2, 2, 2, 3, 2]):
        given = draw(rows, seed)
        found = gradients_of(graphed, parameters, given)
        assert same(found, gradients_of(cast, parameters, given), 2e-2 if autocast else 1e-4)
    assert graphed._held is not None


@on_cuda
def test_a_pass_that_no_graph_can_hold_runs_as_it_is(caplog):
    run, parameters, draw = passes_of("dit", "cuda")

    def waits(given):
        assert float(given.inputs.sum()) < 1e9
        return run(given)

    graphed = GraphedPass(waits, parameters)
    with caplog.at_level(logging.WARNING):
        for seed in range(6):
            given = draw(2, seed)
            assert same(gradients_of(graphed, parameters, given), gradients_of(run, parameters, given), 1e-4)
    assert caplog.text.count("training goes on without a CUDA graph") == 1


@on_cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_on_cuda_with_a_graph_comes_out_as_one_without(teacher, tmp_path, compiled):
    record(teacher, tmp_path / "data", 20, solver_steps=4, num_steps=(4,), progress=False)
    data, found = TrajectoryDataset(tmp_path / "data", 4), {}
    for graph in (False, True):
        student = Student.from_teacher(teacher, data.student_config(history_layers=2)).to("cuda")
        config = replace(CONFIG, cuda_graph=graph, compile=compiled, mixed_precision="no")
        distill(student, data, tmp_path / str(graph), config, progress=False)
        found[graph] = [line["loss"] for line in read_log(tmp_path / str(graph))]
    assert found[True] == pytest.approx(found[False], rel=1e-3)


@on_cuda
@pytest.mark.parametrize("mask", ["M2", "M4"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_history_do_not_depend_on_what_ran_before(mask, gated, dtype):
    """Eager and compiled in one process: cuDNN's plans of the first are not right for the second (`_LaidOut`)."""
    from ardistill.student.folded import history_attention

    torch.manual_seed(0)
    steps, shape = 4, (8, 256, 4, 64)
    given = [torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    gate = torch.full((1,), 0.5, device="cuda", requires_grad=True) if gated else None
    leaves = [*given, *([gate] if gated else [])]

    def attend(query, key, value):
        found = history_attention(query, key, value, mask, gate=gate, num_steps=steps)
        return found.transpose(1, 2).flatten(2)

    upstream = torch.randn(8, 256, 256, device="cuda", dtype=dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.autograd.grad(attend(*given), leaves, upstream)
    for run in (attend, torch.compile(attend), attend):
        for x, y in zip(torch.autograd.grad(run(*given), leaves, upstream), expected, strict=True):
            assert (x - y).abs().max() <= (4e-2 if dtype == torch.bfloat16 else 1e-3) * y.abs().max()
