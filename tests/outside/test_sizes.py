"""Sizes as users have them: thousands of files, tens of thousands of prompts, on a small machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from many_prompts import OPTIONS, contents, words
from PIL import Image
from tiny import TINY, save

from ardistill import Student, Teacher, TrajectoryDataset, record
from ardistill.config import CostConfig
from ardistill.evaluation import draw_samples
from ardistill.files import SEAL, Store, seal
from ardistill.planning import cost, describe
from ardistill.teacher import pad_tokens
from ardistill.trajectories import Manifest, OnlineTrajectories, export_parquet, repair, verify
from ardistill.trajectories.conditions import PART, find_parts, num_used, publish_conditions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    return Teacher.from_pretrained(save("pixart", tmp_path_factory.mktemp("pixart") / "teacher"), guidance_scale=1.0)


@pytest.fixture
def encoded(monkeypatch):
    """Prompts that text encoders were asked for."""
    seen: list[str] = []
    encode = Teacher.encode
    monkeypatch.setattr(
        Teacher, "encode", lambda self, prompts, *a, **k: (seen.extend(prompts), encode(self, prompts, *a, **k))[1]
    )
    return seen


# -- case 20

SCRIPT = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from ardistill.evaluation import Judge, feature_network
from ardistill.files.images import open_images
held = []
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
network.register_forward_pre_hook(lambda module, inputs: held.append(len(inputs[0])))
judge = Judge.of_images(feature_network(network), open_images(sys.argv[1], 3))
print(len(judge.real_features) + len(judge.held_out_features), max(held))
"""


def test_case_20_more_images_than_files_may_be_open(tmp_path):
    for i in range(600):
        path = tmp_path / f"{i % 3}" / f"{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i % 256, 0, 0)).save(path)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["600", "64"]  # all of them, never more than a batch at once
    assert "600/600" in done.stderr  # the bar


# -- case 21


def test_case_21_only_the_used_prompts_are_encoded(pixart, encoded, tmp_path):
    record(pixart, tmp_path / "many", 2, prompts=words(17_000), **OPTIONS)
    assert encoded == words(2)
    record(pixart, tmp_path / "two", 2, prompts=words(2), **OPTIONS)
    sizes = [
        sum(len(x) for name, x in contents(tmp_path / folder).items() if "cond" in name) for folder in ("many", "two")
    ]
    assert sizes[0] == sizes[1] < 40_000  # bytes; all of them would be 280 MB
    data, few = (TrajectoryDataset(tmp_path / name, 2) for name in ("many", "two"))
    assert len(data.prompts) == 17_000 and data.labels.tolist() == [0, 1]
    for name, value in data.condition().items():
        assert torch.equal(value, few.condition()[name])


def test_case_21_a_killed_encoding_goes_on_and_ends_the_same(pixart, tmp_path, monkeypatch):
    prompts, count = words(3 * PART), 3 * PART - 10
    record(pixart, tmp_path / "whole", count, prompts=prompts, **OPTIONS)
    encode, calls = Teacher.encode, []

    def dies_in_the_third_part(self, given, *args, **options):
        calls.append(len(given))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, given, *args, **options)

    monkeypatch.setattr(Teacher, "encode", dies_in_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        record(pixart, tmp_path / "killed", count, prompts=prompts, **OPTIONS)
    assert sum(name.startswith("conditions-") for name in contents(tmp_path / "killed")) == 2
    calls[:] = [0] * 3
    record(pixart, tmp_path / "killed", count, prompts=prompts, **OPTIONS)
    assert len(calls) == 4  # one part alone was left
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_case_21_parts_are_one_table(pixart, tmp_path):
    """Bit-equal to encoding all at once, in any order of rows, in one item and in workers."""
    prompts = words(2 * PART + 5)
    record(pixart, tmp_path / "data", len(prompts) + 9, prompts=prompts, **OPTIONS)
    names = sorted(name for name in contents(tmp_path / "data") if name.startswith("cond"))
    assert names == [f"conditions-{a:08d}-{b:08d}.safetensors" for a, b in ((0, 64), (64, 128), (128, 133))]
    data, expected = TrajectoryDataset(tmp_path / "data", 2), pixart.encode(prompts)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    for name, value in expected.items():
        assert torch.equal(data.condition(rows)[name], value[rows % len(prompts)])
        assert torch.equal(data[130]["condition"][name], value[130])
    online = OnlineTrajectories(tmp_path / "data", 2, pixart)
    assert torch.equal(online[3]["states"], data[3]["states"])
    assert export_parquet(tmp_path / "data", tmp_path / "parquet", progress=False) == len(data)
    handles = len(os.listdir("/proc/self/fd"))
    data.condition()
    assert len(os.listdir("/proc/self/fd")) == handles


def test_case_21_a_grown_recording_adds_parts_and_changes_none(pixart, encoded, tmp_path):
    record(pixart, tmp_path / "few", 70, prompts=words(100), **OPTIONS)
    before = contents(tmp_path / "few")
    store = Store(tmp_path / "few")
    more = Manifest(**{**Manifest.read(store).__dict__, "num_trajectories": 90})
    present, missing = find_parts(store.sizes(), more)
    assert num_used(more) == 90 and [(x.first, x.last) for x in present] == [(0, 64), (64, 70)]
    assert [(x.first, x.last) for x in missing] == [(70, 90)]
    encoded.clear()
    publish_conditions(store, more, pixart, words(100), "cpu", progress=False)
    assert encoded == words(100)[70:90]
    after = contents(tmp_path / "few")
    assert all(after[name] == x for name, x in before.items()) and len(after) == len(before) + 1


def test_case_21_a_grown_recording_is_equal_to_one_of_its_size(tmp_path):
    """To the last bit: the embedding of a prompt does not depend on how many were encoded with it."""
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), guidance_scale=1.5)
    options = OPTIONS | {"shard_size": 3}
    for count in (2, 9, 70):
        record(teacher, tmp_path / "grown", count, prompts=words(100), **options)
    record(teacher, tmp_path / "once", 70, prompts=words(100), **options)
    grown, once = (TrajectoryDataset(tmp_path / name, 2).stacked() for name in ("grown", "once"))
    assert torch.equal(grown[0], once[0])
    assert all(torch.equal(grown[2][name], value) for name, value in once[2].items())


