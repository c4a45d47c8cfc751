"""Push to the Hub: everything is checked before anything is uploaded, and an interrupted push goes on.

``upload_folder`` of huggingface_hub does the work: what the Hub has already is not uploaded again.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ardistill.errors import version
from ardistill.publishing.origin import checked_license
from ardistill.publishing.sections import NO_LICENSE, license_text
from ardistill.teacher import public_name
from ardistill.trajectories.parquet import PLACE, TAG

Kind = Literal["model", "dataset"]
_BLANK = {".gitattributes", "README.md"}
"""Files of a repository that was just made, in which nothing is lost."""
_LOG_IN = "log in with: hf auth login (or set HF_TOKEN) with a token that may write"


def push(folder: str | Path, repo_id: str, *, private: bool = False, license: str | None = None) -> str:
    """Push a student that ``export`` wrote to the Hub; the same call again continues an interrupted push.

    The repository is made if there is none. The card that is pushed names it; the folder is not changed.

    Args:
        folder: The folder that ``export`` wrote.
        repo_id: Name of the repository, with the user or organization: ``you/name``.
        private: Make the repository private, if it is a new one.
        license: Licence for the card, as the Hub writes it, such as ``apache-2.0``; the card's own if not given.

    Returns:
        The repository's address.

    Raises:
        ValueError: The folder is no export, its card names no licence, the Hub cannot be reached or refuses, or the
            repository holds something else.
    """
    card = _read_card(Path(folder))
    if license is not None:
        _set_license(card, license)
    if not card.data.get("license"):
        raise ValueError(
            f"expected a licence in the card of {folder}, found none, as the teacher's is not known; name the one that "
            "its authors allow, such as --license apache-2.0 (unknown, if you have to)"
        )
    check_push(repo_id, private=private)
    card.text = card.text.replace(PLACE, repo_id)
    title = next((line[2:] for line in card.text.splitlines() if line.startswith("# ")), "A few-step student")
    changed = {"README.md": str(card), "model_index.json": _public_index(Path(folder) / "model_index.json")}
    with staged(Path(folder), changed) as linked:
        return upload(linked, repo_id, private=private, message=title, replaced=["pipeline_*.py"])


def check_push(repo_id: str, *, private: bool = False, kind: Kind = "model") -> None:
    """Check all that a push needs, before the work whose result is to be pushed.

    Args:
        repo_id: Name of the repository, with the user or organization.
        private: Whether it is to be private.
        kind: What the repository holds.

    Raises:
        ValueError: The name is not valid, there is no token or it may not write there, the Hub cannot be reached, or
            the repository holds something that ardistill did not write or, though it is to be private, is public.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no name of a repository ({_first_line(error)}); name one as you/name"
        ) from error
    if repo_id.count("/") != 1:
        raise ValueError(f"expected a user or organization and a name, as in you/{repo_id}, got {repo_id!r}")
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{repo_id} cannot be pushed to: HF_HUB_OFFLINE is set; unset it, or leave out the push")
    api = _api()
    with _refusals(repo_id):
        _check_permission(api.whoami(), repo_id)
        found = _look_up(api, repo_id, kind)
    if found is None:
        return
    tags = (found.card_data.to_dict() if found.card_data else {}).get("tags") or []
    if TAG not in tags and {x.rfilename for x in found.siblings or []} - _BLANK:
        raise ValueError(
            f"{repo_id} holds something that ardistill did not write (its card has no tag {TAG}); choose another name"
        )
    if private and not found.private:
        raise ValueError(f"{repo_id} is there and public; make it private in its settings, or choose another name")


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    private: bool = False,
    kind: Kind = "model",
    replaced: Sequence[str] = (),
) -> str:
    """Make a repository if there is none and upload a folder, except what the repository has already.

    Args:
        folder: The folder.
        repo_id: Name of the repository, which `check_push` has checked.
        message: What is pushed, for the commit.
        private: Make a new repository private.
        kind: What the repository holds.
        replaced: Patterns of files that are removed from the repository where the folder has them no more.

    Returns:
        The repository's address.

    Raises:
        ValueError: The Hub cannot be reached or refuses.
    """
    api = _api()
    with _refusals(repo_id):
        url = api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=folder,
            commit_message=f"{message} (ardistill {version()})",
            ignore_patterns=[".*"],
            delete_patterns=[*replaced] or None,
        )
    return str(url)


