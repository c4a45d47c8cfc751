"""Weights in the layout of the original checkpoint: diffusers' own converter gives back what they were."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from tiny import TINY, save

from ardistill.cli import main
from ardistill.families import transformer_class
from ardistill.publishing import export
from ardistill.publishing.layouts import FLUX, SD3, WAN
from ardistill.publishing.single_file import LAYOUTS
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher, stock_knots

CONVERTERS = {
    "sd3": (SD3, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
    "sd3.5": (SD3, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
    "wan": (WAN, single_file_utils.convert_wan_transformer_to_diffusers),
}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[x], expected[x]) for x in expected)


@pytest.mark.parametrize("name", CONVERTERS)
def test_diffusers_converts_the_file_back(name, tmp_path):
    layout, convert = CONVERTERS[name]
    transformer = TINY[name].transformer()
    weights = transformer.state_dict()
    original = layout.convert(weights)
    assert original.keys() & weights.keys() <= {"patch_embedding.weight", "patch_embedding.bias"}
    assert same(convert({**original}), weights)
    transformer.save_config(tmp_path)
    model = transformer_class(TINY[name].class_name).from_single_file(original, config=str(tmp_path))
    assert same(model.state_dict(), weights)


@pytest.mark.parametrize("guidance", [True, False])
def test_diffusers_converts_flux_back(guidance):
    """Its converter splits the fused projections of the published width alone: a model of that width, of which each
    weight has one column, as the layouts differ in names and rows only.
    """
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=3, guidance_embeds=guidance)
    weights = {x: torch.randn(y.shape[0], *(1,) * (y.ndim - 1)) for x, y in model.state_dict().items()}
    original = FLUX.convert(weights)
    assert original["single_blocks.2.linear1.weight"].shape[0] == 7 * 3072
    assert original.keys().isdisjoint(weights.keys())
    assert same(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers({**original}), weights)


def test_a_weight_without_a_place_is_named():
    with pytest.raises(ValueError, match=r"no weight that diffusers calls norm_extra.weight; export it in"):
        WAN.convert({"norm_extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"calls blocks.0.attn2.add_k_proj.weight"):
        WAN.convert({"blocks.0.attn2.add_k_proj.weight": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "wan"])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_exported_file_is_the_student(name, rank, tmp_path):
    """Adapters are merged; the model that diffusers reads draws what the student draws."""
    torch.manual_seed(0)
    size = {"height": 16, "width": 16} if name == "wan" else {}
    teacher = Teacher.from_pretrained(save(name, tmp_path / "teacher"), device="cpu", **size)
    knots = stock_knots(teacher, teacher.knots(24), 2) if name == "wan" else teacher.knots(2)
    config = StudentConfig(knots, 0, lora_rank=rank, teacher="org/model@main:fp16")
    student = Student.from_teacher(teacher, config).eval()
    for parameter in (p for p in student.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn_like(parameter)
    export(student, teacher, tmp_path / "mine", form="single_file")
    assert {x.name for x in (tmp_path / "mine").iterdir()} == {"README.md", "scheduler", "mine.safetensors"}
    with safe_open(tmp_path / "mine" / "mine.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "mine"
    model = transformer_class(student.class_name).from_single_file(
        str(tmp_path / "mine" / "mine.safetensors"), config=str(tmp_path / "teacher"), subfolder="transformer"
    )
    read = Student(model, StudentConfig(knots, 0))
    noise, condition = torch.randn(1, *teacher.sample_shape), teacher.encode(["a red cat"])
    assert torch.allclose(sample(read, noise, condition), sample(student, noise, condition), atol=1e-5)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert 'config="org/model", subfolder="transformer")' in card
    assert 'from_pretrained("org/model", revision="main", variant="fp16", transformer=transformer)' in card


@pytest.mark.slow
def test_other_forms_are_refused_where_they_do_not_fit(tmp_path):
    teacher = Teacher.from_pretrained(save("dit", tmp_path / "teacher"), device="cpu")

    def refused(match, form="lora", **options):
        config = StudentConfig(teacher.knots(2), **{"history_layers": 0, **options})
        with pytest.raises(ValueError, match=match):
            export(Student.from_teacher(teacher, config).eval(), teacher, tmp_path / "mine", form=form)
        assert not (tmp_path / "mine").exists()

    refused(r"expected a student with adapters, got one .* distil with lora_rank")
    refused(r"cannot draw this student: 2 of its layers attend to earlier steps; .* form pipeline", history_layers=2)
    refused(r"target anchored\) are not a solver's; export it with form pipeline", target="anchored", lora_rank=2)
    refused(rf"expected a student of {', '.join(LAYOUTS)} .* got one of DiTTransformer2DModel", "single_file")
    refused(r"cannot draw this student", "single_file", history_layers=1, gated=False)
    refused("expected a form of pipeline, lora, single_file, got 'gguf'", "gguf")


@pytest.mark.slow
def test_the_command_exports_each_form(tmp_path, capsys):
    """Of a finished run: what its end wrote is what the command reads."""
    folder, run = save("sd3", tmp_path / "teacher"), tmp_path / "run"
    teacher = Teacher.from_pretrained(folder, device="cpu")
    config = StudentConfig(teacher.knots(2), 0, lora_rank=2, teacher=str(folder), fingerprint=teacher.fingerprint())
    student = Student.from_teacher(teacher, config).eval()
    student.save_pretrained(run / "student")
    student.save_adapters(run / "adapters")
    for given, form, file in (
        ("", "lora", "pytorch_lora_weights.safetensors"),
        ("adapters", "lora", "mine-comfyui.safetensors"),
        ("student", "lora", "README.md"),
        ("student", "single_file", "mine.safetensors"),
    ):
        out = tmp_path / f"{given}-{form}" / "mine"
        main(["export", "--student", str(run / given), "--form", form, "--out", str(out), "--json"])
        assert json.loads(capsys.readouterr().out) == {"out": str(out), "evaluated": False}
        assert (out / file).is_file()
    with pytest.raises(SystemExit):
        main(["export", "--student", str(out), "--form", "lora", "--out", str(tmp_path / "none")])
    assert "found none; distil with lora_rank, and name the finished run" in capsys.readouterr().err
