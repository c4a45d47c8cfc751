"""Shards of a recording, made by solving the teacher's ODE."""

from __future__ import annotations

import torch
from accelerate.utils import send_to_device

from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.teacher import Identity, Teacher, check_same_teacher
from ardistill.trajectories.claim import reread
from ardistill.trajectories.conditions import (
    ConditionTable,
    look_up,
    open_conditions,
    publish_conditions,
    read_prompts,
)
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import Shard, encode_shard, make_shard
from ardistill.trajectories.sharing import choose


class ShardMaker:
    """Solves whole shards of a recording; results are equal on one kind of hardware, and nearly equal on others.

    Args:
        teacher: The recording's teacher.
        manifest: The recording's manifest.
        table: Embeddings of its prompts; None for class labels.
        device: Where the teacher runs.

    Raises:
        ValueError: The teacher, its guided channels or its negative prompt are not the recorded ones.
    """

    def __init__(
        self, teacher: Teacher, manifest: Manifest, table: ConditionTable | None, device: torch.device | str
    ) -> None:
        expected = Identity.of(manifest)
        check_same_teacher("these trajectories", manifest, teacher, "give the recording's teacher")
        for name, given, recorded in (
            ("guidance_channels", teacher.guidance_channels, manifest.guidance_channels),
            ("negative_prompt", teacher.negative_prompt, manifest.negative_prompt),
        ):
            if given != recorded:
                raise ValueError(
                    f"expected the teacher that was recorded, {expected}, with {name} {recorded!r}, got {given!r}; "
                    "make it with the recorded value"
                )
        self.teacher, self.manifest, self.table = teacher, manifest, table
        self.device = torch.device(device)
        if teacher.takes_text and manifest.guidance_range[1] > 1 and not teacher.embeds_guidance:
            teacher.encode_negative(device)  # now: text encoders and transformer may not fit on the device together

    def __call__(self, shard: int) -> Shard:
        """Solve a shard's trajectories.

        Raises:
            ValueError: A state is not finite in the recording's dtype.
        """
        manifest, teacher = self.manifest, self.teacher.to(self.device)
        layout, labels, guidance = manifest.layout(shard), manifest.labels(shard), manifest.guidance(shard)
        noise = teacher.noise(manifest.seed, shard, layout.rows, layout.sample_shape)
        noise, condition = send_to_device((noise, look_up(self.table, labels, guidance)), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=manifest.mixed_precision == "bf16"):
            solved = teacher.solve_ode(noise, condition, manifest.knots)
        states = solved.states[:, list(manifest.kept)].cpu()
        denoised = solved.denoised[:, [i - 1 for i in manifest.kept[1:]]].cpu()
        return make_shard(layout, states, denoised, labels, guidance)


def make_missing(
    store: Store, manifest: Manifest, teacher: Teacher, device: torch.device | str, progress: bool = True
) -> None:
    """Make and publish shards until all are there, whichever process makes them.

    Raises:
        ValueError: The store cannot be written, or another recording began in it.
    """
    every = set(range(manifest.num_shards))
    missing = every - manifest.present(store)
    bar = progress_bar(total=len(every), desc="record", unit="shard", disable=not progress)
    bar.update(len(every) - len(missing))
    make = ShardMaker(teacher, manifest, open_conditions(store, manifest), device) if missing else None
    while missing and make is not None:
        shard = choose(sorted(missing), int)
        if store.exists(shard_name(shard)):
            missing &= every - manifest.present(store)
        else:
            data = encode_shard(manifest.layout(shard), make(shard))
            reread(store, manifest)
            store.publish(shard_name(shard), data)
            missing.discard(shard)
            grown = reread(store, manifest)
            if grown != manifest:  # another process added trajectories: help it
                if grown.num_rows(shard) != manifest.num_rows(shard):
                    store.delete(shard_name(shard))
                manifest = grown
                if manifest.prompts:  # the added trajectories may use more of them
                    publish_conditions(store, manifest, teacher, read_prompts(store, manifest), device, progress)
                make = ShardMaker(teacher, manifest, open_conditions(store, manifest), device)
                every = set(range(manifest.num_shards))
                missing, bar.total = every - manifest.present(store), len(every)
        bar.update(len(every) - len(missing) - bar.n)
    bar.close()
    store.sweep()
