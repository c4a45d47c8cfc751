"""Permissions of published files: those of any new file, also where several threads write."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import torch

from ardistill.files import Store, write_whole
from ardistill.files.weights import save_tensors


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_published_files_have_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        (tmp_path / "new").touch()
        (tmp_path / "whole.tmp").touch(0o600)  # a killed process left it
        write_whole(tmp_path / "whole", b"1")
        save_tensors({"x": torch.zeros(2)}, tmp_path / "tensors")
        Store(tmp_path).publish("stored", b"1")
        assert {mode(path) for path in tmp_path.iterdir()} == {0o640}
    finally:
        os.umask(before)


def test_threads_that_publish_never_change_the_umask(tmp_path, monkeypatch):
    def no(mask):
        raise AssertionError(f"umask({mask:o}) is seen by all threads")

    monkeypatch.setattr(os, "umask", no)
    store = Store(tmp_path / "store")

    def publish(number):
        store.publish(f"{number % 4}", b"1")
        write_whole(tmp_path / str(number), b"1")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(publish, range(40)))
    (tmp_path / "new").touch()
    found = {mode(path) for folder in (tmp_path, tmp_path / "store") for path in folder.iterdir() if path.is_file()}
    assert found == {mode(tmp_path / "new")}
