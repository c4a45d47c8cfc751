"""The process that measures: runs parts one after the other and sends what it finds."""

from __future__ import annotations

import gc
import inspect
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch._dynamo
from gpu_parts import running, sampling, training
from gpu_parts.bench import Bench, last_line
from gpu_parts.measure import release

from ardistill.devices import device_name, resolve_device, synchronize
from ardistill.training import environment

PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": sampling.machine,
    "sample 1": sampling.sample_one,
    "pass bf16": training.pass_bf16,
    "step": training.step,
    "record": running.recording,
    "sample many": sampling.sample_many,
    "equality": running.equality,
    "quickstart": running.quickstart,
    "teacher": sampling.teacher,
    "pass tf32": training.pass_tf32,
    "sd35": sampling.sd35,
    "processes": running.processes,
}


def work(parts: Sequence[str], options: dict[str, Any], pipe: Connection) -> None:
    """Run parts and send ``(kind, content)``: ``environment``, ``arm`` and, after each part, ``done``.

    Args:
        parts: Keys of ``PARTS``.
        options: ``size``, ``device`` and ``reference``, as on the command line; ``limits``, by part the seconds after
            which no further arm of it begins.
        pipe: Where the messages go.
    """
    device = resolve_device(options["device"])
    if device.type == "cpu":
        torch.compiler.set_stance("force_eager")  # compiling for a CPU takes minutes and is not what is measured
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else what is called compiled is eager, in silence
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:  # torch 2.11: the package cannot raise it
        torch._dynamo.config.recompile_limit = 64
    gc.collect()
    gc.freeze()  # what was imported stays: each of many collections passes over the rest alone
    pipe.send(("environment", {**environment(device), "card": device_name(device), **_more(device)}))
    bench = Bench(options["size"], device, options["reference"], lambda name, found: pipe.send(("arm", (name, found))))
    for part in parts:
        began, found = time.perf_counter(), {}
        bench.until = began + options["limits"][part]
        try:
            PARTS[part](bench)
        except Exception as error:
            traceback.print_exc()
            found["error"] = last_line(error)
        synchronize(device)  # a device that does not answer any more ends the process, and the next part gets a new one
        release(device)
        pipe.send(("done", found | {"seconds": time.perf_counter() - began}))


def _more(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return {"cuda": torch.version.cuda, "memory_gib": gib, "capability": torch.cuda.get_device_capability(device)}
