"""AdamW in 32 or 8 bits, and its state as plain tensors, which a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ardistill.config import TrainingConfig
from ardistill.devices import compiles

_PARTS = ("codes", "scale")
"""What changes of a moment in 8 bits: a byte per parameter, and a float32 scale for each 256 of them."""


def check_optimizer(config: TrainingConfig) -> None:
    """Check that the optimiser is installed.

    Raises:
        ValueError: It is torchao's, and torchao is not installed.
    """
    if config.optimizer == "adamw8bit":
        _adamw8bit()


def make_optimizer(groups: Iterable[dict[str, Any]], config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW over groups of parameters.

    Args:
        groups: Parameters, with a learning rate of their own where it is not the configured one.
        config: Optimiser, learning rate and weight decay.
        fused: Whether torch's AdamW computes in a few kernels over all weights; nothing to torchao's.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw8bit":
        return _adamw8bit()(groups, rate, weight_decay=decay)
    return torch.optim.AdamW(groups, rate, weight_decay=decay, fused=fused or None)


def _adamw8bit() -> Any:
    """torchao's AdamW whose moments are quantised in blocks of 256 (Dettmers et al. 2022, arXiv:2110.02861).

    Parameters of fewer than 4,096 values, or of a number that 256 does not divide, keep moments in float32.

    Raises:
        ValueError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("optimizer adamw8bit needs torchao: pip install 'ardistill[quantised]'") from error

    class PlainRates(AdamW8bit):  # type: ignore[misc, valid-type]
        """Its learning rates are numbers outside of a step, as schedules and checkpoints have them, not tensors."""

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            rate = param_group.get("lr", self.defaults["lr"])
            super().add_param_group(param_group)
            self.param_groups[-1]["lr"] = rate

        def step(self, closure: Any = None) -> Any:
            rates = [group["lr"] for group in self.param_groups]
            device = self.param_groups[0]["params"][0].device
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = torch.tensor(rate, dtype=torch.float32, device="cpu")
            # torchao compiles the step for each shape of a weight, which takes longer on a CPU than it saves.
            with nullcontext() if compiles(None, device, 1000) else torch.compiler.set_stance("force_eager"):
                loss = super().step(closure)
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
            return loss

    return PlainRates


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict with a dict of plain tensors, those in use, for each moment in 8 bits."""
    return {"param_groups": state["param_groups"]} | {
        "state": {
            name: {key: {part: getattr(x, part) for part in _PARTS} if _is_8bit(x) else x for key, x in own.items()}
            for name, own in state["state"].items()
        }
    }


def restored_state(saved: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Undo ``plain_state``.

    Args:
        saved: What ``plain_state`` returned.
        present: The optimiser's present state dict, whose moments in 8 bits are given the saved values.
    """
    state: dict[str, Any] = {}
    for name, own in saved["state"].items():
        state[name] = {key: present["state"][name][key] if isinstance(x, dict) else x for key, x in own.items()}
        for key, x in own.items():
            for part, value in x.items() if isinstance(x, dict) else ():
                getattr(state[name][key], part).copy_(value)
    return {"param_groups": saved["param_groups"], "state": state}


def _is_8bit(value: Any) -> bool:
    return isinstance(value, Tensor) and all(hasattr(value, part) for part in _PARTS)
