"""Bad input of every kind, one line a case: what is typed, written in a recipe, called, or found in a file.

Each gives one line that says what is wrong, exit status 2 at the command line, and leaves every folder as it was.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_study import SMALL

import ardistill
from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, record, sample
from ardistill.cli import main
from ardistill.config import AdversarialConfig
from ardistill.evaluation import feature_network
from ardistill.studies.study import Study
from ardistill.teacher import Companions
from ardistill.training.real_images import load_real, save_real
from ardistill.trajectories import load_prompts

MANIFEST, SHARD, STUDENT = "data/manifest.json", "data/shard-00001.arrow", "run/student/student.json"
MODEL, WEIGHTS = "run/student/transformer/config.json", "run/student/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Trajectories and a student of the embedded teacher, and files that are no such thing."""
    folder = tmp_path_factory.mktemp("made")
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    record(teacher, folder / "data", 4, solver_steps=8, num_steps=(1, 4), shard_size=2, progress=False)
    data = TrajectoryDataset(folder / "data", 4)
    student = Student.from_teacher(teacher, StudentConfig.for_data(data, history_layers=1))
    distill(student, data, folder / "run", TrainingConfig(max_steps=1, batch_size=2, tracker=None))
    for name, size in (("real", 8), ("fits", 28)):
        save_real(folder / f"{name}.safetensors", torch.zeros(2, 1, size, size), {"class_labels": torch.arange(2)})
    (folder / "empty").mkdir()
    for name, text in {"full/notes.txt": "mine", "empty.txt": "\n", "rows.jsonl": '{"words": "a cat"}\n'}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "foreign/vae").mkdir(parents=True)
    (folder / "foreign/model_index.json").write_text('{"vae": ["os", "system"]}')
    (folder / "list").mkdir()
    (folder / "list/model_index.json").write_text("[]")
    (folder / "noise.bin").write_bytes(bytes(range(128, 256)))
    shutil.copy(folder / "noise.bin", folder / "noise.pt")
    return folder


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-900] + bytes([data[-900] ^ 1]) + data[-899:]


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def another_digit(data: bytes) -> bytes:
    return data.replace(b"1", b"2", 1)


def entry(name: str, value: object = None) -> Callable[[bytes], bytes]:
    """Sets an entry of a JSON object, or takes it out; its seal, too, which would tell that first."""

    def change(data: bytes) -> bytes:
        found = {key: x for key, x in json.loads(data).items() if key not in (name, "seal")}
        return json.dumps(found if value is None else found | {name: value}).encode()

    return change


@dataclass(frozen=True)
class Case:
    """Typed (words) or called; ``said``, a regular expression, is in the message."""

    act: str | Callable[[], object]
    said: str
    harm: dict[str, Callable[[bytes], bytes] | str | None] = field(default_factory=dict)
    """File -> what becomes of it: changed, written, or deleted."""

    def __str__(self) -> str:
        acted = self.act if isinstance(self.act, str) else "call"
        return " ".join([acted, *self.harm])[:80].replace("/", ".")


RECORD = "record --teacher zoo/fashion --out out --num_trajectories 4 --guidance_scale 1.25 --solver_steps 4"
RECORD += " --num_steps [4] --device cpu"
DISTILL = "distill --trajectories data --out out --history_layers 1 --training.max_steps 1 --training.batch_size 2"
DISTILL += " --training.tracker null"
SAMPLE = "sample --student run --device cpu --out out.png"
FINETUNE = "finetune --student run --trajectories data --out out --real"
COMPARE = "compare --recipe recipe.yaml"
COST = "cost --teacher DiT-S/2"

