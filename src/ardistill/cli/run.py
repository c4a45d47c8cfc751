"""Runs one command: parses the command line, calls the command, prints its result, and explains errors."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ardistill import errors
from ardistill.cli.command import Command, Result, option_groups
from ardistill.cli.commands import COMMANDS
from ardistill.cli.parser import Parser, build_parser, check_recipe
from ardistill.progress import calm_libraries

_parser_once = functools.cache(build_parser)
"""The parser of every call of `main` in this process; making it takes half a second."""


@dataclass
class _Running:
    """The command that is running, as far as it is known."""

    name: str = "ardistill"
    """The command as it begins an error message: ardistill distill."""
    out: str = ""
    """Its option ``--out``, if it has one."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command line.

    An error ends the process with one line and an exit status, as `errors.explain` says; ``--debug`` raises it instead.

    Args:
        arguments: Words of the command line; those of the process if not given.
    """
    calm_libraries()
    arguments = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    running = _Running()
    with errors.one_line(lambda: running.name, lambda: _how_to_go_on(running), debug="--debug" in arguments):
        _run(arguments, running)


def _underscored(word: str) -> str:
    """Write an option's name with underscores, --training.max-steps=1 as --training.max_steps=1; values stay."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _run(arguments: list[str], running: _Running) -> None:
    """Parse a command line, run its command and print the result.

    Args:
        arguments: Words of the command line.
        running: Receives the command's name and ``--out`` as soon as they are known.

    Raises:
        SystemExit: With status 2 if the command line is wrong, or with the status of the result.
    """
    parser = _parser_once()
    _check_recipes(arguments, parser)
    parsed = parser.parse_args(arguments)
    words, chosen, command = [parsed.command], parsed[parsed.command], COMMANDS[parsed.command]
    if isinstance(command, dict):
        words, command = [*words, chosen.action], command[chosen.action]
    running.name = " ".join(["ardistill", *words])
    chosen = parser.instantiate(parsed)  # nested configurations check their values
    for word in words:
        chosen = chosen[word]
    options = dict(vars(chosen))
    _check_values(options)
    running.out = str(options.get("out") or "")
    with contextlib.redirect_stdout(sys.stderr):  # stdout holds the result alone, whatever libraries print
        result = _call(command, options)
    if os.environ.get("RANK", "0") == "0":  # only the first of several processes prints
        print(json.dumps(result.facts) if options["json"] else result.text, flush=True)
    if result.exit_status:
        sys.exit(result.exit_status)


def _check_recipes(arguments: list[str], parser: Parser) -> None:
    """Check the recipes that stand before the command."""
    before = list(itertools.takewhile(lambda word: word not in COMMANDS, arguments))
    for option, value in itertools.pairwise(before):
        if option == "--config":
            try:
                check_recipe(value, parser)
            except ValueError as error:
                parser.error(str(error))


def _call(command: Command, options: dict[str, Any]) -> Result:
    """Call a command with its groups of options."""
    groups = {
        name: group(**{field.name: options[field.name] for field in fields(group)})
        for name, group in option_groups(command).items()
    }
    return command(**groups)


def _check_values(options: dict[str, Any]) -> None:
    """Check what holds for the values of every option, whatever its command.

    Raises:
        ValueError: A number is infinite or NaN, an integer does not fit in the 64 bits of torch and NumPy, or a name or
            path is empty, which would stand for the current folder.
    """
    for name, value in options.items():
        for number in value if isinstance(value, list) else [value]:
            if number == "" and name not in ("prompt", "negative_prompt"):
                raise ValueError(f"expected a value for --{name}, got an empty one; name one, or leave the option out")
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"expected a finite number for --{name}, got {number}")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError(f"expected a number of 64 bits for --{name}, got {number}; take a smaller one")


def _how_to_go_on(running: _Running) -> str:
    """What an interrupted command says about going on."""
    if running.name in ("ardistill distill", "ardistill finetune"):
        checkpoints = Path(running.out, "checkpoints")
        found = checkpoints.glob("step-*") if checkpoints.is_dir() else ()
        names = sorted(x.name for x in found if x.name[5:].isdigit())
        where = f"from {checkpoints / names[-1]}" if names else "from the start, there is no checkpoint yet"
        return f"the same command again goes on {where}"
    if running.name == "ardistill record":
        return "the same command again records the missing shards"
    return "files written so far are whole, run the same command again"
