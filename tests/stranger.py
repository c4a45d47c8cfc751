"""A process as whoever gets a student has one: with diffusers, and without this package.

A server imports diffusers once and is forked for each script, which then starts at once.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


@functools.cache
def _server() -> subprocess.Popen:
    modules = tempfile.TemporaryDirectory()
    environment = os.environ | {"HF_MODULES_CACHE": modules.name, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    @atexit.register
    def end() -> None:
        server.stdin.close()
        server.wait()
        modules.cleanup()

    return server


def alone(script: str, *arguments: Any, folder: Path) -> None:
    """Run a script in a process that has diffusers and cannot import this package; its error is this one's.

    Args:
        script: Python's text; its ``sys.argv[1:]`` are the arguments.
        arguments: As text, what it is called with.
        folder: Where it runs.
    """
    server, log = _server(), folder / "stranger.log"
    job = {"script": script, "arguments": [*map(str, arguments)], "folder": str(folder), "log": str(log)}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    status = server.stdout.readline().strip()
    assert status == "0", log.read_text()[-3000:]


def _run(script: str, arguments: list[str], folder: str, log: str) -> int:
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    sys.argv = ["script", *arguments]
    try:
        exec(compile(script, "script", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    sys.modules["ardistill"] = None  # type: ignore[assignment]  # an import of it fails
    import torch
    from diffusers import DiffusionPipeline  # noqa: F401  # what every script begins with

    torch.set_num_threads(1)
    for line in sys.stdin:
        if pid := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        status = _run(**json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
