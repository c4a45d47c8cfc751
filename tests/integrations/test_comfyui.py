"""The node pack for ComfyUI draws what the exported pipeline draws, in a stand-in of ComfyUI."""

import gc
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import tomllib
import weakref
from pathlib import Path

import huggingface_hub
import pytest
import torch
from comfy_host import ComfyHost, InterruptProcessingException
from pretend_device import PretendDevice
from whole import Exports, draw, near, opened

from ardistill.publishing import export
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
STUDENTS = {"dit": "history", "sd3": "history", "flux": "plain"}


def _workflows():
    spec = importlib.util.spec_from_file_location("comfyui_workflows", PACK / "workflows.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


workflows = _workflows()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return Exports(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture
def start(exported, tmp_path, monkeypatch):
    """A ComfyUI with these students in models/diffusers, by the names of their families."""
    for name in ("comfy", "comfy.utils", "comfy.model_management", "folder_paths"):
        monkeypatch.setitem(sys.modules, name, None)

    def make(*students, device="cpu"):
        for name, kind in students:
            shutil.copytree(exported(name, kind), tmp_path / "models" / "diffusers" / name, dirs_exist_ok=True)
        return ComfyHost(tmp_path / "models", PACK, device)

    return make


def _prompt(name, seed=0, memory="keep on the device", **inputs):
    side = 16 if name == "flux" else 0
    text = {"prompt": "a red cat", "batch_size": 2, "width": side, "height": side}
    options = ({"classes": "1, 2", "images_per_class": 1} if name == "dit" else text) | inputs
    sampler = "ARDistillSampleClasses" if name == "dit" else "ARDistillSampleText"
    prompt = workflows.own_workflow(sampler, seed=seed, **options)
    prompt["1"]["inputs"] |= {"student": name, "memory": memory}
    return prompt


def _drawn(pipeline, name, seed=0, **options):
    """(b, h, w, 3) of the pipeline itself; each image of a batch is drawn with the prompt as a row of its own."""
    given = {"dit": {"class_labels": [1, 2]}}.get(name, {"prompt": ["a red cat"] * 2})
    return torch.from_numpy(draw(pipeline, name, seed, **given | {"output_type": "np"} | options))


def _hooks(host):
    transformer = host.outputs["1"][1][0].pipeline.transformer
    return len(transformer._forward_pre_hooks), len(transformer._forward_hooks)


# Runs


@pytest.mark.parametrize("name", STUDENTS)
def test_nodes_draw_the_pipelines_images_and_run_again_where_an_input_changed(start, exported, name):
    host = start((name, STUDENTS[name]))
    assert host.run(_prompt(name)) == ["1", "2", "3"]
    pipeline = host.outputs["1"][1][0].pipeline
    assert host.events == [("progress", 1, 2), ("progress", 2, 2)]
    assert host.run(_prompt(name)) == []
    assert host.run(_prompt(name, seed=1)) == ["2", "3"]  # the student stays loaded
    assert host.run(_prompt(name, seed=0)) == ["2", "3"]
    expected = [_drawn(pipeline, name, seed) for seed in (0, 1, 0)]
    assert all(torch.equal(*pair) for pair in zip(host.saved, expected, strict=True))
    assert not torch.equal(expected[0], expected[1])
    assert near(expected[0], _drawn(opened(exported(name, STUDENTS[name])), name))


@pytest.mark.parametrize("name", STUDENTS)
def test_an_interrupted_run_leaves_the_student_loaded_and_unchanged(start, name):
    host = start((name, STUDENTS[name]))
    host.run(_prompt(name))
    hooks = _hooks(host)
    host.free()
    host.events.clear()
    host.interrupt_in = 2  # before the second step
    with pytest.raises(InterruptProcessingException):
        host.run(_prompt(name))
    assert host.events == [("progress", 1, 2)] and len(host.saved) == 1
    assert host.run(_prompt(name)) == ["2", "3"]
    assert near(*host.saved) and _hooks(host) == hooks


def test_nothing_but_comfyuis_cache_keeps_a_student(start):
    host = start(("dit", "history"))
    host.run(_prompt("dit"))
    alive = weakref.ref(host.outputs["1"][1][0].pipeline.transformer)
    host.free()
    gc.collect()
    assert alive() is None


def test_an_export_under_the_same_name_is_loaded_anew(start):
    host = start(("dit", "history"))
    host.run(_prompt("dit"))
    os.utime(host.models / "diffusers" / "dit" / "model_index.json", ns=(1, 1))
    assert host.run(_prompt("dit")) == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["dit", "sd3"])
@pytest.mark.parametrize("memory", ["keep on the device", "one part at a time"])
def test_on_a_device_comfyui_is_asked_for_memory_and_the_images_are_the_same(start, exported, name, memory):
    expected = _drawn(opened(exported(name, STUDENTS[name])), name)
    with PretendDevice():
        host = start((name, STUDENTS[name]), device="pretend")
        host.interrupt_in = 2
        with pytest.raises(InterruptProcessingException):
            host.run(_prompt(name, memory=memory))
        transformer = host.outputs["1"][1][0].pipeline.transformer
        for seed in (1, 0):
            host.run(_prompt(name, seed, memory))
            there = {parameter.device.type for parameter in transformer.parameters()}
            assert there == {"pretend" if memory == "keep on the device" else "cpu"}
    assert near(host.saved[1], expected)
    sizes = [event[1] for event in host.events if event[0] == "free"]
    assert len(sizes) == (1 if memory == "keep on the device" else 3) and min(sizes) > 0


def test_further_inputs_reach_the_pipeline(start):
    host = start(("sd3", "guided"), ("dit", "history"))
    host.run(_prompt("sd3", guidance_scale=1.5))
    pipeline = host.outputs["1"][1][0].pipeline
    assert torch.equal(host.saved[-1], _drawn(pipeline, "sd3", guidance_scale=1.5))
    host.run(_prompt("sd3", width=8, height=16))
    assert torch.equal(host.saved[-1], _drawn(pipeline, "sd3", width=8, height=16))
    host.run(_prompt("dit", classes="1,\n2", images_per_class=2))
    pipeline = host.outputs["1"][1][0].pipeline
    assert torch.equal(host.saved[-1], _drawn(pipeline, "dit", class_labels=[1, 1, 2, 2]))


def test_the_precision_is_that_of_all_weights(start):
    host = start(("sd3", "history"))
    images = []
    for precision in ("auto", "bfloat16"):
        prompt = _prompt("sd3")
        prompt["1"]["inputs"]["precision"] = precision
        host.run(prompt)
        parts = host.outputs["1"][1][0].pipeline.components.values()
        dtypes = {x.dtype for part in parts if isinstance(part, torch.nn.Module) for x in part.parameters()}
        assert dtypes == {torch.float32 if precision == "auto" else torch.bfloat16}
        images.append(host.saved[-1])
    assert 0 < (images[0] - images[1]).abs().mean() < 0.03


def test_a_grey_image_of_a_student_that_draws_pixels_has_three_channels(start):
    host = start()
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 1)).eval()
    export(student, teacher, host.models / "diffusers" / "dit", picture=__file__)
    host.run(_prompt("dit"))
    labels = {"class_labels": [1, 2], "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    images = torch.from_numpy(host.outputs["1"][1][0].pipeline(**labels).images)
    assert images.shape[-1] == 1 and torch.equal(host.saved[0], images.repeat(1, 1, 1, 3))


@pytest.mark.parametrize("name,shape,size", [("sd3", (4, 8, 4), (8, 16)), ("flux", (4, 8, 12), (24, 16))])
def test_the_size_is_that_of_the_students_training(start, name, shape, size):
    host = start((name, STUDENTS[name]))
    path = host.models / "diffusers" / name / "model_index.json"
    index = json.loads(path.read_text())
    index["student"]["sample_shapes"] = [shape]
    path.write_text(json.dumps(index))
    host.run(_prompt(name, width=0, height=0))
    assert host.saved[0].shape == (2, size[1], size[0], 3)


def test_a_student_of_the_hub_is_read_from_the_cache(start, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "models--someone--student"
    shutil.copytree(exported("dit", "history"), root / "snapshots" / ("a" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    host = start(("dit", "history"))
    prompt = _prompt("dit")
    hub = {"hub_id": "someone/student", "precision": "float32", "memory": "keep on the device"}
    prompt["1"] = {"class_type": "ARDistillLoadStudentFromHub", "inputs": hub}
    host.run(prompt)
    assert near(host.saved[0], _drawn(opened(exported("dit", "history")), "dit"))


# What is refused, before and while it runs

WRONG = {
    "value_not_in_list: student": ("1", {"student": "another"}),
    "value_not_in_list: precision": ("1", {"precision": "int4"}),
    "value_smaller_than_min: seed": ("2", {"seed": -1}),
    "value_bigger_than_max: images_per_class": ("2", {"images_per_class": 65}),
    "invalid_input_type: seed": ("2", {"seed": "x"}),
    "return_type_mismatch: images": ("3", {"images": ["1", 0]}),
}


@pytest.mark.parametrize("error", WRONG)
def test_a_workflow_with_a_wrong_input_is_refused_before_it_runs(start, error):
    host = start(("dit", "history"))
    name, inputs = WRONG[error]
    prompt = _prompt("dit")
    prompt[name]["inputs"] |= inputs
    assert host.validate(_prompt("dit")) == [] and host.validate(prompt) == [error]


@pytest.mark.parametrize("hub_id", ["", "student", "a/b/c", "someone/student@", "../../etc"])
def test_a_hub_id_is_checked_before_anything_is_downloaded(start, hub_id):
    kind = start().classes["ARDistillLoadStudentFromHub"]
    assert "OWNER/NAME" in kind.VALIDATE_INPUTS(hub_id=hub_id)
    assert kind.VALIDATE_INPUTS(hub_id="someone/student@main") is True


REFUSED = [
    ("dit", {"classes": "1, tench"}, "numbers of 0 to 4, separated by commas, got tench"),
    ("dit", {"classes": "5"}, "numbers of 0 to 4, separated by commas, got 5"),
    ("dit", {"classes": " "}, "got nothing"),
    ("sd3", {"width": 8}, "both width and height"),
    ("sd3", {"num_frames": 5}, "StableDiffusion3Pipeline takes no num_frames"),
    ("sd3", {"guidance_scale": 7.0}, "leave guidance_scale out"),
]


@pytest.mark.parametrize("name,inputs,message", REFUSED)
def test_what_a_student_cannot_draw_is_refused_in_one_line(start, name, inputs, message):
    host = start((name, "history"))
    with pytest.raises(ValueError, match=message) as raised:
        host.run(_prompt(name, **inputs))
    assert "\n" not in str(raised.value)


def test_a_sampler_of_the_other_kind_is_refused_by_its_name(start):
    host = start(("dit", "history"), ("sd3", "history"))
    for name, other in (("dit", "sd3"), ("sd3", "dit")):
        prompt = _prompt(name)
        prompt["1"]["inputs"]["student"] = other
        with pytest.raises(ValueError, match="use the node Sample"):
            host.run(prompt)


def test_only_students_are_offered(start, exported):
    host = start(("dit", "history"))
    folder = host.models / "diffusers"
    shutil.copytree(exported("dit", "teacher"), folder / "teacher")
    shutil.copytree(exported("dit", "history"), folder / "more" / "dit")
    (folder / "stock").mkdir()
    (folder / "stock" / "model_index.json").write_text('{"_student": {}}')
    (folder / "damaged").mkdir()
    (folder / "damaged" / "model_index.json").write_text("{")
    offered = host.classes["ARDistillLoadStudent"].INPUT_TYPES()["required"]["student"][0]
    assert offered == ["dit", "more/dit", "stock"]


# The files of the pack


def test_the_pack_keeps_comfyuis_contract(start):
    pack = start().pack
    assert {*pack.NODE_CLASS_MAPPINGS} == {*pack.NODE_DISPLAY_NAME_MAPPINGS}
    for kind in pack.NODE_CLASS_MAPPINGS.values():
        types = kind.INPUT_TYPES()
        inputs = [*types["required"], *types.get("optional", {})]
        parameters = [*inspect.signature(getattr(kind, kind.FUNCTION)).parameters][1:]
        assert inputs == parameters and kind.CATEGORY and kind.DESCRIPTION
        assert all("default" in x[1] for x in types.get("optional", {}).values())
        if hasattr(kind, "IS_CHANGED"):
            assert inputs == [*inspect.signature(kind.IS_CHANGED).parameters]


def test_the_packs_project_file_is_what_the_registry_asks_for():
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    main = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"[a-z][a-z0-9.-]{0,98}", project["project"]["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert project["project"]["version"] == main["project"]["version"]
    assert (PACK / project["project"]["license"]["file"]).read_text() == (ROOT / "LICENSE").read_text()
    assert project["project"]["urls"]["Repository"] and {"PublisherId", "DisplayName"} <= {*project["tool"]["comfy"]}
    assert (PACK / "requirements.txt").read_text().split() == project["project"]["dependencies"]


@pytest.mark.parametrize("name", workflows.examples())
def test_an_example_workflow_is_a_sound_graph_and_a_valid_prompt(start, name):
    host = start()
    shutil.copytree(PACK / "example_workflows", host.models / "diffusers" / "student")
    (host.models / "diffusers" / "student" / "model_index.json").write_text('{"student": {}}')
    prompt = workflows.examples()[name]
    assert host.validate(prompt) == []
    graph = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    assert graph == json.loads(json.dumps(workflows.graph_of(prompt))), "run python integrations/comfyui/workflows.py"
    assert _prompt_of(graph, host) == prompt


def _prompt_of(graph, host):
    """What the editor sends of a graph; each link fits the sockets at both of its ends."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes) and graph["last_link_id"] == len(graph["links"])
    links = {}
    for link, source, output, target, slot, kind in graph["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert kind == out["type"] == into["type"] and link in out["links"] and link == into["link"]
        links[link] = [str(source), output]
    prompt = {}
    for node in nodes.values():
        types = host.classes[node["type"]].INPUT_TYPES()
        options = types["required"] | types.get("optional", {})
        sockets = {x["name"]: links[x["link"]] for x in node["inputs"]}
        widgets = [key for key in options if key not in sockets]
        values = iter(node["widgets_values"])
        inputs = {}
        for key in widgets:
            inputs[key] = next(values)
            if len(options[key]) > 1 and options[key][1].get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
        assert not [*values]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": sockets | inputs}
    return prompt


# ComfyUI's own nodes


def _manual_sigmas(text):
    """How ComfyUI's ManualSigmas reads its text: digits and points, no exponents."""
    return torch.tensor([float(x) for x in re.findall(r"[-+]?(?:\d*\.*\d+)", text)])


@pytest.mark.parametrize("name,entry", [("flux", "student"), ("sd3", "_student")])
def test_stock_nodes_get_the_students_sigmas_and_euler_takes_its_steps(exported, start, tmp_path, name, entry):
    folder, out = tmp_path / "export", tmp_path / "workflow.json"
    shutil.copytree(exported(name, "plain"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index[entry] = index.pop("student") | {"target": "state"}
    (folder / "model_index.json").write_text(json.dumps(index))
    workflows.main([str(folder), "--model", "student.safetensors", "--out", str(out), "--api"])
    prompt = json.loads(out.read_text())
    assert start().validate(prompt) == []
    student = StudentConfig.from_dict(index[entry])
    sigmas = _manual_sigmas(next(x["inputs"]["sigmas"] for x in prompt.values() if x["class_type"] == "ManualSigmas"))
    assert torch.equal(sigmas, torch.tensor(student.knots.sigma))
    # ComfyUI: denoised = x - sigma v, then x + (x - denoised) / sigma * (next - sigma); its time is 1000 sigma.
    for step, (a, b) in enumerate(student.coefficients):
        assert a == 1.0 and abs(b - (sigmas[step + 1] - sigmas[step])) < 1e-6
        assert abs(student.knots.timesteps[step] - 1000.0 * sigmas[step]) < 0.01


@pytest.mark.parametrize("name,kind", [("sd3", "history"), ("sd3", "guided"), ("flux", "heads"), ("dit", "plain")])
def test_a_student_that_stock_nodes_cannot_draw_with_is_refused(exported, tmp_path, capsys, name, kind):
    with pytest.raises(SystemExit):
        workflows.main([str(exported(name, kind)), "--model", "x", "--out", str(tmp_path / "workflow.json")])
    assert "use this pack's nodes" in capsys.readouterr().err and not (tmp_path / "workflow.json").exists()
