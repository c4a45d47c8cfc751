"""Full disks, kills and read-only files: what is written is whole or not there."""

import os
import signal
import stat
import sys

import diffusers
import pytest
import torch
from apart import DISTILL, OPTIONS, RECORD, apart, command, ended, limited
from faults.killing import contents
from safetensors.torch import load_file, save_file
from tiny import save as save_pipeline

from ardistill import Student, Teacher, TrajectoryDataset, record
from ardistill.cli import main
from ardistill.files import whole_file, whole_folder
from ardistill.training.real_images import save_real

pytestmark = pytest.mark.slow

FULL = {
    "export": "export --student run --out out",
    "npz": "sample --student run --out out.npz --count 60 --device cpu",
    "png": "sample --student run --out out.png --device cpu",
    "evaluate": "evaluate --student run --trajectories held_out --out out --device cpu",
    "parquet": "trajectories export --trajectories data --out out",
    "record": f"{RECORD} --num_trajectories 40 --shard_size 32",
    "distill": f"{DISTILL} --out out --training.max_steps 1",
}


@pytest.mark.parametrize("name", FULL)
def test_case_22_a_full_disk_is_one_line_and_the_same_command_works_afterwards(world, name):
    words = FULL[name].split()
    log = world.parent / "log"
    full = limited(15_000)
    pid = command(words, log, full) if name == "distill" else apart(lambda: main(words), log, full)
    assert ended(pid) == 2, log.read_text()
    *_, line = log.read_text().splitlines()
    assert "error: " in line and "File too large" in line and "the same command again" in line, line
    assert "Traceback" not in log.read_text()
    halves = [x for x in world.rglob("*") if ".tmp" in x.name or (x.suffix in (".png", ".npz") and x.parent == world)]
    assert not halves and (name != "export" or not (world / "out").exists()), halves
    main(words)
    assert any(world.glob("out*"))


def test_case_22_real_latents_on_a_full_disk(world):
    act = lambda: save_real("real.safetensors", torch.zeros(50, 1, 28, 28), {"class_labels": torch.arange(50) % 10})  # noqa: E731
    log = world.parent / "log"
    assert ended(apart(act, log, limited(15_000))) == 2
    assert "free space" in log.read_text() and not [*world.glob("real*")]
    act()
    assert load_file("real.safetensors")["latents"].shape == (50, 1, 28, 28)


def test_case_22_an_export_killed_at_any_rename_is_not_read_as_whole(world):
    words = FULL["export"].split()

    def killed_at(number):
        renames = []

        def hook(event, _):
            if event == "os.rename":
                renames.append(event)
                if len(renames) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        return lambda: sys.addaudithook(hook)

    for number in range(1, 20):
        status = ended(apart(lambda: main(words), world.parent / "log", killed_at(number)))
        if status == 0:
            break
        assert status == -signal.SIGKILL and not (world / "out").exists()
    assert status == 0 and number > 2 and Student.from_pretrained("out").num_steps == 4
    assert not [x for x in world.iterdir() if x.name.startswith(".out")]


def test_case_22_whole_files_and_folders_leave_nothing_when_they_fail(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"before")
    for make, path in ((whole_file, target), (whole_folder, tmp_path / "folder")):
        with pytest.raises(KeyError), make(path) as temporary:
            (temporary if make is whole_file else temporary / "part").write_bytes(b"half")
            raise KeyError
    assert contents(tmp_path) == {"a.bin": b"before"} and len([*tmp_path.iterdir()]) == 1
    with pytest.raises(ValueError, match="is a folder or a device"), whole_file("/dev/null"):
        pass  # a rename would put a file in the place of the device
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "link").symlink_to(target)
    with whole_file(tmp_path / "link") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)  # which makes files for their owner alone
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "link").is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_case_23_an_export_from_a_read_only_cache_can_be_written(tmp_path):
    source = save_pipeline("dit", tmp_path / "source")
    teacher = Teacher.from_pretrained(source)
    record(teacher, tmp_path / "data", 4, **OPTIONS)
    student = Student.from_teacher(teacher, TrajectoryDataset(tmp_path / "data", 2).student_config(history_layers=1))
    for path in sorted(source.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    from ardistill.publishing import export

    export(student.eval(), teacher, tmp_path / "out")
    made = [*(tmp_path / "out").rglob("*")]
    assert (tmp_path / "out" / "vae" / "config.json") in made
    assert all(path.stat().st_mode & stat.S_IWUSR for path in made)
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
