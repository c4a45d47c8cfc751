"""An S3 server in a process of its own: moto's, with latency, outages and cut connections on request.

python tests/object_server.py      # prints its port; ends when its standard input is closed
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}


class ObjectServer:
    """Context of a running server, reached through ``environment``; its content is lost at the end."""

    def __enter__(self) -> ObjectServer:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.environment = {"AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true", **CREDENTIALS}
        self.make_bucket("bucket")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)

    def _ask(self, path: str, method: str = "GET", data: bytes | None = None) -> str:
        kind = {"Content-Type": "application/octet-stream"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, data, kind, method=method), timeout=20
        ) as x:
            return x.read().decode()

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        self._ask(f"/{name}", "PUT")

    def delay(self, seconds: float) -> None:
        """Let every request wait for some seconds before it is answered."""
        self._ask(f"/-/delay?seconds={seconds}")

    def stop(self, seconds: float, after_puts: int = 0) -> None:
        """Refuse connections for some seconds, and keep the content.

        Args:
            seconds: How long.
            after_puts: 0: from now on. n: from the middle of the n-th upload from now on, whose connection is cut.
        """
        self._ask(f"/-/stop?seconds={seconds}&after_puts={after_puts}")

    def resume(self) -> None:
        """End a stop before its time."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while True:
            with contextlib.suppress(OSError):
                self._ask("/-/")
                return
            time.sleep(0.01)

    def cut(self, answers: int) -> None:
        """Send only half of each of the next answers to a GET of an object, then close the connection."""
        self._ask(f"/-/cut?answers={answers}")

    def requests(self) -> list[str]:
        """Method and path of every request since the last call."""
        return self._ask("/-/requests").split()

    def require_credentials(self, required: bool) -> None:
        """Refuse all access keys that the server has not given out, or accept any."""
        self._ask("/moto-api/reset-auth", "POST", b"0" if required else b"inf")


class _Faults:
    """A WSGI application that puts faults before another one."""

    def __init__(self, app: Callable[..., Iterable[bytes]], stop: Callable[[float], None]) -> None:
        self.app, self.stop = app, stop
        self.seconds, self.down_seconds, self.puts, self.cuts = 0.0, 0.0, 0, 0
        self.closed = False
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith("/-/"):
            answer = self.control(path[3:], dict(urllib.parse.parse_qsl(environ["QUERY_STRING"])))
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]
        if self.closed:  # a connection that was kept
            self.hang_up(environ)
        with self.lock:
            self.seen.append(f"{method}:{path}")
            self.puts -= method == "PUT" and self.puts > 0
            stops = method == "PUT" and self.puts == 0 and self.down_seconds > 0
            cuts = method == "GET" and self.cuts > 0 and path.count("/") > 1
            self.cuts -= cuts
            seconds, self.down_seconds = self.down_seconds, 0.0 if stops else self.down_seconds
        time.sleep(self.seconds)
        if stops:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            self.stop(seconds)
            self.hang_up(environ)
        answers = self.app(environ, start_response)
        return self._half(environ, answers) if cuts else answers

    def _half(self, environ: dict[str, Any], answers: Iterable[bytes]) -> Iterable[bytes]:
        whole = b"".join(answers)
        yield whole[: len(whole) // 2]
        self.hang_up(environ)

    @staticmethod
    def hang_up(environ: dict[str, Any]) -> NoReturn:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def control(self, what: str, options: dict[str, str]) -> bytes:
        if what == "delay":
            self.seconds = float(options["seconds"])
        elif what == "cut":
            self.cuts = int(options["answers"])
        elif what == "stop" and (puts := int(options["after_puts"])):
            self.down_seconds, self.puts = float(options["seconds"]), puts
        elif what == "stop":
            self.stop(float(options["seconds"]))
        elif what == "requests":
            found, self.seen = self.seen, []
            return "\n".join(found).encode()
        return b""


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as by an object store

        def log_request(self, *_: Any) -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    stopped_for: list[float] = []
    resumed = threading.Event()

    def stop(seconds: float) -> None:
        stopped_for.append(seconds)
        faults.closed = True
        threading.Thread(target=server.shutdown, daemon=True).start()

    faults, port = _Faults(DomainDispatcherApplication(create_backend_app), stop), 0

    def listen() -> None:
        for _line in sys.stdin:
            resumed.set()
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        server = make_server("127.0.0.1", port, faults, threaded=True, request_handler=Handler)
        if not port:
            port = server.port
            print(port, flush=True)
        server.serve_forever(poll_interval=0.02)
        server.server_close()
        resumed.wait(stopped_for.pop())
        resumed.clear()
        faults.closed = False


if __name__ == "__main__":
    serve()
