"""Errors in one line, interrupts, full disks, what can be added later, and what a log file holds."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from faults.killing import contents
from PIL import Image
from refusals import Refusal, check_refusal
from safetensors.torch import load_file, save_file
from tiny_pipelines import save as save_pipeline

from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, progress, record
from ardistill.cli import main
from ardistill.errors import cache_variable, explain, one_line, ready_process
from ardistill.files import SEAL, Store, seal, whole_file, whole_folder
from ardistill.training.real_images import save_real
from ardistill.trajectories import verify
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import decode_shard, encode_shard

OPTIONS = {"solver_steps": 4, "num_steps": (1, 2, 4), "shard_size": 4, "progress": False}
RECORD = "record --teacher zoo/fashion --out out --num_trajectories 4 --guidance_scale 1.25 --solver_steps 4"
RECORD += " --num_steps [1,4] --device cpu"
DISTILL = "distill --trajectories data --out run --history_layers 1 --training.batch_size 2 --training.tracker null"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recording and a finished run of the embedded teacher, and images."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        for out, seed in (("data", 0), ("held_out", 1)):
            main([*RECORD.split(), "--out", out, "--seed", str(seed), "--num_trajectories", "6", "--shard_size", "4"])
        main([*DISTILL.split(), "--training.max_steps", "2"])
        for label in range(10):
            Path("images", str(label)).mkdir(parents=True)
            Image.new("L", (28, 28), 25 * label).save(f"images/{label}/one.png")
        Path("prompts.txt").write_text("a cat\n")
        Path("file").touch()
        Path("text.pt").write_text("hello")
        Path("tabs.yaml").write_text("record:\n\tseed: 1\n")
        torch.save(torch.nn.Linear(1, 1), "module.pt")
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of what was made, in the current folder."""
    subprocess.run(["cp", "-r", str(made), str(tmp_path / "world")], check=True)
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def apart(act, log, before=lambda: None):
    """Call ``before`` and ``act`` in a process of its own, which ends as a command does; its number.

    Words in the place of a function are the command itself, by a new interpreter: what trains must not be a mere fork,
    as autograd does not go on in one where it has had threads for a device, and a test may have pretended one.
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 2)
        if isinstance(act, list):
            os.dup2(handle, 1)
            before()
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "ardistill", *act], environment)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.stdout = sys.stderr
        torch.set_num_threads(1)
        before()
        with one_line(lambda: "ardistill", lambda: "again"):
            act()
        status = 0
    except SystemExit as exit:
        status = exit.code
    finally:
        os._exit(status)


def ended(pid):
    """Exit status; minus the number of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limited(size):
    """Files of this process cannot grow beyond: as on a full disk, for whoever writes them."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# -- case 22


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
    act = words if name == "distill" else lambda: main(words)
    assert ended(apart(act, log, limited(15_000))) == 2, log.read_text()
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


@pytest.fixture
def no_torch_fidelity_yet():
    """torch-fidelity, half of it perhaps, is imported within alone."""
    before = {name: module for name, module in sys.modules.items() if name.startswith("torch_fidelity")}

    def forget():
        for name in [x for x in sys.modules if x.startswith("torch_fidelity")]:
            del sys.modules[name]

    forget()
    yield forget
    forget()
    sys.modules.update(before)


def test_case_22_inception_without_torchvision_names_torchvision(world, capsys, monkeypatch, no_torch_fidelity_yet):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    words = "evaluate --student run --trajectories held_out --features inception --device cpu"
    check_refusal(Refusal(words, "need torchvision", "pip install torchvision"), capsys)
    no_torch_fidelity_yet()
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "torch_fidelity", None)
        missing.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        check_refusal(Refusal(words, "need torch-fidelity", r"pip install 'ardistill\[fid\]'"), capsys)


INTERRUPTED = {  # command, what tells that it is at it, what it says
    "record": (f"{RECORD} --num_trajectories 4000 --shard_size 4", lambda: any(Path("out").glob("shard-*")), "missing"),
    "distill": (
        f"{DISTILL} --out out --training.max_steps 5000 --training.checkpoint_every 2",
        lambda: any(Path("out/checkpoints").glob("step-????????")),
        r"from out/checkpoints/step-0000",
    ),
    "sample": ("sample --student run --out out.npz --count 50000 --device cpu", lambda: True, "run the same command"),
    "evaluate": (
        "evaluate --student run --trajectories held_out --out out --device cpu", lambda: True, "run the same command"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name,number", [*((x, signal.SIGINT) for x in INTERRUPTED), ("distill", signal.SIGTERM), ("record", signal.SIGHUP)]
)
def test_case_22_an_interrupt_is_one_line_that_says_how_to_go_on(world, name, number):
    words, begun, said = INTERRUPTED[name]
    log = world.parent / "log"
    pid = apart(words.split() if name == "distill" else lambda: main(words.split()), log)
    limit = time.time() + 60
    while not (begun() and log.exists()) and time.time() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(pid, number)
    assert ended(pid) == 128 + number, log.read_text()
    lines = log.read_text().splitlines()
    told = [line for line in lines if "ended by" in line]
    assert told == lines[-1:] and re.match(rf"ardistill( {name})?: ended by {number.name}; ", told[0]), lines
    assert said in told[0] and "Traceback" not in log.read_text()


def loads(pid, library):
    with contextlib.suppress(OSError):
        return library in Path(f"/proc/{pid}/maps").read_text()


def test_case_22_an_interrupt_amid_imports_is_one_line(world):
    command = [sys.executable, "-m", "ardistill", *FULL["png"].split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.time() + 60
    while not loads(process.pid, "libtorch_python") and time.time() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", error
    assert error == "ardistill sample: ended by SIGINT; what is there is whole, run the same command again\n"


def test_case_22_an_interrupt_under_accelerate_is_one_line_of_ours(world):
    """Whatever accelerate's launcher and torch's elastic agent say of it themselves."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "ardistill", *DISTILL.split(), "--out", "out"]
    command += ["--training.max_steps", "5000", "--training.checkpoint_every", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with open("log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        limit = time.time() + 120
        while not any(Path("out/checkpoints").glob("step-????????")) and time.time() < limit:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        process.wait(60)
    text = Path("log").read_text()
    told = [line for line in text.splitlines() if line.startswith("ardistill distill")]
    assert len(told) == 1 and "ended by SIGINT; the same command again goes on from out/checkpoints/step-" in told[0]
    assert "src/ardistill" not in text, text  # no frame of ours


def test_case_22_anything_else_is_a_bug_with_its_traceback_in_a_file(capsys):
    with pytest.raises(SystemExit) as exit, one_line(lambda: "ardistill x", lambda: ""):
        raise KeyError("of ours\nin two lines")
    said = capsys.readouterr().err
    assert exit.value.code == 1 and said.count("\n") == 1 and "this is a bug in ardistill 0." in said
    path = Path(said.partition("please report it with ")[2].partition(",")[0])
    assert "raise KeyError" in path.read_text() and "torch 2" in path.read_text()
    path.unlink()
    with pytest.raises(KeyError), one_line(lambda: "", lambda: "", debug=True):
        raise KeyError


def test_case_22_the_launcher_is_told_the_line(tmp_path, monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), one_line(lambda: "ardistill x", lambda: ""):
        raise ValueError("expected this, got that")
    line = "ardistill x (process 1): error: expected this, got that"
    assert capsys.readouterr().err == f"{line}\n"
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert line in str(ChildFailedError("ardistill", {1: failure}))


def test_case_22_nobody_reads_stdout(world):
    reading, writing = os.pipe()
    os.close(reading)

    def broken():
        os.dup2(writing, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115

    log = world.parent / "log"
    assert (
        ended(apart(lambda: main(["trajectories", "info", "--trajectories", "data"]), log, broken))
        == 128 + signal.SIGPIPE
    )
    assert log.read_text() == ""
    os.close(writing)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_case_22_closed_streams_are_no_bug(world, closed):
    command = f"{sys.executable} -m ardistill trajectories"
    for words, status in (("show --trajectories data --count 1 --device cpu", 0), ("info --trajectories nowhere", 2)):
        done = subprocess.run(["sh", "-c", f"{command} {words} {closed}"], capture_output=True, text=True)
        assert done.returncode == status and "bug" not in done.stdout + done.stderr
    assert Path("trajectories.png").is_file()


def test_case_22_text_that_the_terminal_cannot_show_is_escaped(world):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for out in ("日本.png", os.fsdecode(b"\xff.png")):
        words = [*["trajectories", "show", "--trajectories", "data", "--count", "1", "--device", "cpu", "--out"], out]
        command = [sys.executable, "-m", "ardistill", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "1 trajectories in \\" in done.stdout, done.stderr


EXPLAINED = {
    "disk": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; free space"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "free space"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), "may read and write"),
    "long": (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "shorter path"),
    "files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "name a file"),
    "checkpoint": (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file"), "free space"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "gradient_checkpointing.*lora"),
    "cpu-memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "batch size"),
    "worker": (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "fewer workers"),
    "peer": (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process"),
    "extra": (ModuleNotFoundError("No module named 'peft'", name="peft"), r"'ardistill\[lora\]'"),
    "package": (ModuleNotFoundError("No module named 's3fs'", name="s3fs"), "pip install s3fs"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "check the network"),
    "colours": (ValueError("do \x1b[1mthis\x1b[0m"), "^do this$"),
    "json": (json.JSONDecodeError("Expecting value", "", 0), "write or download it again"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_case_22_what_the_world_can_cause_is_explained(name):
    error, remedy = EXPLAINED[name]
    status, line = explain(error)
    check_refusal(Refusal(lambda: (_ for _ in ()).throw(error), "", remedy), None)
    assert status == 2 and "this is a bug" not in line
    wrapped = RuntimeError("Failed to import diffusers.x because of the following error")
    wrapped.__cause__ = error
    assert explain(wrapped) == (2, line)


def test_case_22_what_the_hub_says_is_explained():
    from huggingface_hub import errors

    for name, remedy in (
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "check the id"),
        ("LocalEntryNotFoundError", "HF_HUB_OFFLINE"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
        ("HfHubHTTPError", "check the network"),
    ):
        kind = getattr(errors, name)
        error = kind.__new__(kind, "401 Client Error")
        status, line = explain(error)
        assert status == 2 and remedy in line, line
    for bug in (KeyError("x"), TypeError("x"), RuntimeError("mat1 and mat2 shapes"), AssertionError()):
        assert explain(bug)[0] == 1


# -- case 23


def test_case_23_a_cache_that_cannot_be_written_is_blamed_by_its_variable(world, monkeypatch, capsys):
    import datasets

    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere/me")
    for path, variable in (
        ("/nowhere/me/.cache/huggingface/hub/x", "HF_HOME"),
        ("/nowhere/me", "HF_HOME"),
        ("/nowhere/me/.cache/torch/hub", "TORCH_HOME"),
        ("/nowhere/me/.cache/other", "XDG_CACHE_HOME"),
        ("/somewhere/images", None),
    ):
        error = PermissionError(errno.EACCES, "Permission denied", path)
        assert cache_variable(error) == variable
        assert variable is None or f"set {variable} to a folder" in explain(error)[1]
    monkeypatch.setenv("HF_DATASETS_CACHE", "/dev/null/cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/dev/null/cache"))
    Path("local/prompts").mkdir(parents=True)
    Path("local/prompts/train.csv").write_text("prompt\na cat\n")
    check_refusal(Refusal(f"{RECORD} --prompts local/prompts", "/dev/null", "set HF_DATASETS_CACHE"), capsys)


def test_case_23_an_export_from_a_read_only_cache_can_be_written(tmp_path):
    source = save_pipeline("dit", tmp_path / "source")
    teacher = Teacher.from_pretrained(source)
    record(teacher, tmp_path / "data", 4, **OPTIONS)
    student = Student.from_teacher(
        teacher, StudentConfig.for_data(TrajectoryDataset(tmp_path / "data", 2), history_layers=1)
    )
    for path in sorted(source.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    from ardistill.publishing import export

    export(student.eval(), teacher, tmp_path / "out")
    made = [*(tmp_path / "out").rglob("*")]
    assert (tmp_path / "out" / "vae" / "config.json") in made
    assert all(path.stat().st_mode & stat.S_IWUSR for path in made)
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")


# -- case 24


def test_case_24_version_and_dashes_anywhere_in_an_option(world, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("ardistill 0.")
    words = "distill --trajectories data --out on-the-way --history-layers 1 --training.max-steps 1"
    main([*words.split(), "--training.batch-size=2", "--training.lr-scheduler=constant", "--training.tracker", "null"])
    settings = json.loads(Path("on-the-way/config.json").read_text())["training"]
    assert (settings["max_steps"], settings["batch_size"], settings["lr_scheduler"]) == (1, 2, "constant")


def test_case_24_autoencoder_tiny_encodes(teacher):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = diffusers.AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    mine = Teacher(teacher.transformer, teacher.scheduler, companions={"vae": vae})
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = mine.encode_images(images)
    assert latents.shape == (2, 4, 8, 8) and torch.equal(latents, vae.encode(images).latents)


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
        student = Student.from_teacher(teacher, StudentConfig.for_data(data, history_layers=1))
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
    facts = {name: x for name, x in dataclasses.asdict(manifest).items() if name != "former_identity"}
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


# -- case 25


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_case_25_a_log_file_gets_a_line_every_half_minute(monkeypatch):
    clock, log = Clock(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.bar(total=600, desc="record", unit="shard") as bar:
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        for _ in range(600):
            clock.now += 0.5
            bar.set_postfix(loss=1.0)
            bar.update()
    lines = log.getvalue().splitlines()
    assert 10 <= len(lines) <= 13 and "\r" not in log.getvalue()
    assert lines[-1].startswith("record: 100%") and "loss=1" in lines[-1]


def test_case_25_the_last_line_of_a_log_is_not_written_twice(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(total=2, desc="record", mininterval=0) as bar:
        bar.update()
        bar.update()
    assert [line[:12] for line in sys.stderr.getvalue().splitlines()] == [
        "record:   0%",
        "record:  50%",
        "record: 100%",
    ]


def test_case_25_a_whole_way_without_a_terminal_is_a_few_lines(world):
    words = f"{DISTILL} --out new --training.max_steps 60 --training.checkpoint_every 60"
    log = world.parent / "log"
    for command in (f"{RECORD} --num_trajectories 60 --shard_size 2", words):
        assert ended(apart(command.split(), log)) == 0
    text = log.read_text()
    assert len(text.splitlines()) <= 14 and "\r" not in text, text


def test_case_25_a_warning_is_one_line_once(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ready_process()
        for line in (1, 2):
            warnings.warn_explicit("few\nsamples", UserWarning, "a.py", line)
    assert capsys.readouterr().err == "warning: few samples\n"


def test_case_25_bars_of_other_packages_follow_the_rule():
    script = "from ardistill.progress import calm_libraries as c; c(); import time; from tqdm.auto import tqdm\n"
    script += "for _ in tqdm(range(20)): time.sleep(0.02)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    assert said.count("\r") <= 2, said


# -- the table

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
    "word": Refusal(f"{SAMPLE} --count many", "count.*many", "--help says"),
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


def test_debug_raises_in_the_installed_command_too(monkeypatch):
    from ardistill.__main__ import main as installed

    monkeypatch.setattr(sys, "argv", ["ardistill", "trajectories", "info", "--trajectories", "nowhere", "--debug"])
    with pytest.raises(ValueError, match="expected trajectories"):
        installed()


def test_training_does_not_need_git(world, monkeypatch):
    from ardistill.training import environment

    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["git_commit"] is None and np.isfinite(environment()["threads"])
