"""A student of two transformers, one for each expert of a teacher of two, as Wan 2.2 is published."""

import functools
import json
import os
import pickle
import re
import shlex
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from stranger import alone
from tiny import PIPELINES, TINY, open_gates
from two_experts import DRAW, PROMPTS, SIZE, save_two

import ardistill
from ardistill.cli import main
from ardistill.core.experts import PairConfig
from ardistill.evaluation import draw_samples
from ardistill.publishing import export, is_export_of
from ardistill.student import Student, StudentConfig, StudentPair, sample
from ardistill.teacher import Teacher, expert_knots, stock_knots
from ardistill.training import finetune
from ardistill.trajectories import select_knots

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_two(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def teacher(folder):
    return Teacher.from_pretrained(folder, guidance_scale=1.0, **SIZE)


def pair(teacher, steps=4, layers=2, **options):
    """A student of each expert, and both together."""
    knots = teacher.knots(steps)
    return StudentPair(
        *(
            Student.from_teacher(
                teacher, StudentConfig(expert_knots(teacher, knots, name), layers, expert=name, **options)
            )
            for name in ("high_noise", "low_noise")
        )
    ).eval()


def trained(student, seed=0):
    """Gates opened and weights changed, as training would."""
    open_gates(student)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return student


def noise_and_condition(teacher, count=1):
    noise = torch.randn(count, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    return noise, teacher.encode(PROMPTS[:count])


def images(teacher, student):
    noise, condition = noise_and_condition(teacher)
    return teacher.decode(sample(student, noise, condition)[:, -1]) / 2 + 0.5


def drawn_by_diffusers(folder, tmp_path):
    """Drawn from the export in a process without this package."""
    alone(DRAW, folder, tmp_path / "images.pt", folder=tmp_path)
    return torch.load(tmp_path / "images.pt")[:, 0]


@pytest.mark.parametrize("layers", [0, 2])
def test_an_untrained_pair_draws_what_the_solver_draws_through_both(teacher, layers):
    student, knots = pair(teacher, layers=layers), teacher.knots(4)
    assert student.config.knots == knots and [x.num_steps for x in student.parts.values()] == [2, 2]
    noise, condition = noise_and_condition(teacher, 2)
    solved = teacher.solve_ode(noise, condition, knots).states[:, 1:]
    assert torch.allclose(sample(student, noise, condition), solved, atol=1e-5)


def test_the_parts_start_from_their_own_experts(teacher):
    student = pair(teacher)
    for part, expert in zip(student.parts.values(), (teacher.transformer, teacher.second[0]), strict=True):
        own = dict(part.transformer.named_parameters())
        assert all(torch.equal(x, own[name]) for name, x in expert.named_parameters())


def test_a_pair_draws_as_one_student_after_the_other_and_no_history_crosses(teacher):
    student = trained(pair(teacher))
    noise, condition = noise_and_condition(teacher, 2)
    drawn = sample(student, noise, condition)
    middle = sample(student.first, noise, condition)
    end = sample(student.second, middle[:, -1], condition)
    assert torch.equal(drawn, torch.cat([middle, end], dim=1))
    inputs = torch.cat([noise[:, None], drawn[:, :-1]], dim=1)
    assert torch.allclose(student(inputs, condition), drawn, atol=1e-5)
    changed = torch.cat([torch.randn_like(inputs[:, :2]), inputs[:, 2:]], dim=1)
    assert torch.equal(student(changed, condition)[:, 2:], student(inputs, condition)[:, 2:])
    with pytest.raises(ValueError, match="trained one by one"):
        student(inputs, condition, sequential=True)


@pytest.mark.parametrize("options", [{"mask": "M4"}, {"output": "direct"}, {"guidance_range": (1.0, 3.0)}])
def test_an_export_of_two_draws_the_same_with_diffusers_alone(teacher, folder, tmp_path, options):
    student = trained(pair(teacher, **options))
    export(student, teacher, tmp_path / "export")
    index = json.loads((tmp_path / "export" / "model_index.json").read_text())
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"] and index["boundary_ratio"] == 0.8
    expected = images(teacher, student)
    if options == {"mask": "M4"}:
        assert torch.allclose(drawn_by_diffusers(tmp_path / "export", tmp_path), expected, atol=1e-4)
    read = Student.from_pretrained(tmp_path / "export", "cpu")
    assert isinstance(read, StudentPair) and read.config == student.config
    assert torch.equal(images(teacher, read), expected)
    loaded = ardistill.load(tmp_path / "export")
    given = SIZE | {"prompt": PROMPTS[:1], "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    assert torch.allclose(loaded(**given).frames[:, 0], expected, atol=1e-4)
    assert is_export_of(tmp_path / "export", student)
    student.second.transformer.proj_out.bias.data += 1
    assert not is_export_of(tmp_path / "export", student)


def stock_pair(teacher, folder, rank=0):
    """Students whose steps the stock pipeline makes."""
    solver = teacher.knots(PIPELINES["wan"].solver_steps)
    knots, students = stock_knots(teacher, solver, 4), []
    for expert in ("high_noise", "low_noise"):
        config = StudentConfig(
            expert_knots(teacher, knots, expert), 0, expert=expert, lora_rank=rank, teacher=str(folder)
        )
        students.append(trained(Student.from_teacher(teacher, config)))
    return StudentPair(*students).eval()


def test_the_stock_pipeline_draws_a_pair_without_history(teacher, folder, tmp_path):
    student = stock_pair(teacher, folder)
    drawing = export(student, teacher, tmp_path / "export")
    assert drawing is not None and not [*(tmp_path / "export").glob("*.py")]
    assert Student.from_pretrained(tmp_path / "export", "cpu").config == student.config
    stock, ours = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "export"), ardistill.load(tmp_path / "export")
    assert type(stock) is diffusers.WanPipeline
    for pipeline, options in ((stock, drawing.arguments), (ours, {})):
        given = SIZE | {"prompt": PROMPTS[:1], "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
        assert torch.allclose(pipeline(**given | options).frames[:, 0], images(teacher, student), atol=1e-4)


def test_the_adapters_of_both_on_the_base_model_draw_what_the_pair_draws(teacher, folder, tmp_path):
    student = stock_pair(teacher, folder, rank=2)
    export(student, teacher, tmp_path / "loras", form="lora")
    names = {x.name for x in (tmp_path / "loras").iterdir()}
    assert names == {
        "README.md", "scheduler", "pytorch_lora_weights.safetensors", "pytorch_lora_weights_2.safetensors",
        "loras-high_noise-comfyui.safetensors", "loras-low_noise-comfyui.safetensors",
    }  # fmt: skip
    card = (tmp_path / "loras" / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)\n```", card, re.S)[1].replace(f'"{folder.name}"', f'"{folder}"')
    *loading, drawing = lines.replace("this/folder", str(tmp_path / "loras")).splitlines()
    found = {}
    exec("\n".join(loading), found)
    given = SIZE | {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    found["pipeline"].set_progress_bar_config(disable=True)
    found["pipeline"] = functools.partial(found["pipeline"], **given)
    exec(drawing, found)
    expected = images(teacher, student)
    assert torch.allclose(found["images"][:, 0], expected, atol=1e-4)
    assert not torch.allclose(expected, images(teacher, stock_pair_untrained(teacher, student)), atol=1e-3)
    export(student, teacher, tmp_path / "merged")
    assert torch.allclose(images(teacher, Student.from_pretrained(tmp_path / "merged", "cpu")), expected, atol=1e-4)
    assert is_export_of(tmp_path / "loras", student, "lora") and is_export_of(tmp_path / "merged", student)
    with pytest.raises(ValueError, match="this one has two"):
        export(student, teacher, tmp_path / "file", form="single_file")


def stock_pair_untrained(teacher, student):
    configs = [replace(part.config, lora_rank=0) for part in student.parts.values()]
    return StudentPair(*(Student.from_teacher(teacher, config) for config in configs)).eval()


def test_the_loaded_pipeline_of_two_is_saved_pickled_and_takes_its_own_transformers(teacher, tmp_path):
    student = trained(pair(teacher))
    export(student, teacher, tmp_path / "export")
    pipeline = ardistill.load(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)

    def drawn(pipeline, **more):
        given = SIZE | {"prompt": PROMPTS[:1], "output_type": "pt"} | more
        return pipeline(**given, generator=torch.Generator().manual_seed(0)).frames

    expected = drawn(pipeline)
    assert torch.equal(drawn(pipeline), expected)
    assert torch.equal(drawn(pickle.loads(pickle.dumps(pipeline))), expected)
    kind = diffusers.WanTransformer3DModel
    pipeline.transformer_2 = kind.from_pretrained(tmp_path / "export", subfolder="transformer_2")
    assert torch.equal(drawn(pipeline), expected)
    with pytest.raises(ValueError, match="another student"):
        pipeline.transformer_2 = pipeline.transformer
    pipeline.compile(backend="eager")
    assert torch.allclose(drawn(pipeline), expected, atol=1e-5)
    with pytest.raises(ValueError, match="leave guidance_scale_2 out"):
        drawn(pipeline, guidance_scale_2=3.0)
    pipeline.register_to_config(boundary_ratio=0.99)
    with pytest.raises(ValueError, match="expected a boundary between"):
        type(pipeline)(**pipeline.components, **{x: pipeline.config[x] for x in ("student", "boundary_ratio")})


def test_what_does_not_go_together_is_told(teacher, folder, tmp_path):
    student, other = pair(teacher), pair(teacher, steps=8)
    with pytest.raises(ValueError, match="high_noise expert and then that of the low_noise one, got low_noise and"):
        StudentPair(student.second, student.first)
    uneven = select_knots(teacher.knots(8), (0, 1, 2, 8))  # of other times, so that the parts do not meet
    with pytest.raises(ValueError, match="two parts that meet, the first one ends at"):
        early = replace(student.first.config, knots=select_knots(uneven, (0, 1, 2)))
        PairConfig.join(early, student.second.config)
    with pytest.raises(ValueError, match="their teacher is 'a' and ''"):
        PairConfig.join(replace(student.first.config, teacher="a"), other.second.config)
    with pytest.raises(ValueError, match="draws the low_noise expert's part of the path alone"):
        export(student.second, teacher, tmp_path / "part")
    with pytest.raises(ValueError, match="draws the high_noise expert's part"):
        draw_samples(student.first, teacher, tmp_path / "part.png", prompts=PROMPTS)
    with pytest.raises(ValueError, match="not saved as one"):
        student.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="needs target state"):
        Student.from_teacher(teacher, replace(student.first.config, target="anchored"))
    with pytest.raises(ValueError, match="does not predict at all of the times"):
        Student.from_teacher(teacher, replace(student.first.config, knots=teacher.knots(4)))
    with pytest.raises(ValueError, match="high_noise expert predicts at none of the times"):
        expert_knots(teacher, student.second.config.knots, "high_noise")
    with pytest.raises(ValueError, match="unknown expert 'middle'"):
        replace(student.first.config, expert="middle")
    one = Teacher(TINY["wan"].transformer(), teacher.scheduler)
    with pytest.raises(ValueError, match="the teacher has one transformer, and so no low_noise expert"):
        expert_knots(one, one.knots(4), "low_noise")


COMMANDS = re.search(r"## Teachers of two.*?```sh\n(.*?)```", (ROOT / "docs" / "families.md").read_text(), re.S)[1]
"""The commands of the documentation, which run with a tiny teacher and smaller numbers."""
SMALLER = {"2048": "4", "480": "16", "832": "16", "81": "1", "40": "8", "4.0": "2.0", "32": "2", "cat.gif": "cat.png"}
TRAINING = "--training.max_steps 2 --training.batch_size 2 --training.checkpoint_every 1 --history_layers 2"


def documented(teacher, command):
    """The words of the documentation's commands of a kind."""
    lines = COMMANDS.replace("\\\n", " ").splitlines()
    for words in (shlex.split(line)[1:] for line in lines if line.startswith(f"ardistill {command} ")):
        smaller = SMALLER | {"Wan-AI/Wan2.2-T2V-A14B-Diffusers": str(teacher)}
        yield [smaller.get(word, word) for word in words]


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """A folder with a recording, held-out ones, and a run of each expert."""
    made, here = tmp_path_factory.mktemp("runs"), os.getcwd()
    (made / "prompts.txt").write_text("\n".join(PROMPTS))
    os.chdir(made)
    for words in documented(folder, "record"):
        main(words)
        main([*words, "--out", "held-out", "--seed", "1"])
    for words in documented(folder, "distill"):
        main([*words, *TRAINING.split()])
    yield made
    os.chdir(here)


class Mean(torch.nn.Module):
    """Features for an evaluation."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_from_record_to_an_export_of_two(folder, runs, tmp_path):
    for expert in ("high", "low"):
        config = json.loads((runs / expert / "config.json").read_text())["student"]
        assert config["expert"] == f"{expert}_noise" and len(config["knots"]["timesteps"]) == 2
        lines = [json.loads(x) for x in (runs / expert / "metrics.jsonl").read_text().splitlines()]
        assert all(len(x["step_errors"]) == 2 for x in lines)
    assert not (runs / "high" / "samples").exists()  # its states are mostly noise
    assert [x.name for x in sorted((runs / "low" / "samples").iterdir())] == ["step-00000001.png", "step-00000002.png"]
    for command in ("export", "sample"):
        for words in documented(folder, command):
            main(words)
    assert (runs / "cat.png").exists()
    teacher = Teacher.from_pretrained(folder, **SIZE)
    expected = images(teacher, StudentPair(*(Student.from_pretrained(x, "cpu") for x in ("high", "low"))).eval())
    assert torch.allclose(drawn_by_diffusers(runs / "wan2.2-4-steps", tmp_path), expected, atol=1e-4)
    card = (runs / "wan2.2-4-steps" / "README.md").read_text()
    assert "4 steps, 2 by `transformer` (history in 2 layers, mask M2) and 2 by `transformer_2`" in card
    assert "## How the transformer for high noise was made" in card and "## How the one for low noise was made" in card
    torch.jit.script(Mean()).save(tmp_path / "mean.pt")
    held_out = f"--trajectories held-out --features {tmp_path / 'mean.pt'} --out {tmp_path / 'evaluation'}"
    main(["evaluate", "--student", "wan2.2-4-steps", *held_out.split()])
    figures = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert len(figures["error_per_step"]["wan2.2-4-steps"]["free_running"]) == 4
    assert (tmp_path / "evaluation" / "report.html").exists()


def test_loras_of_both_experts_by_the_command_line(folder, runs):
    for words in documented(folder, "distill"):
        run = ["--out", f"plain-{words[words.index('--out') + 1]}", "--knots", "stock", "--history_layers", "0"]
        main([*words, *TRAINING.split(), *run])
    main(["export", "--student", "plain-high", "--second", "plain-low", "--form", "lora", "--out", "loras"])
    assert (runs / "loras" / "pytorch_lora_weights_2.safetensors").exists()
    assert "load_into_transformer_2=True" in (runs / "loras" / "README.md").read_text()


def test_a_run_of_one_expert_resumes_and_is_refused_where_the_whole_path_is_drawn(folder, runs, tmp_path, capsys):
    main([*next(documented(folder, "distill")), *TRAINING.replace("max_steps 2", "max_steps 3").split()])
    assert json.loads((runs / "high" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    for words in (
        f"export --student low --out {tmp_path / 'out'}",
        f"sample --student low --out {tmp_path / 'out.png'} --prompt cat",
        f"evaluate --student low --trajectories held-out --out {tmp_path / 'out'}",
    ):
        with pytest.raises(SystemExit):
            main(words.split())
        assert "draws the low_noise expert's part of the path alone" in capsys.readouterr().err
    with pytest.raises(ValueError, match="draws the whole path by one transformer"):
        finetune("low", "trajectories", tmp_path / "tuned", real="real.safetensors")
