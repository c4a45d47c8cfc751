"""A student's files: the transformer as a diffusers folder, the adapters, and ``student.json``, which seals both."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.modeling_utils import no_init_weights
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ardistill.core.config import StudentConfig
from ardistill.families import transformer_class
from ardistill.files import (
    TensorFiles,
    checkpoints,
    load_tensors,
    read_json,
    save_tensors,
    sealed_json,
    weight_fingerprint,
    write_in_turn,
    write_whole,
)
from ardistill.student.lora import in_float32
from ardistill.student.model import FewStepModel
from ardistill.teacher import find_source
from ardistill.zoo import STUDENTS

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of a transformer's weights. If there are several, none holds the student's own ones alone, which diffusers
would not read."""
ADAPTERS = "pytorch_lora_weights.safetensors"
_REMEDY = "name a run, a checkpoint, an export or its Hub id"
_PARTS = ("*.json", "*transformer*/*")
"""Patterns of the files that a student is read from."""
_LORA, _BASE = ".lora_", ".base_layer.weight"
_FACTS = ("version", "weights", "transformer")
"""Entries of student.json besides the configuration: checksums of the weights and of the transformer's config.json."""


def _is_first_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _gather(value: Tensor) -> Tensor:
    """A tensor, whole, on every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _unmerged(student: FewStepModel) -> dict[str, Tensor]:
    """Weights without adapters, by their names in the transformer; quantised ones as they compute."""
    weights, own = student.transformer.state_dict(), dict(student.transformer.named_parameters())
    return {name: own.get(name, x) for name, x in weights.items() if _LORA not in name and ".weight." not in name}


def _merged_like(student: FewStepModel, dtype: str | None = None) -> dict[str, Tensor]:
    """Dtypes and shapes of `merged_weights`, as tensors without values: wide dtypes first, then by name, so that each
    tensor is aligned in a file.
    """
    like, kept = {}, getattr(student.transformer, "_keep_in_fp32_modules", None) or ()
    for name, x in _unmerged(student).items():
        shape, own = x.quant_state.shape if hasattr(x, "quant_state") else x.shape, x.dtype
        if x.is_floating_point():
            own = torch.float32 if student.config.lora_rank else own
            own = own if dtype is None or {*kept} & {*name.split(".")} else getattr(torch, dtype)
        like[name.replace(".base_layer", "")] = torch.empty(shape, dtype=own, device="meta")
    return dict(sorted(like.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _each_merged(student: FewStepModel, dtype: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """The weights of `merged_weights`, one after the other, in the order of `_merged_like`.

    Every process has to take all of them, as each is gathered where weights are divided over processes.
    """
    weights, unmerged = student.transformer.state_dict(), _unmerged(student)
    names = {name.replace(".base_layer", ""): name for name in unmerged}
    for merged, like in _merged_like(student, dtype).items():
        name = names[merged]
        value = _gather(unmerged[name].detach())
        value = in_float32(value) if student.config.lora_rank else value
        if name.endswith(_BASE):
            a, b = (_gather(weights[name.replace("base_layer", f"lora_{part}.default")]) for part in "AB")
            value = (b @ a).add_(value)  # a sum in place: a large layer is held twice, not three times
        yield merged, value.to("cpu", like.dtype).contiguous()


def merged_weights(student: FewStepModel, dtype: str | None = None) -> dict[str, Tensor]:
    """The transformer's weights on the CPU, by diffusers' names, with adapters merged into those they stand beside.

    With adapters, all are float32, whatever type the base has: the student was trained on the base's own values, and 16
    bits would lose small updates. Weights divided over processes are gathered one by one: every process has to call it,
    and the first one gets them.

    Args:
        student: The student.
        dtype: Floating-point type to convert them to, but for the modules that diffusers keeps in float32 when it loads
            16 bits; none if not given.
    """
    keeps, each = _is_first_process(), _each_merged(student, dtype)
    return dict(pair for pair in each if keeps)


def adapter_weights(student: FewStepModel) -> dict[str, Tensor]:
    """The matrices A and B of the adapters on the CPU, by PEFT's names of them in the transformer.

    Every process has to call it.
    """
    weights = student.transformer.state_dict()
    return {name.replace(".default", ""): _gather(x).cpu().contiguous() for name, x in weights.items() if _LORA in name}


def save_transformer(
    student: FewStepModel, folder: Path, dtype: str | None = None, max_shard_size: str | None = None
) -> list[Path] | None:
    """Write the transformer alone, whole, with adapters merged.

    No process holds more of it than its part and the tensor that is written, unless there are to be several files.

    Args:
        student: The student.
        folder: Where it is written.
        dtype: What weights are stored in, as for `merged_weights`.
        max_shard_size: Size of a file, such as ``5GB``, as diffusers takes it; one file if not given.

    Returns:
        The files of the weights; None where another process, the first one, wrote them.

    Raises:
        ValueError: The size cannot be read.
    """
    each = _each_merged(student, dtype)
    if not _is_first_process():
        deque(each, maxlen=0)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", json.dumps(student.described, indent=2).encode())
    if max_shard_size is not None:
        return _save_shards(dict(each), set(student.transformer.attachment.own_weights), folder, max_shard_size)
    write_in_turn(_merged_like(student, dtype), each, folder / WEIGHTS)
    return [folder / WEIGHTS]


def _save_shards(weights: dict[str, Tensor], own: set[str], folder: Path, size: str) -> list[Path]:
    """Write files of a size at most, and their index; the student's own weights stand in the first of them."""
    stock = {name: x for name, x in weights.items() if name not in own}
    pattern = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(stock, filename_pattern=pattern, max_shard_size=size)
    files = {file: {name: weights[name] for name in names} for file, names in split.filename_to_tensors.items()}
    first = min(files)
    files[first] |= {name: weights[name] for name in own}
    for file, tensors in files.items():
        save_tensors(tensors, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename | dict.fromkeys(own, first)}
        write_whole(folder / f"{WEIGHTS}.index.json", json.dumps(index, indent=2, sort_keys=True).encode())
    return [folder / file for file in files]


