"""Commands and functions in a process of their own, which may be killed, interrupted or given a small disk."""

import functools
import os
import resource
import sys

import torch
from processes import CONTEXT

from ardistill.errors import one_line

OPTIONS = {"solver_steps": 4, "num_steps": (1, 2, 4), "shard_size": 4, "progress": False}
RECORD = "record --teacher zoo/fashion --out out --num_trajectories 4 --guidance_scale 1.25 --solver_steps 4"
RECORD += " --num_steps [1,4] --device cpu"
DISTILL = "distill --trajectories data --out run --history_layers 1 --training.batch_size 2 --training.tracker null"
STARTED = {}
"""Number of a command's process -> the process."""


def command(words, log, before=None, closed=(), encoding="utf-8"):
    """Start ``ardistill`` with ``words`` as a new interpreter would that has certain streams; its process's number.

    It is forked from a server that has done the imports and nothing else: what trains must not be a fork of this
    process, as autograd does not go on in one where it has had threads for a device, and a test may have pretended one.

    Args:
        words: Arguments of ``ardistill``.
        log: File that stdout and stderr go to.
        before: Called first; it must be picklable.
        closed: Numbers of streams that are closed.
        encoding: Encoding of stdout and stderr.
    """
    inside = (words, str(log), before, closed, encoding, os.getcwd(), dict(os.environ))
    process = CONTEXT.Process(target=_run, args=inside)
    process.start()
    STARTED[process.pid] = process
    return process.pid


def _run(words, log, before, closed, encoding, folder, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python itself starts
    torch.set_num_threads(1)
    if before:
        before()
    from ardistill.__main__ import main

    sys.argv = ["ardistill", *words]
    main()


def apart(act, log, before=lambda: None):
    """Call ``before`` and ``act`` in a fork of this process, which ends as a command does; its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
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
    """Exit status of what `command` or `apart` has started; minus the number of a signal."""
    if pid in STARTED:
        process = STARTED.pop(pid)
        process.join()
        return process.exitcode
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limited(size):
    """Files of this process cannot grow beyond: as on a full disk, for whoever writes them."""
    return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
