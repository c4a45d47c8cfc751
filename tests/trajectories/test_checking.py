"""Damaged, foreign and forged files are noticed, and made again."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trajectories.recordings import OPTIONS, contents, resealed

from ardistill.files import SEAL, Store, seal
from ardistill.teacher import Teacher
from ardistill.trajectories import (
    TrajectoryDataset,
    info,
    record,
    repair,
    verify,
)
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import decode_shard


def read_all(folder):
    data = TrajectoryDataset(folder, 2)
    return [data[i] for i in range(len(data))], data.prompts


def test_a_flipped_byte_and_a_cut_are_noticed_in_every_kind_of_file(with_text):
    _teacher, folder = with_text
    assert sorted(contents(folder)) == [
        "conditions.safetensors", "manifest.json", "prompts.json", "shard-00000.arrow", "shard-00001.arrow",
    ]  # fmt: skip
    read_all(folder)
    generator = np.random.default_rng(0)
    for name, whole in contents(folder).items():
        path = folder / name
        for at in [0, len(whole) - 1, *generator.integers(len(whole), size=12).tolist()]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << (at % 8))]) + whole[at + 1 :])
            with pytest.raises(ValueError) as error:
                read_all(folder)
            assert name in str(error.value) and "\n" not in str(error.value), at
        for length in [0, len(whole) - 1, *generator.integers(len(whole), size=4).tolist()]:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=name):
                read_all(folder)
        path.write_bytes(whole)
    read_all(folder)


def test_what_is_broken_is_made_again_to_the_same_bytes(with_text):
    teacher, folder = with_text
    before = contents(folder)
    assert verify(folder, progress=False).whole
    (folder / "shard-00001.arrow").write_bytes(before["shard-00001.arrow"][:-50])
    (folder / "conditions.safetensors").unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / ".shard-00000.arrow.0123.tmp").write_bytes(b"half")
    found = verify(folder, progress=False)
    assert found.missing == ["conditions.safetensors"] and list(found.broken) == ["shard-00001.arrow"]
    assert found.stray == ["notes.txt"] and found.leftovers == 1 and not found.whole
    assert info(folder)["num_present"] == 2
    mended = repair(teacher, folder, progress=False)
    assert mended.remade == ["conditions.safetensors", "shard-00001.arrow"] and mended.largest_difference == 0
    (folder / "notes.txt").unlink()
    assert contents(folder) == before
    other = Teacher(teacher.transformer, teacher.scheduler, 2.0, companions=teacher.companions, negative_prompt="blue")
    with pytest.raises(ValueError, match=r"negative_prompt '', got 'blue'"):
        repair(other, folder, progress=False)


def test_a_repair_that_would_make_something_else_is_refused(teacher, recorded):
    (recorded / "shard-00001.arrow").unlink()
    manifest = Manifest.read(Store(recorded))
    times = dataclasses.replace(manifest.knots, timesteps=tuple(t / 2 for t in manifest.knots.timesteps))
    bent = dataclasses.replace(manifest, knots=times)  # as another version of a model's code would bend the path
    store = Store(recorded)
    for shard in (0, 2, 3, 4, 5):
        old = bytes(store.read(shard_name(shard)))
        new = resealed(old.replace(manifest.recording.encode(), bent.recording.encode()))
        store.publish(shard_name(shard), new)
    bent.publish(store)
    with pytest.raises(ValueError, match=r"away from shard-00000.arrow, which is intact; nothing was changed"):
        repair(teacher, recorded, progress=False)


def test_a_shard_of_another_recording_or_in_anothers_place_is_refused(teacher, recorded, tmp_path):
    record(teacher, tmp_path / "other", 22, seed=1, **OPTIONS)
    whole = (recorded / "shard-00001.arrow").read_bytes()
    for stranger, reason in (
        (tmp_path / "other" / "shard-00001.arrow", "recording is"),
        (recorded / "shard-00002.arrow", "shard is 2, expected 1"),
    ):
        (recorded / "shard-00001.arrow").write_bytes(stranger.read_bytes())
        data = TrajectoryDataset(recorded, 2)
        assert data[0] and data[8]
        with pytest.raises(ValueError, match=reason):
            data[4]
        assert list(verify(recorded, progress=False).broken) == ["shard-00001.arrow"]
    repair(teacher, recorded, progress=False)
    assert (recorded / "shard-00001.arrow").read_bytes() == whole
    torch.nn.init.normal_(next(teacher.transformer.parameters()))
    with pytest.raises(ValueError, match="got another teacher"):
        repair(teacher, recorded, progress=False)


def test_manifests_of_other_versions_are_refused(recorded):
    path = recorded / "manifest.json"
    data = json.loads(path.read_text())
    for version in (2, 5, "3", None, [3]):
        path.write_text(json.dumps(data | {"version": version}))
        with pytest.raises(ValueError, match="version"):
            TrajectoryDataset(recorded, 2)


def test_no_name_leads_out_of_the_store(recorded):
    store = Store(recorded)
    for name in ("../x", "/etc/passwd", "a/b", "..", "", ".hidden", "x\n"):
        for call in (store.read, store.exists, store.delete, lambda name: store.publish(name, b"")):
            with pytest.raises(ValueError, match="plain file name"):
                call(name)
    data = json.loads((recorded / "manifest.json").read_text())
    for change in ({"shard_size": "../4"}, {"num_trajectories": -1}, {"prompts": "../prompts"}, {"seal": None}):
        raw = json.dumps({**data, "seal": SEAL, **change}, indent=1).encode()
        (recorded / "manifest.json").write_bytes(seal(raw) if SEAL.encode() in raw else raw)
        with pytest.raises(ValueError, match=r"manifest.json"):
            TrajectoryDataset(recorded, 2)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)


FUZZ = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@FUZZ
@given(draw=st.data())
def test_any_manifest_is_read_or_refused(recorded, draw):
    original = (recorded / "manifest.json").read_bytes()
    try:
        data = json.loads(original) | {"seal": SEAL}
        part = data["knots"] if draw.draw(st.booleans()) else data
        part[draw.draw(st.sampled_from(sorted(part)) | st.text(max_size=5))] = draw.draw(anything)
        if draw.draw(st.booleans()):
            del part[draw.draw(st.sampled_from(sorted(part)))]
        raw = json.dumps(data).encode()
        raw = seal(raw) if SEAL.encode() in raw else raw
        (recorded / "manifest.json").write_bytes(raw)
        try:
            TrajectoryDataset(recorded, 2)[0]
        except ValueError as error:
            assert "\n" not in str(error)
    finally:
        (recorded / "manifest.json").write_bytes(original)


@FUZZ
@given(draw=st.data())
def test_any_bytes_are_a_manifest_or_refused(recorded, draw):
    original = (recorded / "manifest.json").read_bytes()
    try:
        (recorded / "manifest.json").write_bytes(draw.draw(st.binary(max_size=200)))
        with pytest.raises(ValueError, match=r"manifest.json"):
            TrajectoryDataset(recorded, 2)
    finally:
        (recorded / "manifest.json").write_bytes(original)


@FUZZ
@given(draw=st.data())
def test_any_header_of_a_shard_is_read_or_refused(recorded, draw):
    """Sealed again, so that Arrow gets to see what was changed: headers, metadata, offsets, the footer."""
    manifest, name = Manifest.read(Store(recorded)), shard_name(1)
    whole = bytearray((recorded / name).read_bytes())
    ends = st.integers(0, 1200) | st.integers(len(whole) - 1200, len(whole) - 1)
    for at in draw.draw(st.lists(ends, min_size=1, max_size=4)):
        whole[at] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        at, more = draw.draw(ends), draw.draw(st.binary(max_size=16))
        whole[at:at] = more
    try:
        found = decode_shard(manifest.layout(1), memoryview(resealed(bytes(whole))), name)
        assert found.states.shape == (4, 5, 4, 8, 8)
    except ValueError as error:
        assert "\n" not in str(error)
