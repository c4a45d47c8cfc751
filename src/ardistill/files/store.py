"""Files by name in one folder or bucket, each published whole.

A local folder is memory-mapped; anything else is an fsspec URL (s3://, gs://, hf://, memory://), whose files are read
and written whole, as object stores do. There are no locks: of two writers of one name the last one wins, and a killed
writer blocks nobody. Requests to an object store are repeated, with growing pauses, by the package that makes them.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from ardistill.files.whole import publish_file, write_bytes

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "obs", "oci"}
"""Protocols of stores that have buckets and no folders."""
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
"""Classes of errors, none of them a PermissionError, that are raised where credentials are missing."""


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
                self.fs, self.path = fsspec.core.url_to_fs(self.url, **_s3_options(self._protocol))
            except (ImportError, ValueError, OSError) as error:
                package = "; pip install 'ardistill[s3]'" if "s3fs" in str(error) else ""
                raise ValueError(f"{self.url} cannot be opened: {error}{package}") from error
            if isinstance(self.fs, LocalFileSystem):
                self.fs = None
        self.folder = None if self.fs else Path(self.path)
        """The folder of a local store; None for a remote one."""

    def __str__(self) -> str:
        return self.url

    @property
    def _protocol(self) -> str:
        """Protocol of the URL, and of the last part of a chained one."""
        return self.url.rpartition("::")[2].partition("://")[0]

    @contextlib.contextmanager
    def _explained(self, failure: str, remedy: str = "") -> Iterator[None]:
        """Context in which what a file system raises becomes one ValueError.

        Args:
            failure: What failed.
            remedy: What to do about it on a disk; elsewhere it follows from the error.
        """
        try:
            yield
        except Exception as error:
            if self.fs is not None:
                remedy = _remote_remedy(error, self._protocol)
            elif not isinstance(error, (OSError, RuntimeError)):
                raise
            raise ValueError("; ".join(filter(None, (f"{failure}: {_reason(error)}", remedy)))) from error

    def find_missing_bucket(self) -> str | None:
        """Name of the bucket, if the store is in one that does not exist; None if it exists or cannot be looked up."""
        if self._protocol not in _OBJECT_STORES:
            return None
        bucket = self.path.strip("/").partition("/")[0]
        try:
            self.fs.info(bucket)
        except FileNotFoundError:
            return bucket
        except Exception:  # a bucket of which only some objects may be accessed
            return None
        return None

    def where(self, name: str) -> str:
        """Path or URL of a file.

        Raises:
            ValueError: The name is not a plain file name: nothing outside the store is ever touched.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"expected a plain file name in {self.url}, got {name!r}")
        folder = self.url if self._protocol in _OBJECT_STORES and "::" not in self.url else self.path
        return f"{folder.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Map the name of every file that is not hidden to its size in bytes; empty if the folder is missing.

        Raises:
            ValueError: The store cannot be listed.
        """
        with self._explained(f"{self.url} cannot be listed"), contextlib.suppress(FileNotFoundError):
            if self.folder is not None:
                with os.scandir(self.folder) as entries:
                    return {x.name: x.stat().st_size for x in entries if x.name[0] != "." and x.is_file()}
            self.fs.invalidate_cache()
            found = self.fs.ls(self.path, detail=True)
            return {x["name"].rpartition("/")[2]: int(x["size"] or 0) for x in found if x["type"] == "file"}
        return {}

    def exists(self, name: str) -> bool:
        """Whether a file of that name has been published.

        Raises:
            ValueError: The store cannot be accessed.
        """
        where = self.where(name)
        with self._explained(f"{where} cannot be looked up"), contextlib.suppress(FileNotFoundError):
            if self.folder is not None:
                return os.path.isfile(where)
            self.fs.invalidate_cache()
            return bool(self.fs.info(where)["type"] == "file")  # isfile takes every error for absence
        return False

    def read(self, name: str) -> memoryview:
        """All bytes of a file. A local file is mapped, so that only the parts that are used are read.

        The mapping holds no file descriptor: a store may have more shards than a process may open files.

        Raises:
            ValueError: The file is missing or cannot be read.
        """
        where = self.where(name)
        with self._explained(f"{where} cannot be read"):  # a RuntimeError: torch cannot open the file
            try:
                if self.folder is None:
                    return memoryview(self.fs.cat_file(where))
                size = os.path.getsize(where)
                if not size:
                    return memoryview(b"")
                return torch.from_file(where, shared=False, size=size, dtype=torch.uint8).numpy().data.toreadonly()
            except FileNotFoundError:
                pass
        raise ValueError(f"{where} is missing; run the same record command again, it makes what is missing")

    def read_heads(self, names: Sequence[str], count: int) -> list[bytes]:
        """The first ``count`` bytes of each of some files; of remote ones nothing else is fetched, and all at once.

        Raises:
            ValueError: A file is missing or cannot be read.
        """
        if self.folder is not None:
            return [bytes(self.read(name)[:count]) for name in names]
        with self._explained(f"{self.url}: {names[0]} or another of its kind cannot be read"):
            return [bytes(x) for x in self.fs.cat_ranges([self.where(name) for name in names], 0, count)]

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
        with self._explained(f"{where} cannot be written", "what is there is whole, the same command again goes on"):
            if self.folder is None:
                self._publish_remotely(where, data)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._publish_locally(name, data):
                pass

    def _publish_remotely(self, where: str, data: bytes) -> None:
        """Write an object by one request, or by parts that become an object with the last request."""
        if self._protocol not in _OBJECT_STORES:
            self.fs.makedirs(self.path, exist_ok=True)
        try:
            self.fs.pipe_file(where, data)
        except FileNotFoundError as error:
            bucket = self.find_missing_bucket()
            raise FileNotFoundError(f"no bucket {bucket}" if bucket else str(error)) from error

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
        where, is_there = self.where(name), self.folder is not None or self.exists(name)
        with self._explained(f"{where} cannot be deleted"):
            if self.folder is not None:
                Path(where).unlink(missing_ok=True)
            elif is_there:
                self.fs.rm_file(where)

    def leftovers(self) -> list[Path]:
        """Temporary files of writers that were killed or are still writing."""
        return sorted(self.folder.glob(".*.tmp")) if self.folder is not None else []

    def sweep(self) -> None:
        """Remove all temporary files. A writer that is still writing starts again."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _remote_remedy(error: Exception, protocol: str) -> str:
    """What to do about an error of a file system that is reached by a URL."""
    if isinstance(error, PermissionError) or {x.__name__ for x in type(error).__mro__} & _NO_CREDENTIALS:
        names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if protocol == "s3" else protocol
        return f"check your credentials ({names}) and what they allow there"
    if isinstance(error, FileNotFoundError) and protocol in _OBJECT_STORES:
        return "make the bucket, or name another"
    return "check the network and the address; what is there is whole, the same command again goes on"


def _s3_options(protocol: str) -> dict[str, Any]:
    """Options for s3fs, as an argument of ``url_to_fs``; fsspec's own configuration (FSSPEC_S3) goes before them.

    A request is repeated for about a minute in all, unless AWS_MAX_ATTEMPTS and AWS_RETRY_MODE say otherwise. An object
    is read by one request, whose body is read again if the connection breaks; with more, s3fs asks for its size first.
    """
    if protocol not in ("s3", "s3a"):
        return {}
    attempts, mode = os.environ.get("AWS_MAX_ATTEMPTS", "10"), os.environ.get("AWS_RETRY_MODE", "standard")
    retries = {"total_max_attempts": int(attempts), "mode": mode}
    ours = {"config_kwargs": {"retries": retries}, "max_concurrency": 1, "use_listings_cache": False}
    return {protocol: {**ours, **fsspec.config.conf.get(protocol, {})}}
