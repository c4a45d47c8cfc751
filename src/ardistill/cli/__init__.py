"""Command line: one command per step, from planning to publishing. Results go to stdout, progress to stderr."""

from ardistill.cli.commands import COMMANDS as COMMANDS
from ardistill.cli.commands import TRAJECTORIES as TRAJECTORIES
from ardistill.cli.parser import build_parser as build_parser
from ardistill.cli.parser import check_recipe as check_recipe
from ardistill.cli.run import main as main

__all__ = ["COMMANDS", "TRAJECTORIES", "build_parser", "check_recipe", "main"]