def test_many_samples_are_drawn_in_parts(pixart, encoded, monkeypatch, tmp_path):
    """Embeddings and images of a batch are dropped before all are there."""
    record(pixart, tmp_path / "data", 2, prompts=words(2), **OPTIONS)
    student = Student.from_teacher(pixart, TrajectoryDataset(tmp_path / "data", 2).student_config(history_layers=0))
    encoded.clear()
    known = []
    decode = Teacher.decode
    monkeypatch.setattr(Teacher, "decode", lambda self, x, **more: (known.append(len(encoded)), decode(self, x))[1])
    options = {"prompts": words(30), "batch_size": 2}
    draw_samples(student, pixart, tmp_path / "a.npz", count=41, **options)
    assert known[:9] == [16] * 8 + [32] and len(known) == 21 and len(encoded) == 41
    draw_samples(student, pixart, tmp_path / "b.npz", count=10, **options)
    found, fewer = (np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz"))
    assert found.shape == (41, 16, 16, 3) and found.dtype == np.uint8
    assert np.array_equal(found[:10], fewer)


def test_case_21_lost_and_broken_parts_are_made_again(pixart, tmp_path):
    record(pixart, tmp_path / "data", 200, prompts=words(150), **OPTIONS)
    before = contents(tmp_path / "data")
    names = [name for name in sorted(before) if name.startswith("cond")]
    (tmp_path / "data" / names[0]).unlink()
    (tmp_path / "data" / names[1]).write_bytes(before[names[1]][:-9])
    with pytest.raises(ValueError, match=f"{names[0]} is missing; run the same record command"):
        TrajectoryDataset(tmp_path / "data", 2)
    found = verify(tmp_path / "data", progress=False)
    assert found.missing == [names[0]] and list(found.broken) == [names[1]] and not found.stray
    assert repair(pixart, tmp_path / "data", progress=False).remade == names[:2]
    assert contents(tmp_path / "data") == before and verify(tmp_path / "data", progress=False).whole


def test_case_21_what_an_older_version_recorded_is_read(pixart, tmp_path):
    """One table of all prompts, whatever their number."""
    prompts = words(100)
    record(pixart, tmp_path / "data", 3, prompts=prompts, **OPTIONS)
    for path in (tmp_path / "data").glob("conditions-*"):
        path.unlink()
    table = {name: value.contiguous() for name, value in pixart.encode(prompts).items()}
    Store(tmp_path / "data").publish(
        "conditions.safetensors", seal(safetensors.torch.save(table, metadata={"seal": SEAL}))
    )
    assert verify(tmp_path / "data", progress=False).whole
    found = TrajectoryDataset(tmp_path / "data", 2).condition()
    assert all(torch.equal(found[name], value[:3]) for name, value in table.items())


def test_case_21_prompts_of_unequal_length_are_padded_to_the_longest(tmp_path):
    """Z-Image's embeddings end where the prompt does; a part has a length of its own."""
    teacher = Teacher.from_pretrained(save("z-image", tmp_path / "teacher"), guidance_scale=1.0)
    prompts = [*(f"{i}" for i in range(PART)), "a much longer prompt than all of the others"]
    record(teacher, tmp_path / "data", len(prompts), prompts=prompts, **OPTIONS | {"manifest_only": True})
    files = sorted((tmp_path / "data").glob("conditions-*"))
    lengths = [safetensors.torch.load_file(path)["encoder_hidden_states"].shape[1] for path in files]
    assert lengths[0] < lengths[1]
    found = OnlineTrajectories(tmp_path / "data", 2, teacher).condition(torch.tensor([PART - 1, PART]))
    expected = teacher.encode(prompts)
    for name, value in expected.items():
        assert torch.equal(found[name], value[[PART - 1, PART]])
    assert found["encoder_attention_mask"].sum(1).tolist() == sorted(found["encoder_attention_mask"].sum(1).tolist())
    assert torch.equal(pad_tokens(torch.ones(1, 2, 3), 4)[0, :, 0], torch.tensor([1.0, 1, 0, 0]))


def test_case_21_cogview4_pads_to_the_longest_of_all_prompts(tmp_path):
    teacher = Teacher.from_pretrained(save("cogview4", tmp_path / "teacher"), guidance_scale=1.0)
    prompts = [*words(PART), "a cat on the moon " * 5]
    options = OPTIONS | {"manifest_only": True}
    record(teacher, tmp_path / "one", 1, prompts=prompts, **options)
    record(teacher, tmp_path / "all", len(prompts), prompts=prompts, **options)
    expected = teacher.encode(prompts)["encoder_hidden_states"]
    for name, rows in (("one", [0]), ("all", [3, PART])):
        data = OnlineTrajectories(tmp_path / name, 2, teacher)
        assert torch.equal(data.condition(torch.tensor(rows))["encoder_hidden_states"], expected[rows])


@pytest.mark.parametrize(
    "encoder,dtype,stored",
    [(None, "float32", torch.float32), (None, "float16", torch.float16), ("bfloat16", "float16", torch.bfloat16)],
)
def test_case_21_embeddings_keep_the_encoders_precision(tmp_path, encoder, dtype, stored):
    teacher = Teacher.from_pretrained(save("pixart", tmp_path / "teacher"), guidance_scale=1.0)
    exact = teacher.encode(words(2))["encoder_hidden_states"]
    if encoder:
        teacher.companions["text_encoder"].to(getattr(torch, encoder))
        vars(teacher.text).pop("pipeline", None)
    record(teacher, tmp_path / "data", 2, prompts=words(2), dtype=dtype, **OPTIONS)
    table = safetensors.torch.load_file(tmp_path / "data" / "conditions.safetensors")
    assert table["encoder_hidden_states"].dtype == stored
    found = TrajectoryDataset(tmp_path / "data", 2).condition()["encoder_hidden_states"]
    assert found.dtype == torch.float32 and torch.allclose(found, exact, rtol=0.05, atol=0.05)


def test_case_21_cost_plans_what_is_used(tmp_path):
    TINY["sd3"].transformer().save_config(tmp_path)
    config = str(tmp_path / "config.json")
    costs = [
        cost(options)
        for options in (
            CostConfig(
                str(tmp_path / "config.json"), history_layers=1, num_prompts=n, num_trajectories=100, dtype=dtype
            )
            for n, dtype in ((100, "float32"), (20_000, "float32"), (100, "float16"))
        )
    ]
    assert costs[0].bytes_on_disk == costs[1].bytes_on_disk
    assert costs[2].bytes_per_prompt * 2 == costs[0].bytes_per_prompt
    assert costs[2].bytes_on_disk == pytest.approx(costs[0].bytes_on_disk / 2, rel=0.01)
    options = CostConfig(config, num_prompts=20_000, num_trajectories=100, history_layers=1)
    assert "(100 of them are used)" in describe(cost(options), options)


def test_parts_of_a_url(pixart, tmp_path):
    record(pixart, "memory://sizes/data", 70, prompts=words(70), **OPTIONS)
    record(pixart, tmp_path / "data", 70, prompts=words(70), **OPTIONS)
    store = Store("memory://sizes/data")
    assert {name: bytes(store.read(name)) for name in store.sizes()} == contents(tmp_path / "data")
    found, local = (TrajectoryDataset(x, 2).condition() for x in ("memory://sizes/data", tmp_path / "data"))
    assert all(torch.equal(value, local[name]) for name, value in found.items())
    assert json.loads(bytes(store.read("prompts.json"))) == words(70)
