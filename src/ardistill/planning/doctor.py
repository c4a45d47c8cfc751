"""Examines the installation and the machine, and tries both in ten seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ardistill.devices import Device, resolve_device
from ardistill.errors import explain
from ardistill.planning import machine
from ardistill.planning.machine import Finding
from ardistill.planning.self_test import SelfTest, run_self_test


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found."""

    versions: dict[str, str]
    """Versions of Python, packages and platform."""
    device: dict[str, Any]
    """The device, its memory in bytes, and what ``mixed_precision: auto`` and ``compile: null`` choose on it."""
    threads: dict[str, int]
    """Threads that torch computes with, and cores that this process may use."""
    folders: dict[str, dict[str, Any]]
    """Where runs and downloads go, and the free space there in bytes."""
    extras: dict[str, dict[str, Any]]
    """Optional extras: whether each is installed, and the command that installs it."""
    hub: dict[str, Any]
    """Whether there is a token for the Hub, and whether the Hub may be asked."""
    self_test: SelfTest | None
    """What was tried; None if it was left out, or failed with an error, which is among the problems."""
    problems: tuple[Finding, ...]
    """What is wrong, with its remedy; empty if nothing is."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    def text(self) -> str:
        """The diagnosis as lines of text."""
        lines = [f"{name:<11}{text}" for name, text in _rows(self).items()]
        lines += [f"{'problem':<11}{x.problem}; {x.remedy}" for x in self.problems]
        return "\n".join(lines if self.problems else [*lines, "Nothing is wrong."])


def doctor(device: Device = "auto", *, self_test: bool = True) -> Diagnosis:
    """Examine versions, device, disk, extras and access to the Hub, and train and draw on the device.

    Args:
        device: Device to examine.
        self_test: Record, train one step and draw on the device, and compare with the CPU: about ten seconds.

    Raises:
        ValueError: This machine has no such device.
    """
    where, folders = resolve_device(device), machine.folders(Path("runs"))
    problems = [*machine.missing_requirements(), *machine.unused_accelerator(), *machine.unusable_folders(folders)]
    found = None
    if self_test:
        try:
            found = run_self_test(where)
        except Exception as error:
            problems.append(Finding(f"the self-test failed on {where}: {explain(error)[1]}", _remedy(where)))
    if found is not None and not found.passed:
        problem = f"{where} draws other images than the CPU in float64: a pixel differs by {found.error:.2g} of 2"
        problems.append(Finding(problem, _remedy(where)))
    return Diagnosis(
        versions=machine.versions(),
        device=machine.describe_device(where),
        threads=machine.threads(),
        folders=folders,
        extras=machine.extras(),
        hub=machine.hub(),
        self_test=found,
        problems=tuple(problems),
    )


def _remedy(where: torch.device) -> str:
    """What to do where the self-test fails on a device."""
    if where.type == "cpu":
        return "install ardistill and its packages into an empty environment"
    return "check that torch fits the driver (python -m torch.utils.collect_env), or use --device cpu"


def _rows(found: Diagnosis) -> dict[str, str]:
    """Each line of the text after its name."""
    device, names = found.device, {"runs": "runs", "hub_cache": "Hub cache", "torch_cache": "torch cache"}
    rows = {
        "versions": ", ".join(f"{name} {number}" for name, number in found.versions.items()),
        "device": _describe_device(device),
        "threads": f"{found.threads['threads']} on {found.threads['cores']} cores",
        "precision": f"mixed_precision auto is {device['mixed_precision']} here",
        "compile": f"null is {str(device['compile']).lower()} here: {device['compile_reason']}",
        "disk": "; ".join(
            f"{names[name]} in {x['folder']}, {x['free'] / 1e9:,.1f} GB free" for name, x in found.folders.items()
        ),
        "extras": "; ".join(
            f"{name} {'installed' if x['installed'] else 'missing: ' + x['install']}"
            for name, x in found.extras.items()
        ),
        "Hub": ("a token is there" if found.hub["token"] else "no token, which only private and gated teachers need")
        + (f"; {found.hub['endpoint']} is not asked (HF_HUB_OFFLINE)" if found.hub["offline"] else ""),
    }
    if found.self_test is not None:
        rows["self-test"] = (
            f"trained one step and drew on {device['device']} in {found.self_test.seconds:.1f} s; largest difference "
            f"from the CPU in float64 {found.self_test.error:.1g}, allowed {found.self_test.tolerance:g}"
        )
    return rows


def _describe_device(device: dict[str, Any]) -> str:
    words = [device["device"], device["name"]]
    if "memory" in device:
        words.append(f"{device['free_memory'] / 2**30:.1f} of {device['memory'] / 2**30:.1f} GiB free")
    if "compute_capability" in device:
        words += [f"compute capability {device['compute_capability']}", "bfloat16" if device["bf16"] else "no bfloat16"]
        words += [f"driver {device['driver']}", f"CUDA {device['cuda']}", f"{device['count']} such devices in all"]
    return ", ".join(words)
