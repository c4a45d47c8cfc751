"""Record trajectories: the teacher's ODE, solved from seeded noise, in shards that any number of processes make.

A shard is a pure function of (seed, shard number): any process can make it or make it again, and none waits for
another. Each shard is published whole, with its checksum inside; the same command again makes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from ardistill.devices import Device, resolve_device, resolve_precision, resolve_weights
from ardistill.files import Store
from ardistill.teacher import Teacher
from ardistill.trajectories.claim import claim
from ardistill.trajectories.conditions import publish_conditions
from ardistill.trajectories.knots import nested_indices
from ardistill.trajectories.manifest import MANIFEST, Manifest
from ardistill.trajectories.prompts import distinct_prompts
from ardistill.trajectories.shard_maker import BatchSize, make_missing
from ardistill.trajectories.shards import DTYPES


def record(
    teacher: Teacher,
    folder: str | Path,
    num_trajectories: int,
    *,
    prompts: Sequence[str] | None = None,
    guidance_range: tuple[float, float] | None = None,
    sample_shapes: Sequence[tuple[int, ...]] = (),
    solver_steps: int = 24,
    num_steps: Sequence[int] = (1, 2, 3, 4, 6, 8),
    seed: int = 0,
    shard_size: int = 256,
    batch_size: BatchSize = "auto",
    mixed_precision: str = "auto",
    compile: bool | None = None,
    dtype: str = "float32",
    manifest_only: bool = False,
    device: Device = None,
    progress: bool = True,
) -> Manifest:
    """Solve the teacher's ODE from seeded noise, with balanced labels, and store the states that students need.

    Shards that exist are not made again. With a larger ``num_trajectories`` the missing ones are added, equal to those
    of a recording that had this number from the start.

    Any number of processes may record into one folder at a time, with the same arguments but for ``batch_size``,
    ``device`` and ``progress``. Processes of one ``accelerate launch`` (RANK and WORLD_SIZE in the environment) each
    take the shards whose number modulo WORLD_SIZE is their RANK and then help the others; processes that were started
    alone take any missing shard. Each returns once all shards are there. If one process adds trajectories meanwhile,
    the others help.

    Args:
        teacher: The teacher, with its guidance. The type of its weights is a fact of the recording.
        folder: A path, or a URL that fsspec knows. Created if missing; otherwise empty or a part of this recording.
        num_trajectories: How many to record. The last shard may be smaller than the others; it is made anew where
            trajectories are added.
        prompts: Prompts for a teacher that takes text, used in turn; each is encoded once and stored beside the shards.
        guidance_range: Lowest and highest guidance scale, drawn uniformly for each trajectory, for students that take
            the scale as an input; the teacher's guidance scale for all if not given.
        sample_shapes: Shapes of the latents; each shard has one of them. The teacher's shape if not given. Where the
            noise schedule depends on the size, the solver's times are those of the teacher's shape.
        solver_steps: Steps of the ODE solver.
        num_steps: Step counts of the students to come; the states nearest to their uniform knots are stored.
        seed: Seed of the noise; labels follow from the row number.
        shard_size: Rows that are written and read together.
        batch_size: Rows of a shard that are solved at once. ``"auto"`` measures once on CUDA how many the memory takes,
            and is the whole shard elsewhere. A shard's content depends on it by rounding at most.
        mixed_precision: ``no``, ``bf16`` (matrix products in bfloat16, the solver's states in float32) or ``auto``:
            what the recording in the folder has, else bf16 on a GPU that computes in it, else no.
        compile: Compile the blocks of the transformer (``torch.compile``). None: on CUDA, where 1,000 passes or
            more are missing. A shard's content depends on it by rounding at most.
        dtype: ``float32`` or ``float16``, what states are stored in; they are solved and read in float32.
        manifest_only: Make no shards; for ``OnlineTrajectories``.
        device: Device that the teacher is moved to; its current device if not given.
        progress: Show a bar.

    Raises:
        ValueError: The folder holds other trajectories or cannot be written, a student has more steps than the solver,
            there are fewer shards than shapes, or prompts are missing or not used by the teacher.
    """
    distinct = _check_prompts(teacher, prompts)
    if batch_size != "auto" and (type(batch_size) is not int or batch_size < 1):
        raise ValueError(f"expected a batch_size of 1 row or more, or auto, got {batch_size!r}")
    _check_numbers(num_trajectories, shard_size, num_steps)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    guidance = _check_guidance(teacher, guidance_range)
    where, store = resolve_device(device, teacher.device), Store(folder)
    computed_in: str = resolve_precision(mixed_precision, where)
    if mixed_precision == "auto" and store.exists(MANIFEST):
        computed_in = Manifest.read(store).mixed_precision
    manifest = Manifest(
        teacher=teacher.name,
        fingerprint=teacher.fingerprint(),
        scheduler=json.loads(teacher.scheduler.to_json_string()),
        solver_steps=solver_steps,
        kept=tuple(sorted({i for n in num_steps for i in nested_indices(solver_steps, n)})),
        knots=teacher.knots(solver_steps),
        guidance_range=guidance,
        guidance_channels=teacher.guidance_channels,
        sample_shapes=tuple(tuple(shape) for shape in sample_shapes) or (tuple(teacher.sample_shape),),
        num_conditions=len(distinct) if teacher.takes_text else teacher.num_classes,
        prompts=hashlib.sha256(json.dumps(distinct).encode()).hexdigest() if teacher.takes_text else "",
        negative_prompt=teacher.negative_prompt,
        mixed_precision=computed_in,
        dtype=dtype,
        seed=seed,
        num_trajectories=num_trajectories,
        shard_size=shard_size,
        weights=teacher.weights,
    )
    _check_shards(manifest)
    manifest = claim(store, manifest)
    if teacher.takes_text:
        publish_conditions(store, manifest, teacher, distinct, where, progress)
    if not manifest_only:
        make_missing(store, manifest, teacher, where, progress, batch_size, compile)
    return manifest


def recording_weights(folder: str | Path, weights: str = "auto", device: Device = None) -> str:
    """The type of weights to load a recording's teacher in: for ``auto`` that of the recording in the folder, and,
    where there is none, that which suits the device.

    Args:
        folder: A path or URL.
        weights: As for ``Teacher.from_pretrained``.
        device: Where the teacher solves; the best available if not given.

    Raises:
        ValueError: The device lacks this type of weights, or the manifest is damaged.
    """
    store = Store(folder)
    if weights == "auto" and store.exists(MANIFEST):
        weights = Manifest.read(store).weights
    return resolve_weights(weights, resolve_device(device))


def _check_prompts(teacher: Teacher, prompts: Sequence[str] | None) -> list[str]:
    """The distinct prompts; empty for a teacher of class labels.

    Raises:
        ValueError: A teacher of text has none, or a teacher of class labels has some.
    """
    given = () if prompts is None else prompts
    if teacher.takes_text and not len(given):
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on text: give it prompts")
    if len(given) and not teacher.takes_text:
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on class labels: leave the prompts out")
    return distinct_prompts(given)


def _check_numbers(num_trajectories: int, shard_size: int, num_steps: Sequence[int]) -> None:
    for what, value in (("trajectory", num_trajectories), ("row per shard", shard_size)):
        if value < 1:
            raise ValueError(f"expected 1 {what} or more, got {value}")
        if value >= 10**12:
            raise ValueError(f"expected a {what} count below 10^12, got {value}")
    if not num_steps:
        raise ValueError("expected num_steps of one student or more, got none: nothing would be kept")


def _check_shards(manifest: Manifest) -> None:
    if manifest.num_shards < len(manifest.sample_shapes):
        raise ValueError(
            f"expected {len(manifest.sample_shapes)} shards or more, one of each size, got {manifest.num_shards}; "
            "lower the shard size or record more"
        )


def _check_guidance(teacher: Teacher, guidance_range: tuple[float, float] | None) -> tuple[float, float]:
    """Lowest and highest guidance scale; the teacher's if no range is given.

    Raises:
        ValueError: They are below 1, infinite, or in the wrong order.
    """
    low, high = guidance_range or (teacher.guidance_scale, teacher.guidance_scale)
    if not 1 <= low <= high < math.inf:
        raise ValueError(f"expected guidance scales from 1 (none) up, lowest first, got {(low, high)}")
    return float(low), float(high)
