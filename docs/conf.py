"""Settings of the documentation, which `make docs` builds: Sphinx, MyST for Markdown, furo for the looks."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "ardistill"
author = "the ardistill contributors"
copyright = f"{author}, Apache-2.0"
release = metadata.version("ardistill")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included CHANGELOG or CONTRIBUTING may start below the first level

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "py:obj"  # docstrings put names between single backticks

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"ardistill {release}"
html_theme_options = {"navigation_with_keys": True}


class CommandHelp(Directive):
    """Shows the `--help` of a command, such as `record` or `trajectories info`, as it is printed."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        words = [] if self.arguments[0] == "ardistill" else self.arguments[0].split()
        command = [sys.executable, "-m", "ardistill", *words, "--help"]
        environment = os.environ | {"COLUMNS": "84"}
        text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        text = text.replace(" \b", "")  # jsonargparse has one in an option's name
        return [nodes.literal_block(text, text.rstrip(), language="text")]


def consume_whole(docstring: GoogleDocstring) -> tuple[str, list[str]]:
    """Read an attribute's or property's docstring as text; napoleon takes what stands before a colon for its type."""
    lines = docstring._dedent(docstring._consume_to_end())
    return "", docstring.__class__(lines, docstring._config).lines()


def skip_foreign(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leave out what a room imports from other packages; what it imports from its own modules is what it offers."""
    return True if not (getattr(member, "__module__", None) or "ardistill").startswith("ardistill") else None


def escape_bars(app: Sphinx, what: str, name: str, owner: object, options: object, lines: list[str]) -> None:
    """Show the bars of a norm as such; reStructuredText takes them for a substitution."""
    lines[:] = [x if "``" in x or x.lstrip().startswith(">>>") else x.replace("|", r"\|") for x in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", escape_bars)
    GoogleDocstring._consume_inline_attribute = consume_whole
    app.add_directive("command-help", CommandHelp)
