"""The manifest of a recording: the facts that all of its shards have in common."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ardistill.config import WEIGHTS
from ardistill.core.knots import Knots
from ardistill.files import SEAL, Store, check_seal, seal
from ardistill.teacher import seeded_generator
from ardistill.trajectories.shards import DTYPES, ShardLayout, check_size

VERSION = 4
"""Version of the format. Version 3, whose identity includes the number of trajectories, can be read too."""
MANIFEST = "manifest.json"
PROMPTS = "prompts.json"
"""File of the distinct prompts, in the order of their numbers."""
CONDITIONS = "conditions.safetensors"
"""File of the embeddings of the distinct prompts, one row each, if they are in one file."""


def shard_name(shard: int) -> str:
    """Name of a shard's file."""
    return f"shard-{shard:05d}.arrow"


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 10**12


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are(value: Any, test: Callable[[Any], bool]) -> bool:
    return type(value) is list and len(value) > 0 and all(test(x) for x in value)


def _is_hash(value: Any) -> bool:
    return type(value) is str and len(value) == 64 and set(value) <= set("0123456789abcdef")


_TESTS: dict[str, Callable[[Any], bool]] = {
    "teacher": lambda x: type(x) is str,
    "fingerprint": _is_hash,
    "scheduler": lambda x: type(x) is dict,
    "solver_steps": lambda x: _is_count(x) and x <= 10_000,
    "kept": lambda x: _are(x, lambda i: _is_count(i, 0)) and len(x) > 1 and x == sorted(set(x)),
    "knots": lambda x: (
        type(x) is dict
        and set(x) == {field.name for field in fields(Knots)}
        and type(x["prediction_type"]) is str
        and all(_are(x[name], _is_number) for name in ("timesteps", "alpha", "sigma"))
    ),
    "guidance_range": lambda x: _are(x, _is_number) and len(x) == 2 and 1 <= x[0] <= x[1],
    "guidance_channels": lambda x: x is None or _is_count(x),
    "sample_shapes": lambda x: _are(x, lambda shape: _are(shape, _is_count) and len(shape) in (3, 4)),
    "num_conditions": _is_count,
    "prompts": lambda x: x == "" or _is_hash(x),
    "negative_prompt": lambda x: type(x) is str,
    "mixed_precision": lambda x: x in ("no", "bf16"),
    "dtype": lambda x: type(x) is str and x in DTYPES,
    "seed": lambda x: type(x) is int,
    "num_trajectories": _is_count,
    "shard_size": _is_count,
    "former_identity": lambda x: x == "" or _is_hash(x),
    "weights": lambda x: x in (*WEIGHTS[1:], "float16"),
}
"""Entry of a manifest -> test of its JSON value. No entry names a file."""


