"""What this machine has: versions, extras, device, threads, disk and access to the Hub; and what is wrong with them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import parse_flag_from_env
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from ardistill.devices import compiles, device_name, resolve_precision
from ardistill.errors import version

PACKAGES = ("ardistill", "torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub")
"""Packages whose versions are shown."""
_LEAST_SPACE = 2e9
"""Bytes below which a disk counts as full; the quickstart takes 0.3 GB, torch's CUDA build several."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong here."""

    problem: str
    """What is wrong."""
    remedy: str
    """What to do about it."""


def versions() -> dict[str, str]:
    """Versions of Python, the packages that the work depends on, and the operating system."""
    found = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return found | {"system": platform.platform()}


def _unmet(requirements: list[Requirement]) -> list[Requirement]:
    """Those of the requirements that are not installed, or in another version."""
    found = []
    for requirement in requirements:
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(requirement)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            found.append(requirement)
    return found


def _requirements(extra: str) -> list[Requirement]:
    """What an extra installs; for no extra, what the package itself needs."""
    try:
        named = [Requirement(x) for x in metadata.requires("ardistill") or ()]
    except metadata.PackageNotFoundError:  # the code is run without being installed
        return []
    if not extra:
        return [x for x in named if x.marker is None or x.marker.evaluate({"extra": ""})]
    return [
        x for x in named if x.marker and x.marker.evaluate({"extra": extra}) and not x.marker.evaluate({"extra": ""})
    ]


def missing_requirements() -> Iterator[Finding]:
    """What ardistill needs and does not find."""
    for requirement in _unmet(_requirements("")):
        wanted = f"{requirement.name}{requirement.specifier}"
        problem = f"ardistill needs {wanted}, this is {requirement.name} {version(requirement.name)}"
        yield Finding(problem, f"pip install -U '{wanted}'")


def extras() -> dict[str, dict[str, Any]]:
    """Each optional extra: whether it is ``installed``, and the command that would ``install`` it."""
    try:
        names = metadata.metadata("ardistill").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        names = []
    return {
        name: {"installed": not _unmet(_requirements(name)), "install": f"pip install 'ardistill[{name}]'"}
        for name in sorted(names)
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """What the device is and what options with the value ``auto`` or null choose on it; sizes are in bytes."""
    facts: dict[str, Any] = {"device": str(device), "name": device_name(device), "bf16": _has_bf16(device)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        facts |= {"count": torch.cuda.device_count(), "memory": total, "free_memory": free}
        facts |= {"compute_capability": capability, "cuda": torch.version.cuda, "driver": _driver()}
    elif device.type == "cpu":
        memory = psutil.virtual_memory()
        facts |= {"name": platform.machine(), "memory": memory.total, "free_memory": memory.available}
    facts["mixed_precision"] = resolve_precision("auto", device)
    facts["compile"] = compiles(None, device, 1000)
    return facts | {"compile_reason": _why_not_compiled(device, facts["compile"])}


def _has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _why_not_compiled(device: torch.device, compiled: bool) -> str:
    if compiled:
        return "from 1,000 passes on"
    return "not on CUDA" if device.type != "cuda" else "Triton or a C compiler is missing"


def _driver() -> str | None:
    """Version of the NVIDIA driver; None if it does not tell."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


def unused_accelerator() -> Iterator[Finding]:
    """An NVIDIA GPU that torch cannot use."""
    if torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return
    if not Path("/dev/nvidia0").exists() and _driver() is None:
        return
    if torch.version.cuda is None:
        remedy = "install torch's CUDA build (https://pytorch.org)"
        yield Finding(f"an NVIDIA GPU is there, and torch {torch.__version__} is a build without CUDA", remedy)
    else:
        problem = f"an NVIDIA GPU is there, and torch, built for CUDA {torch.version.cuda}, cannot use it"
        yield Finding(problem, "update the NVIDIA driver, or check CUDA_VISIBLE_DEVICES and the container's options")


def threads() -> dict[str, int]:
    """Threads that torch computes with, and cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {"threads": torch.get_num_threads(), "cores": len(affinity(0)) if affinity else os.cpu_count() or 1}


def folders(runs: Path) -> dict[str, dict[str, Any]]:
    """Where files go: each folder, its free space in bytes, whether it may be written, and what moves it elsewhere."""
    places = {
        "runs": (runs, "name another folder with --out"),
        "hub_cache": (Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder that you may write"),
        "torch_cache": (Path(torch.hub.get_dir()), "set TORCH_HOME to a folder that you may write"),
    }
    found = {}
    for name, (folder, remedy) in places.items():
        there = next(x for x in (folder.absolute(), *folder.absolute().parents) if x.exists())
        facts = {"folder": str(folder), "free": shutil.disk_usage(there).free}
        found[name] = facts | {"writable": there.is_dir() and os.access(there, os.W_OK), "remedy": remedy}
    return found


def unusable_folders(found: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Findings for the folders of ``folders()`` that cannot be written to or have too little free space."""
    for facts in found.values():
        if not facts["writable"]:
            yield Finding(f"{facts['folder']} cannot be written", facts["remedy"])
        elif facts["free"] < _LEAST_SPACE:
            problem = f"{facts['folder']} has {facts['free'] / 1e9:.1f} GB of free space"
            yield Finding(problem, f"free space there, or {facts['remedy']}")


def hub() -> dict[str, Any]:
    """Access to the Hub: whether there is a token, never the token itself, and whether the Hub may be asked."""
    return {"token": get_token() is not None, "offline": constants.HF_HUB_OFFLINE, "endpoint": constants.ENDPOINT}
