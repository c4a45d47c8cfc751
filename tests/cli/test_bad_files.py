"""Damaged, foreign and missing files."""

import json
from collections.abc import Callable

import pytest
from cli.bad_input import DISTILL, FINETUNE, RECORD, SAMPLE, Case, check, name_cases

MANIFEST, SHARD, STUDENT = "data/manifest.json", "data/shard-00001.arrow", "run/student/student.json"
MODEL, WEIGHTS = "run/student/transformer/config.json", "run/student/transformer/diffusion_pytorch_model.safetensors"


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


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES, ids=name_cases(FILES))
def test_bad_files_are_named_in_one_line_and_leave_nothing(world, capsys, case):
    check(case, world, capsys)
