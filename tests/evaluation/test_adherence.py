import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_detector import altered, any_picture

from ardistill.evaluation.adherence import adherence_table, adheres, check_adherence, scores, wilson_interval
from ardistill.evaluation.features import feature_network
from ardistill.zoo.scenes.data import CATEGORIES, COMBINED, SIZES, as_images, caption, example, prompts
from ardistill.zoo.scenes.detector import WEIGHTS, Found, load_detector


def seen_in(scene):
    """The nouns that a perfect detector finds in a scene."""
    return [Found(x.noun, x.colour, x.size, x.left + SIZES[x.size] / 2, x.top + SIZES[x.size] / 2) for x in scene.nouns]


def test_a_scene_adheres_to_its_caption_and_to_no_altered_one():
    random = np.random.default_rng(0)
    for index in range(300):
        scene, prompt = caption(5, index)
        assert adheres(seen_in(scene), prompt)
        assert not adheres(seen_in(scene)[1:], prompt) and not adheres([], prompt)
        assert not adheres(seen_in(scene) * 2, prompt)
        scene, prompt = example("seen", index)
        assert adheres(seen_in(scene), prompt) and not adheres(seen_in(scene), altered(prompt, random))
    large = replace(prompt, nouns=(0,), colours=None, relation=None, size="large")
    assert adheres([Found(0, 1, "large", 16, 16)], large) and not adheres([Found(0, 1, "small", 16, 16)], large)


@pytest.mark.parametrize(
    ("second", "left_of", "above"),
    [((24, 8), True, False), ((8, 24), False, True), ((24, 24), True, True), ((0, 8), False, False)],
)
def test_a_relation_holds_within_60_degrees(second, left_of, above):
    """GenEval's rule, with the first noun at (8, 8)."""
    prompt = next(x for x in prompts("seen", 12) if x.category == "position")
    found = [Found(prompt.nouns[0], 0, "small", 8, 8), Found(prompt.nouns[1], 0, "small", *second)]
    assert adheres(found, replace(prompt, relation=0)) == left_of
    assert adheres(found, replace(prompt, relation=1)) == above


def test_wilson_interval_of_known_shares():
    """The expected values are from statsmodels' proportion_confint."""
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.161125), abs=1e-5)
    assert wilson_interval(20, 20)[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("split", "categories"), [("seen", CATEGORIES), ("unseen_combinations", COMBINED)])
def test_the_detector_knows_fresh_renders(split, categories):
    pairs = [example(split, index, seed=11) for index in range(100 * len(categories))]
    asked = [prompt for _, prompt in pairs]
    rows = scores(check_adherence(load_detector(), as_images(scene for scene, _ in pairs), asked), asked, split)
    assert [x.category for x in rows] == [*categories, "overall"]
    facts = json.loads(WEIGHTS.with_suffix(".json").read_text())[split]
    for row in rows[:-1]:
        assert row.share >= 0.95 and row.num_images == 100 and row.low < row.share <= row.high
        assert row.detector_accuracy == facts[row.category]["accuracy"] >= 0.97
        assert row.detector_false_accepts <= 0.02 and facts[row.category]["num_renders"] >= 1000
    wrong = [altered(prompt, np.random.default_rng(index)) for index, prompt in enumerate(asked)]
    assert check_adherence(load_detector(), as_images(scene for scene, _ in pairs), wrong).float().mean() < 0.02


def test_the_detector_finds_any_nouns():
    """Pictures that no caption describes: up to four nouns of any kind, or none."""
    pictures = [any_picture(np.random.default_rng((11, index))) for index in range(200)]
    found = load_detector().find(as_images(pictures))

    def kinds(nouns):
        return sorted((x.noun, x.colour, x.size) for x in nouns)

    assert np.mean([kinds(x.nouns) == kinds(nouns) for x, nouns in zip(pictures, found, strict=True)]) > 0.9


def test_the_detector_is_small_frozen_and_a_feature_network():
    detector = load_detector()
    assert WEIGHTS.stat().st_size < 3e6
    assert not detector.training and not any(p.requires_grad for p in detector.parameters())
    network = feature_network("scenes-detector")
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 96)
    with pytest.raises(ValueError, match=r"\(n, 3, 32, 32\)"):
        detector.find(torch.zeros(2, 1, 28, 28))


def test_tables_show_the_detectors_errors_and_scores_need_a_prompt_per_image():
    asked = prompts("seen", 12)
    rows = scores(torch.tensor([True, False] * 6), asked)
    assert rows[-1].share == 0.5 and rows[-1].num_images == 12
    table = adherence_table({"teacher": rows})
    assert table[0][:2] == ["sampler", "single_object"] and table[1][0] == "teacher"
    assert table[2][1] == f"{rows[0].detector_accuracy:.3f}"
    with pytest.raises(ValueError, match="12 prompts for 3 images"):
        check_adherence(load_detector(), torch.zeros(3, 3, 32, 32), asked)
    with pytest.raises(ValueError, match="one verdict per prompt"):
        scores(torch.tensor([]), [])
    with pytest.raises(ValueError, match="expected prompts of the categories"):
        scores(torch.tensor([True]), [caption(0, 0)[1]])
    with pytest.raises(ValueError, match="expected a split of seen"):
        scores(torch.tensor([True] * 12), asked, "train")
    with pytest.raises(ValueError, match="expected prompts of the categories counting"):
        scores(torch.tensor([True] * 12), asked, "unseen_combinations")
