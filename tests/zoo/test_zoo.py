import json

import pytest
import torch
from diffusers import DiffusionPipeline

from ardistill.config import JudgeConfig
from ardistill.evaluation import FeatureStatistics, Judge, frechet_distance, real_floor
from ardistill.evaluation.reference import NETWORKS, Reference, load_reference, reference_path
from ardistill.teacher import ZOO, Teacher
from ardistill.zoo import CLASS_CONDITIONAL, FOLDERS
from ardistill.zoo.classifier import classifier_path, load_classifier
from ardistill.zoo.data import CLASS_NAMES as DATA_NAMES
from ardistill.zoo.data import load_data
from ardistill.zoo.emoji.data import BACKGROUNDS, CLASS_NAMES, GRID, NOUN_SIZES, load_emoji, scene
from ardistill.zoo.scenes.data import as_images
from ardistill.zoo.scenes.data import scene as prompted_scene

pytestmark = pytest.mark.slow

NAMES = CLASS_CONDITIONAL
ACCURACY = {"emoji": 0.99, "fashion": 0.93}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_classifier_is_small_and_frozen(name):
    path = classifier_path(name)
    assert path.stat().st_size < 1e6
    assert json.loads(path.with_suffix(".json").read_text())["test_accuracy"] >= ACCURACY[name]
    classifier = load_classifier(name)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    images = torch.rand(3, *classifier.image_shape) * 2 - 1
    assert classifier(images).shape == (3, 10) and classifier.features(images).shape == (3, 128)
    shapes = [logits.shape for logits in classifier.labels(images)]
    assert shapes == [(3, 10)] + [(3, len(BACKGROUNDS))] * (name == "emoji")
    with pytest.raises(ValueError, match=rf"\(n, {', '.join(map(str, classifier.image_shape))}\)"):
        classifier(torch.zeros(3, 5, 28, 28))


@pytest.mark.parametrize(("name", "num_features"), [("emoji", 128), ("fashion", 128), ("scenes", 96)])
def test_shipped_reference_belongs_to_the_shipped_network(name, num_features):
    reference = load_reference(reference_path(name))
    assert reference_path(name).stat().st_size < 1.5e6
    assert (reference.train.count, reference.test.count) == (60_000, 10_000)
    assert reference.real_features.shape == reference.held_out_features.shape == (2000, num_features)
    # The stored features come from the images that the test statistics were fitted to, in the same network.
    of_features = FeatureStatistics.from_features(torch.cat([reference.real_features, reference.held_out_features]))
    scale = reference.test.cov.trace().item()
    assert frechet_distance(of_features, reference.test) < 0.01 * scale
    assert real_floor(reference.held_out_features, reference.train).distance < 0.05 * scale


