"""Bad recipes."""

import json

import pytest
import yaml
from cli.bad_input import COMPARE, Case, check, name_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_recipe import SMALL

from ardistill.studies.study import Study


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
    study("arm plain: unknown 'history_layer'", arms={"plain": {"history_layer": 2}}),
    study("arm plain, training: unknown 'max_step'", arms={"plain": {"training": {"max_step": 2}}}),
    study("no arm 'absent'; the recipe has tuned", arms={"tuned": {"finetune": "absent"}}),
    study("goes on from itself: tuned <- tuned", arms={"tuned": {"finetune": "tuned"}}),
    study("8 evaluations_per_step are no multiple of its 3 steps", arms={"plain": {"num_steps": 3}}),
    study("expected 5 knots for 4 steps, got", arms={"plain": {"knots": [0, 2, 4]}}),
    study("expected a conditioning of recorded or uniform, got 'unifrom'", arms={"plain": {"conditioning": "unifrom"}}),
    study(r"learning_rate is a word in YAML.*5\.0e-4", arms={"plain": {"training": {"learning_rate": "5e-4"}}}),
    study("unknown inputs 'nobody'", arms={"plain": {"training": {"inputs": "nobody"}}}),
    study("held_out needs another seed", held_out={"seed": 0}),
    study("section held_out: unknown 'hight'", held_out={"hight": 8}),
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


@pytest.mark.parametrize("case", RECIPES, ids=name_cases(RECIPES))
def test_bad_recipes_are_named_in_one_line_and_leave_nothing(world, capsys, case):
    check(case, world, capsys)


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