def _api() -> HfApi:
    """The Hub's client with the user's token.

    Raises:
        ValueError: There is no token, or it is damaged; it is not shown.
    """
    token = get_token()
    if not token:
        raise ValueError(f"expected a token of the Hub, found none; {_LOG_IN}")
    if not re.fullmatch(r"[!-~]+", token):  # a message about an invalid header would show it
        raise ValueError(f"the token of the Hub has characters that no token has; {_LOG_IN}")
    return HfApi(token=token, library_name="ardistill", library_version=version())


def _check_permission(user: dict[str, Any], repo_id: str) -> None:
    """Check what the Hub says of the token's owner; a fine-grained token is judged by the Hub alone.

    Raises:
        ValueError: The token may only read, or not write to the namespace.
    """
    namespace, name = repo_id.split("/")
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(f"the token of {user.get('name')} may only read; {_LOG_IN}")
    own = [user.get("name"), *(x.get("name") for x in user.get("orgs", []))]
    if namespace not in own:
        raise ValueError(
            f"{user.get('name')} may not write to {namespace}, only to {', '.join(map(str, own))}; name "
            f"{own[0]}/{name}, or log in as someone who may"
        )


def _look_up(api: HfApi, repo_id: str, kind: Kind) -> Any:
    """What the Hub says of a repository; None if there is none."""
    try:
        return api.repo_info(repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        return None


@contextlib.contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    """Context in which what the Hub's client raises becomes one line; the token is in none.

    Raises:
        ValueError: In place of any other exception.
    """
    try:
        yield
    except Exception as error:  # the Hub's client raises those of several packages
        status, reason = getattr(getattr(error, "response", None), "status_code", None), _first_line(error)
        if status is None and isinstance(error, ValueError):  # of this module, or of the Hub's check of a card
            raise ValueError(" ".join(str(error).split())) from error
        if status == 401:
            raise ValueError(f"the Hub does not accept the token ({reason}); {_LOG_IN}") from error
        if status == 403:
            raise ValueError(f"the Hub does not let this token write to {repo_id} ({reason}); {_LOG_IN}") from error
        reason = _first_line(error.__cause__ or error)
        raise ValueError(
            f"{repo_id}: the push was interrupted ({reason}); nothing is lost, the same command again uploads what is "
            "missing"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__


@contextlib.contextmanager
def staged(folder: Path, changed: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder that links to the files of a folder, hidden ones left out.

    Args:
        folder: The folder, which is not changed.
        changed: Name of a file -> what it holds in the temporary folder; left out where that is empty.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.rglob("*"):
            place = path.relative_to(folder)
            if path.is_file() and str(place) not in changed and not any(x.startswith(".") for x in place.parts):
                (Path(temporary) / place).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / place).symlink_to(path.resolve())
        for name, text in changed.items():
            if text:
                (Path(temporary) / name).write_text(text)
        yield Path(temporary)


def _public_index(path: Path) -> str:
    """An export's ``model_index.json``, in which a teacher in a folder has lost its path; empty if there is none."""
    text = path.read_text() if path.is_file() else ""
    index = json.loads(text) if text else {}
    student = index.get("student") or index.get("_student")
    if not isinstance(student, dict) or not student.get("teacher"):
        return text
    return text.replace(json.dumps(student["teacher"]), json.dumps(public_name(student["teacher"])))


def _read_card(folder: Path) -> ModelCard:
    """The card of an export.

    Raises:
        ValueError: The folder is no export, or its card is damaged.
    """
    path = folder / "README.md"
    try:
        card = ModelCard.load(path) if path.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {path} cannot be read ({_first_line(error)}); correct them") from error
    if card is None or TAG not in (card.data.get("tags") or []):
        raise ValueError(f"expected a folder that export wrote, with its card, found none in {folder}; export again")
    return card


def _set_license(card: ModelCard, license: str) -> None:
    """Write a licence into a card, and what it is in the place where the card says that none is known."""
    before = {key: card.data.get(key) for key in ("license", "license_name", "license_link") if card.data.get(key)}
    given = checked_license(license, before)
    if given == before:
        return
    for key in before:
        card.data.pop(key)
    card.data["license"] = given["license"]
    card.text = card.text.replace(NO_LICENSE, license_text(given, {}))
