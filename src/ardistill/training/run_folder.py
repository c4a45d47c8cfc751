"""The folder of a training run: who may use it, the settings it was started with, its log and its environment."""

from __future__ import annotations

import errno
import json
import logging
import math
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from ardistill.config import TrainingConfig
from ardistill.devices import Device, device_name, resolve_device
from ardistill.errors import version
from ardistill.files import check_folder, checkpoints, read_json, sealed_json, write_whole
from ardistill.student import StudentConfig

Settings = dict[str, dict[str, Any]]
"""What ``config.json`` holds: a mapping of options for each of student, training, data, start, adversarial or matching,
and the types of frozen weights."""

_LOG_FILE = "metrics.jsonl"
_LOCK = ".lock"
_LOCK_TIMEOUT = 20.0
"""Seconds to wait for the lock: a killed process takes a moment to release it."""
_CHANGEABLE = {
    *("checkpoint_every", "checkpoint_stride", "compile", "cuda_graph", "ema_device", "gradient_checkpointing"),
    *("keep_checkpoints", "offload_activations", "shard", "tracker"),
}
"""Training options that may differ when a run is resumed: apart from rounding, its weights do not depend on them."""
_NO_SETTINGS = "{}: expected the settings of a run; restore it, or choose a new folder"
_ON_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
"""The beginning of a URL of a data set on the Hub, and its id."""
_LOG = logging.getLogger(__name__)


def check_run_folder(folder: str | Path) -> None:
    """Check that a folder can hold a run, before anything is written there.

    Raises:
        ValueError: The folder cannot be written, or holds files that are not a run's.
    """
    check_folder(folder)
    there = {x.name for x in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    if "config.json" not in there and any(name != _LOCK and not name.endswith(".tmp") for name in there):
        raise ValueError(f"expected {folder} to be empty or to hold this run; choose a new folder")


@contextmanager
def claimed(folder: Path, settings: Settings, accelerator: Accelerator, trajectories: str = "") -> Iterator[None]:
    """Lock a run's folder, and write its settings and environment or check that it holds this run.

    All processes enter together; the first one locks and writes, the others find what it wrote.

    Args:
        folder: The run's folder.
        settings: What ``config.json`` is to hold.
        accelerator: The launch.
        trajectories: Where the trajectories are read from; noted in the environment if that is a data set on the Hub.

    Raises:
        ValueError: The folder holds another run, or another process is training in it.
    """
    with _locked(folder) if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():
            _write_settings(folder, settings)
            _write_environment(folder, accelerator.device, settings["training"]["mixed_precision"], trajectories)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process releases too.

    A second training in the same folder would interleave its log and checkpoints with those of the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=_LOCK_TIMEOUT)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{folder} is being trained in by another process ({error}); wait for it or choose a new folder; if that "
            f"process no longer exists, delete {folder / _LOCK}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _LOG.warning("%s cannot be locked (%s): make sure that only one process trains there", folder, error.strerror)
    try:
        yield
    finally:
        lock.release()


def _write_settings(folder: Path, settings: Settings) -> None:
    """Write ``config.json``; if it exists, check that it holds this run and update its number of steps.

    Raises:
        ValueError: The folder holds another run, or no run.
    """
    settings, path = json.loads(json.dumps(settings)), folder / "config.json"
    if not path.exists():
        check_run_folder(folder)  # again: another process may have written there since the first check
        write_whole(path, sealed_json(settings))
        return
    before = _read_settings(path, settings)
    if differing := _differences(before, settings, folder):
        raise ValueError(
            f"{folder} holds another run ({'; '.join(differing)}); choose a new folder, where --start {folder} (with "
            f"finetune: --student {folder}) continues from it, or repeat its settings"
        )
    max_steps = settings["training"]["max_steps"]
    if before["training"]["max_steps"] != max_steps:
        changed = read_json(path)
        changed.setdefault("training", {})["max_steps"] = max_steps
        write_whole(path, sealed_json(changed))


def stored_precision(folder: Path) -> str | None:
    """The precision of the run in a folder, ``no`` or ``bf16``; None if there is no run.

    Raises:
        ValueError: Its ``config.json`` does not hold the settings of a run.
    """
    return _stored(folder, "training", "mixed_precision", "no")


def stored_weights(folder: Path, part: str) -> str | None:
    """The type of the weights of ``base`` or of a critic's network in the run in a folder; None if there is no run.

    Raises:
        ValueError: Its ``config.json`` does not hold the settings of a run.
    """
    return _stored(folder, "weights", part, "float32")


