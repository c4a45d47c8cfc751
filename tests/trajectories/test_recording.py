"""Recording: shared by any number of processes, and safe against kills and full disks."""

import dataclasses
import os
import threading
import time

import pytest
from trajectories.recordings import OPTIONS, contents

from ardistill.files import SEAL, Store, check_seal, seal
from ardistill.trajectories import (
    record,
    verify,
)
from ardistill.trajectories.manifest import Manifest, shard_name


def test_each_rank_takes_its_own_shards_then_helps_and_the_bytes_are_the_same(teacher, recorded, tmp_path, monkeypatch):
    published = []
    publish = Store.publish
    monkeypatch.setattr(
        Store, "publish", lambda self, name, data: (published.append(name), publish(self, name, data))[1]
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    record(teacher, tmp_path / "ranked", 22, **OPTIONS)
    shards = [name for name in published if name.startswith("shard")]
    assert shards[:3] == [shard_name(i) for i in (1, 3, 5)] and sorted(shards) == [shard_name(i) for i in range(6)]
    assert contents(tmp_path / "ranked") == contents(recorded)


def test_writers_at_once_leave_one_whole_recording(teacher, recorded, tmp_path):
    failed = []

    def work():
        try:
            record(teacher, tmp_path / "many", 22, **OPTIONS)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and contents(tmp_path / "many") == contents(recorded)


def test_a_shard_published_by_two_at_once_is_whole_whenever_it_is_read(tmp_path):
    store, blank = Store(tmp_path), SEAL.encode()
    versions = [seal(blank + bytes([i]) * 200_000) for i in range(2)]
    store.publish("x", versions[0])
    done = threading.Event()

    def write(data):
        while not done.is_set():
            store.publish("x", data)

    writers = [threading.Thread(target=write, args=(data,)) for data in versions]
    for writer in writers:
        writer.start()
    try:
        seen = set()
        for _ in range(50):
            store.sweep()  # as a process does that is through
            data = bytes(store.read("x"))
            check_seal(data, "x")
            seen.add(data)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert seen <= set(versions)
    store.sweep()
    assert not store.leftovers()


@pytest.mark.parametrize("child_dies", [True, False], ids=["child dies", "child writes on"])
def test_a_fork_in_the_middle_of_a_write_leaves_the_file_whole(tmp_path, monkeypatch, child_dies):
    fsync, data = os.fsync, seal(SEAL.encode() + bytes(100_000))

    def fork_once(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        child = os.fork()
        if child == 0 and child_dies:
            os._exit(0)
        fsync(descriptor)
        if child:
            os.waitpid(child, 0)
            forked.append(child)

    forked, parent = [], os.getpid()
    monkeypatch.setattr(os, "fsync", fork_once)
    try:
        Store(tmp_path / "data").publish("file", data)
    finally:
        if os.getpid() != parent:  # the child is no test
            os._exit(0)
    assert forked and contents(tmp_path / "data") == {"file": data}


def test_a_clock_that_goes_backwards_changes_nothing(teacher, recorded, monkeypatch):
    expected = contents(recorded)
    for i in (1, 4):
        (recorded / shard_name(i)).unlink()
    for path in recorded.iterdir():
        os.utime(path, (4e9, 4e9))  # written in a future that has not come
    monkeypatch.setattr(time, "time", lambda: 0.0)
    record(teacher, recorded, 22, **OPTIONS)
    assert contents(recorded) == expected and verify(recorded, progress=False).whole


def test_leftovers_of_killed_writers_are_swept_and_hinder_nobody(teacher, recorded, tmp_path):
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / ".manifest.json.0123.tmp").write_bytes(b"half")
    (tmp_path / "data2" / ".shard-00001.arrow.0123.tmp").write_bytes(b"half")
    record(teacher, tmp_path / "data2", 22, **OPTIONS)
    assert contents(tmp_path / "data2") == contents(recorded)


def test_a_lost_manifest_is_made_again_for_its_own_shards_alone(teacher, recorded):
    before = contents(recorded)
    (recorded / "manifest.json").unlink()
    with pytest.raises(ValueError, match="to be empty or to hold this recording"):
        record(teacher, recorded, 22, seed=1, **OPTIONS)
    record(teacher, recorded, 22, **OPTIONS)
    assert contents(recorded) == before


def test_another_recording_that_begins_in_the_same_folder_is_noticed(teacher, tmp_path, monkeypatch):
    read, calls = Manifest.read.__func__, []

    def later_another(cls, store):
        calls.append(store)
        found = read(cls, store)
        return found if len(calls) < 3 else dataclasses.replace(found, seed=7)

    monkeypatch.setattr(Manifest, "read", classmethod(later_another))
    with pytest.raises(ValueError, match="another recording began"):
        record(teacher, tmp_path / "data", 22, **OPTIONS)


def test_times_may_differ_by_rounding_between_machines(teacher, recorded):
    before = Manifest.read(Store(recorded))
    knots = dataclasses.replace(before.knots, alpha=tuple(a * (1 + 1e-7) for a in before.knots.alpha))
    assert not before.differences(dataclasses.replace(before, knots=knots))
    far = dataclasses.replace(before.knots, alpha=tuple(a * 1.01 for a in before.knots.alpha))
    assert before.differences(dataclasses.replace(before, knots=far))


class Disk:
    """Counts calls of open, write, fsync and rename, and fails one of them, as a full disk does."""

    def __init__(self, monkeypatch, fail_at=None):
        import builtins
        import os

        self.calls, self.fail_at = 0, fail_at
        real_open, real_fsync, real_replace = builtins.open, os.fsync, os.replace
        disk = self

        class File:
            def __init__(self, *arguments):
                self.file = real_open(*arguments)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                try:
                    disk.call()
                except OSError:
                    self.file.write(data[: len(data) // 2])  # a part got through
                    raise
                return self.file.write(data)

            def flush(self):
                self.file.flush()

            def fileno(self):
                return self.file.fileno()

        monkeypatch.setattr("ardistill.files.whole.open", lambda *a: (self.call(), File(*a))[1], raising=False)
        monkeypatch.setattr(os, "fsync", lambda handle: (self.call(), real_fsync(handle))[1])
        monkeypatch.setattr(os, "replace", lambda *a: (self.call(), real_replace(*a))[1])

    def call(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_full_disk_at_any_call_loses_nothing_and_leaves_nothing_half_written(teacher, recorded, tmp_path):
    options = OPTIONS | {"shard_size": 11}
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        record(teacher, tmp_path / "whole", 22, **options)
    expected = contents(tmp_path / "whole")
    assert disk.calls >= 3 * 4  # a manifest and two shards: open, write, fsync and rename each
    for call in range(1, disk.calls + 1):
        folder = tmp_path / f"full-{call}"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fail_at=call)
            with pytest.raises(ValueError, match="cannot be written: No space left on device; what is there is whole"):
                record(teacher, folder, 22, **options)
        there = contents(folder)
        assert all(expected[name] == data for name, data in there.items()), call
        record(teacher, folder, 22, **options)
        assert contents(folder) == expected


@pytest.mark.parametrize("code,reason", [(30, "Read-only file system"), (13, "Permission denied")])
def test_a_read_only_folder_is_named(teacher, tmp_path, monkeypatch, code, reason):
    def refuse(*_):
        raise OSError(code, reason)

    monkeypatch.setattr("ardistill.files.whole.open", refuse, raising=False)
    with pytest.raises(ValueError, match=f"manifest.json cannot be written: {reason}"):
        record(teacher, tmp_path / "data", 22, **OPTIONS)


def test_a_folder_that_cannot_be_is_named(teacher, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be"):
        record(teacher, tmp_path / "file" / "data", 22, **OPTIONS)
    with pytest.raises(ValueError, match="cannot be opened"):
        record(teacher, "nosuchprotocol://bucket/data", 22, **OPTIONS)