def load_weights(folder: Path) -> TensorFiles:
    """The weights in a transformer's folder, in one file or in shards, each read when it is asked for.

    Raises:
        ValueError: A file is missing, cut or damaged.
    """
    index = folder / f"{WEIGHTS}.index.json"
    files = sorted({*read_json(index)["weight_map"].values()}) if index.is_file() else [WEIGHTS]
    return TensorFiles([folder / Path(file).name for file in files])


def save_student(student: FewStepModel, folder: Path) -> None:
    """Write ``transformer/`` and the ``student.json`` that seals it; called by every process, the first one writes."""
    written = save_transformer(student, folder / "transformer")
    if written is not None:
        digest = hashlib.sha256((folder / "transformer" / "config.json").read_bytes()).hexdigest()
        facts = {"version": 1, "weights": weight_fingerprint(TensorFiles(written)), "transformer": digest}
        write_whole(folder / "student.json", sealed_json(facts | asdict(replace(student.config, lora_rank=0))))


def save_adapters(student: FewStepModel, folder: Path) -> None:
    """Write the trained weights alone; called by every process, the first one writes."""
    own = {name for name, p in student.transformer.named_parameters() if p.requires_grad}
    weights = {name: _gather(x).cpu() for name, x in student.transformer.state_dict().items() if name in own}
    if _is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        adapters = {f"transformer.{name.replace('.default', '')}": x for name, x in weights.items() if _LORA in name}
        more = {name: x for name, x in weights.items() if _LORA not in name}
        save_tensors(adapters, folder / ADAPTERS)
        save_tensors(more, folder / "more.safetensors")
        facts = {"version": 1, "weights": weight_fingerprint(adapters | more)}
        write_whole(folder / "student.json", sealed_json(facts | asdict(student.config)))