TYPED = [
    Case("", "command"),
    Case("destill", "did you mean 'distill'"),
    Case("trajectories verfy", "did you mean 'verify'"),
    Case("distill --trajectories x --out y --histroy_layers 2", "did you mean 'history_layers'"),
    Case("distill --trajectories x --out y --training.max_step 2", "did you mean 'training.max_steps'"),
    Case("distill --trajectories x --out y --num 2", "did you mean 'num_steps'"),  # an abbreviation
    Case("record --techer zoo/fashion", "did you mean 'teacher'"),
    Case("record --teacher zoo/fashion", "out"),
    Case(f"{RECORD} --num_trajectories four", "num_trajectories"),
    Case(f"{RECORD} --num_trajectories 0", "expected 1 trajectory or more, got 0"),
    Case(f"{RECORD} --shard_size 0", "expected 1 row per shard or more, got 0"),
    Case(f"{RECORD} --dtype float8", "float32.*float16"),
    Case(f"{RECORD} --mixed_precision fp8", "bf16"),
    Case(f"{RECORD} --guidance_scale 0.5", "guidance scale of 1"),
    Case(f"{RECORD} --guidance_scale .nan", "guidance.*nan"),
    Case(f"{RECORD} --guidance_scale [3.0,1.0]", "lowest first"),
    Case(f"{RECORD} --guidance_scale [1.0,2.0,3.0]", "the lowest and the highest"),
    Case(f"{RECORD} --guidance_channels 3", "1 to 1 guided channels"),
    Case(f"{RECORD} --height [28,32]", "as many heights as widths"),
    Case(f"{RECORD} --height -4 --width -4", "got -4x-4"),
    Case(f"{RECORD} --solver_steps 0", "solver steps"),
    Case(f"{RECORD} --num_steps [8]", "expected 1 to 4 steps"),
    Case(f"{RECORD} --num_steps []", "num_steps"),
    Case(f"{RECORD} --prompts rows.jsonl", "expected a column prompt"),
    Case(f"{RECORD} --prompts nowhere.txt", "expected prompts in nowhere.txt"),
    Case(f"{RECORD} --prompts empty.txt", "holds no prompts"),
    Case(f"{RECORD} --prompts noise.bin", "noise.bin"),
    Case(f"{RECORD} --prompts full/notes.txt", "leave the prompts out"),
    Case(f"{RECORD} --device gpu", "device.*'gpu'"),
    Case(f"{RECORD} --device cuda:99", "device.*'cuda:99'"),
    Case(f"{RECORD} --teacher nowhere", "expected a diffusers folder"),
    Case(f"{RECORD} --teacher empty", "empty"),
    Case(f"{RECORD} --teacher noise.pt", "noise.pt cannot be read as a state dict"),
    Case(f"{RECORD} --out full", "expected .*full to be empty"),
    Case(f"{RECORD} --out empty.txt", "empty.txt"),
    Case(f"{RECORD} --out data", "choose a new folder"),
    Case("trajectories info --trajectories nowhere", "nowhere"),
    Case("trajectories repair --trajectories data --teacher zoo/emoji", "another teacher"),
    Case("trajectories show --trajectories data --count 0", "1 trajectory or more, got 0"),
    Case("trajectories show --trajectories data --first 4", r"0\.\.3, got 4"),
    Case("trajectories show --trajectories data --first -1", r"0\.\.3, got -1"),
    Case("trajectories show --trajectories data --num_steps 3", "lacks states"),
    Case("trajectories show --trajectories data --out nowhere/a.png", "nowhere"),
    Case("trajectories show --trajectories data --out a.xyz", "xyz"),
    Case("trajectories export --trajectories data --out full", "full"),
    Case(f"{DISTILL} --trajectories nowhere", "nowhere"),
    Case(f"{DISTILL} --num_steps 9", "1 to 8 steps"),
    Case(f"{DISTILL} --num_steps 0", "1 to 8 steps.*got 0"),
    Case(f"{DISTILL} --num_steps 3", "lacks states"),
    Case(f"{DISTILL} --knots [0,4]", "expected 5 knots for 4 steps"),
    Case(f"{DISTILL} --num_steps 2 --knots [0,4,2]", "rising from 0 to 8"),
    Case(f"{DISTILL} --history_layers 99", "expected 0 to 7 history layers"),
    Case(f"{DISTILL} --history_layers -1", "expected 0 to 7 history layers"),
    Case(f"{DISTILL} --mask M5", "M4"),
    Case(f"{DISTILL} --target denoised", "needs output='direct'"),
    Case(f"{DISTILL} --lora_rank -1", "lora_rank of 1 or more"),
    Case(f"{DISTILL} --teacher zoo/emoji", "another teacher"),
    Case(f"{DISTILL} --training.max_steps 0", "max_steps of 1 or more, got 0"),
    Case(f"{DISTILL} --training.batch_size -1", "batch_size of 1 or more, got -1"),
    Case(f"{DISTILL} --training.learning_rate nan", "learning_rate.*nan"),
    Case(f"{DISTILL} --training.learning_rate -1", "learning_rate.*-1"),
    Case(f"{DISTILL} --training.weight_decay -1", "weight_decay.*-1"),
    Case(f"{DISTILL} --training.max_grad_norm 0", "max_grad_norm.*0"),
    Case(f"{DISTILL} --training.lr_warmup_steps -1", "lr_warmup_steps.*-1"),
    Case(f"{DISTILL} --training.through_steps -1", "through_steps.*-1"),
    Case(f"{DISTILL} --training.ema_decay 1.5", "ema_decay"),
    Case(f"{DISTILL} --training.inputs nobody", "unknown inputs 'nobody'"),
    Case(f"{DISTILL} --training.lr_scheduler linaer", "lr_scheduler.*linaer"),
    Case(f"{DISTILL} --training.tracker tensorbroad", "tracker.*tensorbroad"),
    Case(f"{DISTILL} --training.mixed_precision fp16", "unknown mixed_precision 'fp16'"),
    Case(f"{DISTILL} --training.shard true", "accelerate launch"),
    Case(f"{DISTILL} --out empty.txt", "empty.txt"),
    Case(f"{DISTILL} --out run --training.seed 5", r"training\.|student\."),
    Case(f"{FINETUNE} nowhere.safetensors", "ardistill encode"),
    Case(f"{FINETUNE} noise.bin", "ardistill encode"),
    Case(f"{FINETUNE} real.safetensors", r"the teacher's are \(1, 28, 28\)"),
    Case(f"{FINETUNE} real.safetensors --adversarial.noise_levels [0.5,0.1]", "least first"),
    Case(f"{FINETUNE} real.safetensors --adversarial.weight -1", "weight of 0 or more"),
    Case("encode --teacher zoo/fashion --images nowhere --out out.safetensors --device cpu", "nowhere"),
    Case("encode --teacher zoo/fashion --images empty --out out.safetensors --device cpu", "empty"),
    Case(f"{SAMPLE} --student empty", "expected a student"),
    Case(f"{SAMPLE} --count 0", "1 image or more, got 0"),
    Case(f"{SAMPLE} --class_labels [99]", r"labels in 0\.\.9, got 99"),
    Case(f"{SAMPLE} --prompts [cat]", "prompts"),
    Case(f"{SAMPLE} --guidance_scale 3", "guidance"),
    Case(f"{SAMPLE} --height 28", "width"),
    Case(f"{SAMPLE} --out nowhere/a.png", "nowhere"),
    Case(f"{SAMPLE} --out a.xyz", "xyz"),
    Case(f"{SAMPLE} --teacher zoo/emoji", "another teacher"),
    Case(f"{SAMPLE} --device gpu", "device.*'gpu'"),
    Case("evaluate --student run --trajectories data", "expected held-out trajectories"),
    Case("compare", "expected a recipe, or one student"),
    Case("compare --arms [a]", "arms are a recipe's"),
    Case("compare --students [run,run] --trajectories data --out out", "different names"),
    Case(f"{COMPARE} --students [run]", "leave those out"),
    Case("compare --recipe nowhere.yaml", "nowhere.yaml cannot be read as a recipe"),
    Case("export --student run --out full", "expected full to be empty"),
    Case("export --student empty --out out", "expected a student"),
    Case("cost --teacher nowhere", "nowhere"),
    Case(f"{COST} --num_steps 0", "num_steps|steps"),
    Case(f"{COST} --mask M9", "M9"),
    Case(f"{COST} --history_layers 99", "history layers"),
    Case(f"{COST} --batch_size 0", "batch_size"),
    Case(f"{COST} --num_devices 0", "num_devices"),
    Case("quickstart --max_steps 0 --out out", "max_steps"),
    Case("quickstart --num_trajectories 0 --out out", "num_trajectories|trajectory"),
    Case("quickstart --num_eval 0 --out out", "num_eval|trajectory"),
    Case("quickstart --history_layers 99 --out out", "history.layers"),
    Case("quickstart --knots [0,24,6] --out out", "knots"),
    Case("--config nowhere.yaml distill", "nowhere.yaml cannot be read as a recipe"),
]


