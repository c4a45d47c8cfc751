"""Shards are written by a thread of its own while the next one is solved; whatever happens meanwhile loses nothing."""

import dataclasses
import threading
import time

import pytest
import torch
from trajectories.recordings import OPTIONS, contents

from ardistill.files import Store
from ardistill.teacher import Teacher
from ardistill.trajectories import record, verify
from ardistill.trajectories.manifest import Manifest, shard_name

MAIN = threading.main_thread()


class Solving:
    """Counts the shards whose solving began: a shard takes as many calls of the transformer as there are steps."""

    def __init__(self, teacher, at=lambda shard: None):
        self.calls, self.at, self.threads = 0, at, set()
        teacher.transformer.register_forward_pre_hook(self._called)

    def _called(self, *_):
        self.threads.add(threading.current_thread())
        self.calls += 1
        if self.calls % OPTIONS["solver_steps"] == 1:
            self.at(self.begun)

    @property
    def begun(self):
        return -(-self.calls // OPTIONS["solver_steps"])


def before_publishing(monkeypatch, act):
    """Call ``act`` with a shard's name before it is published."""
    publish = Store.publish

    def later(store, name, data):
        if name.startswith("shard"):
            act(name)
        publish(store, name, data)

    monkeypatch.setattr(Store, "publish", later)


def test_the_next_shard_is_solved_while_one_is_written_and_no_more(teacher, recorded, tmp_path, monkeypatch):
    next_begins, seen, writers = threading.Event(), [], set()
    solving = Solving(teacher, lambda shard: next_begins.set() if shard > 1 else None)

    def wait(name):
        writers.add(threading.current_thread())
        if not seen:
            assert next_begins.wait(60)  # the first shard is not written before the second one is being solved
            next_begins.wait(0.3)
        seen.append(solving.begun)

    before_publishing(monkeypatch, wait)
    record(teacher, tmp_path / "new", 22, **OPTIONS)
    assert len(seen) == 6 and all(begun <= i + 2 for i, begun in enumerate(seen)), seen
    assert len(writers) == 1 and not writers & solving.threads
    assert contents(tmp_path / "new") == contents(recorded)


def test_no_more_than_one_shard_waits_however_slow_the_store_is(teacher, tmp_path, monkeypatch):
    release, solving = threading.Event(), Solving(teacher)
    before_publishing(monkeypatch, lambda name: release.wait(60))
    thread = threading.Thread(target=lambda: record(teacher, tmp_path / "new", 22, **OPTIONS))
    thread.start()
    limit = time.time() + 60
    while solving.calls < 2 * OPTIONS["solver_steps"] and time.time() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    begun = solving.begun
    release.set()
    thread.join()
    assert begun == 2 and verify(tmp_path / "new", progress=False).whole


def test_an_error_of_the_writer_ends_the_recording_with_its_own_message(teacher, recorded, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:

        def full(name):
            raise ValueError(f"{name} cannot be written: No space left on device")

        before_publishing(patch, full)
        with pytest.raises(ValueError, match=r"shard-0000\d.arrow cannot be written: No space left on device"):
            record(teacher, tmp_path / "new", 22, **OPTIONS)
    assert list(contents(tmp_path / "new")) == ["manifest.json"]
    record(teacher, tmp_path / "new", 22, **OPTIONS)
    assert contents(tmp_path / "new") == contents(recorded)


def test_states_that_are_not_finite_are_refused_before_they_are_published(teacher, tmp_path):
    with torch.no_grad():
        teacher.transformer.proj_out_2.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"states of shard \d are not finite in float32; check the teacher"):
        record(teacher, tmp_path / "new", 22, **OPTIONS)
    assert list(contents(tmp_path / "new")) == ["manifest.json"]


@pytest.mark.parametrize("when", range(1, 4))
@pytest.mark.parametrize("moment", ["while it is solved", "while it is written"])
def test_trajectories_added_by_another_process_meanwhile(teacher, tmp_path, monkeypatch, when, moment):
    """10 trajectories in shards of 4 grow to 19: the short last shard is solved, waits or is written just then."""
    record(teacher, tmp_path / "whole", 19, **OPTIONS)
    out, grown = tmp_path / "new", []

    def grow(number):
        if number == when and not grown:
            grown.append(number)
            store = Store(out)
            larger = dataclasses.replace(Manifest.read(store), num_trajectories=19)
            store.delete(shard_name(2))
            larger.publish(store)
            store.delete(shard_name(2))

    with monkeypatch.context() as patch:
        if moment == "while it is solved":
            Solving(teacher, grow)
        else:
            written = []
            before_publishing(patch, lambda name: (written.append(name), grow(len(written))))
        record(teacher, out, 10, **OPTIONS)
    assert grown and contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("shard", [2, 3])
def test_an_interrupt_while_a_shard_is_written_leaves_it_whole(teacher, recorded, tmp_path, monkeypatch, shard):
    """It comes between the solving of one shard and the writing of it, while the one before is being written."""
    begun, out = threading.Event(), tmp_path / "new"

    def interrupt(number):
        if number == shard:
            assert begun.wait(60)
            raise KeyboardInterrupt

    solving, written = Solving(teacher, interrupt), []

    def slowly(name):
        written.append(name)
        if len(written) == shard - 1:
            begun.set()
            time.sleep(0.3)

    before_publishing(monkeypatch, slowly)
    with pytest.raises(KeyboardInterrupt):
        record(teacher, out, 22, **OPTIONS)
    expected, there = contents(recorded), contents(out)
    assert sorted(there) == ["manifest.json", *sorted(written)] and len(written) == shard - 1
    assert all(expected[name] == data for name, data in there.items())
    solving.at = lambda number: None
    record(teacher, out, 22, **OPTIONS)
    assert contents(out) == expected


def test_no_thread_outlives_a_recording(teacher, tmp_path):
    record(teacher, tmp_path / "new", 22, **OPTIONS)
    assert [x for x in threading.enumerate() if x.name.startswith("shard-writer")] == []


def test_guidance_of_a_teacher_that_is_recorded_meets_the_transformer_in_one_thread(teacher, tmp_path):
    guided = Teacher(teacher.transformer, teacher.scheduler, 2.0)
    solving = Solving(guided)
    record(guided, tmp_path / "new", 8, **OPTIONS)
    assert solving.threads == {MAIN} and solving.calls == 8