def read_adapters(folder: Path) -> tuple[StudentConfig, dict[str, Tensor]]:
    """The configuration of a student with adapters, and its trained weights by their names in the transformer.

    Args:
        folder: What ``save_adapters`` wrote, or the run that has it as its subfolder ``adapters``.

    Raises:
        ValueError: There are none, or they are damaged.
    """
    run = folder.parent if folder.name == "student" else folder
    found = [x for x in (run / "adapters", folder) if (x / ADAPTERS).is_file() and (x / "student.json").is_file()]
    if not found:
        raise ValueError(
            f"expected a student's adapters in {folder}, found none; distil with lora_rank, and name the finished run "
            "or its subfolder adapters"
        )
    folder, path = found[0], found[0] / "student.json"
    data = read_json(path)
    config = _read_config(path, data)
    saved, more = load_tensors(folder / ADAPTERS), load_tensors(folder / "more.safetensors")
    _check_tensors(saved | more, data.get("weights"), folder)
    weights = {x.removeprefix("transformer.").replace(".weight", ".default.weight"): y for x, y in saved.items()}
    return config, weights | more


def fill_adapters(student: FewStepModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Load trained weights, from ``read_adapters``, into a student that stands on its teacher's weights.

    Raises:
        ValueError: They are of another student.
    """
    own = {name: p for name, p in student.transformer.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        differing = ", ".join(sorted(own.keys() ^ weights.keys())[:3])
        raise ValueError(
            f"{folder}: expected the weights that this student trains, but only one of both has {differing} ...; name "
            "the adapters of a run of this teacher"
        )
    student.transformer.load_state_dict(weights, strict=False)


@dataclass(frozen=True)
class StoredStudent(ABC):
    """A student that was found in a folder; its weights are not read yet."""

    folder: Path
    """The folder of the student."""
    path: Path
    """The file that holds the transformer's configuration, for messages."""
    config: StudentConfig
    """Its knots, history, target and output."""
    transformer: Any
    """The transformer's configuration."""
    weights: str | None = None
    """Fingerprint of the weights; None where the file does not give one."""

    def make_transformer(self) -> nn.Module:
        """The transformer, with weights that are not set yet, in float32 whatever torch's default dtype is.

        Raises:
            ValueError: The configuration describes no diffusers model.
        """
        if not isinstance(self.transformer, dict) or "_class_name" not in self.transformer:
            raise ValueError(f"{self.path}: expected a diffusers model's configuration; write it again, from its run")
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with no_init_weights():  # memory that nobody wrote to is not taken yet
                return transformer_class(self.transformer).from_config(self.transformer)
        finally:
            torch.set_default_dtype(default)

    @abstractmethod
    def fill(self, student: FewStepModel, keep_dtype: bool = False) -> None:
        """Read the weights into a student that was made of this, in the student's dtypes or in those of the files.

        Raises:
            ValueError: They are missing, damaged or of another student.
        """


class _Saved(StoredStudent):
    """A student that ``save_pretrained`` or ``export`` wrote."""

    def fill(self, student: FewStepModel, keep_dtype: bool = False) -> None:
        """Read ``transformer/`` tensor by tensor, and check it against the checksums in student.json."""
        weights, own = load_weights(self.path.parent), student.transformer.state_dict(keep_vars=True)
        _check_tensors(weights, self.weights, self.path.parent / WEIGHTS)
        if wrong := {name: tuple(x.shape) for name, x in own.items()}.items() ^ weights.shapes.items():
            raise ValueError(f"{self.path} does not fit the weights beside it ({min(wrong)[0]}); write both again")
        for name, x in own.items():
            if keep_dtype and x.is_floating_point():
                x.data = torch.empty_like(x, dtype=weights[name].dtype)
            weights.fill(name, x)


class _Checkpoint(StoredStudent):
    """A checkpoint of a run, of which the averaged weights (EMA) are the student's."""

    def fill(self, student: FewStepModel, keep_dtype: bool = False) -> None:
        """Read the averaged weights and the buffers, all of which are float32."""
        averaged = dict(student.named_parameters())
        buffers = {name: x for name, x in student.state_dict().items() if name not in averaged}
        checkpoints.load(self.folder, {"ema": {"shadow_params": averaged}, "student": buffers}, collectively=False)


def locate_student(name: str | Path) -> Path:
    """The folder that a student's name stands for: an embedded student's, a local one, or that of a Hub id, of which
    what only its pipeline needs is not downloaded.

    Raises:
        ValueError: It looks like a Hub id, and the Hub has no such model or cannot be reached.
    """
    name = str(name)
    if name in STUDENTS:
        return STUDENTS[name]
    if name.startswith("zoo/") and not Path(name).exists():
        raise ValueError(f"expected a student of the zoo, {', '.join(STUDENTS)}, got {name}")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or Path(name).exists():
        return Path(name)
    return find_source(name, _PARTS, _REMEDY).folder


def find_student(folder: Path, component: str = "transformer") -> StoredStudent:
    """Find a student in a run's folder, a checkpoint, or what ``save_pretrained`` or ``export`` wrote.

    Of two in one export it is that of a component. Raises a ValueError if there is none, it is damaged, or a newer
    version wrote it.
    """
    if (folder / "state.json").is_file():
        return _find_in_checkpoint(folder)
    if (folder / "student" / "student.json").is_file():
        folder = folder / "student"
    path = folder / "student.json"
    data = read_json(path) if path.is_file() else None
    if data is None and (folder / "model_index.json").is_file():
        path = folder / "model_index.json"
        found = read_json(path)
        data = (found.get("student") or found.get("_student")) if isinstance(found, dict) else None
        data = data.get(component, data) if isinstance(data, dict) else data
    if data is None:
        raise ValueError(
            f"expected a student (a run, a checkpoint of one, or an export) in {folder}, found none; {_REMEDY}"
        )
    config = _read_config(path, data)
    transformer = read_json(described := folder / component / "config.json")
    if data.get("transformer") not in (None, hashlib.sha256(described.read_bytes()).hexdigest()):
        raise _differs(described)
    return _Saved(folder, described, config, transformer, data.get("weights"))


def _find_in_checkpoint(folder: Path) -> StoredStudent:
    checkpoints.check(folder)
    path, saved = folder / "state.json", read_json(folder / "state.json")
    if "made_of" not in saved:
        raise ValueError(
            f"{folder}: this checkpoint was written by an older ardistill and cannot be used as a student; finish its "
            "run and use the run folder"
        )
    config = _read_config(path, saved["made_of"]["student"])
    if config.lora_rank:
        raise ValueError(
            f"{folder}: this checkpoint stores adapters only and cannot be used as a student; finish its run and use "
            "the run folder"
        )
    return _Checkpoint(folder, path, config, saved["made_of"]["transformer"])


def _read_config(path: Path, data: Any) -> StudentConfig:
    """A student's configuration, as it was found in ``path``.

    Raises:
        ValueError: It is none, or a newer version wrote it.
    """
    if isinstance(data, dict) and data.get("version", 1) != 1:
        raise ValueError(f"{path} was written by a newer ardistill; update the package")
    try:
        return StudentConfig.from_dict({key: x for key, x in data.items() if key not in _FACTS})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe a student ({type(error).__name__}: {error}); write it again, from its run"
        ) from error


def _check_tensors(tensors: Mapping[str, Tensor], expected: str | None, path: Path) -> None:
    """See that these are the tensors that ``student.json`` was written for.

    ``expected`` is None of an export, whose weights others may convert, and of older versions.

    Raises:
        ValueError: They differ by a bit or more.
    """
    if expected is not None and expected != weight_fingerprint(tensors):
        raise _differs(path)


def _differs(path: Path) -> ValueError:
    return ValueError(f"{path} is not what student.json says (its checksum differs); write both again, from the run")