def section(text: str, said: str) -> Case:
    return Case("--config recipe.yaml distill", said, harm={"recipe.yaml": text})


def study(said: str, **sections: object) -> Case:
    return Case(COMPARE, said, harm={"recipe.yaml": yaml.safe_dump({**SMALL, "out": "out", **sections})})


RECIPES = [
    section("distill:\n  trajectories: x\n  out: y\n  histroy_layers: 2\n", "did you mean 'history_layers'"),
    section("distill:\n  training:\n    max_step: 2\n", "did you mean 'training.max_steps'"),
    section("distil:\n  trajectories: x\n", "did you mean 'distill'"),
    section("record:\n  teach: zoo/fashion\ndistill:\n  trajectories: x\n  out: y\n", "did you mean 'teacher'"),
    section("distill: [1\n", "recipe.yaml cannot be read as a recipe"),
    section("- distill\n", "expected a YAML mapping"),
    section("", "expected a YAML mapping"),
    section("distill: 5\n", "distill"),
    section("distill:\n  1: 2\n", "'1' is not known"),
    section("distill:\n  trajectories: x\n  out: y\n  num_steps: four\n", "num_steps"),
    section("distill:\n  x: !!python/object/apply:os.system [touch hacked]\n", "cannot be read as a recipe"),
    study("arm plain: unknown history_layer", arms={"plain": {"history_layer": 2}}),
    study("arm plain, training: unknown max_step", arms={"plain": {"training": {"max_step": 2}}}),
    study("no arm 'absent'; the recipe has tuned", arms={"tuned": {"finetune": "absent"}}),
    study("goes on from itself: tuned <- tuned", arms={"tuned": {"finetune": "tuned"}}),
    study("8 evaluations_per_step are no multiple of its 3 steps", arms={"plain": {"num_steps": 3}}),
    study("expected 5 knots for 4 steps, got", arms={"plain": {"knots": [0, 2, 4]}}),
    study("conditioning is recorded or uniform, got 'unifrom'", arms={"plain": {"conditioning": "unifrom"}}),
    study(r"learning_rate is a word in YAML.*5\.0e-4", arms={"plain": {"training": {"learning_rate": "5e-4"}}}),
    study("unknown inputs 'nobody'", arms={"plain": {"training": {"inputs": "nobody"}}}),
    study("held_out needs another seed", held_out={"seed": 0}),
    study("section held_out: unknown hight", held_out={"hight": 8}),
    study("expected the sections record, held_out", students={}),
    study("arms", arms={}),
    study("arms", arms=[1]),
    study("arm plain", arms={"plain": 5}),
    study("num_steps", arms={"plain": {"num_steps": "four"}}),
    study("num_steps", arms={"plain": {"num_steps": 0}}),
    study("training", arms={"plain": {"training": 3}}),
    study("max_steps", arms={"plain": {"training": {"max_steps": "many"}}}),
    study("knots", arms={"plain": {"knots": 4}}),
    study("record", record=None),
    study("record", record={**SMALL["record"], "guidance_scale": "much"}),
    study("record", record={**SMALL["record"], "num_trajectories": 0}),
    study("mask", arms={"plain": {"mask": "M9"}}),
    study("finetune", arms={"tuned": {"finetune": ["history"]}}),
]


