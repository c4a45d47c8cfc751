"""A recipe with arms: its students are trained with equal compute, read again, and compared by one command."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_recipe import SMALL

from ardistill.cli import main
from ardistill.studies import Study
from ardistill.training.real_images import save_real
from ardistill.trajectories import steps_or_knots

pytestmark = pytest.mark.slow

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("study_*.yaml"))


def write(tmp_path, **sections):
    recipe = {**SMALL, "out": str(tmp_path / "runs"), **sections}
    recipe["record"] = {**recipe["record"], "num_steps": [1, 4]}
    recipe["finetune"] = {**recipe["finetune"], "real": str(tmp_path / "real.safetensors")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_studies_are_valid(path):
    study = Study(path)
    assert len(study.recipe.arms) <= 36


def test_arms_are_trained_with_equal_compute_and_read_again(tmp_path):
    save_real(tmp_path / "real.safetensors", torch.zeros(4, 1, 28, 28), {"class_labels": torch.arange(4)})
    study = Study(write(tmp_path))
    for name in SMALL["arms"]:
        student = study.student(name)
        again = Study(tmp_path / "recipe.yaml").student(name)
        state = again.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    runs = {name: json.loads((tmp_path / "runs" / "arms" / name / "config.json").read_text()) for name in SMALL["arms"]}
    assert {name: run["training"]["batch_size"] for name, run in runs.items()} == {
        "plain": 2, "history": 2, "kd": 8, "uniform": 2, "uneven": 4, "tuned": 2,
    }  # fmt: skip
    assert runs["history"]["data"]["num_trajectories"] == 4 and runs["history"]["training"]["seed"] == 1
    assert runs["uniform"]["student"]["knots"]["timesteps"] == [999, 749.25, 499.5, 249.75]
    assert runs["uneven"]["student"]["knots"]["timesteps"] == [999, 749]
    assert runs["tuned"]["student"]["history_layers"] == 2 and runs["tuned"]["adversarial"]["hidden"] == 8


def test_a_run_with_other_options_is_refused(tmp_path):
    Study(write(tmp_path)).student("plain")
    changed = write(tmp_path, arms={"plain": {"training": {"max_steps": 3}}})
    with pytest.raises(ValueError, match=r"training\.max_steps is 2 there, 3 asked for"):
        Study(changed).student("plain")


def test_one_command_compares_arms_of_a_recipe(tmp_path, capsys):
    path = write(tmp_path)
    main(["compare", "--recipe", str(path), "--arms", "[plain, kd, uneven]", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"teacher", "solver_1", "solver_2", "solver_4", "plain", "kd", "uneven"} == set(found["arms"])
    assert (tmp_path / "runs" / "comparison" / "report.html").is_file()
    assert not (tmp_path / "runs" / "arms" / "history").exists()


def test_knots_must_fit_the_number_of_steps():
    assert steps_or_knots(2, None) == 2 and steps_or_knots(2, [0, 3, 8]) == [0, 3, 8]
    with pytest.raises(ValueError, match=r"expected 4 knots for 3 steps, got \[0, 8\]"):
        steps_or_knots(3, [0, 8])
