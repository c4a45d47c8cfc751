"""A student of two transformers: one draws the first part of the path, where noise is high, the other the rest.

Each is an ordinary student of its part of the path, with a history of its own steps: nothing of the first transformer's
history reaches the second. Only an export of two carries this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from ardistill.core.adoption import adopt, unwrapped
from ardistill.core.attach import compile_blocks
from ardistill.core.config import EXPERTS, StudentConfig
from ardistill.core.knots import Knots
from ardistill.core.pipeline import FewStepPipeline, _FixedKnots


@dataclass(frozen=True)
class PairConfig(StudentConfig):
    """Configuration of a student of two transformers: its knots are those of both, all else is the first one's.

    What the two may have each by itself (history, mask, output, adapters) is in ``parts``.
    """

    parts: tuple[StudentConfig, ...] = ()
    """The student of the high-noise expert, and that of the low-noise expert."""

    @classmethod
    def join(cls, first: StudentConfig, second: StudentConfig) -> PairConfig:
        """The configuration of two students that draw one after the other.

        Args:
            first: The one of the high-noise expert.
            second: The one of the low-noise expert, which starts where the first one ends.

        Raises:
            ValueError: They do not go together.
        """
        if (first.expert, second.expert) != ("high_noise", "low_noise"):
            asked = [x.expert or "the whole path" for x in (first, second)]
            raise ValueError(
                f"expected the student of the high_noise expert and then that of the low_noise one, got {asked[0]} and "
                f"{asked[1]}; distil both, with --expert high_noise and --expert low_noise"
            )
        for name in ("teacher", "fingerprint", "guidance_range", "sample_shapes"):
            if getattr(first, name) != getattr(second, name):
                raise ValueError(
                    f"expected two students of one recording, their {name} is {getattr(first, name)!r} and "
                    f"{getattr(second, name)!r}; distil both from the same trajectories"
                )
        a, b = first.knots, second.knots
        if (a.prediction_type, a.alpha[-1], a.sigma[-1]) != (b.prediction_type, b.alpha[0], b.sigma[0]):
            raise ValueError(
                f"expected two parts that meet, the first one ends at noise level {a.sigma[-1]:.4g}, the second one "
                f"begins at {b.sigma[0]:.4g}; distil both with the same --num_steps and --knots"
            )
        knots = Knots(a.prediction_type, a.timesteps + b.timesteps, a.alpha + b.alpha[1:], a.sigma + b.sigma[1:])
        rest = {field.name: getattr(first, field.name) for field in fields(StudentConfig)}
        return cls(**rest | {"knots": knots, "expert": "", "parts": (first, second)})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PairConfig:
        """Undo `to_dict`, also after a passage through JSON."""
        return cls.join(*(StudentConfig.from_dict(data[EXPERTS[name]]) for name in ("high_noise", "low_noise")))

    def to_dict(self) -> dict[str, Any]:
        """Component of the pipeline -> the configuration of its student as a dict, whose adapters are merged."""
        return {name: asdict(replace(part, lora_rank=0)) for name, part in self.by_component().items()}

    def check_boundary(self, boundary: float) -> None:
        """Check that a pipeline changes its transformer where the students meet.

        Args:
            boundary: The time below which the pipeline's second transformer predicts.

        Raises:
            ValueError: It changes elsewhere.
        """
        last, first = self.parts[0].knots.timesteps[-1], self.parts[1].knots.timesteps[0]
        if not first < boundary <= last:
            raise ValueError(
                f"expected a boundary between the students' times {first:g} and {last:g}, got {boundary:g}; take the "
                "boundary_ratio of the teacher that they were distilled from"
            )

    def by_component(self) -> dict[str, StudentConfig]:
        """Component of the pipeline -> the student that it is."""
        return {EXPERTS[part.expert]: part for part in self.parts}


class _PairKnots(_FixedKnots):
    """The steps of the first student and then those of the second, whose history begins anew."""

    def __init__(self, student: Any, config: Any, last_dtype: torch.dtype | None) -> None:
        super().__init__(student, config, last_dtype)
        self.whole, self.image_dtype = student, last_dtype

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None) -> None:
        super().set_timesteps(device=device)
        self._begin(self.whole.parts[0])

    def _begin(self, part: StudentConfig) -> None:
        """Let a student draw from the present state on, without history."""
        self.student, self.layout.step, self.layout.cache = part, 0, {}
        self.last_dtype = None if part is self.whole.parts[0] else self.image_dtype

    @property
    def step_index(self) -> int:
        done = 0 if self.student is self.whole.parts[0] else self.whole.parts[0].knots.num_steps
        return done + self.layout.step

    @property
    def num_inference_steps(self) -> int:
        return int(self.whole.knots.num_steps)

    def step(self, *args: Any, **options: Any) -> Any:
        found, (first, second) = super().step(*args, **options), self.whole.parts
        if self.student is first and self.layout.step == first.knots.num_steps:
            self._begin(second)
        return found


class PairPipeline(FewStepPipeline):
    """Mixed into a pipeline class of two transformers, by `few_step_pipeline`; ``student`` is a `PairConfig`'s dict."""

    _knots = _PairKnots

    def __init__(self, *args: Any, student: dict[str, Any] | None = None, **components: Any) -> None:
        super().__init__(*args, student=student and student["transformer"], **components)
        config = PairConfig.from_dict(student or {})
        config.check_boundary((self.config.boundary_ratio or 0) * self.scheduler.config.num_train_timesteps)
        self.register_to_config(student=student)
        if self.transformer_2 is not None:
            adopt(self.transformer_2, config.parts[1], "", self.components.values())
        self.__dict__.update(_student=config, _parts=config.by_component())

    def compile(self, **options: Any) -> None:
        """Compile each block of both transformers in place; the first calls take the time that this needs."""
        for name in self._parts:
            compile_blocks(unwrapped(getattr(self, name)), **options)
