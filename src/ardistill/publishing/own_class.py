"""A transformer class that diffusers lacks: an export carries its file beside the weights, where diffusers looks."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import diffusers

from ardistill.families import family_of, transformer_class


def own_file(class_name: str) -> Path | None:
    """The file of a transformer's class that diffusers lacks; None for a class of diffusers.

    Raises:
        ValueError: An export could not load it without this package: its family names no pipeline of diffusers, or the
            file of the class imports another one of its project.
    """
    if hasattr(diffusers, class_name):
        return None
    reason = f"diffusers has no class {class_name}, so that its folder would not load with diffusers alone"
    if not hasattr(diffusers, family_of(class_name).pipeline or "-"):
        raise ValueError(
            f"{reason}: name in the family's pipeline the pipeline of diffusers whose loop calls the class; "
            "Student.from_pretrained loads what distill wrote"
        )
    file = Path(inspect.getfile(transformer_class(class_name)))
    for name in _imported(file):
        if name.startswith((".", "ardistill")) or (file.parent / f"{name}.py").is_file():
            raise ValueError(
                f"{reason}: its file {file.name} imports {name}, which does not go with it; write the class into a "
                "file that imports installed packages alone, and call register_family in another one"
            )
    return file


def _imported(file: Path) -> set[str]:
    """Names of the packages or modules that a file imports, relative ones with their dot."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).split(".")[0])
    return found


def write_own_class(file: Path, folder: Path) -> str:
    """Copy the file of a class into the folder of its weights; the name of the module.

    diffusers caches modules by file name, so the name follows from the contents.
    """
    source = file.read_bytes()
    name = f"transformer_{hashlib.sha256(source).hexdigest()[:8]}"
    (folder / f"{name}.py").write_bytes(source)
    return name
