"""Where a training's scalars and sample grids go besides its own log: a tracker of accelerate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from ardistill.training.run_folder import Settings

EXTRAS = ("wandb", "trackio")
"""Trackers that an extra of the same name installs."""
_PROJECT = "ardistill"


def check_tracker(name: str | None) -> None:
    """Check that a tracker is known and installed.

    Raises:
        ValueError: It is not; the message says what to install.
    """
    known = [str(tracker) for tracker in get_available_trackers()]
    if name is None or name in known:
        return
    if name in EXTRAS:
        raise ValueError(
            f"tracker {name!r} is not installed: pip install 'ardistill[{name}]', or choose another tracker: "
            f"{', '.join(['null', *known])}"
        )
    names = ", ".join(["null", *known, *(x for x in EXTRAS if x not in known)])
    raise ValueError(f"tracker {name!r} is unknown or not installed; known: {names}")


def start_tracker(accelerator: Accelerator, folder: Path, settings: Settings) -> None:
    """Start the tracker that the accelerator was made with, if any.

    W&B and Trackio get the run folder's name as the run's name and the settings as its configuration, in the project
    ``ardistill`` or, for W&B, that of ``WANDB_PROJECT``; W&B's own files are in the run folder. A resumed training
    begins a new run there, because neither takes back the steps after a checkpoint; W&B shows them as one group.

    Raises:
        ValueError: W&B refuses to start, for example because nobody is logged in.
    """
    if not accelerator.log_with:
        return
    name, tracker = folder.resolve().name, str(accelerator.log_with[0])
    if tracker not in EXTRAS:
        accelerator.init_trackers("metrics")
        return
    options: dict[str, Any] = {"name": name, "config": settings}
    project = _PROJECT
    if tracker == "wandb":
        options |= {"group": name, "dir": str(folder), "reinit": "finish_previous"}
        project = os.environ.get("WANDB_PROJECT", project)
    try:
        accelerator.init_trackers(project, init_kwargs={tracker: options})
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        reason = str(error).rstrip(".")
        raise ValueError(
            f"W&B did not start: {reason}; log in with wandb login, or set WANDB_MODE=offline, which keeps the run in "
            f"{folder / 'wandb'} for wandb sync"
        ) from error


def track_picture(tracker: GeneralTracker, picture: np.ndarray, step: int) -> None:
    """Send a picture to a tracker under the name ``samples``; one that takes no pictures is left alone.

    Args:
        tracker: A tracker that has started.
        picture: Bytes, (height, width, 3 or 4).
        step: Optimiser steps done.
    """
    if tracker.name == "trackio":  # accelerate's class has no way for pictures
        import trackio

        tracker.log({"samples": trackio.Image(picture)}, step=step)
    elif hasattr(tracker, "log_images"):
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"samples": picture[None]}, step=step, **layout)
