"""A stand-in of the Hub on this machine: the part of its HTTP API that huggingface_hub calls to push and to read.

It is a real server in a thread. It keeps repositories in memory, asks for tokens, and can fail on request:

    with Hub() as hub:
        hub.point_here(monkeypatch)             # in this process; subprocesses: env=hub.environment(folder)
        hub.fails("PUT", "/lfs/", times=1)      # the next such request loses its connection half way

It speaks the LFS protocol, not Xet, and switches Xet off. With ``large_from`` beyond every file, no file needs either;
then ``xet=True`` lets huggingface_hub take the way that it takes by default, which commits while it uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LICENSES = ("apache-2.0", "mit", "openrail++", "cc-by-nc-4.0", "other", "unknown")
"""Licences that the stand-in knows, of the Hub's list."""


@dataclass
class Repository:
    """One repository with its history."""

    kind: str
    name: str
    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])
    """Messages, the oldest first."""

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join([self.name, *self.commits]).encode()).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        found = re.match(r"---\n(.*?)\n---", self.files.get("README.md", b"").decode(), re.S)
        return yaml.safe_load(found[1]) if found else {}


@dataclass
class _Failure:
    method: str
    path: str
    times: int
    status: int | None


class Hub:
    """The server, a context manager.

    Args:
        users: Token -> name, or name and what the token may do: ``{"hf_me": "me", "hf_guest": ("guest", "read")}``.
        organizations: Name of an organization -> its members.
        large_from: Size in bytes from which a file is stored as LFS.
    """

    def __init__(
        self,
        users: dict[str, str | tuple[str, str]] | None = None,
        organizations: dict[str, list[str]] | None = None,
        large_from: int = 10_000,
    ) -> None:
        given = {"hf_me": "me"} if users is None else users
        self.users = {token: (user, "write") if isinstance(user, str) else user for token, user in given.items()}
        self.organizations = organizations or {}
        self.large_from = large_from
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        """Contents of LFS files by their SHA-256, those of interrupted pushes too."""
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request, the oldest first."""
        self._failures: list[_Failure] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fails(self, method: str, path: str, times: int = 1, status: int | None = None) -> None:
        """Let the next requests fail whose path contains ``path``: by a status, or by a connection that is cut."""
        self._failures.append(_Failure(method, path, times, status))

    def mend(self) -> None:
        """Let no request fail any more."""
        self._failures.clear()

    def failure(self, method: str, path: str) -> _Failure | None:
        """The failure that a request meets, counted down."""
        found = next((x for x in self._failures if x.times and x.method == method and x.path in path), None)
        if found is not None:
            found.times -= 1
        return found

    def may_write(self, user: tuple[str, str] | None, name: str) -> bool:
        namespace = name.partition("/")[0]
        return user is not None and user[1] == "write" and (user[0] == namespace or user[0] in self.members(namespace))

    def members(self, organization: str) -> list[str]:
        return self.organizations.get(organization, [])

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repository:
        """A repository that is there already."""
        made = self.repositories[kind, name] = Repository(kind, name, private)
        made.files |= files
        return made

    def environment(self, home: Path, token: str | None = "hf_me") -> dict[str, str]:
        """Variables for a process that talks to this server, with an empty cache in ``home``."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        found |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_CACHE": str(home / "hub")}
        found |= {"HF_MODULES_CACHE": str(home / "modules"), "HF_DATASETS_CACHE": str(home / "datasets")}
        return found | ({} if token is None else {"HF_TOKEN": token})

    def point_here(self, monkeypatch: Any, home: Path, token: str | None = "hf_me", xet: bool = False) -> None:
        """Let huggingface_hub of this process talk to this server; retries do not wait.

        Args:
            monkeypatch: Pytest's fixture.
            home: Folder of an empty cache.
            token: The token of this process, if it has one.
            xet: Whether huggingface_hub takes the way that it takes where hf_xet is installed.
        """
        from huggingface_hub import HfFileSystem, constants, file_download, hf_file_system

        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": not xet, "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        for module in (file_download, hf_file_system):  # earlier versions keep a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        HfFileSystem.clear_instance_cache()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    """Answers one request after the other of one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    _ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/[^/]+)?", "info"),
        ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", "tree"),
        ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/paths-info/[^/]+", "paths_info"),
        ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/preupload/[^/]+", "preupload"),
        ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/commit/[^/]+", "commit"),
        ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_put"),
        ("POST", r"/lfs/(\w+)/verify", "lfs_verify"),
        ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.*)", "resolve"),
    )

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        failure = self.hub.failure(self.command, path)
        self.body = self._read(half=failure is not None and failure.status is None)
        if failure is not None and failure.status is None:
            self.close_connection = True
            self.connection.close()
            return
        if failure is not None:
            return self.answer({"error": "as asked for"}, failure.status or 500)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        if token and self.user is None:
            return self.answer({"error": "Invalid credentials"}, 401, {"X-Error-Message": "Invalid credentials"})
        for of, pattern, name in self._ROUTES:
            if of == method and (found := re.fullmatch(pattern, path)):
                return getattr(self, name)(*found.groups())
        self.answer({"error": f"the stand-in has no {method} {path}"}, 404)

    def _read(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size // 2 if half else size)

    def answer(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(raw)), "Content-Type": "application/json", **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def repository(self, kind: str | None, name: str) -> Repository | None:
        """The repository that is asked for, if the user may see it; the answer says so otherwise."""
        found = self.hub.repositories.get(("dataset" if (kind or "").startswith("dataset") else "model", name))
        if found is None or (found.private and not self.hub.may_write(self.user, name)):
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def written(self, kind: str | None, name: str) -> Repository | None:
        """The repository that is to be written, if the user may."""
        found = self.repository(kind, name)
        if found is not None and not self.hub.may_write(self.user, name):
            self.answer({"error": "Forbidden: you may not write here"}, 403)
            return None
        return found

    def whoami(self) -> None:
        if self.user is None:
            return self.answer({"error": "Unauthorized"}, 401)
        name, role = self.user
        groups = [{"name": x, "roleInOrg": "write"} for x in self.hub.organizations if name in self.hub.members(x)]
        self.answer({"type": "user", "name": name, "orgs": groups, "auth": {"accessToken": {"role": role}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        kind = asked.get("type") or "model"
        name = f"{asked['organization'] or (self.user or ('',))[0]}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"}
        if (kind, name) in self.hub.repositories:
            return self.answer({"error": "You already created this repo", **url}, 409)
        if not self.hub.may_write(self.user, name):
            return self.answer({"error": "You don't have the rights to create a repo in this namespace"}, 403)
        self.hub.repositories[kind, name] = Repository(
            kind, name, asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        self.answer(url)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        card = Repository("", "", files={"README.md": content.encode()}).card
        wrong = (
            [] if card.get("license", "mit") in LICENSES else [{"message": '"license" must be one of the known ones'}]
        )
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def info(self, kind: str, name: str) -> None:
        if (found := self.repository(kind, name)) is not None:
            self.answer(
                {"id": name, "sha": found.sha, "private": found.private, "cardData": found.card, "downloads": 0,
                 "tags": found.card.get("tags", []), "siblings": [{"rfilename": x} for x in sorted(found.files)]}
            )  # fmt: skip

    def entry(self, found: Repository, path: str) -> dict[str, Any]:
        data = found.files[path]
        entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        if len(data) >= self.hub.large_from:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def tree(self, kind: str, name: str, folder: str | None) -> None:
        if (found := self.repository(kind, name)) is None:
            return
        prefix = f"{folder}/" if folder else ""
        paths = [x for x in sorted(found.files) if x.startswith(prefix)]
        if prefix and not paths:
            return self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        if "recursive=true" in self.path.lower() or "recursive=1" in self.path.lower():
            return self.answer([self.entry(found, x) for x in paths])
        folders = sorted({x[len(prefix) :].split("/")[0] for x in paths if "/" in x[len(prefix) :]})
        files = [self.entry(found, x) for x in paths if "/" not in x[len(prefix) :]]
        self.answer([*({"type": "directory", "path": f"{prefix}{x}", "oid": "0" * 40} for x in folders), *files])

    def paths_info(self, kind: str, name: str) -> None:
        if (found := self.repository(kind, name)) is None:
            return
        asked = json.loads(self.body)["paths"]
        folders = [x for x in asked if any(y.startswith(f"{x}/") for y in found.files)]
        files = [self.entry(found, x) for x in asked if x in found.files]
        self.answer([*files, *({"type": "directory", "path": x, "oid": "0" * 40} for x in folders)])

    def preupload(self, kind: str, name: str) -> None:
        if (found := self.written(kind, name)) is None:
            return
        files = []
        for asked in json.loads(self.body)["files"]:
            large = asked["size"] >= self.hub.large_from
            there = found.files.get(asked["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _blob(there)
            mode = "lfs" if large else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def lfs_batch(self, kind: str | None, name: str) -> None:
        if self.written(kind, name) is None:
            return
        objects = []
        for x in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/lfs/{x['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append({**x, **({} if x["oid"] in self.hub.objects else {"actions": actions})})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "other contents than announced"}, 400)
        self.hub.objects[oid] = self.body
        self.answer({})

    def lfs_verify(self, oid: str) -> None:
        self.answer({}, 200 if oid in self.hub.objects else 404)

    def commit(self, kind: str, name: str) -> None:
        if (found := self.written(kind, name)) is None:
            return
        files, message = dict(found.files), ""
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                message = value["summary"]
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        found.files, found.commits = files, [*found.commits, message]
        url = f"{self.hub.url}/{name}/commit/{found.sha}"
        self.answer({"success": True, "commitUrl": url, "commitOid": found.sha, "hookOutput": ""})

    def resolve(self, kind: str | None, name: str, path: str) -> None:
        if (found := self.repository(kind, name)) is None:
            return
        if path not in found.files:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = found.files[path]
        oid = self.entry(found, path).get("lfs", {}).get("oid") or _blob(data)
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            end = min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {part[1]}-{end}/{len(data)}"
            return self.answer(data[int(part[1]) : end + 1], 206, headers)
        self.answer(data, 200, headers)
