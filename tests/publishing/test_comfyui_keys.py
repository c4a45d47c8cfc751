"""The file of adapters for ComfyUI: its names are those that ComfyUI looks up, and what it adds to the weights is B A.

ComfyUI itself is not on a package registry. What is tested here is the contract of its ``comfy/lora.py``: a weight
``W`` that it knows as ``x`` gains ``alpha / rank * B A`` of ``x.alpha``, ``x.lora_A.weight`` and ``x.lora_B.weight``.
"""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import TINY, save

from ardistill.core.knots import Knots
from ardistill.families import FAMILIES
from ardistill.publishing import export
from ardistill.publishing.adapters import COMFYUI, for_comfyui
from ardistill.publishing.layouts import LUMINA2, WAN
from ardistill.publishing.single_file import LAYOUTS
from ardistill.publishing.weight_files import noise_levels
from ardistill.student import Student, StudentConfig
from ardistill.student.files import adapter_weights, merged_weights
from ardistill.teacher import Teacher, stock_knots

_QKV = "attn.to_q attn.to_k attn.to_v "
_JOINT = _QKV + "attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_out.0 attn.to_add_out "
_FEED = "ff.net.0.proj ff.net.2 "
_BOTH = _FEED + "ff_context.net.0.proj ff_context.net.2 "
_GATED = "ff.linear_1 ff.linear_2 ff.out_projection "
KNOWN = {
    "sd3.5": _JOINT + _BOTH + "norm1.linear norm1_context.linear attn2.to_q attn2.to_k attn2.to_v attn2.to_out.0",
    "flux": _JOINT + _BOTH + "norm1.linear norm1_context.linear norm.linear proj_mlp proj_out",
    "flux2": _JOINT + "ff.linear_in ff.linear_out ff_context.linear_in ff_context.linear_out attn.to_qkv_mlp_proj "
    "attn.to_out",
    "auraflow": _JOINT + _GATED + _GATED.replace("ff.", "ff_context.") + "norm1.linear norm1_context.linear",
    "pixart-sigma": f"{_QKV} attn.to_out.0 ".replace("attn.", "attn1.")
    + f"{_QKV} attn.to_out.0 ".replace("attn.", "attn2.")
    + _FEED,
    "qwen-image": _JOINT + "img_mod.1 txt_mod.1 img_mlp.net.0.proj img_mlp.net.2 txt_mlp.net.0.proj txt_mlp.net.2",
    "z-image": f"{_QKV} attn.to_out.0 ".replace("attn.", "attention.")
    + "feed_forward.w1 feed_forward.w2 feed_forward.w3 adaLN_modulation.0",
    "wan": "self_attn.q self_attn.k self_attn.v self_attn.o cross_attn.q cross_attn.k cross_attn.v cross_attn.o ffn.0 "
    "ffn.2",
    "lumina2": "attention.qkv attention.out feed_forward.w1 feed_forward.w2 feed_forward.w3 adaLN_modulation.1",
    "hunyuandit": "attn1.Wqkv attn1.out_proj attn2.q_proj attn2.kv_proj attn2.out_proj mlp.fc1 mlp.fc2 "
    "default_modulation.1 skip_linear",
}
"""Of a tiny transformer of each class, what ComfyUI calls the linear layers of a block: for the first seven in the
tables of its ``comfy/utils.py`` (or, Qwen-Image's, in its own class), for the others in its own class."""


def adapted(name):
    """A student of a tiny transformer, whose adapters are not zero."""
    teacher = Teacher(TINY[name].transformer(), DDIMScheduler())
    knots = Knots("epsilon", (999.0,), (0.1, 1.0), (0.995, 0.0))
    student = Student.from_teacher(teacher, StudentConfig(knots, 0, lora_rank=2)).eval()
    for parameter in (p for key, p in student.named_parameters() if ".lora_B" in key):
        torch.nn.init.normal_(parameter, std=0.1)
    return student


def pairs(student):
    weights = adapter_weights(student)
    layers = [x.removesuffix(".lora_A.weight") for x in weights if x.endswith(".lora_A.weight")]
    return {x: (weights[f"{x}.lora_A.weight"], weights[f"{x}.lora_B.weight"]) for x in layers}


def deltas(file):
    """What ComfyUI adds to each weight, by its name."""
    names = {x.removesuffix(".alpha") for x in file if x.endswith(".alpha")}
    assert {f"{x}.{end}" for x in names for end in ("alpha", "lora_A.weight", "lora_B.weight")} == file.keys()
    found = {}
    for x in names:
        a, b = file[f"{x}.lora_A.weight"], file[f"{x}.lora_B.weight"]
        found[f"{x}.weight"] = file[f"{x}.alpha"].item() / a.shape[0] * b @ a
    return found


