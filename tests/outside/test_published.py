"""Teachers as they are published: class names, weights, names, and the commands of the README."""

import dataclasses
import json
import shutil

import diffusers
import pytest
import torch
from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT
from publish import STORAGE, Storage, publish, read
from tiny import PIPELINES

from ardistill.cli import main
from ardistill.families import PUBLISHED_AS, family_of, transformer_class
from ardistill.files import Store
from ardistill.publishing import load
from ardistill.student import Student
from ardistill.teacher import Companions, Teacher, find_source, split_name
from ardistill.trajectories import Manifest

pytestmark = pytest.mark.slow

PROMPTS = ["a red cat", "the moon"]


SIZE = {"height": 64, "width": 64}


def run(*words):
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes a published teacher at its first use; only what one test asks for is made."""
    base = tmp_path_factory.mktemp("published")

    def get(family):
        return base / family if (base / family).exists() else publish(family, base / family)

    return get


def guided(family):
    """The command line's options of recording a family."""
    return [] if family == "dit" else ["--prompts", "prompts.txt"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def test_case_04_older_class_names_are_those_that_diffusers_maps():
    assert PUBLISHED_AS == _CLASS_REMAPPING_DICT
    for norm_type, name in PUBLISHED_AS["Transformer2DModel"].items():
        config = {"_class_name": "Transformer2DModel", "norm_type": norm_type}
        assert transformer_class(config) is getattr(diffusers, name)
        assert family_of(transformer_class(config).__name__)


@pytest.mark.parametrize("family", ["dit", "pixart"])
def test_case_04_every_command_takes_older_class_names(folders, here, family):
    teacher = folders(family)
    assert read(family, "transformer/config.json")["_class_name"] == "Transformer2DModel"
    run("cost", "--teacher", teacher, "--height", 8, "--width", 8, "--history_layers", 2)
    run("record", "--teacher", teacher, "--out", "data", "--num_trajectories", 2, "--guidance_scale", 2.0,
        "--solver_steps", 4, "--num_steps", "[2]", *guided(family))  # fmt: skip
    loaded = Teacher.from_pretrained(teacher)
    assert type(loaded.transformer).__name__ == PUBLISHED_AS["Transformer2DModel"][loaded.transformer.config.norm_type]


def same_as_plain(folder, family, tmp_path, **storage):
    """Whether a copy stored otherwise is the same teacher."""
    plain = publish(family, tmp_path / "plain", Storage(dtype=storage.get("dtype", torch.float32)))
    return Teacher.from_pretrained(folder).fingerprint() == Teacher.from_pretrained(plain).fingerprint()


@pytest.mark.parametrize(
    "storage",
    [
        Storage(torch.float16, variant="fp16"),
        Storage(torch.float16, variant="fp16", shards=True),
        Storage(shards=True),
        Storage(torch.bfloat16),
    ],
    ids=["variant", "variant-shards", "shards", "bf16"],
)
def test_case_05_weights_are_found_however_they_are_stored(tmp_path, storage, caplog):
    folder = publish("pixart", tmp_path / "teacher", storage)
    assert same_as_plain(folder, "pixart", tmp_path, dtype=storage.dtype)
    teacher = Teacher.from_pretrained(folder)
    assert teacher.transformer.dtype == torch.float32
    assert bool(storage.variant) == ("of the variant fp16 alone; they are loaded" in caplog.text)
    assert all(value.dtype == torch.float32 for value in teacher.encode(PROMPTS).values() if value.is_floating_point())


def test_case_05_pickled_weights_and_older_names_of_shards(tmp_path):
    folder = publish("dit", tmp_path / "teacher", Storage(pickled=True))
    assert [*(folder / "transformer").glob("*.bin")] and not [*folder.rglob("*.safetensors")]
    assert same_as_plain(folder, "dit", tmp_path)


def test_case_05_of_several_variants_the_named_one_is_loaded_and_known_again(here):
    publish("dit", here / "teacher", Storage(torch.float16, variant="fp16"))
    other = publish("dit", here / "other", Storage(torch.float32, variant="ema"))
    for part in ("transformer", "vae"):
        for file in (other / part).glob("*.safetensors"):
            shutil.copy(file, here / "teacher" / part)
    with pytest.raises(ValueError, match=r"of the variants ema, fp16 alone; name one of them.*as NAME:ema"):
        Teacher.from_pretrained("teacher")
    run("record", "--teacher", "teacher:fp16", "--out", "data", "--num_trajectories", 2, "--guidance_scale", 1.0,
        "--solver_steps", 2, "--num_steps", "[2]")  # fmt: skip
    manifest = Manifest.read(Store("data"))
    assert manifest.teacher == f"{here / 'teacher'}:fp16"
    assert Teacher.from_pretrained(manifest.teacher).fingerprint() == manifest.fingerprint
    assert Teacher.from_pretrained("teacher:ema").fingerprint() != manifest.fingerprint
    assert Teacher.from_pretrained("teacher:ema").companions["vae"].dtype == torch.float32


def hub_repository(cache, repo, folder, commit="0" * 39 + "1"):
    """A repository in the Hub's cache, as a download leaves it."""
    base = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, base / "snapshots" / commit)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    (base / "refs" / "v1").write_text(commit)


