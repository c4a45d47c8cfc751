"""The commands of the command line, in the order of their use."""

from __future__ import annotations

from ardistill.cli import demo, evaluation, planning, publishing, training, trajectories
from ardistill.cli.command import Command

TRAJECTORIES: dict[str, Command] = {
    "info": trajectories.info,
    "verify": trajectories.verify,
    "repair": trajectories.repair,
    "show": trajectories.show,
    "export": trajectories.export_trajectories,
    "push": trajectories.push,
}
"""What `ardistill trajectories` does with a recording."""

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "quickstart": planning.quickstart,
    "doctor": planning.doctor,
    "cost": planning.cost,
    "record": trajectories.record,
    "trajectories": TRAJECTORIES,
    "distill": training.distill,
    "encode": training.encode,
    "finetune": training.finetune,
    "sample": evaluation.sample,
    "evaluate": evaluation.evaluate,
    "compare": evaluation.compare,
    "export": publishing.export,
    "demo": demo.demo,
}
"""Each command, or the actions of a command that has several."""
