"""Files by name in one folder or bucket, each published whole.

A local folder is memory-mapped; anything else is an fsspec URL (s3://, gs://, hf://, memory://), whose files are read
and written whole, as object stores do. There are no locks: of two writers of one name the last one wins, and a killed
writer blocks nobody.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from ardistill.files.whole import publish_file, write_bytes


class Store:
    """A folder or bucket.

    Args:
        url: A path, or a URL that fsspec knows; chained ones (``filecache::s3://bucket/x``) keep local copies.

    Raises:
        ValueError: fsspec knows no file system of that name, or its package is not installed.
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
        """The folder of a local store; None for a remote one."""

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        """Path or URL of a file.

        Raises:
            ValueError: The name is not a plain file name: nothing outside the store is ever touched.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"expected a plain file name in {self.url}, got {name!r}")
        return f"{self.path.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Map the name of every file that is not hidden to its size in bytes; empty if the folder is missing.

        Raises:
            ValueError: The store cannot be listed.
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
        """Whether a file of that name has been published.

        Raises:
            ValueError: The store cannot be accessed.
        """
        where = self.where(name)
        try:
            if self.folder is not None:
                return os.path.isfile(where)
            self.fs.invalidate_cache()
            return bool(self.fs.isfile(where))
        except OSError as error:
            raise ValueError(f"{where} cannot be looked up: {_reason(error)}") from error

    def read(self, name: str) -> memoryview:
        """All bytes of a file. A local file is mapped, so that only the parts that are used are read.

        The mapping holds no file descriptor: a store may have more shards than a process may open files.

        Raises:
            ValueError: The file is missing or cannot be read.
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
        except (OSError, RuntimeError) as error:  # RuntimeError: torch cannot open the file
            raise ValueError(f"{where} cannot be read: {_reason(error)}") from error

    def read_head(self, name: str, count: int) -> bytes:
        """The first ``count`` bytes of a file; of a remote one nothing else is fetched.

        Raises:
            ValueError: The file is missing or cannot be read.
        """
        if self.folder is not None:
            return bytes(self.read(name)[:count])
        try:
            return bytes(self.fs.cat_file(self.where(name), 0, count))
        except OSError as error:
            raise ValueError(f"{self.where(name)} cannot be read: {_reason(error)}") from error

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Size, time of change and inode of a local file, which tell whether it was replaced since.

        None if the store is remote or the file is missing.
        """
        if self.folder is None:
            return None
        try:
            found = os.stat(self.where(name))
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def publish(self, name: str, data: bytes) -> None:
        """Publish a file under its name once all of it is stored.

        Raises:
            ValueError: The file cannot be written, for example because the disk is full. No partial file is left.
        """
        where = self.where(name)
        try:
            if self.folder is None:
                self.fs.makedirs(self.path, exist_ok=True)
                self.fs.pipe_file(where, data)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._publish_locally(name, data):
                pass
        except OSError as error:
            raise ValueError(
                f"{where} cannot be written: {_reason(error)}; what is there is whole, the same command again goes on"
            ) from error

    def _publish_locally(self, name: str, data: bytes) -> bool:
        """Write and rename; False if another process, whose recording is complete, swept the temporary file away."""
        assert self.folder is not None
        temporary = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"  # unique among threads, processes and machines
        try:
            write_bytes(temporary, data)
            publish_file(temporary, self.folder / name)
            return True
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            ValueError: It cannot be removed.
        """
        where = self.where(name)
        try:
            if self.folder is not None:
                Path(where).unlink(missing_ok=True)
            elif self.exists(name):
                self.fs.rm_file(where)
        except OSError as error:
            raise ValueError(f"{where} cannot be deleted: {_reason(error)}") from error

    def leftovers(self) -> list[Path]:
        """Temporary files of writers that were killed or are still writing."""
        return sorted(self.folder.glob(".*.tmp")) if self.folder is not None else []

    def sweep(self) -> None:
        """Remove all temporary files. A writer that is still writing starts again."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