def test_every_class_that_comfyui_knows_is_listed():
    assert {TINY[name].class_name for name in KNOWN} == COMFYUI.keys()


def test_the_page_says_who_loads_which_form():
    rows = []
    for name, family in FAMILIES.items():
        if not hasattr(diffusers, name):  # registered by a test
            continue
        loads = "transformer" in getattr(getattr(diffusers, family.pipeline), "_lora_loadable_modules", ())
        loader = "`load_lora_weights`" if loads else "PEFT"
        names = "–" if name not in COMFYUI else "diffusers'" if COMFYUI[name] is None else "the original's"
        rows.append(f"| `{name}` | {loader} | {names} | {'yes' if name in LAYOUTS else '–'} |")
    assert "\n".join(rows) in (Path(__file__).parents[2] / "docs" / "lora.md").read_text()


@pytest.mark.parametrize("name", KNOWN)
def test_the_names_are_those_that_comfyui_looks_up(name):
    student = adapted(name)
    layout = COMFYUI[student.class_name]
    found = deltas(for_comfyui(pairs(student), layout))
    beginning = "transformer" if layout is None else "diffusion_model"
    assert all(re.match(rf"{beginning}\.\w+\.\d+\.", x) for x in found)
    assert {x.split(".", 3)[3].removesuffix(".weight") for x in found} == set(KNOWN[name].split())
    if layout is None:
        merged, base = merged_weights(student), TINY[name].transformer().state_dict()
        ours = {x: base[x] + found.get(f"transformer.{x}", 0.0) for x in base}
        assert all(torch.allclose(ours[x], merged[x], atol=1e-6) for x in merged)


def test_wans_original_weights_with_the_adapters_are_the_students():
    """Applied to the teacher in the original layout, and converted by diffusers."""
    student = adapted("wan")
    original = WAN.convert(TINY["wan"].transformer().state_dict())
    for name, delta in deltas(for_comfyui(pairs(student), WAN)).items():
        original[name.removeprefix("diffusion_model.")] += delta
    found, merged = convert_wan_transformer_to_diffusers(original), merged_weights(student)
    assert found.keys() == merged.keys()
    assert all(torch.allclose(found[x], merged[x], atol=1e-6) for x in merged)


def test_luminas_adapters_are_read_by_diffusers_as_what_they_were():
    """diffusers splits the fused projections of the published size alone: a block of that size, without its weights."""
    with torch.device("meta"):
        model = Lumina2Transformer2DModel(num_layers=1, num_refiner_layers=1)
    linear = {x: y for x, y in model.layers[0].named_modules() if isinstance(y, torch.nn.Linear)}
    ours = {f"layers.0.{x}": (torch.randn(2, y.in_features), torch.randn(y.out_features, 2)) for x, y in linear.items()}
    file = {x: y for x, y in for_comfyui(ours, LUMINA2).items() if not x.endswith(".alpha")}
    read = Lumina2Pipeline.lora_state_dict(file)
    assert len(read) == 2 * len(ours)
    for name, (a, b) in ours.items():
        x = torch.randn(a.shape[1])
        theirs = read[f"transformer.{name}.lora_B.weight"] @ (read[f"transformer.{name}.lora_A.weight"] @ x)
        assert torch.allclose(theirs, b @ (a @ x), rtol=1e-4, atol=1e-3)


def test_no_noise_level_has_an_exponent():
    knots = Knots("flow", (1000.0, 10.0), (0.0, 0.99, 1.0), (1.0, 1.25e-5, 0.0))
    assert noise_levels(Student(TINY["dit"].transformer(), StudentConfig(knots, 0))) == "1, 0.0000125, 0"


@pytest.mark.slow
def test_rank_and_alpha_stand_in_the_headers(tmp_path):
    teacher = Teacher.from_pretrained(save("wan", tmp_path / "teacher"), height=16, width=16, device="cpu")
    student = Student.from_teacher(
        teacher, StudentConfig(stock_knots(teacher, teacher.knots(4), 2), 0, lora_rank=3)
    ).eval()
    export(student, teacher, tmp_path / "mine", form="lora")
    with safe_open(tmp_path / "mine" / "mine-comfyui.safetensors", "pt") as file:
        header = file.metadata()
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "3" and header["modelspec.title"] == "mine"
    assert "2 steps of Euler between the noise levels 1, " in header["modelspec.usage_hint"]
    alphas = [x for name, x in load_file(tmp_path / "mine" / "mine-comfyui.safetensors").items() if "alpha" in name]
    assert alphas and all(x.item() == 3 for x in alphas)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "sampler `euler`" in card and "mine-comfyui.safetensors" in card
