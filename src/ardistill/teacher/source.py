"""Where a teacher is: an embedded one, a folder or file of this machine, or a model on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import diffusers
from huggingface_hub import HfApi, snapshot_download

from ardistill.teacher.variants import only_variant
from ardistill.zoo import FOLDERS

ZOO = {f"zoo/{name}": folder / "teacher" for name, folder in FOLDERS.items()}
"""Name of an embedded teacher -> its folder."""
_HUB_NAME = re.compile(r"(?P<base>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?(?::(?P<variant>\w+))?")
_PATH_NAME = re.compile(r"(?P<base>.+?)(?P<revision>)(?::(?P<variant>\w+))?")
ELSEWHERE = "say where the teacher is now with --teacher"
"""The remedy where a name, given or recorded, leads nowhere."""


@dataclass(frozen=True)
class Source:
    """Where a teacher was found."""

    name: str
    """A name that finds it again from any folder: an absolute path, or the Hub id or zoo name that was given."""
    folder: Path
    """The diffusers folder on this machine, or a file."""
    variant: str | None = None
    """The set of weights that was asked for by name, such as ``fp16``; None if no set was named."""


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """Split a name such as ``org/model@main:fp16`` into path or Hub id, revision and variant.

    If a file or folder of that name exists on this machine, the name is its path, with or without a ``:VARIANT``.
    """
    hub, path = _HUB_NAME.fullmatch(name), _PATH_NAME.fullmatch(name)
    if path is None or local_path(name).exists():
        return name, None, None
    found = path if hub is None or local_path(path["base"]).exists() else hub
    return found["base"], found["revision"] or None, found["variant"]


def hub_id(name: str) -> str | None:
    """The Hub id in a teacher's name; None for an embedded teacher and for a folder or file."""
    base = split_name(name)[0]
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) and not base.startswith("zoo/")
    return base if is_id and not Path(base).exists() else None


def public_name(name: str) -> str:
    """A teacher's name for others: of a folder or file the last part alone, as the rest of its path is private."""
    if name in ZOO:
        return name
    return hub_id(name) or Path(split_name(name)[0]).name or "an unnamed teacher"


def local_path(name: str | Path) -> Path:
    """The absolute path that a name stands for; symbolic links are not resolved.

    Raises:
        ValueError: The name begins with ``~`` and an unknown user.
    """
    try:
        return Path(os.path.abspath(Path(name).expanduser()))
    except RuntimeError as error:
        raise ValueError(
            f"{str(name)!r} names the home of a user whom this machine does not know; write it out"
        ) from error


def find_source(name: str | Path, parts: Iterable[str] | None = None, remedy: str = ELSEWHERE) -> Source:
    """Find a teacher on this machine, or download it from the Hub.

    Args:
        name: A zoo name, a folder, a file, or a Hub id. ``@REVISION`` may follow a Hub id, ``:VARIANT`` a Hub id or a
            folder.
        parts: Patterns of the files to download of a Hub id; the whole pipeline if not given.
        remedy: What to do if nothing is found, for the message.

    Raises:
        ValueError: Nothing is found; the message says where it was searched for and what to do.
    """
    name = str(name)
    if name in ZOO:
        return Source(name, ZOO[name])
    if name.startswith("zoo/") and not local_path(name).exists():
        raise ValueError(f"expected a teacher of the zoo, {', '.join(ZOO)}, got {name}")
    base, revision, variant = split_name(name)
    path = local_path(base)
    if path.exists():
        if revision:
            raise ValueError(f"{path} is a folder of this machine, which has no revision {revision!r}; leave it out")
        return Source(f"{path}:{variant}" if variant else str(path), path, variant)
    if Path(base).is_absolute() or base.startswith((".", "~")) or base.count("/") != 1:
        raise ValueError(
            "expected a diffusers folder or the id of a model on the Hub, such as facebook/DiT-XL-2-256, found nothing "
            f"at {path}; {remedy}"
        )
    try:
        return Source(name, Path(_download(base, revision, variant, parts)), variant)
    except Exception as error:  # the Hub's client raises many kinds
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"found no folder {path}, and could not load {base} from the Hub ({reason}); check the spelling, "
            f"the network and your access (hf auth login), or {remedy}"
        ) from error


def _download(repo: str, revision: str | None, variant: str | None, parts: Iterable[str] | None) -> str | Path:
    if parts is not None:
        return snapshot_download(repo, revision=revision, allow_patterns=[*parts])
    if variant is None:
        try:
            files = HfApi().list_repo_files(repo, revision=revision)
        except Exception:  # offline: the variants in the cache are checked when the weights are loaded
            files = []
        variant = only_variant([x.removeprefix("transformer/") for x in files], f"{repo}, transformer")
    return diffusers.DiffusionPipeline.download(repo, revision=revision, variant=variant)
