"""Push a recording to the Hub as a data set, in the Parquet form: for the viewer, for `datasets` and to train from."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import DatasetCard

from ardistill.files import Store, check_folder
from ardistill.publishing.hub import check_push, staged, upload
from ardistill.publishing.origin import checked_license, teacher_license
from ardistill.trajectories import Manifest, export_parquet
from ardistill.trajectories.manifest import MANIFEST
from ardistill.trajectories.parquet import PLACE
from ardistill.trajectories.parquet_files import FOLDER, is_parquet


def push_trajectories(
    trajectories: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Push a recording to the Hub as a data set; the same call again continues an interrupted push.

    ``TrajectoryDataset("hf://datasets/you/name", num_steps)`` reads it back, ``datasets.load_dataset("you/name")`` as a
    table.

    Args:
        trajectories: Folder or URL that ``record`` wrote, complete, or a folder that ``export_parquet`` wrote.
        repo_id: Name of the repository, with the user or organization: ``you/name``.
        private: Make the repository private, if it is a new one.
        license: Licence for the card, as the Hub writes it; if not given, that of the teacher's card, or none.
        out: Folder for the Parquet files, which is kept; if not given, a hidden one beside the recording, which is
            removed after the push.

    Returns:
        The repository's address.

    Raises:
        ValueError: The recording is not complete, the Hub cannot be reached or refuses, or the repository holds
            something else.
    """
    store = Store(trajectories)
    manifest = Manifest.read(store)
    inherited = teacher_license(manifest.teacher)
    chosen = inherited if license is None else checked_license(license, inherited)
    check_push(repo_id, private=private, kind="dataset")
    _check_recording(repo_id, manifest)
    with _exported(store, manifest, chosen, out) as folder:
        card = DatasetCard.load(folder / "README.md")
        url = f'TrajectoryDataset("hf://datasets/{repo_id}"'
        card.text = card.text.replace(f'TrajectoryDataset("{PLACE}"', url).replace(PLACE, repo_id)
        for name, value in chosen.items():
            card.data[name] = value
        title = f"{manifest.num_trajectories:,} trajectories"
        with staged(folder, {"README.md": str(card)}) as linked:
            replaced = [f"{FOLDER}/train-*.parquet", "conditions*.safetensors"]
            return upload(linked, repo_id, private=private, message=title, kind="dataset", replaced=replaced)


def _check_recording(repo_id: str, manifest: Manifest) -> None:
    """Check that a repository, if it holds a recording, holds this one, perhaps with other numbers of trajectories.

    Raises:
        ValueError: It holds another one.
    """
    there = Store(f"hf://datasets/{repo_id}")
    if there.exists(MANIFEST) and (differing := manifest.differences(Manifest.read(there))):
        raise ValueError(f"{repo_id} holds another recording ({'; '.join(differing)}); choose another name")


@contextlib.contextmanager
def _exported(store: Store, manifest: Manifest, license: dict[str, str], out: str | Path | None) -> Iterator[Path]:
    """Yield a folder with the Parquet form of a recording."""
    if store.folder is not None and is_parquet(store, manifest, store.sizes()):
        yield store.folder
        return
    if out is not None:
        check_folder(out)
        export_parquet(store.url, out, license=license)
        yield Path(out)
        return
    if store.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            export_parquet(store.url, temporary, license=license)
            yield Path(temporary)
        return
    hidden = store.folder.resolve().with_name(f".{store.folder.resolve().name}.parquet")
    check_folder(hidden)
    if hidden.exists() and (not (hidden / MANIFEST).is_file() or _is_older(hidden, manifest)):
        shutil.rmtree(hidden)
    export_parquet(store.url, hidden, license=license)
    yield hidden
    shutil.rmtree(hidden)


def _is_older(hidden: Path, manifest: Manifest) -> bool:
    """Whether an interrupted push left the Parquet form of a recording before it grew, or of another recording."""
    found = Manifest.read(Store(hidden))
    return bool(manifest.differences(found)) or found.num_trajectories != manifest.num_trajectories
