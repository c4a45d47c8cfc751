"""The commands a user types, on the embedded teacher, at sizes of seconds."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from ardistill.cli import COMMANDS, TRAJECTORIES, build_parser, main
from ardistill.student import Student

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:20 samples for 128 features")]

TINY = ["--training.max_steps", "2", "--training.batch_size", "2", "--training.checkpoint_every", "1"]


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """Recorded training and held-out trajectories and a distilled student of the embedded teacher."""
    folder = tmp_path_factory.mktemp("way")
    for name, count, seed in (("train", 4, 0), ("held_out", 20, 1)):
        main(
            ["record", "--teacher", "zoo/fashion", "--out", f"{folder}/{name}", "--num_trajectories", str(count)]
            + ["--guidance_scale", "1.25", "--solver_steps", "4", "--num_steps", "[1, 4]", "--seed", str(seed)]
            + ["--shard_size", "8"]
        )
    distill = ["distill", "--trajectories", f"{folder}/train", "--out", f"{folder}/ard", "--history_layers", "2"]
    main([*distill, *TINY])
    return folder


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit:
        main([str(x) for x in arguments])
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_distil_leaves_a_student_samples_settings_and_tracker_events(way):
    run = way / "ard"
    config = json.loads((run / "config.json").read_text())
    assert config["student"]["history_layers"] == 2 and config["training"]["max_steps"] == 2
    assert config["student"]["teacher"] == "zoo/fashion" and config["data"]["seed"] == 0
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step-00000001.png", "step-00000002.png"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "metrics")).Reload()
    assert "loss" in events.Tags()["scalars"] and "samples" in events.Tags()["images"]


def test_json_is_all_that_stands_on_stdout(way, capsys):
    main(["sample", "--student", f"{way}/ard", "--out", f"{way}/samples.png", "--count", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == {"out": f"{way}/samples.png", "count": 3}


def test_samples_for_the_adm_suite(way, capsys):
    main(["sample", "--student", f"{way}/ard", "--out", f"{way}/samples.npz", "--count", "53"])
    images = np.load(way / "samples.npz")["arr_0"]
    assert images.shape == (53, 28, 28, 3) and images.dtype == np.uint8 and images.std() > 10


def test_evaluate_compare_and_export(way, capsys):
    main(["evaluate", "--student", f"{way}/ard", "--trajectories", f"{way}/held_out", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["arms"]) == ["teacher", "solver_4", "ard"]
    assert found["arms"]["ard"]["nfe"] == 4 and found["arms"]["teacher"]["nfe"] == 8
    assert found["num_samples"] == 20 and found["feature_network"] == "fashion-classifier"
    for name in ("metrics.json", "report.html", "samples.png", "exposure_bias.png"):
        assert (way / "ard" / "evaluation" / name).stat().st_size > 0
    main(["distill", "--trajectories", f"{way}/train", "--out", f"{way}/step", "--history_layers", "0", *TINY])
    capsys.readouterr()
    students = json.dumps([f"{way}/step", f"{way}/ard"])
    main(["compare", "--students", students, "--trajectories", f"{way}/held_out", "--out", f"{way}/compare"])
    text = capsys.readouterr().out
    assert "paired distance to the teacher" in text and "step distillation" not in text and "flipped" in text
    assert "images per second" in text and "distance to the teacher by history: ARD is " in text
    main(["export", "--student", f"{way}/ard", "--out", f"{way}/export", "--json"])
    assert json.loads(capsys.readouterr().out)["evaluated"] is True
    card = (way / "export" / "README.md").read_text()
    measured = {x.metric_type: x.metric_value for x in ModelCard(card).data.eval_results}
    assert measured["fd"] == pytest.approx(found["arms"]["ard"]["fd"], rel=1e-5) and measured["nfe"] == 4
    assert "| solver 4 |" in card and "Real-versus-real floor" in card and (way / "export" / "samples.png").exists()
    main(["sample", "--student", f"{way}/export", "--out", f"{way}/exported.png", "--count", "2"])
    assert (way / "exported.png").stat().st_size > 0


def test_evaluating_on_the_training_noise_is_refused(way, capsys):
    message = fails(capsys, "evaluate", "--student", way / "ard", "--trajectories", way / "train")
    assert "held-out" in message and "--seed" in message


def test_a_run_folder_of_other_settings_is_refused_and_named(way, capsys):
    distill = ["distill", "--trajectories", way / "train", "--out", way / "ard", "--history_layers", 2]
    message = fails(capsys, *distill, *TINY, "--training.seed", 5)
    assert "training.seed is 0 there, 5 asked for" in message


def test_going_on_from_a_checkpoint(way, tmp_path, capsys, monkeypatch):
    start = f"{way}/ard/checkpoints/step-00000001"
    distill = ["distill", "--trajectories", f"{way}/train", "--start", start, *TINY]
    more = ["--history_layers", "2", "--training.learning_rate", "1e-6", "--training.max_steps", "1"]
    more += ["--training.gate_rate", "1"]
    main([*distill, "--out", f"{tmp_path}/on", *more])
    before, after = (Student.from_pretrained(x).state_dict() for x in (start, tmp_path / "on"))
    assert 0 < max(float((after[name] - x).abs().max()) for name, x in before.items()) < 1e-5
    error = fails(capsys, *distill, "--out", tmp_path / "other", "--history_layers", "3")
    assert "is another student (history_layers is 2 there, 3 asked for); give its own options" in error
    assert "expected held-out" in fails(capsys, "evaluate", "--student", start, "--trajectories", way / "train")
    monkeypatch.chdir(way / "ard" / "checkpoints")
    main(["evaluate", "--student", "step-00000001", "--trajectories", f"{way}/held_out"])
    main(["export", "--student", "step-00000001", "--out", f"{tmp_path}/exported"])
    assert (way / "ard" / "evaluation-step-00000001" / "report.html").is_file()
    assert "ard-step-00000001" in (tmp_path / "exported" / "README.md").read_text()
    Student.from_pretrained("step-00000001")  # still whole
    shutil.rmtree(way / "ard" / "evaluation-step-00000001")
    main([*distill, "--out", f"{tmp_path}/on", *more])  # resumed, it does not read its start again
    error = fails(capsys, *distill[:3], *TINY, "--out", tmp_path / "on", *more)
    assert "start.student is" in error


def test_every_command_has_help_for_every_option(capsys):
    parser = build_parser()
    assert list(parser.commands) == list(COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: ardistill [options] {name}")
        for action in parser.commands[name]._actions:
            assert action.help and not action.help.startswith("(type"), f"{name} --{action.dest}"


def test_help_comes_without_torch():
    script = "import sys, ardistill.cli as cli; cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_trajectories_are_described_checked_mended_shown_and_exported(way, tmp_path, capsys):
    def run(action, *options):
        main(["trajectories", action, "--trajectories", f"{tmp_path}/data", *options, "--json"])
        return json.loads(capsys.readouterr().out)

    shutil.copytree(way / "held_out", tmp_path / "data")
    found = run("info")
    assert found["num_trajectories"] == 20 and found["num_present"] == found["num_shards"] == 3
    assert found["num_steps"] == [1, 2, 3, 4] and found["teacher"] == "zoo/fashion"
    assert run("verify") == {"num_shards": 3, "missing": [], "broken": {}, "stray": [], "leftovers": 0, "whole": True}
    shard = tmp_path / "data" / "shard-00002.arrow"
    before = shard.read_bytes()
    shard.write_bytes(before[:2000] + bytes([before[2000] ^ 4]) + before[2001:])
    with pytest.raises(SystemExit) as exit:
        main(["trajectories", "verify", "--trajectories", f"{tmp_path}/data"])
    assert exit.value.code == 1 and "shard-00002.arrow" in capsys.readouterr().out
    assert run("repair") == {"remade": ["shard-00002.arrow"], "largest_difference": 0.0}
    assert shard.read_bytes() == before and run("verify")["whole"]
    assert run("show", "--out", f"{tmp_path}/shown.png", "--count", "2", "--first", "18")["count"] == 2
    picture = np.asarray(Image.open(tmp_path / "shown.png").convert("L")).astype(float)
    noise, image = picture[-110:, -620:-530], picture[-110:, -110:-20]  # of the last row: columns are 128 wide
    rough = [np.abs(np.diff(x, axis=1)).mean() for x in (noise, image)]
    assert rough[0] > 1.5 * rough[1]  # from noise to image
    assert "0..19, got 20" in fails(capsys, "trajectories", "show", "--trajectories", f"{tmp_path}/data", "--first", 20)
    assert run("export", "--out", f"{tmp_path}/parquet")["count"] == 20
    assert "did you mean 'verify'" in fails(capsys, "trajectories", "verfy")
    for action in TRAJECTORIES:
        with pytest.raises(SystemExit):
            main(["trajectories", action, "--help"])
        assert "--trajectories" in capsys.readouterr().out


def test_two_processes_train_one_run(way):
    """Under accelerate launch, over gloo: one run folder, one result on stdout."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "ardistill"]
    command += ["distill", "--trajectories", f"{way}/train", "--out", f"{way}/two", "--history_layers", "2", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # --cpu would start one
    done = subprocess.run([*command, *TINY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["student"] == f"{way}/two/student"
    logged = (way / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [2]
    assert len([*(way / "two").glob("checkpoints/step-00000002/shard-*.safetensors")]) == 2  # each wrote its part


def test_debug_raises_what_is_else_one_line(tmp_path, capsys):
    arguments = ["sample", "--student", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="expected a student"):
        main([*arguments, "--debug"])
