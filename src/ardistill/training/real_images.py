"""The file of encoded real images that a discriminator is trained on: latents with their conditions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ardistill.families import Condition
from ardistill.files import weight_fingerprint, whole_file
from ardistill.teacher import Companions, Teacher


def save_real(
    path: str | Path, latents: Tensor, condition: Condition, described: Mapping[str, str] | None = None
) -> None:
    """Write encoded images.

    Args:
        path: safetensors file to write.
        latents: Latents, (n, c, h, w).
        condition: One row per latent.
        described: Further facts for the file's metadata, such as the identity of the VAE (`encoder_identity`).
    """
    tensors = {f"condition.{name}": value.contiguous() for name, value in condition.items()}
    tensors |= {"latents": latents.contiguous()}
    facts = {**(described or {}), "shape": json.dumps(list(latents.shape[1:])), "sha256": weight_fingerprint(tensors)}
    with whole_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=facts)


def load_real(path: str | Path, teacher: Teacher) -> tuple[Tensor, Condition]:
    """Read what ``save_real`` wrote.

    Returns:
        Latents, (n, c, h, w), and their condition, one row each.

    Raises:
        ValueError: The file is missing or damaged, does not fit the teacher, was encoded by another VAE, or holds
            values that are not finite.
    """
    tensors, facts = _read(path)
    latents = tensors.pop("latents")
    condition = {name.removeprefix("condition."): value for name, value in tensors.items()}
    if tuple(latents.shape[1:]) != tuple(teacher.sample_shape):
        raise ValueError(f"{path} holds latents {tuple(latents.shape[1:])}, the teacher's are {teacher.sample_shape}")
    if ("class_labels" in condition) == teacher.takes_text:
        raise ValueError(f"{path} holds {sorted(condition)}, which {teacher.name or 'the teacher'} does not take")
    teacher.check_condition(condition)
    check_finite({"latents": latents, **condition}, str(path), "latents or embeddings")
    ours = encoder_identity(teacher)
    if "pixels" not in (ours, facts.get("vae", ours)) and facts.get("vae", ours) != ours:
        raise ValueError(
            f"{path} was encoded by another VAE than that of {teacher.name or 'the teacher'}; make it again with "
            "`ardistill encode` and this teacher"
        )
    return latents, condition


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, among them ``latents``, and metadata of a file, with its checksum verified."""
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
        expected = facts.get("sha256")
        if expected is not None and expected != weight_fingerprint(tensors):
            raise ValueError(f"{path} is damaged (its checksum differs); make it again with `ardistill encode`")
        tensors["latents"]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no file of real latents ({error}); make one with `ardistill encode`") from error
    return tensors, facts


def check_finite(tensors: Mapping[str, Tensor], where: str, what: str) -> None:
    """Check that floating-point tensors hold neither NaN nor infinity.

    Args:
        tensors: Tensors by name.
        where: File or images they came from, for the message.
        what: Name of the values, for the message.

    Raises:
        ValueError: One of them is not finite.
    """
    if any(not value.isfinite().all() for value in tensors.values() if value.is_floating_point()):
        raise ValueError(f"{where}: {what} are not finite; load the teacher in float32, which does not overflow")


def encoder_identity(teacher: Teacher) -> str:
    """Digest of the weights and scale of a teacher's VAE; ``pixels`` if it has no VAE."""
    vae = teacher.companions.get("vae")
    if vae is None:
        return "pixels"
    if isinstance(teacher.companions, Companions) and vae.dtype != torch.float32:
        vae = teacher.companions.load("vae", torch.float32)
    keys = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    scale = json.dumps({key: vae.config.get(key) for key in keys})
    return hashlib.sha256(f"{weight_fingerprint(vae.state_dict())}{scale}".encode()).hexdigest()
