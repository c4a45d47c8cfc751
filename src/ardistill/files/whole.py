"""Files and folders that appear under their name only once all of their bytes are on disk.

Everything is written under a temporary name, flushed with ``fsync`` and renamed; then the folder that holds the name is
flushed too. A process that is killed at any moment leaves either the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


def check_target(path: str | Path, endings: Sequence[str] = ()) -> None:
    """Check that a file can be written, before the work whose result it will hold.

    Args:
        path: Path of the file.
        endings: Allowed suffixes, each with its dot; any suffix if empty.

    Raises:
        ValueError: The folder is missing or not writable, the path is a folder or a device, or the suffix is not
            allowed.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"expected a file to write, {path} is a folder or a device; name a file")
    if endings and path.suffix not in endings:
        raise ValueError(f"expected a name that ends in {' or '.join(endings)}, got {path}; name another file")
    if not path.parent.is_dir():
        raise ValueError(f"expected a folder {path.parent} for {path.name}, found none; make it, or name another path")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: name a file in a folder that you may write")


def check_folder(folder: str | Path) -> None:
    """Check that a folder can be created or written to, before the work whose results it will hold.

    Raises:
        ValueError: It cannot, or it is a URL: as a local path, a URL would become a folder named after its scheme.
    """
    if "://" in str(folder):
        raise ValueError(f"expected a local folder, got the URL {folder}; name a folder, and copy it there afterwards")
    found = Path(folder).resolve()
    while not found.exists():
        found = found.parent
    if not found.is_dir() or not os.access(found, os.W_OK):
        raise ValueError(f"{folder} cannot be written: {found} is a file or read-only; name another folder")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in place, without any of this module's guarantees; `publish_file` then gives it its final name."""
    with open(path, "wb") as file:
        file.write(data)


def write_whole(path: Path, data: bytes) -> None:
    """Publish a file under its name once all of it is on disk.

    Raises:
        OSError: It cannot be written; an earlier file of that name is unchanged.
    """
    with whole_file(path) as temporary:
        write_bytes(temporary, data)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed to ``path`` once all of it is on disk.

    Whatever writes it, its permissions become those of any new file of this process. If the block raises, the temporary
    file is removed and an earlier file of that name is unchanged.

    Raises:
        ValueError: `check_target` refuses the path.
        OSError: It cannot be written.
    """
    check_target(path)
    path = Path(path).resolve()  # replaces the file that a link points to, not the link
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed process may have left it
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask itself can be read only by setting it, for all threads
        yield temporary
        temporary.chmod(mode)
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which is renamed to ``folder`` once all of it is on disk.

    If the block raises, the temporary folder is removed; the next call removes one that a killed process left.

    Args:
        folder: A path that does not exist, or an empty folder.

    Raises:
        ValueError: It is not empty.
        OSError: It cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty; choose a new folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_file(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk and rename it.

    Raises:
        OSError: It cannot be flushed or renamed.
    """
    _sync(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Flush a finished folder with everything in it to disk and rename it.

    Raises:
        OSError: It cannot be flushed or renamed.
    """
    for path in sorted(temporary.rglob("*"), reverse=True):
        _sync(path) if path.is_file() else sync_folder(path)
    sync_folder(temporary)
    temporary.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where its file system supports that.

    Raises:
        OSError: The file system supports it, and it failed.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES):
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
