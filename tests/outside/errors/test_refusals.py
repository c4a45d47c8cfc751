"""Refused command lines, in a table; and the options --version and --training.max-steps."""

import json
from pathlib import Path

import pytest
from apart import DISTILL, RECORD
from faults.killing import contents
from refusals import Refusal, check_refusal

from ardistill.cli import main

pytestmark = pytest.mark.slow

SAMPLE = "sample --student run --device cpu --out new.png"
ENCODE = "encode --teacher zoo/fashion --images images --out new.safetensors --device cpu"
SHOW = "trajectories show --trajectories data --device cpu --out new.png"
NEW = DISTILL.replace("--out run", "--out new")
NUMBERS = {
    "limit-negative": Refusal(f"{ENCODE} --limit -1", "limit of 1 image or more, got -1", "leave it out"),
    "limit-zero": Refusal(f"{ENCODE} --limit 0", "limit of 1 image or more, got 0", "leave it out"),
    "height-zero": Refusal(f"{ENCODE} --height 0 --width 0", "got 0x0", "multiples of"),
    "width-alone": Refusal(f"{SAMPLE} --width 28", "expected both height and width", "or neither"),
    "record-height": Refusal(f"{RECORD} --height 0 --width 0", "got 0x0", "multiples of"),
    "frames": Refusal(f"{RECORD} --num_frames 0", "num_frames.*got 0", "1 .an image. or more"),
    "solver-steps": Refusal(f"{RECORD} --solver_steps 5000", "got 5000", "expected 1 to 1000"),
    "infinite": Refusal(f"{RECORD} --guidance_scale .inf", "guidance_scale, got inf", "finite number"),
    "many": Refusal(f"{RECORD} --num_trajectories 10000000000000", "got 10000000000000", r"below 10\^12"),
    "seed": Refusal(f"{SAMPLE} --seed 99999999999999999999", "64 bits for --seed", "smaller one"),
    "training-seed": Refusal(f"{NEW} --training.seed 9999999999999999", "got 9999999999999999", r"-2\^43 to 2\^43"),
    "show-steps": Refusal(f"{SHOW} --num_steps 0", "expected 1 to 4 steps", "got 0"),
    "show-infinite": Refusal(f"{SAMPLE} --guidance_scale .nan", "guidance_scale, got nan", "finite number"),
    "cost-height": Refusal("cost --teacher DiT-S/2 --height 0 --width 32", "height.*got 0", "1 or more"),
    "cost-nan": Refusal("cost --teacher DiT-S/2 --guidance_scale .nan", "got nan", "finite number"),
}
PLACES = {
    "sample-folder": Refusal(f"{SAMPLE} --out nowhere/a.png", "folder nowhere", "make it, or name another"),
    "encode-folder": Refusal(f"{ENCODE} --out nowhere/a.safetensors", "folder nowhere", "make it, or name another"),
    "encode-is-folder": Refusal(f"{ENCODE} --out images", "images is a folder or a device", "name a file"),
    "sample-device": Refusal(f"{SAMPLE} --out /dev/null", "/dev/null is a folder or a device", "name a file"),
    "record-file": Refusal(f"{RECORD} --out file/data", "file/data cannot be", "Not a directory"),
    "record-long": Refusal(f"{RECORD} --out {'x' * 300}", "File name too long", "goes on|shorter|cannot be"),
    "distill-long": Refusal(f"{DISTILL} --out {'x' * 300}", "File name too long", "name a shorter path"),
    "encode-name": Refusal(f"{ENCODE} --out prompts.txt", "ends in .safetensors, got prompts.txt", "name another file"),
    "sample-name": Refusal(f"{SAMPLE} --out prompts.txt", "ends in .png or .* or .npz", "name another file"),
    "show-name": Refusal(f"{SHOW} --out run/config.json", "ends in .png or", "name another file"),
    "empty-out": Refusal([*DISTILL.split(), "--out", ""], "value for --out, got an empty one", "name one"),
    "empty-teacher": Refusal([*SAMPLE.split(), "--teacher", ""], "value for --teacher", "leave the option out"),
    "empty-list": Refusal(["compare", "--students", '[""]'], "value for --students", "name one"),
    "torch-text": Refusal(f"{RECORD} --teacher text.pt", r"text.pt cannot be read.*Error", "download it again"),
    "torch-module": Refusal(f"{RECORD} --teacher module.pt", r"module.pt cannot be read.*Error", "tensors alone"),
    "distill-url": Refusal(f"{DISTILL} --out s3://bucket/x", "local folder, got the URL s3://", "name a folder"),
    "export-url": Refusal("export --student run --out s3://bucket/x", "local folder, got the URL", "name a folder"),
    "distill-foreign": Refusal(f"{DISTILL} --out images", "images to be empty or to hold this run", "new folder"),
    "distill-file": Refusal(f"{DISTILL} --out prompts.txt", "prompts.txt cannot be written", "name another folder"),
    "distill-rank": Refusal(f"{NEW} --lora_rank 9223372036854775807", "too large", "take a smaller one"),
    "tabs": Refusal("--config tabs.yaml record", "tabs.yaml cannot be read as a recipe", "recipe"),
    "export-file": Refusal("export --student run --out file/x", "file/x cannot be written", "name another folder"),
    "evaluate-file": Refusal(
        "evaluate --student run --trajectories held_out --device cpu --out file",
        "file cannot be written",
        "name another",
    ),
    "fewer-steps": Refusal(f"{DISTILL} --training.max_steps 1", "max_steps is 2 there, 1 asked", "as many or more"),
    "fewer-rows": Refusal(f"{RECORD} --out data --shard_size 4", "num_trajectories is 6 there", "new folder"),
    "re-record": Refusal(
        f"{RECORD} --out data --num_trajectories 6 --shard_size 4 --seed 5",
        "seed is 0 there, 5 asked for",
        "repeat its",
    ),
    "word": Refusal(f"{SAMPLE} --count many", "count.*many", "--help lists"),
    "option": Refusal("distill --training.max-step 2", "not known", "did you mean 'training.max_steps'"),
}
REFUSALS = NUMBERS | PLACES


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(world, capsys, name):
    before = contents(world)
    check_refusal(REFUSALS[name], capsys)
    assert contents(world) == before


def test_a_recipe_nested_without_end_is_refused(world, capsys):
    Path("deep.yaml").write_text("distill: " + "[" * 5000)
    check_refusal(Refusal("--config deep.yaml distill", "deep.yaml cannot be read", "recipe"), capsys)
    check_refusal(Refusal("compare --recipe deep.yaml", "deep.yaml cannot be read", "recipe"), capsys)


def test_case_24_version_and_dashes_anywhere_in_an_option(world, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("ardistill 0.")
    words = "distill --trajectories data --out on-the-way --history-layers 1 --training.max-steps 1"
    main([*words.split(), "--training.batch-size=2", "--training.lr-scheduler=constant", "--training.tracker", "null"])
    settings = json.loads(Path("on-the-way/config.json").read_text())["training"]
    assert (settings["max_steps"], settings["batch_size"], settings["lr_scheduler"]) == (1, 2, "constant")