def _stored(folder: Path, group: str, name: str, before: str) -> str | None:
    """An option of the run in a folder, ``before`` if it did not exist when the run began; None if there is no run.

    Raises:
        ValueError: Its ``config.json`` does not hold the settings of a run.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        return read_json(path).get(group, {}).get(name, before)
    except AttributeError as error:
        raise ValueError(_NO_SETTINGS.format(path)) from error


def _read_settings(path: Path, settings: Settings) -> Settings:
    """Read ``config.json``; options that did not exist when it was written have the defaults they then had.

    Raises:
        ValueError: The file does not hold the settings of a run.
    """
    before = read_json(path)
    try:
        before["student"] = json.loads(json.dumps(asdict(StudentConfig.from_dict(before["student"]))))
        then = asdict(TrainingConfig(mixed_precision="no", gate_rate=1.0))
        before["training"] = then | before.get("training", {})
        before["data"] = {"draws": "rows"} | before.get("data", {})
        before.setdefault("start", settings["start"])
        before["weights"] = dict.fromkeys(settings.get("weights", {}), "float32") | before.get("weights", {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_NO_SETTINGS.format(path)) from error
    return before


def _differences(before: Settings, settings: Settings, folder: Path) -> list[str]:
    """Describe each setting with which a run cannot be resumed."""
    found = [
        f"{part}.{name} is {before.get(part, {}).get(name)!r} there, {value!r} asked for"
        for part, values in settings.items()
        for name, value in values.items()
        if before.get(part, {}).get(name) != value and not (part == "training" and name in {*_CHANGEABLE, "max_steps"})
    ]
    steps = before["training"]["max_steps"]
    reason = _why_steps_are_fixed(folder, steps, settings["training"])
    return [*found, f"training.max_steps is {steps} there, {reason}"] if reason else found


def _why_steps_are_fixed(folder: Path, steps: int, training: dict[str, Any]) -> str:
    """Why a run of ``steps`` steps cannot be resumed with the number of steps in ``training``; empty if it can.

    It can if no step depends on the total: the run then ends as if it had had that many from the start.
    """
    asked, done = training["max_steps"], checkpoints.last_step(folder / "checkpoints")
    if asked == steps:
        return ""
    if training["lr_scheduler"] not in ("constant", "constant_with_warmup"):
        return f"{asked} asked for, and the learning rate of lr_scheduler {training['lr_scheduler']} depends on it"
    if training["inputs"] == "mixed" and training["student_share"]:
        return f"{asked} asked for, and the share of the student's inputs (mixed) depends on it"
    if asked < done:
        return f"{asked} asked for, and {done} are done: ask for as many or more, or use one of its checkpoints"
    return ""


def _write_environment(folder: Path, device: torch.device, mixed_precision: str, trajectories: str) -> None:
    if not (folder / "environment.json").exists():
        on_hub = _ON_HUB.match(trajectories)
        facts = environment(device) | {"mixed_precision": mixed_precision, "dataset": on_hub[1] if on_hub else None}
        write_whole(folder / "environment.json", json.dumps(facts, indent=1).encode())


def add_device_seconds(folder: Path, device: torch.device, seconds: float) -> None:
    """Add computing time to the run's ``environment.json``, under the device's name.

    A run that is resumed on another device has a time for each. What a killed process computed after its last
    checkpoint is not counted; nothing is counted where the file was deleted.
    """
    path, name = folder / "environment.json", device_name(device)
    if path.exists():
        facts = json.loads(path.read_text())
        times = facts.setdefault("device_seconds", {})
        times[name] = round(times.get(name, 0.0) + seconds, 3)
        write_whole(path, json.dumps(facts, indent=1).encode())


def environment(device: Device = None) -> dict[str, Any]:
    """What a measurement depends on besides the configuration: versions, git commit and device.

    Args:
        device: Device that is measured on; the best available one if not given.

    Returns:
        Versions of Python and packages, commit of the working directory (None outside a repository), platform, name of
        the device, whether it may use TF32 in products of float32, and number of CPU threads.
    """
    where, packages = resolve_device(device), ("ardistill", "torch", "diffusers", "accelerate", "numpy")
    commit = ""
    with suppress(OSError):  # git may not be installed
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip()
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "git_commit": commit or None,
        "platform": platform.platform(),
        "device": device_name(where),
        "tf32": where.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32",
        "threads": torch.get_num_threads(),
    }


def is_logged(step: float, max_steps: int) -> bool:
    """Whether a line is logged after this step: after every tenth step and the last one."""
    return step % 10 == 0 or step == max_steps


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the run's log, ``metrics.jsonl``."""
    with open(folder / _LOG_FILE, "a") as file:
        file.write(json.dumps(line) + "\n")


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of a run's log, oldest first; a single empty line if the log was deleted."""
    path = Path(folder) / _LOG_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else [{}]


def truncate_log(folder: Path, step: int, max_steps: int) -> None:
    """Remove from the log what a resumed run will log again, and what it would not have logged.

    That is: lines after the checkpoint's ``step``, unparsable lines (a kill may cut one), and the last line of a run
    that now has more steps.
    """
    log = folder / _LOG_FILE
    if log.exists():
        lines = [(_logged_step(line), line) for line in log.read_bytes().splitlines(True)]
        kept = [line for at, line in lines if at <= step and is_logged(at, max_steps)]
        write_whole(log, b"".join(kept))


def _logged_step(line: bytes) -> float:
    """Step of a line of the log; infinity if the line cannot be parsed."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (KeyError, TypeError, ValueError):
        return math.inf
