"""With which options a training fits on a card."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ardistill.config import CostConfig
from ardistill.planning.memory import Memory, stages

CARDS = (24, 48, 80, 141)
"""Memory of common cards, in GB as their makers count."""
USABLE = 0.93
"""Share of a card's memory that is planned with; the rest is for CUDA itself and for fragments."""


def card_bytes(name: str) -> int:
    """Bytes of a card's memory from its name, such as ``80GB`` or ``24``.

    Raises:
        ValueError: It is no such name.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB)?\s*", name, re.I)
    if found is None or not float(found[1]):
        raise ValueError(f"expected a card's memory, such as 80GB, got {name!r}")
    return int(float(found[1]) * 2**30)


def smallest_card(size: int) -> str:
    """The smallest of the common cards that bytes fit on, such as ``24 GB``; ``no card`` if there is none."""
    return next((f"{card} GB" for card in CARDS if size <= USABLE * card * 2**30), "no card")


@dataclass(frozen=True)
class Fit:
    """Options of `distill` with which the training fits on a card."""

    options: dict[str, Any]
    """What differs from the configuration that was given; empty if that fits, or if nothing does."""
    bytes: int
    """Memory that the training then takes; the least that was found if nothing fits."""
    time: float
    """Time of a training step of the same number of trajectories, over that of the configuration that was given."""
    fits: bool

    def text(self, card: str) -> str:
        """One line about it.

        Args:
            card: The card's memory as it was asked for, such as ``80GB``.
        """
        size = f"{self.bytes / 2**30:,.2f} GiB"
        if self.fits and not self.options:
            return f"as it is, distill takes {size} of {card}"
        names = {"lora_rank": "--lora_rank", "weights": "--weights"}
        said = " ".join(f"{names.get(k, f'--training.{k}')} {str(v).lower()}" for k, v in self.options.items())
        if not self.fits:
            return f"nothing fits on {card}; the least is {size}, with {said}; shard over several (--num_devices)"
        less = " trains adapters in place of all weights, and" if "lora_rank" in self.options else ""
        return f"{said}:{less} takes {size} of {card}, and about {self.time:.2f} times as long a step"


_TIMES = {
    "optimizer": 1.02,
    "ema_device": 1.03,
    "gradient_checkpointing": 4 / 3,
    "sequential": 4 / 3,
    "offload_activations": 1.5,
    "weights": 1.05,
}
"""Rough factor of a training step's time for each option that saves memory. They only order the options."""


def _choices(config: CostConfig) -> Iterator[dict[str, Any]]:
    """Sets of options, the given configuration's own first, then by the time that they take."""
    adapters = config.lora_rank > 0
    kinds = [config.weights, *(x for x in ("bfloat16", "int8", "nf4") if adapters and x != config.weights)]
    sizes = [config.batch_size // 2**k for k in range(config.batch_size.bit_length())]
    values = {
        "optimizer": (config.optimizer, "adamw8bit"),
        "ema_device": (config.ema_device, "cpu"),
        "gradient_checkpointing": (config.gradient_checkpointing, True),
        "sequential": (config.sequential, True),
        "offload_activations": (config.offload_activations, True),
        "weights": kinds,
        "batch_size": sizes,
    }
    options = itertools.product(*(dict.fromkeys(x) for x in values.values()))
    found = [
        {name: x for name, x in zip(values, chosen, strict=True) if x != getattr(config, name)} for chosen in options
    ]
    return iter(sorted(found, key=lambda x: (_time(x), len(x), config.batch_size // x.get("batch_size", 1))))


def _time(options: dict[str, Any]) -> float:
    time = 1.0
    for name in options:
        time *= _TIMES.get(name, 1.0)
    return time


def cheapest_fit(memory: Memory, count: Callable[[CostConfig], Memory], config: CostConfig, card: int) -> Fit:
    """Find the options that take least time among those with which ``distill`` fits on a card.

    A smaller batch is first, because gradients can be accumulated: the result is the same. Adapters in place of all
    weights give another student, so that they come last.

    Args:
        memory: What was counted of the configuration.
        count: Counts another one.
        config: What is planned.
        card: Bytes of the card's memory.
    """
    least: Fit | None = None
    plans = [config] if config.lora_rank else [config, replace(config, lora_rank=32, weights="bfloat16")]
    for plan in plans:
        changed = plan is not config
        counted = count(plan) if changed else memory
        for options in _choices(plan):
            if "batch_size" in options:
                smaller = config.batch_size // options["batch_size"]
                options |= {"gradient_accumulation_steps": config.gradient_accumulation_steps * smaller}
            size = sum(stages(counted, replace(plan, **options))["distill"].values())
            asked = ({"lora_rank": 32, "weights": "bfloat16"} if changed else {}) | options
            if size <= USABLE * card:
                return Fit(asked, size, _time(options), True)
            if least is None or size < least.bytes:
                least = Fit(asked, size, _time(options), False)
    assert least is not None
    return least
