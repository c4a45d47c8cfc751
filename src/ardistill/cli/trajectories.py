"""The commands that record trajectories, inspect and check them, repair, show, export and push them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ardistill.cli.command import Result
from ardistill.cli.options import (
    ComputeDevice,
    ExportTrajectoriesOptions,
    PushTrajectoriesOptions,
    RecordedTeacher,
    RecordedTrajectories,
    RecordOptions,
    ShowOptions,
)

if TYPE_CHECKING:
    from ardistill.teacher import Teacher


def record(options: RecordOptions, machine: ComputeDevice) -> Result:
    """Solve the teacher's ODE from seeded noise and keep the trajectories.

    Any number of processes may record into one folder at a time: the same command started several times, on one machine
    or many, or `accelerate launch -m ardistill record ...`.
    """
    from ardistill import trajectories
    from ardistill.devices import resolve_device
    from ardistill.files import Store
    from ardistill.teacher import Teacher
    from ardistill.trajectories import load_prompts

    scales = options.guidance_scale if isinstance(options.guidance_scale, list) else [options.guidance_scale]
    if not 1 <= len(scales) <= 2:
        raise ValueError(f"expected one guidance scale, or the lowest and the highest, got {scales}")
    if options.num_frames < 1:
        raise ValueError(f"expected num_frames of 1 (an image) or more, got {options.num_frames}")
    sizes = _sizes(options)
    device = resolve_device(machine.device)
    weights = trajectories.recording_weights(options.out, options.weights, device)
    teacher = Teacher.from_pretrained(
        options.teacher,
        height=sizes[0][0],
        width=sizes[0][1],
        num_frames=options.num_frames,
        guidance_scale=scales[0],
        guidance_channels=options.guidance_channels,
        negative_prompt=options.negative_prompt,
        device=device if weights == "nf4" else "cpu",  # prompts are encoded first, with the device to themselves
        weights=weights,
    )
    manifest = trajectories.record(
        teacher,
        options.out,
        options.num_trajectories,
        prompts=load_prompts(options.prompts) if options.prompts else None,
        guidance_range=(scales[0], scales[-1]),
        sample_shapes=[_latent_shape(teacher, height, width, options.num_frames) for height, width in sizes],
        solver_steps=options.solver_steps,
        num_steps=options.num_steps,
        seed=options.seed,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        mixed_precision=options.mixed_precision,
        compile=options.compile,
        dtype=options.dtype,
        manifest_only=options.manifest_only,
        device=device,
    )
    size = sum(Store(options.out).sizes().values())
    made = "the manifest of " if options.manifest_only else ""
    count = manifest.num_trajectories
    text = f"{made}{count} trajectories of {options.teacher} in {options.out} ({size / 1e6:,.1f} MB)"
    facts = {"num_trajectories": count, "num_shards": manifest.num_shards, "bytes": size}
    return Result({"out": options.out, "fingerprint": manifest.fingerprint, **facts}, text)


def _sizes(options: RecordOptions) -> list[tuple[int | None, int | None]]:
    """The image sizes (height, width) to record; None stands for the model's default.

    Raises:
        ValueError: There are not as many heights as widths, or none.
    """
    heights = options.height if isinstance(options.height, list) else [options.height]
    widths = options.width if isinstance(options.width, list) else [options.width]
    if len(heights) != len(widths) or not heights:
        raise ValueError(f"expected as many heights as widths, got {heights} and {widths}")
    return [*zip(heights, widths, strict=True)]


def _latent_shape(teacher: Teacher, height: int | None, width: int | None, num_frames: int) -> tuple[int, ...]:
    if height is None and width is None:
        return teacher.sample_shape
    return teacher.latent_shape(height, width, num_frames)


def info(data: RecordedTrajectories) -> Result:
    """Describe a recording: its settings, how much of it is there, and the students that it serves."""
    from ardistill import trajectories

    found = trajectories.info(data.trajectories)
    return Result(found, trajectories.describe(found))


def verify(data: RecordedTrajectories) -> Result:
    """Read every byte and check every checksum; exit status 1 if anything is missing or broken."""
    from ardistill import trajectories

    found = trajectories.verify(data.trajectories)
    text = trajectories.describe_inspection(found)
    return Result(asdict(found) | {"whole": found.whole}, text, exit_status=0 if found.whole else 1)


def repair(data: RecordedTrajectories, recorded: RecordedTeacher, machine: ComputeDevice) -> Result:
    """Record again what is missing or broken, and remove the partial files of killed processes."""
    from ardistill import trajectories
    from ardistill.files import Store
    from ardistill.teacher import load_recorded_teacher

    manifest = trajectories.Manifest.read(Store(data.trajectories))
    teacher = load_recorded_teacher(manifest, recorded.teacher, machine.device, manifest.weights)
    found = trajectories.repair(teacher, data.trajectories)
    text = f"{len(found.remade)} files recorded again in {data.trajectories}"
    difference = found.largest_difference
    if difference is not None:
        result = f"differs by up to {difference:.1e} of the largest value" if difference else "is equal"
        text += f"; an intact shard recorded again on this machine {result}"
    return Result({"remade": found.remade, "largest_difference": difference}, text)


def show(data: RecordedTrajectories, options: ShowOptions, recorded: RecordedTeacher, machine: ComputeDevice) -> Result:
    """Draw decoded trajectories, one per row, from noise to image."""
    from ardistill import trajectories
    from ardistill.evaluation import trajectory_grid
    from ardistill.teacher import load_recorded_teacher

    if options.count < 1:
        raise ValueError(f"expected 1 trajectory or more, got {options.count}")
    num_steps = options.num_steps
    if num_steps is None:
        num_steps = trajectories.info(data.trajectories)["num_steps"][-1]
    dataset = trajectories.TrajectoryDataset(data.trajectories, num_steps)
    first = options.first
    rows = range(first, min(first + options.count, len(dataset)) if first < len(dataset) else first + 1)
    teacher = load_recorded_teacher(dataset.manifest, recorded.teacher, machine.device)
    trajectory_grid(teacher, dataset, options.out, rows)
    return Result({"out": options.out, "count": len(rows)}, f"{len(rows)} trajectories in {options.out}")


def export_trajectories(data: RecordedTrajectories, options: ExportTrajectoriesOptions) -> Result:
    """Write trajectories as Parquet files, which `datasets` and distill read; push publishes them."""
    from ardistill import trajectories

    count = trajectories.export_parquet(data.trajectories, options.out)
    text = f'{count} trajectories: datasets.load_dataset("{options.out}", split="train")'
    return Result({"out": options.out, "count": count}, text)


def push(data: RecordedTrajectories, options: PushTrajectoriesOptions) -> Result:
    """Push trajectories to the Hub as a data set whose viewer works, and which distill reads as hf://datasets/you/name.

    The same command again continues an interrupted push.
    """
    from ardistill import publishing

    url = publishing.push_trajectories(
        data.trajectories, options.push, private=options.private, license=options.license, out=options.out
    )
    return Result({"url": url, "trajectories": f"hf://datasets/{options.push}"}, url)