@dataclass(frozen=True)
class Manifest:
    """The facts that all shards of a recording have in common."""

    teacher: str
    """Name that the teacher was loaded by; the fingerprint identifies it."""
    fingerprint: str
    """SHA-256 of the teacher's weights."""
    scheduler: dict[str, Any]
    """Configuration of the teacher's scheduler."""
    solver_steps: int
    """Steps of the ODE solver."""
    kept: tuple[int, ...]
    """Indices of the stored states among all solver_steps + 1; 0 is the noise."""
    knots: Knots
    """All states of the solver and the times of its steps; a student's knots are some of them."""
    guidance_range: tuple[float, float]
    """Lowest and highest guidance scale, drawn uniformly for each trajectory; usually the same number twice."""
    guidance_channels: int | None
    """Number of guided channels; all if None."""
    sample_shapes: tuple[tuple[int, ...], ...]
    """Shapes of the states, (c, h, w) or (c, f, h, w); each shard has one of them."""
    num_conditions: int
    """Number of classes or distinct prompts; trajectory i has condition i modulo this number."""
    prompts: str
    """SHA-256 of the prompts in ``prompts.json``; empty for class labels."""
    negative_prompt: str
    """Prompt of the unconditional branch."""
    mixed_precision: str
    """``no`` or ``bf16``: what the teacher's matrix products were computed in."""
    dtype: str
    """``float32`` or ``float16``: what states are stored in."""
    seed: int
    """Seed of the noise, the guidance scales and the order of the sample shapes."""
    num_trajectories: int
    """Number of trajectories; it can grow, all other facts are fixed."""
    shard_size: int
    """Trajectories of a shard; the last one may have fewer."""
    former_identity: str = ""
    """Identity by which the shards of a recording that began as version 3 know it; empty for any other."""
    weights: str = "float32"
    """Type of the teacher's weights, which the states depend on; written only if it is not float32."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_trajectories // self.shard_size)

    def num_rows(self, shard: int) -> int:
        """Number of trajectories of a shard; the last one may have fewer."""
        return min(self.shard_size, self.num_trajectories - shard * self.shard_size)

    def shape_of(self, shard: int) -> int:
        """Index of a shard's sample shape: of n consecutive shards each has one of the n shapes, in shuffled order.

        A fixed order could combine a shape with the same conditions in every shard.
        """
        count = len(self.sample_shapes)
        if count == 1:
            return 0
        order = torch.randperm(count, device="cpu", generator=seeded_generator(f"{self.seed}/{shard // count}/shapes"))
        return int(order[shard % count])

    def labels(self, shard: int) -> Tensor:
        """Class, or number of the prompt, of each of a shard's trajectories, (rows,)."""
        return (torch.arange(self.num_rows(shard), device="cpu") + shard * self.shard_size) % self.num_conditions

    def guidance(self, shard: int) -> Tensor:
        """Guidance scale of each of a shard's trajectories, (rows,)."""
        (low, high), rows = self.guidance_range, self.num_rows(shard)
        if low == high:
            return torch.full((rows,), float(low), dtype=torch.float32, device="cpu")
        return low + (high - low) * torch.rand(
            rows, generator=seeded_generator(f"{self.seed}/{shard}/guidance"), dtype=torch.float32, device="cpu"
        )

    def layout(self, shard: int) -> ShardLayout:
        """The facts that a shard's file must match."""
        shape = self.sample_shapes[self.shape_of(shard)]
        return ShardLayout(self.recording, shard, self.num_rows(shard), len(self.kept), shape, self.dtype)

    @cached_property
    def recording(self) -> str:
        """Identity of the recording, which each shard holds: SHA-256 of all facts but the number of trajectories."""
        if self.former_identity:
            return self.former_identity
        fixed = {name: value for name, value in self._facts().items() if name != "num_trajectories"}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def as_version_3(self) -> Manifest:
        """The same recording, with the identity that version 3 gave it."""
        facts = {name: value for name, value in self._facts().items() if name != "former_identity"}
        text = json.dumps({"version": 3, "seal": SEAL, **facts}, indent=1)
        return replace(self, former_identity=hashlib.sha256(text.encode()).hexdigest())

    def _facts(self) -> dict[str, Any]:
        """The facts as they are written: a recording in float32 keeps the form that earlier versions gave it."""
        return {name: x for name, x in asdict(self).items() if (name, x) != ("weights", "float32")}

    def _json(self) -> str:
        return json.dumps({"version": VERSION, "seal": SEAL, **self._facts()}, indent=1)

    def publish(self, store: Store) -> None:
        """Write ``manifest.json``."""
        store.publish(MANIFEST, seal(self._json().encode()))

    def differences(self, found: Manifest) -> list[str]:
        """Describe each fact that differs in another manifest; empty if both belong to the same recording.

        The number of trajectories may differ; so may times, by the rounding of different hardware, and the teacher's
        name, because a folder can be moved: the fingerprint identifies the teacher.
        """
        skipped = ("num_trajectories", "former_identity", "knots", "teacher")
        names = [
            x.name for x in fields(self) if x.name not in skipped and getattr(self, x.name) != getattr(found, x.name)
        ]
        words = [
            f"{name} is {_shown(getattr(found, name))} there, {_shown(getattr(self, name))} asked for" for name in names
        ]
        if not _close(self.knots, found.knots) and "solver_steps" not in names:
            words.append("the times of the solver's steps (knots) differ")
        return words

    def present(self, store: Store) -> set[int]:
        """Numbers of the shards whose file is there; its content is not checked.

        Raises:
            ValueError: A file is too small for its rows.
        """
        sizes = store.sizes()
        found = {shard for shard in map(_shard_number, sizes) if shard is not None and shard < self.num_shards}
        for shard in found:
            check_size(self.layout(shard), sizes[shard_name(shard)], store.where(shard_name(shard)))
        return found

    @classmethod
    def read(cls, store: Store) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            ValueError: It is missing or damaged, or another version wrote it.
        """
        if not store.exists(MANIFEST):
            if bucket := store.find_missing_bucket():
                raise ValueError(f"expected trajectories in {store}, found no bucket {bucket}; make it or name another")
            raise ValueError(f"expected trajectories (manifest.json) in {store}, found none; make them with record")
        where, raw = store.where(MANIFEST), store.read(MANIFEST)
        remedy = "delete it and run the same record command, which makes it again and keeps the shards"
        try:
            data = json.loads(bytes(raw))
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
            raise ValueError(f"{where} is not a whole manifest ({error}); {remedy}") from error
        version = data.pop("version", None) if type(data) is dict else None
        if version is None:
            raise ValueError(f"{where} is not a whole manifest (it has no version); {remedy}")
        if version not in (3, VERSION) or type(version) is not int:
            raise ValueError(
                f"{where}: version {version!r}, this ardistill reads 3 and {VERSION}; read it with the version that "
                "wrote it (a newer one: pip install -U ardistill), or record again"
            )
        check_seal(raw, where)
        identity = data.pop("seal", "").removeprefix("sha256:")
        if version == 3:
            data["former_identity"] = identity
        data.setdefault("weights", "float32")
        if wrong := sorted(set(data) ^ set(_TESTS)):
            names = ", ".join(map(repr, wrong))  # what a damaged file calls a field may hold anything
            raise ValueError(f"{where} is not a whole manifest ({names}: missing or not known); {remedy}")
        for name, test in _TESTS.items():
            if not test(data[name]):
                raise ValueError(f"{where} is not a whole manifest ({name}: {str(data[name])[:60]!r}); {remedy}")
        knots = Knots.from_dict(data.pop("knots"))
        if knots.num_steps != data["solver_steps"] or data["kept"][0] != 0 or data["kept"][-1] != data["solver_steps"]:
            raise ValueError(f"{where} is not a whole manifest (knots, kept and solver_steps disagree); {remedy}")
        for name in ("kept", "guidance_range"):
            data[name] = tuple(data[name])
        data["sample_shapes"] = tuple(tuple(shape) for shape in data["sample_shapes"])
        return cls(knots=knots, **data)


def _shown(value: Any) -> str:
    """A fact as an error shows it: shortened, and only the beginning of a checksum."""
    return value[:12] if _is_hash(value) else repr(value) if len(repr(value)) < 80 else f"{repr(value)[:80]}..."


def _close(ours: Knots, theirs: Knots) -> bool:
    """Whether times are equal up to rounding."""
    flat = [[*knots.timesteps, *knots.alpha, *knots.sigma] for knots in (ours, theirs)]
    return (
        ours.prediction_type == theirs.prediction_type
        and len(flat[0]) == len(flat[1])
        and all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in zip(*flat, strict=True))
    )


def _shard_number(name: str) -> int | None:
    """Number of a shard's file; None for any other file."""
    number = name.removeprefix("shard-").removesuffix(".arrow")
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        return None
    return int(number) if name == shard_name(int(number)) else None
