"""What the tests know of a family: instances of its transformer, and a pipeline of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from ardistill.families import transformer_class


@dataclass(frozen=True)
class Tiny:
    """A tiny instance of a transformer's real class; nothing is made before a test asks for it."""

    class_name: str
    options: dict[str, Any]
    """What the class is made with."""
    latents: tuple[int, ...]
    """Shape of one sample's latents, (c, h, w) or, of a video, (c, f, h, w)."""
    condition: Callable[[int], dict[str, Tensor]]
    """Rows -> condition."""
    oracle: tuple[set[int], slice | list[slice], int]
    """Which calls of attention are the lower two blocks' self-attention, where the image stands among their tokens (a
    list: in each row), and how many tokens it has: by hand, not from the family."""
    flow: bool = True
    """Whether it is trained with flow matching; else with a variance-preserving schedule."""

    def transformer(self) -> Any:
        """With random weights, none of which is hidden behind a zero gate."""
        torch.manual_seed(0)
        model = transformer_class(self.class_name)(**self.options)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        return model.eval()

    def scheduler(self) -> Any:
        """Of the schedule that it is trained with."""
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if self.flow else diffusers.DDIMScheduler()


@dataclass(frozen=True)
class TinyPipeline:
    """A tiny pipeline of the real classes with random weights: what a user's teacher looks like."""

    make: Callable[[], Any]
    tiny: str
    """The instance whose class its transformer has."""
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call besides prompts or labels: sizes, and switches that only tiny pipelines need."""
    guided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 2.0})
    """Arguments of a call that guide as a teacher of ``guidance_scale=2.0`` does."""
    negative_prompt: str | None = None
    """Negative prompt of both, where the pipeline does not guide without one."""
    scheduler: Callable[[Any], Any] | None = None
    """(Its own scheduler) -> the one under which its loop takes the solver's steps; None: its own."""
    prompts: int = 2
    """How many prompts a guided call takes."""
    drawn: int = 2
    """How many prompts a call that does not guide takes."""
    solver_steps: int = 24
    """Steps of a solver, among whose states are those of the pipeline's own grid of 4."""
    drawn_as: tuple[int, ...] = ()
    """Order of the latents' axes in which it draws its noise, if it is another one."""
    given_times: bool = True
    """Whether its call takes times."""
    lora_loader: bool = True
    """Whether the class loads files of adapters."""

    @property
    def size(self) -> dict[str, int]:
        """Height, width and number of frames, where the pipeline does not choose them."""
        return {key: x for key, x in self.call.items() if key in ("height", "width", "num_frames")}

    def noise(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """What a call with a generator of seed 0 starts from, as latents of this shape."""
        order = self.drawn_as or tuple(range(len(shape)))
        drawn = torch.randn(count, *(shape[i] for i in order), generator=torch.Generator().manual_seed(0))
        return drawn.permute(0, *(1 + order.index(i) for i in range(len(shape))))


def drawn_by(result: Any) -> Tensor:
    """The images of a pipeline's result, or its videos as `Teacher.decode` has them, (b, c, f, h, w)."""
    return result.frames.transpose(1, 2) if hasattr(result, "frames") else next(iter(result.values()))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def text(tokens: int, width: int, **more: Any) -> Callable[[int], dict[str, Tensor]]:
    """Embedded prompts, and what else the family's condition has, each by its number of rows."""
    return lambda count: (
        {"encoder_hidden_states": normal(count, tokens, width)} | {name: make(count) for name, make in more.items()}
    )


def labels(count: int) -> dict[str, Tensor]:
    return {"class_labels": torch.arange(count) % 5}


def ragged(count: int, tokens: int = 7) -> Tensor:
    """A mask of prompts of three lengths."""
    lengths = torch.arange(count) % 3 + tokens - 2
    return torch.arange(tokens)[None] < lengths[:, None]
