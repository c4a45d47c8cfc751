"""Files by name in one folder or bucket, each published whole and sealed with its own checksum.

A local folder is memory-mapped; anything else is an fsspec URL (s3://, gs://, hf://, memory://), whose files are read
and put whole, as object stores do it. Nothing here locks: whoever publishes last wins, and nothing waits for the dead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

SEAL = "sha256:" + "0" * 64
"""What a file to be sealed holds, once or more; its checksum takes the place of the zeros."""
REPAIR = "`ardistill trajectories repair` makes it again, or delete it and run the same record command"
"""What to do about a broken file of trajectories."""


class Store:
    """A folder or bucket.

    Args:
        url: A path, or a URL of fsspec; chained ones (``filecache::s3://bucket/x``) keep local copies.

    Raises:
        ValueError: No file system of that name, or its package is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.fs: Any = None
        self.path = self.url
        if "://" in self.url or "::" in self.url:
            try:
                self.fs, self.path = fsspec.core.url_to_fs(self.url)
            except (ImportError, ValueError, OSError) as error:
                raise ValueError(f"{self.url} cannot be opened: {error}") from error
            if isinstance(self.fs, LocalFileSystem):
                self.fs = None
        self.folder = None if self.fs else Path(self.path)
        """Of a local store; None of a remote one."""

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        """Path or URL of a file.

        Raises:
            ValueError: The name is no plain file name: nothing outside the store is ever touched.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"expected a plain file name in {self.url}, got {name!r}")
        return f"{self.path.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Name and bytes of every file there, hidden ones apart; none if the folder is missing.

        Raises:
            ValueError: It cannot be listed.
        """
        try:
            if self.folder is not None:
                with os.scandir(self.folder) as entries:
                    return {x.name: x.stat().st_size for x in entries if x.name[0] != "." and x.is_file()}
            self.fs.invalidate_cache()
            found = self.fs.ls(self.path, detail=True)
            return {x["name"].rpartition("/")[2]: int(x["size"] or 0) for x in found if x["type"] == "file"}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ValueError(f"{self.url} cannot be listed: {_reason(error)}") from error

    def exists(self, name: str) -> bool:
        """Whether a file of that name has been published."""
        where = self.where(name)
        try:
            if self.folder is not None:
                return os.path.isfile(where)
            self.fs.invalidate_cache()
            return bool(self.fs.isfile(where))
        except OSError as error:
            raise ValueError(f"{where} cannot be looked up: {_reason(error)}") from error

    def read(self, name: str) -> memoryview:
        """All bytes of a file; of a local one mapped, so that only what is touched is read.

        The mapping holds no file descriptor: a store may have more shards than a process may open files.

        Raises:
            ValueError: It is missing or cannot be read.
        """
        where = self.where(name)
        try:
            if self.folder is None:
                return memoryview(self.fs.cat_file(where))
            size = os.path.getsize(where)
            if not size:
                return memoryview(b"")
            return torch.from_file(where, shared=False, size=size, dtype=torch.uint8).numpy().data.toreadonly()
        except FileNotFoundError as error:
            raise ValueError(f"{where} is missing; run the same record command again, it makes what is missing") from (
                error
            )
        except (OSError, RuntimeError) as error:  # torch's, where a file cannot be opened
            raise ValueError(f"{where} cannot be read: {_reason(error)}") from error

    def read_head(self, name: str, count: int) -> bytes:
        """The first bytes of a file, and no more of it.

        Raises:
            ValueError: It is missing or cannot be read.
        """
        if self.folder is not None:
            return bytes(self.read(name)[:count])
        try:
            return bytes(self.fs.cat_file(self.where(name), 0, count))
        except OSError as error:
            raise ValueError(f"{self.where(name)} cannot be read: {_reason(error)}") from error

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """What tells that a local file is the one that it was: another one of its name is another file, of another
        time. None of a remote one, or one that is missing.
        """
        if self.folder is None:
            return None
        try:
            found = os.stat(self.where(name))
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def publish(self, name: str, data: bytes) -> None:
        """Put a file under its name only once all of it is there.

        Raises:
            ValueError: It cannot be written, say because the disk is full. Nothing is left behind.
        """
        where = self.where(name)
        try:
            if self.folder is None:
                self.fs.makedirs(self.path, exist_ok=True)
                self.fs.pipe_file(where, data)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._replace(name, data):
                pass
            sync_folder(self.folder)
        except OSError as error:
            raise ValueError(
                f"{where} cannot be written: {_reason(error)}; what is there is whole, the same command again goes on"
            ) from error

    def _replace(self, name: str, data: bytes) -> bool:
        """Write and rename; not done if another process swept the half away, having found all it needs."""
        assert self.folder is not None
        temporary = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"  # of this call: threads, forks, other machines
        try:
            _write(temporary, data)
            _publish(temporary, self.folder / name)
            return True
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        where = self.where(name)
        try:
            if self.folder is not None:
                Path(where).unlink(missing_ok=True)
            elif self.exists(name):
                self.fs.rm_file(where)
        except OSError as error:
            raise ValueError(f"{where} cannot be deleted: {_reason(error)}") from error

    def leftovers(self) -> list[Path]:
        """Halves of files whose writers were killed, or are still at it."""
        return sorted(self.folder.glob(".*.tmp")) if self.folder is not None else []

    def sweep(self) -> None:
        """Remove them. A writer that is still at it starts again."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Publish a file under its name once all of it is on disk.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    with whole_file(path) as temporary:
        _write(temporary, data)


def check_target(path: str | Path, endings: Sequence[str] = ()) -> None:
    """See that a file can be written, before the work whose result it is to hold.

    Args:
        path: Of the file.
        endings: What its name may end in, each with its dot; anything if not given.

    Raises:
        ValueError: Its folder is missing or may not be written, it is a folder or a device itself, or its name ends
            otherwise.
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
    """See that a folder can be made or written to, before the work whose results it is to hold.

    Raises:
        ValueError: It cannot, or it is a URL, which as a path would be a folder named after its scheme.
    """
    if "://" in str(folder):
        raise ValueError(f"expected a local folder, got the URL {folder}; name a folder, and copy it there afterwards")
    found = Path(folder).resolve()
    while not found.exists():
        found = found.parent
    if not found.is_dir() or not os.access(found, os.W_OK):
        raise ValueError(f"{folder} cannot be written: {found} is a file or read-only; name another folder")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, in the same folder, which is renamed to ``path`` once all of it is on disk.

    If the block ends by an exception, nothing is left, and what was there before is as it was.

    Raises:
        ValueError: As `check_target`.
        OSError: It cannot be written.
    """
    check_target(path)
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write to, beside ``folder``, which takes its name once all of it is on disk.

    If the block ends by an exception, nothing is left; what a killed process left is removed by the next one.

    Args:
        folder: Must not exist or be empty.

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
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path) if path.is_file() else sync_folder(path)
        sync_folder(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _publish(temporary: Path, path: Path) -> None:
    """Rename a file once all of it is on disk, readable for those who may read any new file of this process."""
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, as ``fsync`` does a file's contents; where its file system can do that."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES):
            raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]


def _digest(data: bytes | memoryview, seal: bytes) -> str:
    """SHA-256 of ``data`` with zeros in the place of its seal."""
    digest, position, view = hashlib.sha256(), 0, memoryview(data)
    for found in re.finditer(re.escape(seal), data):
        digest.update(view[position : found.start()])
        digest.update(SEAL.encode())
        position = found.end()
    digest.update(view[position:])
    return digest.hexdigest()


def seal(data: bytes) -> bytes:
    """Put the checksum of a file into it, wherever ``SEAL`` stands: one object, so that no writer can mix two."""
    blank = SEAL.encode()
    assert blank in data
    return data.replace(blank, f"sha256:{_digest(data, blank)}".encode())


def check_seal(data: bytes | memoryview, where: str, remedy: str = REPAIR) -> None:
    """See that a file is what was sealed, to the last byte; else the error ends with ``remedy``.

    Raises:
        ValueError: It is not.
    """
    found = re.search(rb"sha256:[0-9a-f]{64}", data)
    if found is None or found[0].decode() != f"sha256:{_digest(data, found[0])}":
        raise ValueError(f"{where} is not what its checksum says; {remedy}")


def sealed_json(data: dict[str, Any]) -> bytes:
    """A JSON object with the checksum of its own text."""
    return seal(json.dumps(data | {"seal": SEAL}, indent=2).encode())


def read_json(path: Path) -> Any:
    """What a JSON file of a run or an export holds, but for its seal, which is checked if it has one.

    Raises:
        ValueError: It is missing, cut, no JSON or not what was sealed.
    """
    try:
        raw = path.read_bytes()
        found = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing, cut or damaged ({error}); write it again, from its run") from error
    if isinstance(found, dict) and found.pop("seal", None) is not None:
        check_seal(raw, str(path), "write it again, from its run; if you changed it yourself, take out its seal")
    return found