INFO, SHOW = "trajectories info --trajectories data", "trajectories show --trajectories data --device cpu"
FILES = [
    Case(INFO, "manifest.json", harm={MANIFEST: cut}),
    Case(INFO, "manifest.json", harm={MANIFEST: ""}),
    Case(INFO, "manifest.json", harm={MANIFEST: "[1, 2]"}),
    Case(INFO, "manifest.json", harm={MANIFEST: None}),
    Case(INFO, "manifest.json", harm={MANIFEST: entry("version", 99)}),
    Case(DISTILL, "shard-00001.arrow", harm={SHARD: cut}),
    Case(SHOW, "shard-00001.arrow.*checksum", harm={SHARD: flip}),
    Case(DISTILL, "shard-00001.arrow", harm={SHARD: ""}),
    Case(DISTILL, "shard-00001.arrow is missing", harm={SHARD: None}),
    Case(SAMPLE, "student.json", harm={STUDENT: cut}),
    Case(SAMPLE, "student.json", harm={STUDENT: ""}),
    Case(SAMPLE, "student.json", harm={STUDENT: "[1]"}),
    Case(SAMPLE, "student.json", harm={STUDENT: entry("knots")}),
    Case(SAMPLE, "student.json", harm={STUDENT: entry("knots", 5)}),
    Case(SAMPLE, "student.json", harm={STUDENT: entry("colour", "red")}),
    Case(SAMPLE, "history layers", harm={STUDENT: entry("history_layers", 99)}),
    Case(SAMPLE, "student.json", harm={STUDENT: entry("history_layers", "many")}),
    Case(SAMPLE, "newer ardistill", harm={STUDENT: entry("version", 99)}),
    Case(SAMPLE, "student.json is not what its checksum says", harm={STUDENT: another_digit}),
    Case(SAMPLE, "expected a student", harm={STUDENT: None}),
    Case(SAMPLE, "transformer.config.json", harm={MODEL: cut}),
    Case(SAMPLE, "transformer.config.json", harm={MODEL: None}),
    Case(SAMPLE, "transformer.config.json is not what student.json says", harm={MODEL: another_digit}),
    Case(SAMPLE, "Evil", harm={MODEL: entry("_class_name", "Evil"), STUDENT: entry("transformer")}),
    Case(SAMPLE, "transformer", harm={MODEL: entry("num_attention_heads", 5), STUDENT: entry("transformer")}),
    Case(SAMPLE, "safetensors is missing, cut or damaged", harm={WEIGHTS: cut}),
    Case(SAMPLE, "safetensors is missing, cut or damaged", harm={WEIGHTS: None}),
    Case(SAMPLE, "safetensors is not what student.json says", harm={WEIGHTS: flip}),
    Case(f"{FINETUNE} fits.safetensors", "fits.safetensors is damaged", harm={"fits.safetensors": flip_last}),
    Case(f"{FINETUNE} fits.safetensors", "fits.safetensors is no file of real latents", harm={"fits.safetensors": cut}),
    Case(DISTILL.replace("--out out", "--out run"), "config.json is missing, cut", harm={"run/config.json": cut}),
    Case(
        DISTILL.replace("--out out", "--out run"), "config.json: expected the settings", harm={"run/config.json": "[]"}
    ),
    Case(
        DISTILL.replace("--out out", "--out run"),
        "config.json is not what its checksum says",
        harm={"run/config.json": another_digit},
    ),
    Case("evaluate --student run --trajectories data", "config.json", harm={"run/config.json": cut}),
    Case(f"{RECORD} --teacher full", "full: expected subfolders", harm={"full/model_index.json": "{"}),
    Case(f"{RECORD} --teacher full", "full", harm={"full/model_index.json": "{}"}),
    Case("cost --teacher full/config.json", "config.json", harm={"full/config.json": "{"}),
    Case("cost --teacher full/config.json", "config.json", harm={"full/config.json": "{}"}),
]


