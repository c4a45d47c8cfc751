"""The commands for a first look: quickstart, doctor and cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ardistill.cli.command import Result
from ardistill.cli.options import ComputeDevice, DoctorOptions
from ardistill.config import CostConfig, QuickstartConfig


def quickstart(config: QuickstartConfig) -> Result:
    """Record, distil, compare and report on the embedded teacher: offline, ten minutes on two cores."""
    from ardistill.studies.quickstart import quickstart as run

    found = run(config)
    text = f"{found.table()}\nReport: {Path(config.out) / 'report.html'}"
    return Result(found.to_dict() | {"out": config.out}, text)


def doctor(options: DoctorOptions, machine: ComputeDevice) -> Result:
    """Examine installation, device, disk and extras, and try them in ten seconds; status 1 if something is wrong."""
    from ardistill import planning

    found = planning.doctor(machine.device, self_test=options.self_test)
    return Result(found.to_dict(), found.text(), exit_status=1 if found.problems else 0)


def cost(config: CostConfig) -> Result:
    """Count MACs, memory, disk and time of a distillation before starting it; only a config is downloaded."""
    from ardistill import planning

    found = planning.cost(config)
    return Result(asdict(found), planning.describe(found, config))
