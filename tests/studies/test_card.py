"""benchmarks/study/card.py trains arms side by side, waits for what they go on from, and ends in time."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_recipe import SMALL

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study" / "card.py"


@pytest.fixture
def card():
    spec = importlib.util.spec_from_file_location("card", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_arm_ends_with_a_result(card, tmp_path, capsys):
    content = SMALL | {
        "out": str(tmp_path / "runs"),
        "record": SMALL["record"] | {"num_steps": [4]},
        "held_out": {"num_trajectories": 130},  # more than features
        "arms": {"history": {"history_layers": 2}},
    }
    path = tmp_path / "study_small.yaml"
    path.write_text(yaml.safe_dump(content))
    (arm,) = card.arms_of([path], tmp_path / "results")
    assert card.main([str(path), "--results", str(tmp_path / "results"), "--minutes", "8"]) == 0
    assert json.loads((arm.results / "history.json").read_text())["figures"]["nfe"] == 4
    assert "without a result: none" in capsys.readouterr().out
    assert card.run([arm], 1, 0.0) == []


def test_arms_of_recipes_take_turns_and_wait_for_those_that_they_go_on_from(card, tmp_path):
    for name in ("study_one.yaml", "study_two.yaml"):
        content = SMALL | {"arms": {x: SMALL["arms"][x] for x in ("tuned", "history")}}
        (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
    arms = card.arms_of([tmp_path / "study_one.yaml", tmp_path / "study_two.yaml"], tmp_path)
    assert [(x.results.name, x.name) for x in arms] == [
        *(("one", "tuned"), ("two", "tuned"), ("one", "history"), ("two", "history"))
    ]
    assert not arms[0].is_ready and arms[2].is_ready
    arms[0].results.mkdir()
    (arms[0].results / "history.json").write_text("{}")
    assert arms[0].is_ready and not arms[1].is_ready and arms[2].is_done


def test_when_the_time_is_over_nothing_runs_on(card, tmp_path, monkeypatch, capsys):
    started = []

    def start(arm):
        code = "import time; time.sleep(60)" if arm.name != "fails" else "raise SystemExit(1)"
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    monkeypatch.setattr(card.Arm, "start", start)
    arms = [card.Arm(tmp_path, name, before, tmp_path) for name, before in ARMS.items()]
    assert card.run(arms, 2, 3.0) == arms
    assert len(started) == 3 and all(x.poll() is not None for x in started)  # the one that waits never began
    assert "fails: failed, see its log" in capsys.readouterr().out


ARMS = {"fails": (), "waits": ("fails",), "sleeps": (), "sleeps-too": ()}
