"""Processes that stand where the one that measures stands, and go wrong as a GPU makes it go wrong."""

import os
import time


def work(parts, options, pipe):
    """Sends an arm of each part; ``hangs`` then takes forever, ``dies`` ends the process and ``fails`` has an error."""
    pipe.send(("environment", {"card": "NVIDIA Test 1GB", "process": 0}))
    for part in parts:
        pipe.send(("arm", ("first", {"ms": 2.0, "flops": 1e9, "tflops": 1.0, "precision": "bf16"})))
        if part == "hangs":
            time.sleep(600)
        if part == "dies":
            os._exit(7)
        pipe.send(("done", {"seconds": 0.1} | ({"error": "ValueError: no"} if part == "fails" else {})))
