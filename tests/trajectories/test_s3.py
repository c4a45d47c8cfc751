"""Recordings in an object store, spoken to over HTTP, are those of a folder, whatever happens to requests."""

import threading
import time

import fsspec
import pytest
import torch
from accelerate import Accelerator
from faults.killing import contents, kill_and_restart, record_arguments, save_tiny_teacher
from object_server import ObjectServer

from ardistill.cli import main
from ardistill.config import TrainingConfig
from ardistill.files import Store
from ardistill.student import Student
from ardistill.training import distill
from ardistill.training.batches import batches
from ardistill.trajectories import TrajectoryDataset, record
from ardistill.trajectories.manifest import shard_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running():
    with ObjectServer() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.delay(0)
    running.require_credentials(False)
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A teacher's folder, and what one process records of it in a folder."""
    folder = tmp_path_factory.mktemp("recorded")
    teacher = save_tiny_teacher(folder / "teacher")
    main(record_arguments(teacher, folder / "data", 48, 4))
    return teacher, folder / "data"


def objects(url):
    store = Store(url)
    return {name: bytes(store.read(name)) for name in store.sizes()}


def copy(folder, url):
    store = Store(url)
    for name, data in contents(folder).items():
        store.publish(name, data)
    return store


def said(capsys, *command):
    """The line with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "error: " in line and "bug" not in line
    return line


def test_three_recorders_killed_at_random_leave_what_one_leaves(server, recorded, tmp_path):
    teacher, folder = recorded
    url = "s3://bucket/killed"
    rounds = kill_and_restart(
        record_arguments(teacher, url, 48, 4), tmp_path / "log", processes=3, rounds=1, most=3, seed=0, fresh=False,
        progress=lambda: len(Store(url).sizes()), writing=lambda: True,
    )  # fmt: skip
    assert rounds[0]["killed"] >= 1, (tmp_path / "log").read_text()[-1000:]
    assert objects(url) == contents(folder)


def test_a_damaged_object_is_found_and_made_again(server, recorded, tmp_path, capsys):
    teacher, folder = recorded
    store, name = copy(folder, "s3://bucket/damaged"), shard_name(2)
    whole = bytes(store.read(name))
    store.publish(name, whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    store.delete(shard_name(5))
    where = ["--trajectories", "s3://bucket/damaged"]
    with pytest.raises(SystemExit):
        main(["trajectories", "verify", *where])
    found = capsys.readouterr().out
    assert f"{name}: s3://bucket/damaged/{name}" in found and f"{shard_name(5)}: missing" in found
    main(["trajectories", "repair", *where, "--teacher", str(teacher), "--device", "cpu"])
    main(["trajectories", "verify", *where])
    main(["trajectories", "info", *where])
    assert "12 of them are there" in capsys.readouterr().out
    assert objects("s3://bucket/damaged") == contents(folder)


def test_prompts_and_a_resumed_training_are_those_of_a_folder(
    server, with_many_prompts, tmp_path, dies_at_its_first_checkpoint
):
    teacher, folder = with_many_prompts
    copy(folder, "s3://bucket/prompts")
    config = TrainingConfig(max_steps=4, batch_size=4, checkpoint_every=2, tracker=None, learning_rate=1e-3)

    def train(out, source, validate=None):
        data = TrajectoryDataset(source, 2, draws="shards")
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        distill(student, data, tmp_path / out, config, validate=validate, progress=False)
        return data, contents(tmp_path / out / "student")

    local, expected = train("local", folder)
    dies_at_its_first_checkpoint(lambda validate: train("killed", "s3://bucket/prompts", validate))
    data, resumed = train("killed", "s3://bucket/prompts")
    assert resumed == expected
    assert data.prompts == local.prompts
    assert all(torch.equal(value, local.condition()[name]) for name, value in data.condition().items())


@pytest.fixture(scope="module")
def with_many_prompts(tmp_path_factory):
    """A teacher of text, and a recording with two parts of embeddings."""
    from tiny import save

    from ardistill.teacher import Teacher

    folder = tmp_path_factory.mktemp("prompts")
    teacher = Teacher.from_pretrained(save("pixart", folder / "teacher"), guidance_scale=1.0, device="cpu")
    prompts = [f"a {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(70)]
    options = {"solver_steps": 2, "num_steps": (2,), "shard_size": 8, "progress": False}
    record(teacher, folder / "data", 70, prompts=prompts, **options)
    assert len(list((folder / "data").glob("conditions-*"))) == 2
    return teacher, folder / "data"


def test_each_refusal_is_one_line_that_says_what_to_do(server, recorded, monkeypatch, capsys):
    info = ("trajectories", "info", "--trajectories")
    assert said(capsys, *info, "s3://typo/x").endswith("found no bucket typo; make it or name another")
    record_it = record_arguments(recorded[0], "s3://typo/x", 4, 4)
    assert said(capsys, *record_it).endswith("cannot be written: no bucket typo; make the bucket, or name another")
    assert "make them with record" in said(capsys, *info, "s3://bucket/nothing")
    server.require_credentials(True)
    for command in ((*info, "s3://bucket/x"), record_arguments(recorded[0], "s3://bucket/x", 4, 4)):
        assert "s3://bucket/x/manifest.json cannot be looked up: Forbidden; check your credentials (AWS_ACCESS" in said(
            capsys, *command
        )
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "Unable to locate credentials; check your credentials" in said(capsys, *info, "s3://bucket/x")


def test_a_server_that_goes_away_amid_a_publish_is_waited_for(server):
    store, old, new = Store("s3://bucket/outage"), b"old" * 1000, b"new" * 1000
    store.publish("x", old)
    server.requests()
    server.stop(0.5, after_puts=1)
    writer = threading.Thread(target=store.publish, args=("x", new))
    writer.start()
    seen = set()
    while writer.is_alive():  # this reader waits, too
        seen.add(bytes(store.read("x")))
    assert seen <= {old, new} and bytes(store.read("x")) == new
    assert sum(x == "PUT:/bucket/outage/x" for x in server.requests()) == 2
    server.cut(1)
    assert bytes(store.read("x")) == new  # an answer that breaks off is asked for again


def test_a_server_that_stays_away_ends_it_with_one_line(server, recorded, monkeypatch, capsys):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    server.stop(1000, after_puts=3)
    line = said(capsys, *record_arguments(recorded[0], "s3://bucket/away", 48, 4))
    server.resume()
    assert "cannot be" in line and line.endswith("the same command again goes on")
    assert set(objects("s3://bucket/away").items()) < set(contents(recorded[1]).items())
    assert "check the network and the address" in line and "s3://bucket/away/" in line


def test_the_shards_of_later_passes_are_fetched_before_they_are_needed(server, recorded):
    copy(recorded[1], "s3://bucket/ahead")
    data = TrajectoryDataset("s3://bucket/ahead", 4)
    student = Student.from_teacher(_teacher(recorded[0]), data.student_config(history_layers=1))
    config = TrainingConfig(max_steps=8, batch_size=4, tracker=None)
    server.requests()
    with batches(data, student, config, Accelerator(), 0) as found:
        first = next(found)
        limit, fetched = time.time() + 10, []
        while len(fetched) < 5 and time.time() < limit:
            fetched += [x for x in server.requests() if x.startswith("GET:/bucket/ahead/shard")]
            time.sleep(0.01)
        assert 5 <= len(fetched) <= 8 and len(set(fetched)) == len(fetched)
        later = list(found)
    local = TrajectoryDataset(recorded[1], 4, draws="shards")
    with batches(local, student, config, Accelerator(), 0) as found:
        assert all(torch.equal(x.inputs, y.inputs) for x, y in zip([first, *later], found, strict=True))


def _teacher(folder):
    from ardistill.teacher import Teacher

    return Teacher.from_pretrained(folder, guidance_scale=1.5, device="cpu")