def test_reference_survives_saving(tmp_path):
    reference = load_reference(reference_path("fashion"))
    reference.save(tmp_path / "reference.safetensors", "fashion-classifier")
    loaded = load_reference(tmp_path / "reference.safetensors")
    assert isinstance(loaded, Reference) and loaded.train.count == reference.train.count
    assert torch.equal(loaded.train.cov, reference.train.cov) and torch.equal(loaded.test.mean, reference.test.mean)
    assert torch.equal(loaded.real_features, reference.real_features)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_embedded_teacher_has_its_judge(name):
    teacher = Teacher.from_pretrained(f"zoo/{name}", device="cpu")
    for judge in (Judge.zoo(name), Judge.from_config(JudgeConfig(), teacher, "cpu")):
        assert judge.network.name == NETWORKS[name]
        assert judge.reference is not None and (judge.classifier is not None) == (name in CLASS_CONDITIONAL)


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_teacher_draws_what_its_own_pipeline_draws(name):
    """A normal diffusers folder: its pipeline and our solver agree where diffusers' trailing grid is exact."""
    pipeline = DiffusionPipeline.from_pretrained(str(ZOO[f"zoo/{name}"]), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 1.25, "num_inference_steps": 4}
    generator = torch.Generator().manual_seed(0)
    images = pipeline([1, 7, 9], generator=generator, output_type="pt", **options).images
    teacher = Teacher.from_pretrained(f"zoo/{name}", guidance_scale=1.25)
    noise = torch.randn(3, *load_classifier(name).image_shape, generator=torch.Generator().manual_seed(0))
    solved = teacher.solve_ode(noise, {"class_labels": torch.tensor([1, 7, 9])}, teacher.knots(4))
    assert torch.allclose(teacher.decode(solved.states[:, -1]) / 2 + 0.5, images, atol=1e-5)
    assert list(pipeline.config.id2label.values()) == list(DATA_NAMES[name])
    assert pipeline([8]).images[0].size == images.shape[:1:-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_teacher_is_small_and_says_how_good_it_is(name):
    folder = ZOO[f"zoo/{name}"]
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 16e6
    quality = json.loads((folder / "quality.json").read_text())
    best = min(quality["sweep"], key=lambda row: row["fd"])
    assert quality["solver_steps"] == 25 and best["accuracy"] >= 0.92
    assert quality["best_guidance_scale"] == best["guidance_scale"]
    card = (folder / "README.md").read_text()
    assert f"{best['fd']:.3g}" in card and f"{quality['real_floor']:.3f}" in card
    assert {"fashion": "MIT", "emoji": "Apache"}[name] in (folder.parent / "LICENSE").read_text()


def test_the_emoji_judge_knows_fresh_renders():
    """Its classifier on scenes of a seed that neither training nor reference used, and the features of the floor."""
    judge, (images, labels) = Judge.zoo("emoji"), load_emoji(seed=7, count=300)
    noun, background = load_classifier("emoji").labels(images)
    assert (noun.argmax(1) == labels[:, 0]).float().mean() > 0.98
    assert (background.argmax(1) == labels[:, 1]).float().mean() > 0.98
    features = judge.network(images)
    mean, spread = judge.reference.mean.float(), judge.reference.cov.diagonal().sum().sqrt().float()
    assert (features.mean(0) - mean).norm() < 0.2 * spread


def test_the_judge_of_scenes_knows_fresh_renders():
    judge = Judge.zoo("scenes")
    features = judge.network(as_images(prompted_scene(7, index) for index in range(300)))
    mean, spread = judge.reference.mean.float(), judge.reference.cov.diagonal().sum().sqrt().float()
    assert (features.mean(0) - mean).norm() < 0.2 * spread


def test_a_scene_follows_from_seed_and_index():
    images, labels = load_emoji(seed=3, count=40)
    again, _ = load_emoji(seed=3, count=40)
    other, _ = load_emoji(seed=4, count=40)
    assert images.shape == (40, 3, 32, 32) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert labels[:, 0].tolist() == [i % 10 for i in range(40)]
    alone = torch.from_numpy(scene(3, 25).render()).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(images[25], alone)
    # Pinned: the shipped teacher, classifier and reference were made from this very world.
    first = scene(0, 0)
    assert (first.noun, first.background, first.size, first.left, first.top, first.mirrored) == (0, 1, 28, 2, 2, False)


def test_scenes_are_inside_the_image_and_cover_the_world():
    scenes = [scene(0, index) for index in range(1000)]
    assert all(0 <= edge <= 32 - s.size and edge % GRID == 0 for s in scenes for edge in (s.left, s.top))
    assert {s.size for s in scenes} == set(NOUN_SIZES) and {s.mirrored for s in scenes} == {False, True}
    squares = sum(((32 - size) // GRID + 1) ** 2 for size in NOUN_SIZES)
    assert len(CLASS_NAMES) * len(BACKGROUNDS) * 2 * squares == 9_960
    assert {s.background for s in scenes} == set(range(len(BACKGROUNDS)))
    for s in scenes[:60]:
        outside = s.render().copy()
        outside[s.top : s.top + s.size, s.left : s.left + s.size] = list(BACKGROUNDS.values())[s.background]
        assert (outside == outside[0, 0]).all() and not (s.render() == outside).all()
    assert len({s.render().tobytes() for s in scenes}) > 900
    assert all((FOLDERS["emoji"] / "nouns" / f"{name}.png").is_file() for name in CLASS_NAMES)


def test_unknown_data_sets_are_told():
    with pytest.raises(ValueError, match="fashion or emoji"):
        load_data("mnist", "train")
    with pytest.raises(ValueError, match="--data-dir"):
        load_data("fashion", "train")
