"""Trajectories on disk: one Arrow IPC file per shard and a manifest of the facts that they share.

A shard is a pure function of (seed, shard number): any process can make it or make it again. Each is written under a
temporary name and renamed, with its checksum beside it; recording into the same folder again makes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ardistill.families import Condition
from ardistill.schedule import Knots, nested_indices
from ardistill.teacher import Teacher, seeded_generator

VERSION = 2
CONDITIONS = "conditions.safetensors"
"""Embeddings of the distinct prompts, one row each."""


@dataclass(frozen=True)
class Manifest:
    """What all shards of a folder have in common."""

    teacher: str
    """Name the teacher was loaded by; the fingerprint decides."""
    fingerprint: str
    """SHA-256 of the teacher's weights."""
    scheduler: dict[str, Any]
    """The teacher's scheduler config."""
    solver_steps: int
    """Steps the ODE was solved in."""
    kept: tuple[int, ...]
    """Which of the solver_steps + 1 states are stored, 0 the noise."""
    knots: Knots
    """Times of all solver steps."""
    guidance_range: tuple[float, float]
    """Lowest and highest guidance scale, drawn uniformly for each trajectory; most often the same number twice."""
    guidance_channels: int | None
    sample_shapes: tuple[tuple[int, ...], ...]
    """(c, h, w) or (c, f, h, w) of the states; a shard has one of them."""
    num_conditions: int
    """Classes, or distinct prompts; trajectory i is of condition i modulo this."""
    prompts: str
    """SHA-256 of the prompts, which lie in ``prompts.json``; empty for a teacher of class labels."""
    negative_prompt: str
    mixed_precision: str
    seed: int
    num_trajectories: int
    shard_size: int
    version: int = VERSION

    @property
    def num_shards(self) -> int:
        return -(-self.num_trajectories // self.shard_size)

    def shape_of(self, shard: int) -> int:
        """Which of the sample shapes a shard has: each once in as many shards, in an order that the seed shuffles.

        Not in turn: then a shape could meet the same conditions in every shard.
        """
        count = len(self.sample_shapes)
        order = torch.randperm(count, generator=seeded_generator(f"{self.seed}/{shard // count}/shapes"))
        return int(order[shard % count])

    def guidance(self, shard: int, rows: int) -> Tensor:
        """Guidance scale of a shard's trajectories, (rows,)."""
        low, high = self.guidance_range
        return low + (high - low) * torch.rand(rows, generator=seeded_generator(f"{self.seed}/{shard}/guidance"))

    def to_json(self) -> str:
        data = {**self.__dict__, "knots": self.knots.__dict__}
        return json.dumps(data, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            ValueError: There is none, it is not whole, or a newer version wrote it.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"expected trajectories (manifest.json) in {folder}, found none; make them with record")
        try:
            data = json.loads(path.read_text())
            if data["version"] != VERSION:
                raise ValueError(
                    f"{path}: version {data['version']}, this ardistill reads {VERSION}; read it with the version that "
                    "wrote it, or record again"
                )
            knots = Knots.from_dict(data.pop("knots"))
            for name in ("kept", "guidance_range"):
                data[name] = tuple(data[name])
            data["sample_shapes"] = tuple(tuple(shape) for shape in data["sample_shapes"])
            return cls(knots=knots, **data)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a whole manifest ({error}); record again into a new folder") from error


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.arrow"


def _write_whole(path: Path, data: bytes) -> None:
    """Publish a file under its name only once all of it is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    mixed_precision: str = "no",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Manifest:
    """Solve the teacher's ODE from seeded noise, with balanced labels, and keep what students of ``num_steps`` need.

    Shards that are there already, whole, are not made again.

    Args:
        teacher: Solved as it is, with its guidance.
        folder: Made if missing; must be empty or hold a part of the same recording.
        num_trajectories: The last shard may be smaller.
        prompts: For a teacher that takes text, used in turn; encoded once each and stored beside the shards.
        guidance_range: Guidance scales are drawn from it, uniformly, for students that are told of the scale; the
            teacher's own scale for all if not given.
        sample_shapes: Of the latents, one a shard; the teacher's own if not given. The solver's times are those of the
            teacher's own, where the schedule depends on the size.
        solver_steps: Steps of the ODE solver.
        num_steps: Step counts of the students to come; states nearest to their uniform knots are kept.
        seed: Of the noise; the labels follow the row number.
        shard_size: Rows solved, written and read together.
        mixed_precision: no, or bf16: matrix products in bfloat16, the solver's states in float32.
        device: Where the teacher runs.
        progress: Show a bar.

    Raises:
        ValueError: The folder holds other trajectories, more student steps than solver steps are asked for, there are
            fewer shards than shapes, or prompts are missing or of no use.
    """
    if teacher.takes_text and not prompts:
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on text: give it prompts")
    if prompts and not teacher.takes_text:
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on class labels: leave the prompts out")
    distinct = list(dict.fromkeys(prompts or ()))
    for what, value in (("trajectory", num_trajectories), ("row per shard", shard_size)):
        if value < 1:
            raise ValueError(f"expected 1 {what} or more, got {value}")
    if mixed_precision not in ("no", "bf16"):
        raise ValueError(f"unknown mixed_precision {mixed_precision!r}; known: no, bf16")
    guidance_range = guidance_range or (teacher.guidance_scale, teacher.guidance_scale)
    if not 1 <= guidance_range[0] <= guidance_range[1]:
        raise ValueError(f"expected guidance scales from 1 (none) up, lowest first, got {guidance_range}")
    folder = Path(folder)
    manifest = Manifest(
        teacher=teacher.name,
        fingerprint=teacher.fingerprint(),
        scheduler=json.loads(teacher.scheduler.to_json_string()),
        solver_steps=solver_steps,
        kept=tuple(sorted({i for n in num_steps for i in nested_indices(solver_steps, n)})),
        knots=teacher.knots(solver_steps),
        guidance_range=guidance_range,
        guidance_channels=teacher.guidance_channels,
        sample_shapes=tuple(sample_shapes) or (teacher.sample_shape,),
        num_conditions=len(distinct) if teacher.takes_text else teacher.num_classes,
        prompts=hashlib.sha256(json.dumps(distinct).encode()).hexdigest() if teacher.takes_text else "",
        negative_prompt=teacher.negative_prompt,
        mixed_precision=mixed_precision,
        seed=seed,
        num_trajectories=num_trajectories,
        shard_size=shard_size,
    )
    if manifest.num_shards < len(manifest.sample_shapes):
        raise ValueError(
            f"expected {len(manifest.sample_shapes)} shards or more, one of each size, got {manifest.num_shards}; "
            "lower the shard size or record more"
        )
    if (folder / "manifest.json").exists():
        if Manifest.read(folder) != manifest:
            raise ValueError(f"{folder} holds other trajectories than those asked for; choose a new folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty or to hold this recording; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "manifest.json", manifest.to_json().encode())
    table: Condition | None = None
    if teacher.takes_text:
        if not (folder / CONDITIONS).exists():
            _write_whole(folder / "prompts.json", json.dumps(distinct, ensure_ascii=False, indent=0).encode())
            contiguous = {name: value.contiguous() for name, value in teacher.encode(distinct, device=device).items()}
            _write_whole(folder / CONDITIONS, safetensors.torch.save(contiguous))
        table = safetensors.torch.load_file(folder / CONDITIONS)
        if guidance_range[1] > 1 and not teacher.embeds_guidance:
            teacher.encode_negative(device)  # now: the text encoders may not fit beside the transformer
    teacher.to(device)
    for shard in tqdm(range(manifest.num_shards), desc="record", unit="shard", disable=not progress):
        path = _shard_path(folder, shard)
        if path.with_suffix(".json").exists():
            continue
        rows = min(shard_size, num_trajectories - shard * shard_size)
        labels = (torch.arange(rows) + shard * shard_size) % manifest.num_conditions
        noise = teacher.noise(seed, shard, rows, manifest.sample_shapes[manifest.shape_of(shard)])
        guidance = manifest.guidance(shard, rows)
        condition = {name: value.to(device) for name, value in _look_up(table, labels, guidance).items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            solved = teacher.solve_ode(noise.to(device), condition, manifest.knots)
        states = solved.states[:, list(manifest.kept)].cpu().contiguous()
        denoised = solved.denoised[:, [i - 1 for i in manifest.kept[1:]]].cpu().contiguous()
        data = _encode(states, denoised, labels, guidance)
        _write_whole(path, data)
        facts = {"rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write_whole(path.with_suffix(".json"), json.dumps(facts).encode())
    return manifest


def _look_up(table: Condition | None, labels: Tensor, guidance: Tensor) -> Condition:
    """Rows of the table of conditions, and the guidance; without a table the labels are the condition."""
    rows = {"class_labels": labels} if table is None else {name: value[labels] for name, value in table.items()}
    return rows | {"guidance": guidance}


def _encode(states: Tensor, denoised: Tensor, labels: Tensor, guidance: Tensor) -> bytes:
    def binary(x: Tensor) -> pa.Array:
        width = x[0].numel() * x.element_size()
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(x), [None, pa.py_buffer(x.numpy())])

    facts = {"labels": pa.array(labels.numpy()), "guidance": pa.array(guidance.numpy())}
    batch = pa.record_batch({"states": binary(states), "denoised": binary(denoised), **facts})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


class TrajectoryDataset(Dataset):
    """Recorded trajectories, memory-mapped, as one student needs them.

    Item i is a dict of ``states`` (s + 1, c, h, w), ``denoised`` (s, c, h, w) and ``condition``, itself a dict, with
    the guidance scale in it.

    Args:
        folder: What ``record`` wrote.
        num_steps: Steps of the student, uniform; or which of the solver's states they run between; or its knots.
        fingerprint: Of the student's teacher; None: not checked.

    Raises:
        ValueError: The knots of ``num_steps`` were not recorded, the teacher is another, or a shard is missing, cut or
            not what its checksum says.
    """

    def __init__(
        self, folder: str | Path, num_steps: int | Sequence[int] | Knots, fingerprint: str | None = None
    ) -> None:
        folder = Path(folder)
        self.manifest = manifest = Manifest.read(folder)
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise ValueError(
                f"{folder} was recorded from another teacher ({manifest.teacher or 'unnamed'}, weights "
                f"{manifest.fingerprint[:12]}), the student's is {fingerprint[:12]}; record again"
            )
        indices = manifest.knots.indices(num_steps)
        if missing := [i for i in indices if i not in manifest.kept]:
            raise ValueError(f"{folder} lacks states {missing}, which {len(indices) - 1} steps need; record them")
        self.knots = manifest.knots.select(indices)
        self._at = [manifest.kept.index(i) for i in indices]
        self._states, self._denoised, labels, guidance, shapes = [], [], [], [], []
        for shard in range(manifest.num_shards):
            states, denoised, shard_labels, shard_guidance = self._read(_shard_path(folder, shard), shard)
            self._states.append(states)
            self._denoised.append(denoised)
            labels.append(shard_labels)
            guidance.append(shard_guidance)
            shapes.append(torch.full((len(shard_labels),), manifest.shape_of(shard)))
        self.labels = torch.cat(labels)
        """Class, or number of the prompt, of each trajectory."""
        self.guidance = torch.cat(guidance)
        """Its guidance scale."""
        self._shapes = torch.cat(shapes)
        self.buckets = [torch.nonzero(self._shapes == i).flatten() for i in range(len(manifest.sample_shapes))]
        """Trajectories of each sample shape."""
        self._table: Condition | None = None
        self.prompts: list[str] = []
        if manifest.prompts:
            if not (folder / CONDITIONS).is_file():
                raise ValueError(f"{folder / CONDITIONS} is missing; run the same record command again")
            self._table = safetensors.torch.load_file(folder / CONDITIONS)
            self.prompts = json.loads((folder / "prompts.json").read_text())

    def _read(self, path: Path, shard: int) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
        facts_path = path.with_suffix(".json")
        if not path.is_file() or not facts_path.is_file():
            raise ValueError(f"{path} is missing; run the same record command again, it makes what is missing")
        facts = json.loads(facts_path.read_text())
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(
                f"{path} is cut: expected {facts['bytes']} bytes, found {path.stat().st_size}; delete it and its "
                ".json, then run the same record command again"
            )
        source = pa.memory_map(str(path))
        if hashlib.sha256(source.read_buffer()).hexdigest() != facts["sha256"]:
            raise ValueError(f"{path} is not what its checksum says; delete it and its .json, then record again")
        source.seek(0)
        batch = pa.ipc.open_file(source).get_batch(0)
        manifest = self.manifest

        def view(column: str, states: int) -> np.ndarray:
            flat = np.frombuffer(batch.column(column).buffers()[1], np.float32)
            return flat.reshape(batch.num_rows, states, *manifest.sample_shapes[manifest.shape_of(shard)])

        kept = len(manifest.kept)
        labels, guidance = (torch.from_numpy(batch.column(x).to_numpy().copy()) for x in ("labels", "guidance"))
        return view("states", kept), view("denoised", kept - 1), labels, guidance

    def condition(self, rows: slice | Tensor = slice(None)) -> Condition:
        """Of some trajectories, one row each."""
        return _look_up(self._table, self.labels[rows], self.guidance[rows])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random trajectories of one sample shape, with replacement; a shape comes as often as it was recorded."""
        rows = torch.randint(len(self), (count,), generator=generator)
        if len(self.buckets) == 1:
            return rows
        same = self.buckets[int(self._shapes[rows[0]])]
        return same[torch.randint(len(same), (count,), generator=generator)]

    def stacked(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor, Condition]:
        """Some of it in memory: states (n, s + 1, c, h, w), denoised (n, s, c, h, w), condition.

        Raises:
            ValueError: They are of several shapes.
        """
        indices = torch.arange(len(self))[rows]
        if len(self._shapes[indices].unique()) > 1:
            raise ValueError(
                f"expected trajectories of one size, got {self.manifest.sample_shapes}; record some of one size apart"
            )
        items = [self[int(i)] for i in indices]
        states, denoised = (torch.stack([item[key] for item in items]) for key in ("states", "denoised"))
        return states, denoised, self.condition(rows)

    def __len__(self) -> int:
        return self.manifest.num_trajectories

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = divmod(index, self.manifest.shard_size)
        states = torch.from_numpy(self._states[shard][row][self._at])
        denoised = torch.from_numpy(self._denoised[shard][row][[i - 1 for i in self._at[1:]]])
        condition = {name: value[0] for name, value in self.condition(slice(index, index + 1)).items()}
        return {"states": states, "denoised": denoised, "condition": condition}


def load_prompts(source: str) -> list[str]:
    """Prompts from a text file (one a line), a JSONL file (key ``prompt``) or a data set (column prompt or text).

    Raises:
        ValueError: There are none, or a line has no prompt.
    """
    path = Path(source)
    if not path.is_file():
        if path.suffix or source.count("/") != 1:
            raise ValueError(f"expected prompts in {source}: a text or JSONL file, or the id of a data set")
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"{source} is no file; to read it as a data set: pip install datasets") from error
        try:
            rows = datasets.load_dataset(source, split="train")
        except Exception as error:  # of many kinds, for a name that is not there
            raise ValueError(f"{source} cannot be read as a data set, split train: {error}") from error
        column = next((name for name in ("prompt", "text") if name in rows.column_names), None)
        if column is None:
            raise ValueError(f"{source}: expected a column prompt or text, found {', '.join(rows.column_names)}")
        return list(rows[column])
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["prompt"] for line in lines]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected one JSON object with the key prompt a line ({error})") from error
    if not lines:
        raise ValueError(f"{path} holds no prompts")
    return lines
