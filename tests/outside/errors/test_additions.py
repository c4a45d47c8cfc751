"""Steps and trajectories added later equal those of a run or a recording that had them from the start."""

import dataclasses
import json
import os
import signal
import sys
import time

import pytest
import torch
from apart import DISTILL, OPTIONS, RECORD, apart, ended
from faults.killing import contents
from refusals import Refusal, check_refusal
from safetensors.torch import load_file

from ardistill import Student, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.cli import main
from ardistill.files import SEAL, Store, seal
from ardistill.trajectories import verify
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import decode_shard, encode_shard

pytestmark = pytest.mark.slow


def tensors(folder):
    """All weights, EMA and optimiser, of the student and of the last checkpoint."""
    parts = [folder / "student", max((folder / "checkpoints").iterdir())]
    files = [(path.parent.name, path) for part in parts for path in sorted(part.rglob("*.safetensors"))]
    return {f"{name}/{key}": x for name, path in files for key, x in load_file(path).items()}


def test_case_24_steps_added_to_a_finished_run_are_bit_equal_to_as_many_from_the_start(teacher, tmp_path):
    record(teacher, tmp_path / "data", 8, **OPTIONS)
    data = TrajectoryDataset(tmp_path / "data", 2)
    options = {"batch_size": 2, "tracker": None, "learning_rate": 1e-3, "ema_decay": 0.5, "checkpoint_every": 4}

    def train(folder, steps, **more):
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        distill(student, data, tmp_path / folder, TrainingConfig(max_steps=steps, **options, **more), progress=False)

    train("grown", 5)
    train("grown", 9, lr_scheduler="constant")
    train("whole", 9)
    grown, whole = tensors(tmp_path / "grown"), tensors(tmp_path / "whole")
    assert grown.keys() == whole.keys() and all(torch.equal(x, whole[name]) for name, x in grown.items())
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("grown", "whole")]
    assert logs[0] == logs[1]
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["training"]["max_steps"] == 9
    before = contents(tmp_path / "grown")
    with pytest.raises(ValueError, match=r"max_steps is 9 there, 8 asked for, and 9 are done: ask for as many or more"):
        train("grown", 8)
    with pytest.raises(ValueError, match=r"training\.seed is 0 there, 5 asked for"):
        train("grown", 12, seed=5)
    assert contents(tmp_path / "grown") == before
    for more, why in (
        ({"lr_scheduler": "cosine"}, "lr_scheduler cosine depends on it"),
        ({"inputs": "mixed"}, r"inputs \(mixed\) depends on it"),
    ):
        train(f"fixed-{len(more)}-{why[:5]}", 2, **more)
        with pytest.raises(ValueError, match=f"max_steps is 2 there, 4 asked for.*{why}.*--start .*fixed"):
            train(f"fixed-{len(more)}-{why[:5]}", 4, **more)