def tiny_config(**options: object) -> StudentConfig:
    return StudentConfig.for_data(TrajectoryDataset("data", 4), **{"history_layers": 1, **options})


def fashion(**options: object) -> Teacher:
    return Teacher.from_pretrained("zoo/fashion", **{"guidance_scale": 1.25, **options})


def run_student() -> Student:
    return Student.from_pretrained("run")


LABELS = {"class_labels": torch.zeros(2, dtype=torch.long)}
CALLED = {
    "dataset-draws": (lambda: TrajectoryDataset("data", 4, draws="columns"), "unknown draws 'columns'"),
    "dataset-teacher": (lambda: TrajectoryDataset("data", 4, "0" * 64), "got another teacher"),
    "dataset-knots": (lambda: TrajectoryDataset("data", [0, 9]), "rising from 0 to 8"),
    "config-mask": (lambda: tiny_config(mask="M5"), "unknown mask 'M5'"),
    "config-output": (lambda: tiny_config(output="raw"), "unknown output 'raw'"),
    "student-shape": (lambda: run_student()(torch.zeros(2, 3, 1, 28, 28), LABELS), "expected inputs"),
    "student-rank": (lambda: run_student()(torch.zeros(2, 28), LABELS), "expected inputs"),
    "sample-shape": (lambda: sample(run_student(), torch.zeros(2, 28), LABELS), "expected noise"),
    "sample-rows": (lambda: sample(run_student(), torch.zeros(3, 1, 28, 28), LABELS), r"\(3, 1, 28, 28\) and \[2\]"),
    "teacher-labels": (lambda: fashion().check_condition({"class_labels": torch.tensor([11])}), r"labels in 0\.\.9"),
    "teacher-dtype": (lambda: fashion().encode(["a cat"]), "class labels"),
    "record-dtype": (lambda: record(fashion(), "out", 4, dtype="int8"), "unknown dtype 'int8'"),
    "record-prompts": (lambda: record(fashion(), "out", 4, prompts=["cat"]), "leave the prompts out"),
    "record-type": (lambda: record(fashion(), "out", 4, solver_steps=4, num_steps=()), "num_steps"),
    "prompts": (lambda: load_prompts("a/b/c"), "a text or JSONL file"),
    "real": (lambda: load_real("noise.bin", fashion()), "no file of real latents"),
    "training": (lambda: TrainingConfig(through_steps=1), "needs inputs student"),
    "adversarial": (lambda: AdversarialConfig(hidden=0), "hidden of 1 or more"),
    "pipeline-part": (lambda: Companions("foreign")["vae"], "a part of diffusers or transformers.*'os'"),
    "pipeline-index": (lambda: Companions("list"), "expected the index of a diffusers pipeline, got list"),
    "features": (lambda: feature_network("noise.bin"), "noise.bin cannot be read as a TorchScript file"),
    "load": (lambda: ardistill.load("empty"), "empty"),
    "adapters": (lambda: Student.from_adapters(fashion(), "empty"), "distil with lora_rank"),
    "distill-data": (
        lambda: distill(run_student(), TrajectoryDataset("data", 1), "out", TrainingConfig()), "not the student's knots"
    ),
}  # fmt: skip
CASES = {f"{i}-{case}": case for i, case in enumerate([*TYPED, *RECIPES, *FILES])}
CASES |= {name: Case(act, said) for name, (act, said) in CALLED.items()}


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """What was made, in the current folder; linked, not copied."""
    shutil.copytree(made, tmp_path / "world", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def look(folder: Path) -> dict[str, object]:
    """All there is in a folder."""
    return {str(x): x.stat().st_mtime_ns if x.is_file() else None for x in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_in_one_line_and_leaves_nothing(world, capsys, name):
    case = CASES[name]
    for path, harm in case.harm.items():
        old = Path(path).read_bytes() if Path(path).exists() else b""
        Path(path).unlink(missing_ok=True)  # it is a link
        if harm is not None:
            Path(path).write_bytes(harm.encode() if isinstance(harm, str) else harm(old))
    before = look(world)
    if callable(case.act):
        with pytest.raises(ValueError, match=case.said) as raised:
            case.act()
        message = f"{raised.value}\n"
    else:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(case.act.split())
        message = capsys.readouterr().err
        assert exit.value.code == 2
        message = message.splitlines(keepends=True)[-1]  # others before it may say how far it came
        assert re.search(case.said, message), message
    assert message.count("\n") == 1 and len(message) < 1000, message
    assert look(world) == before, message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["training", "seed", "x"]), inner),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_recipe_is_read_or_refused(tmp_path, draw):
    """One value of a study, at any depth, is another one, or is gone; or the text is."""
    recipe = json.loads(json.dumps({**SMALL, "out": "out"}))
    place = recipe
    while True:
        key = draw.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw.draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw.draw(VALUES)
    text = yaml.safe_dump(recipe)
    at = draw.draw(st.integers(0, len(text)))
    text = draw.draw(st.sampled_from([text, text[:at], f"{text[:at]}{draw.draw(st.text(max_size=2))}{text[at:]}"]))
    (tmp_path / "recipe.yaml").write_text(text)
    try:
        Study(tmp_path / "recipe.yaml")
    except ValueError as error:
        assert str(error)
    assert [x.name for x in tmp_path.iterdir()] == ["recipe.yaml"]
