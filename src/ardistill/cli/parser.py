"""The parser of the command line, made from the commands; and the check of recipes, which are YAML files of options."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from ardistill import errors
from ardistill.cli.command import Command, option_groups
from ardistill.cli.commands import COMMANDS

_PATHS = {
    "clip", "features", "feature_weights", "images", "out", "preference", "prompts", "real", "recipe", "reference",
    "start", "student", "teacher", "trajectories",
}  # fmt: skip
"""Options that name a file or a folder, which a shell completes; their type says only that they are text."""


class Parser(jsonargparse.ArgumentParser):
    """Takes no abbreviations, and answers an unknown option or recipe key with the nearest known one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self.commands: dict[str, Parser] = {}

    def known_keys(self) -> set[str]:
        """The options as a recipe writes them, those of subcommands both with and without the subcommand's name."""
        keys = {action.dest for action in self._actions if action.dest not in ("help", "==SUPPRESS==")}
        for command, parser in self.commands.items():
            keys |= {command} | parser.known_keys() | {f"{command}.{key}" for key in parser.known_keys()}
        return keys

    def get_completion_script(self, completion_type: str, **kwargs: Any) -> str:
        """Write what a shell needs to complete commands, options, values and paths, or the JSON schema of a recipe."""
        if completion_type.startswith("shtab-"):
            self._complete_paths()
        return super().get_completion_script(completion_type, **kwargs)

    def _complete_paths(self) -> None:
        import shtab

        for action in self._actions:
            if action.dest in _PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        for parser in self.commands.values():
            parser._complete_paths()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        hints = []
        if re.search(r"not accept|not expected|[Uu]nrecogni[sz]ed|invalid choice", message):
            for found in re.findall(r"--([\w.]+)|'([\w.]+)'", message):
                if hint := _nearest("".join(found), self.known_keys()):
                    hints.append(hint)
        if "invalid choice: 'shtab-" in message:
            hints = ["completion needs shtab: pip install 'ardistill[completion]';"]
        words = " ".join([*dict.fromkeys(hints), *message.split()])
        prog = self.prog.replace(" [options]", "")
        errors.say(f"{prog}: error: {words} (--help lists the options)")
        sys.exit(2)


def build_parser() -> Parser:
    """Make the parser of `ardistill` from `COMMANDS`."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True, add_print_completion_argument=True)
    parser = Parser(
        prog="ardistill",
        description="Distil a diffusion transformer into a student that draws in 1 to 8 steps (arXiv:2504.11295).",
        epilog="A recipe (YAML) has a section per command: "
        "ardistill --config recipes/fashion.yaml distill --out runs/mine",
    )
    parser.add_argument("--config", action="config", help="Recipe: a YAML file with a section per command.")
    parser.add_argument("--version", action="version", version=f"ardistill {errors.version()}")
    _add_commands(parser, COMMANDS, "command", "commands, in the order of their use")
    return parser


def _add_commands(parser: Parser, commands: dict[str, Any], dest: str, title: str) -> None:
    added = parser.add_subcommands(dest=dest, title=title, help="One of these; add --help for its options.")
    for name, command in commands.items():
        if isinstance(command, dict):
            summary = "Describe, check, repair, show, export and push recorded trajectories."
        else:
            summary = (command.__doc__ or "").strip().replace("\n    ", "\n")
        sub = parser.commands[name] = Parser(description=summary)
        added.add_subcommand(name, sub, help=summary.splitlines()[0])
        if isinstance(command, dict):
            _add_commands(sub, command, "action", "actions")
        else:
            _add_options(sub, command)


def _add_options(parser: Parser, command: Command) -> None:
    parser.add_argument("--config", action="config", help="YAML file with options of this command.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON, and nothing else, on stdout.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    for group in option_groups(command).values():
        parser.add_class_arguments(group, as_group=False)


def check_recipe(path: str, parser: Parser) -> None:
    """Check that commands have all the keys of a recipe, in every section.

    Raises:
        ValueError: The file cannot be read, or a key is unknown; the message names the nearest known one.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: expected a YAML mapping with a section per command, got {type(recipe).__name__}")
    for command, section in recipe.items():
        if not isinstance(section, dict):
            raise ValueError(f"{path}, section {command}: expected options with their values, got {section!r}")
        _check_known(path, str(command), set(parser.commands))
        _check_section(f"{path}, section {command}", section, parser.commands[command].known_keys())


def _check_section(where: str, section: dict[str, Any], known: set[str], prefix: str = "") -> None:
    for key, value in section.items():
        _check_known(where, f"{prefix}{key}", known)
        if isinstance(value, dict):
            _check_section(where, value, known, f"{prefix}{key}.")


def _check_known(where: str, name: str, known: set[str]) -> None:
    if name not in known:
        hint = _nearest(name, known) or f"{name!r} is not known; known: {', '.join(sorted(known))}"
        raise ValueError(f"{where}: {hint}")


def _nearest(word: str, known: set[str]) -> str:
    """A hint that names the known word nearest to an unknown one; empty if the word is known or none is near."""
    beginning = sorted(key for key in known if key.startswith(word))
    near = [] if word in known else difflib.get_close_matches(word, known, 1) or beginning
    return f"{word!r} is not known; did you mean {near[0]!r}?" if near else ""