@pytest.mark.parametrize("first,then", [(10, 22), (8, 9), (3, 4)])
def test_case_24_trajectories_added_are_bit_equal_to_as_many_from_the_start(teacher, tmp_path, first, then):
    record(teacher, tmp_path / "grown", first, **OPTIONS)
    kept = contents(tmp_path / "grown")
    record(teacher, tmp_path / "grown", then, **OPTIONS)
    record(teacher, tmp_path / "whole", then, **OPTIONS)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    whole = [name for name in kept if name.startswith("shard") and int(name[6:11]) < first // 4]
    assert all(contents(tmp_path / "grown")[name] == kept[name] for name in whole)
    with pytest.raises(ValueError, match=f"num_trajectories is {then} there, {first} asked for.*none taken away"):
        record(teacher, tmp_path / "grown", first, **OPTIONS)
    with pytest.raises(ValueError, match=r"\(seed is 0 there, 5 asked for\); choose a new folder, or repeat"):
        record(teacher, tmp_path / "grown", then, seed=5, **OPTIONS)
    with pytest.raises(ValueError, match=r"solver_steps is 4 there, 8 asked for; kept is \(0, 1, 2, 4\)|solver_steps"):
        record(teacher, tmp_path / "grown", then, **OPTIONS | {"solver_steps": 8})


def test_case_24_trajectories_added_while_another_process_records(teacher, tmp_path):
    small, large = 42, 62  # the smaller one's last shard has 2 rows of 4
    record(teacher, tmp_path / "whole", large, **OPTIONS)
    log, out = tmp_path / "log", tmp_path / "data"
    for round_ in range(3):
        processes = [apart(lambda: record(teacher, out, small, **OPTIONS), log) for _ in range(2)]
        while len([*out.glob("shard-*")]) < 3 * round_:
            time.sleep(0.001)
        processes.append(apart(lambda: record(teacher, out, large, **OPTIONS), log))
        statuses = [ended(pid) for pid in processes]
        assert statuses[-1] == 0 and set(statuses) <= {0, 2}, log.read_text()  # one that came late finds more there
        assert contents(out) == contents(tmp_path / "whole") and verify(out, progress=False).whole
        for path in out.iterdir():
            path.unlink()


def test_case_24_the_larger_of_two_additions_at_once_stands(teacher, tmp_path, monkeypatch):
    record(teacher, tmp_path / "whole", 17, **OPTIONS)
    out = tmp_path / "data"
    record(teacher, out, 6, **OPTIONS)
    before = Manifest.read(Store(out))
    publish, published = Store.publish, []

    def overtaken(store, name, data):
        publish(store, name, data)
        if name == "manifest.json" and not published:  # the other one read the old manifest, too, and publishes now
            published.append(name)
            dataclasses.replace(before, num_trajectories=10).publish(store)

    monkeypatch.setattr(Store, "publish", overtaken)
    record(teacher, out, 17, **OPTIONS)
    assert published and contents(out) == contents(tmp_path / "whole")


def test_case_24_killed_while_trajectories_are_added(teacher, tmp_path):
    record(teacher, tmp_path / "whole", 13, **OPTIONS)
    for event, number in (("os.remove", 1), ("os.rename", 1), ("os.remove", 3), ("os.rename", 2), ("os.rename", 3)):
        folder = tmp_path / f"{event}-{number}"
        record(teacher, folder, 6, **OPTIONS)
        seen = []

        def hook(name, _, event=event, number=number, seen=seen):
            if name == event and (seen.append(name) or len(seen)) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        pid = apart(lambda: record(teacher, folder, 13, **OPTIONS), tmp_path / "log", lambda: sys.addaudithook(hook))  # noqa: B023
        assert ended(pid) == -signal.SIGKILL
        record(teacher, folder, 13, **OPTIONS)
        assert contents(folder) == contents(tmp_path / "whole")


def as_version_3(folder):
    """What the version before this one wrote."""
    store, manifest = Store(folder), Manifest.read(Store(folder))
    old = manifest.as_version_3()
    for shard in range(manifest.num_shards):
        name = shard_name(shard)
        found = decode_shard(manifest.layout(shard), store.read(name), name)
        store.publish(name, encode_shard(old.layout(shard), found))
    later = ("former_identity", "weights")
    facts = {name: x for name, x in dataclasses.asdict(manifest).items() if name not in later}
    text = json.dumps({"version": 3, "seal": SEAL, **facts}, indent=1)
    store.publish("manifest.json", seal(text.encode()))


def test_case_24_a_recording_of_version_3_is_read_resumed_mended_and_extended(teacher, tmp_path):
    record(teacher, tmp_path / "data", 10, **OPTIONS)
    record(teacher, tmp_path / "whole", 14, **OPTIONS)
    expected = TrajectoryDataset(tmp_path / "data", 2).stacked()[0]
    as_version_3(tmp_path / "data")
    before = contents(tmp_path / "data")
    assert torch.equal(TrajectoryDataset(tmp_path / "data", 2).stacked()[0], expected)
    (tmp_path / "data" / "shard-00001.arrow").unlink()
    record(teacher, tmp_path / "data", 10, **OPTIONS)
    assert contents(tmp_path / "data") == before
    (tmp_path / "data" / "manifest.json").unlink()
    record(teacher, tmp_path / "data", 10, **OPTIONS)  # its shards know
    assert verify(tmp_path / "data", progress=False).whole
    record(teacher, tmp_path / "data", 14, **OPTIONS)
    assert verify(tmp_path / "data", progress=False).whole
    grown, whole = (TrajectoryDataset(tmp_path / name, 2).stacked()[0] for name in ("data", "whole"))
    assert torch.equal(grown, whole)


def test_case_24_a_run_on_trajectories_that_grew_says_what_to_do(world, capsys):
    main([*RECORD.split(), "--out", "data", "--num_trajectories", "9", "--shard_size", "4"])
    row = Refusal(f"{DISTILL} --training.max_steps 2", "num_trajectories is 6 there, 9 asked for", "--start run")
    check_refusal(row, capsys)
    main([*DISTILL.split(), "--training.max_steps", "1", "--out", "on", "--start", "run"])