def test_case_05_a_hub_id_with_one_variant_is_loaded_offline_from_the_cache(here, monkeypatch):
    folder = publish("dit", here / "made", Storage(torch.float16, variant="fp16"))
    hub_repository(here / "hub", "me/teacher", folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    expected = Teacher.from_pretrained(folder).fingerprint()
    for name in ("me/teacher", "me/teacher@v1", "me/teacher@v1:fp16"):
        teacher = Teacher.from_pretrained(name)
        assert teacher.fingerprint() == expected and teacher.name == name and teacher.draws_images
    run("cost", "--teacher", "me/teacher@v1", "--height", 8, "--width", 8, "--history_layers", 2)
    with pytest.raises(ValueError, match=r"found no folder .*me/teacher, and could not load .* with --teacher"):
        Teacher.from_pretrained("me/teacher@v2")


def test_case_06_a_teacher_recorded_under_a_relative_path_is_found_from_elsewhere(here, monkeypatch):
    publish("dit", here / "models" / "teacher", Storage())
    run("record", "--teacher", "models/teacher", "--out", "data", "--num_trajectories", 4, "--guidance_scale", 1.0,
        "--solver_steps", 2, "--num_steps", "[1,2]")  # fmt: skip
    data, name = here / "data", str(here / "models" / "teacher")
    assert Manifest.read(Store(data)).teacher == name
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    run("distill", "--trajectories", data, "--out", "run", "--num_steps", 2, "--history_layers", 1,
        "--training.max_steps", 1, "--training.batch_size", 2)  # fmt: skip
    run("sample", "--student", "run", "--count", 2)
    run("export", "--student", "run", "--out", "export")
    (data / "shard-00000.arrow").unlink()
    run("trajectories", "repair", "--trajectories", data)
    run("trajectories", "show", "--trajectories", data, "--count", 1)
    assert Student.from_pretrained("run").config.teacher == name
    assert name not in (here / "elsewhere" / "export" / "README.md").read_text()
    shutil.move(here / "models", here / "moved")  # then the same recording goes on under another name
    run("record", "--teacher", here / "moved" / "teacher", "--out", data, "--num_trajectories", 4,
        "--guidance_scale", 1.0, "--solver_steps", 2, "--num_steps", "[1,2]")  # fmt: skip
    with pytest.raises(ValueError, match=r"found nothing at .*models/teacher; say where .* with --teacher"):
        Teacher.from_pretrained(name)
    run("sample", "--student", "run", "--count", 2, "--teacher", "../moved/teacher")


def test_case_06_names_have_a_revision_and_a_variant(tmp_path, monkeypatch):
    assert split_name("org/model@refs/pr/1:fp16") == ("org/model", "refs/pr/1", "fp16")
    assert split_name("org/model") == ("org/model", None, None)
    assert split_name("some/long/path:bf16") == ("some/long/path", None, "bf16")
    (tmp_path / "odd:name@x").mkdir()
    assert split_name(str(tmp_path / "odd:name@x")) == (str(tmp_path / "odd:name@x"), None, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model@v1").mkdir(parents=True)  # written as a Hub id with a revision, but it is here
    assert split_name("runs/model@v1:fp16") == ("runs/model@v1", None, "fp16")
    assert find_source("runs/model@v1:fp16").name == str(tmp_path / "runs" / "model@v1") + ":fp16"
    assert find_source("zoo/fashion").name == "zoo/fashion"


@pytest.mark.parametrize("family", [name for name in STORAGE if name not in ("dit", "pixart", "hunyuandit")])
def test_case_08_the_solver_goes_by_the_grid_of_its_pipeline(folders, family):
    """Sigmas and times that the stock pipeline has set by itself, at 4 steps and under the published scheduler."""
    teacher = Teacher.from_pretrained(folders(family), **SIZE)
    options = {"variant": STORAGE[family].variant, "torch_dtype": torch.float32}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders(family), **options)
    pipeline.set_progress_bar_config(disable=True)
    frames = {"num_frames": 1} if family == "wan" else {}
    pipeline(prompt="a red cat", num_inference_steps=4, output_type="latent", **SIZE, **frames)
    knots = teacher.knots(4)
    assert torch.allclose(torch.tensor(knots.sigma), pipeline.scheduler.sigmas.float(), atol=2e-6)
    atol = 1.0 if pipeline.scheduler.timesteps.dtype == torch.int64 else 1e-2  # UniPC rounds times down
    assert torch.allclose(torch.tensor(knots.timesteps), pipeline.scheduler.timesteps.float(), atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("family", STORAGE)
def test_every_published_teacher_is_counted_and_recorded(folders, here, family):
    run("cost", "--teacher", folders(family), "--num_steps", 2, "--history_layers", 1, "--text_tokens", 16,
        "--height", 8, "--width", 8)  # fmt: skip  # of latents
    size = [] if family == "dit" else ["--height", 64, "--width", 64]
    run("record", "--teacher", folders(family), "--out", "data", "--num_trajectories", 2, "--guidance_scale", 2.0,
        "--solver_steps", 4, "--num_steps", "[2]", *guided(family), *size)  # fmt: skip
    manifest = Manifest.read(Store("data"))
    assert manifest.scheduler["_class_name"] == read(family, "scheduler/scheduler_config.json")["_class_name"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux"])
def test_the_readmes_commands_run_on_published_teachers(folders, here, family, capsys):
    teacher, size = folders(family), [] if family == "dit" else ["--height", 64, "--width", 64]
    for out, seed in (("data", 0), ("held_out", 1)):
        run("record", "--teacher", teacher, "--out", out, "--num_trajectories", 4, "--guidance_scale", 2.0,
            "--solver_steps", 4, "--num_steps", "[2]", "--seed", seed, *guided(family), *size)  # fmt: skip
    run("distill", "--trajectories", "data", "--out", "run", "--num_steps", 2, "--history_layers", 1,
        "--training.max_steps", 2, "--training.batch_size", 2)  # fmt: skip
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    torch.jit.trace(network, torch.zeros(1, 3, 64, 64)).save("network.pt")
    run("evaluate", "--student", "run", "--trajectories", "held_out", "--features", "network.pt")
    run("export", "--student", "run", "--out", "export")
    given = {"class_labels": [1, 2]} if family == "dit" else {"prompt": PROMPTS, **SIZE}
    if family == "pixart":
        given |= {"use_resolution_binning": False, "clean_caption": False}
    images = []
    for pipeline in (diffusers.DiffusionPipeline.from_pretrained("export", trust_remote_code=True), load("export")):
        dtypes = {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}
        assert dtypes == {torch.float32}  # case 3: of one dtype, whatever the teacher's parts are stored in
        pipeline.set_progress_bar_config(disable=True)
        images.append(pipeline(**given, generator=torch.Generator().manual_seed(0), output_type="pt").images)
    assert torch.allclose(*images, atol=1e-5) and images[0].isfinite().all(), (images[0] - images[1]).abs().max()


@pytest.mark.parametrize("storage", [Storage(torch.bfloat16), Storage(torch.float16, variant="fp16")])
def test_case_03_exported_companions_load_in_one_dtype_with_diffusers_alone(tmp_path, storage):
    folder = publish("sd3", tmp_path / "teacher", storage)
    companions = Companions(folder)
    for name in ("vae", "text_encoder", "text_encoder_3", "tokenizer_3"):
        companions.copy(name, tmp_path / "export" / name)
    shutil.rmtree(tmp_path / "teacher")
    exported = tmp_path / "export"
    (exported / "model_index.json").write_text(json.dumps(companions.index))
    again = Companions(exported)
    for name in ("vae", "text_encoder", "text_encoder_3"):
        assert again[name].dtype == torch.float32, name
    assert not [x for x in exported.rglob("*") if ".fp16" in x.name]


def test_every_published_form_is_of_a_known_pipeline():
    assert set(STORAGE) <= set(PIPELINES) and all(dataclasses.is_dataclass(x) for x in STORAGE.values())
