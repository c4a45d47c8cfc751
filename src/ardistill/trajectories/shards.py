"""The file format of a shard: an Arrow IPC file of one record batch, one row per trajectory, sealed with a checksum.

``states`` and ``denoised`` are fixed-size binary columns, so that a row is read in place, without parsing. The schema's
metadata name the recording and the number of the shard, so that a file in the wrong place is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from ardistill.files import SEAL, check_seal, seal

DTYPES: dict[str, Any] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
"""Names of the dtypes that states can be stored in."""


@dataclass(frozen=True)
class ShardLayout:
    """The facts of a shard that follow from the manifest."""

    recording: str
    """Identity of the recording, `Manifest.recording`."""
    shard: int
    """Number of the shard."""
    rows: int
    """Number of trajectories."""
    kept: int
    """Number of stored states of a trajectory; one more than denoised estimates."""
    sample_shape: tuple[int, ...]
    """Shape of a state, (c, h, w) or (c, f, h, w)."""
    dtype: str
    """What states are stored in, a key of `DTYPES`."""

    @property
    def payload(self) -> int:
        """Size of states and denoised estimates in bytes; the file is larger."""
        values = self.rows * (2 * self.kept - 1) * int(np.prod(self.sample_shape, dtype=object))
        return values * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Shard:
    """A shard's trajectories, in memory or mapped."""

    states: np.ndarray
    """x_t, noisiest first, (rows, kept, c, h, w), in the stored dtype."""
    denoised: np.ndarray
    """x̂0 of the step that arrives at each state but the first, (rows, kept - 1, c, h, w), in the stored dtype."""
    labels: np.ndarray
    """Class, or number of the prompt, (rows,), int64."""
    guidance: np.ndarray
    """Guidance scale, (rows,), float32."""


def make_shard(layout: ShardLayout, states: Tensor, denoised: Tensor, labels: Tensor, guidance: Tensor) -> Shard:
    """Convert tensors to the stored dtype.

    Raises:
        ValueError: A value is not finite, or too large for half precision.
    """
    found: list[np.ndarray] = []
    for name, value in (("states", states), ("denoised", denoised)):
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(value.float().numpy().astype(DTYPES[layout.dtype], copy=False))
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} of shard {layout.shard} are not finite in {layout.dtype}; check the teacher, its guidance "
                "scale and the precision"
            )
        found.append(array)
    return Shard(found[0], found[1], labels.numpy(), guidance.numpy())


def encode_shard(layout: ShardLayout, shard: Shard) -> bytes:
    """The content of a shard's file: a pure function of the arguments and of pyarrow's version."""

    def binary(x: np.ndarray) -> pa.Array:
        width = x[0].nbytes
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(x), [None, pa.py_buffer(x)])

    columns = {
        "states": binary(shard.states),
        "denoised": binary(shard.denoised),
        "labels": pa.array(shard.labels),
        "guidance": pa.array(shard.guidance),
    }
    metadata = {"recording": layout.recording, "shard": str(layout.shard), "dtype": layout.dtype, "seal": SEAL}
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return seal(sink.getvalue().to_pybytes())


def decode_shard(layout: ShardLayout, data: memoryview, where: str) -> Shard:
    """Check every byte of a shard's file and view its rows.

    Args:
        layout: The facts that the file must match.
        data: Content of the file.
        where: Its path or URL, for messages.

    Raises:
        ValueError: The file is cut or damaged, or belongs to another recording or another shard.
    """
    return view_shard(layout, data, find_columns(layout, data, where))


def find_columns(layout: ShardLayout, data: memoryview, where: str) -> list[int]:
    """Check every byte of a shard's file and find where its columns begin.

    Returns:
        Offsets in bytes of ``states``, ``denoised``, ``labels`` and ``guidance``.

    Raises:
        ValueError: The file is cut or damaged, or belongs to another recording or another shard.
    """
    check_size(layout, len(data), where)
    if bytes(data[-6:]) != b"ARROW1":
        raise ValueError(
            f"{where} is cut: expected the end of an Arrow file; `ardistill trajectories repair` remakes it"
        )
    check_seal(data, where)
    try:
        file = pa.py_buffer(data)
        reader = pa.ipc.open_file(pa.BufferReader(file))
        metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
        for name, expected in (("recording", layout.recording), ("shard", str(layout.shard))):
            if metadata.get(name) != expected:
                raise ValueError(
                    f"{where} is of another place: {name} is {str(metadata.get(name))[:12]}, expected {expected[:12]}; "
                    "it was recorded with other settings or another teacher, or moved: `ardistill trajectories repair` "
                    "makes the right one"
                )
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if reader.num_record_batches != 1 or batch.num_rows != layout.rows:
            raise ValueError(
                f"{where}: expected {layout.rows} rows in one batch, found {batch.num_rows}; if trajectories were "
                "added since it was opened, open it again, else `ardistill trajectories repair` makes it again"
            )
        starts = []
        for column, dtype, shape in _columns(layout):
            array, width = batch.column(column), int(np.prod(shape[1:])) * dtype.itemsize
            expected_type = pa.binary(width) if len(shape) > 1 else pa.from_numpy_dtype(dtype)
            if array.type != expected_type or array.null_count:
                raise ValueError(f"{where}: expected {expected_type} in {column}, found {array.type}")
            starts.append(array.buffers()[1].address - file.address)
            if not 0 <= starts[-1] <= len(data) - layout.rows * width:
                raise ValueError(f"{where}: expected {column} uncompressed; `ardistill trajectories repair` remakes it")
        return starts
    except (pa.ArrowException, KeyError, IndexError, OverflowError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{where} cannot be read as a shard ({reason}); `ardistill trajectories repair` remakes it"
        ) from (error)


def view_shard(layout: ShardLayout, data: memoryview, starts: Sequence[int]) -> Shard:
    """View the rows of a checked file, given the offsets of its columns.

    The views are of the file itself, not of Arrow's buffers, which keep 2 KB of readers and schemas alive per shard.
    """
    return Shard(
        *(
            np.ndarray(shape, dtype, data, start)
            for (_, dtype, shape), start in zip(_columns(layout), starts, strict=True)
        )
    )


def _columns(layout: ShardLayout) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each column."""
    latents, rows = DTYPES[layout.dtype], layout.rows
    return [
        ("states", latents, (rows, layout.kept, *layout.sample_shape)),
        ("denoised", latents, (rows, layout.kept - 1, *layout.sample_shape)),
        ("labels", np.dtype("<i8"), (rows,)),
        ("guidance", np.dtype("<f4"), (rows,)),
    ]


def check_size(layout: ShardLayout, size: int, where: str) -> None:
    """Refuse a file that is too small for its rows.

    Args:
        layout: The facts that the file must match.
        size: Size of the file in bytes.
        where: Its path or URL, for the message.

    Raises:
        ValueError: The file is too small.
    """
    if size < layout.payload:
        raise ValueError(
            f"{where} is cut: expected {layout.payload} bytes or more, found {size}; `ardistill trajectories repair` "
            "makes it again, or delete it and run the same record command"
        )
