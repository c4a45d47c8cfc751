"""Commands and functions in a process of their own, which may be killed, interrupted or given a small disk."""

import os
import resource
import sys

import torch

from ardistill.errors import one_line

OPTIONS = {"solver_steps": 4, "num_steps": (1, 2, 4), "shard_size": 4, "progress": False}
RECORD = "record --teacher zoo/fashion --out out --num_trajectories 4 --guidance_scale 1.25 --solver_steps 4"
RECORD += " --num_steps [1,4] --device cpu"
DISTILL = "distill --trajectories data --out run --history_layers 1 --training.batch_size 2 --training.tracker null"


COMMANDS = """
import json, os, sys
import ardistill.evaluation
from ardistill.__main__ import main

for words, expected in json.loads(sys.argv[1]):
    if not (pid := os.fork()):
        sys.argv[1:] = words.split()
        main()
        sys.exit()
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if found != expected:
        sys.exit(f"{words}: {found}")
"""
"""A script that runs commands, [[words, exit status], ...], as an interpreter each would that has the same streams.

Its imports, which take seconds, are done once.
"""


def apart(act, log, before=lambda: None):
    """Call ``before`` and ``act`` in a process of its own, which ends as a command does; its number.

    Words in the place of a function are the command itself, by a new interpreter: what trains must not be a mere fork,
    as autograd does not go on in one where it has had threads for a device, and a test may have pretended one.
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 2)
        if isinstance(act, list):
            os.dup2(handle, 1)
            before()
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "ardistill", *act], environment)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.stdout = sys.stderr
        torch.set_num_threads(1)
        before()
        with one_line(lambda: "ardistill", lambda: "again"):
            act()
        status = 0
    except SystemExit as exit:
        status = exit.code
    finally:
        os._exit(status)


def ended(pid):
    """Exit status; minus the number of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limited(size):
    """Files of this process cannot grow beyond: as on a full disk, for whoever writes them."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
