"""What the page answers when something on it is used: values and updates of its components."""

from __future__ import annotations

import functools
import html
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ardistill import errors
from ardistill.demo.drawing import Drawing, counted, save_steps
from ardistill.demo.studio import Pair, Studio
from ardistill.evaluation import run_of

ENLARGED = 320
"""Edge in pixels that smaller pictures are enlarged to, by a whole factor."""
Update = dict[str, Any]
"""Arguments of a component, and so of ``gradio.update``."""


@dataclass(frozen=True)
class Shown:
    """What is on one visitor's page."""

    drawing: Drawing
    folder: Path
    """Folder of the files to download, of this drawing alone."""


def one_line(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose exceptions are shown on the page as one line; the server's log has a bug's traceback."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            status, line = errors.explain(error)
            if status == errors.BUG:
                traceback.print_exc()
            raise gr.Error(html.escape(line, quote=False), duration=20, print_exception=False) from None

    return run


def fitting(pair: Pair) -> tuple[Update, Update, Update, Update]:
    """The description, and the choices of class, prompt and guidance, that fit a student."""
    config, names = pair.student.config, pair.class_names
    low, high = config.guidance_range
    history = f"history in {counted(config.history_layers, 'layer')}" if config.history_layers else "no history"
    guidance = f"guidance {low:g} to {high:g}" if config.takes_guidance else f"guidance {high:g}"
    teacher = (config.teacher or "an unnamed teacher").replace("`", "")
    classes = [(name if name == str(i) else f"{i}: {name}", i) for i, name in enumerate(names)]
    return (
        {"value": f"{counted(config.knots.num_steps, 'step')}, {history}; teacher `{teacher}`, {guidance}."},
        {"choices": classes, "value": 0 if classes else None, "visible": bool(classes)},
        {"visible": pair.teacher.takes_text},
        _slider(low, high, config.guidance_scale),
    )


def named(students: Sequence[str]) -> list[tuple[str, str]]:
    """The choices of students: a short name of each where it is its own, and the name that it was given by."""
    short = [f"{run.name}{step}" if Path(name).exists() else name for name in students for run, step in [run_of(name)]]
    return [(y if short.count(y) == 1 else x, x) for x, y in zip(students, short, strict=True)]


def step_slider(num_steps: int) -> Update:
    """The slider through a student's steps, at the last one; a single step needs none."""
    return _slider(1, num_steps, num_steps)


def _slider(low: float, high: float, value: float) -> Update:
    """A slider over a range; hidden where the range is one number, which Gradio takes for none."""
    return {"minimum": low, "maximum": high if low < high else low + 1, "value": value, "visible": low < high}


class Answers:
    """The answers of a studio's page. Those that draw or choose return the figures' values, as ``figures`` does.

    Args:
        studio: Draws.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def choose(self, name: str, shown: Shown | None) -> list[Any]:
        """A student was chosen: the updates of ``fitting``, and empty figures."""
        pair = self.studio.load(name)
        return [*(gr.update(**x) for x in fitting(pair)), *self.figures(None, shown, pair.student.num_steps)]

    def add(self, name: str, known: list[str], shown: Shown | None) -> list[Any]:
        """Another student was named: the choices of students, an empty text, known names; then as ``choose``."""
        name = name.strip()
        found = self.choose(name, shown)
        known = [*dict.fromkeys([*known, name])]
        return [gr.update(choices=named(known), value=name), "", known, *found]

    def draw(
        self, name: str, label: Any, prompt: str, scale: Any, seed: Any, steps: Any, shown: Shown | None
    ) -> list[Any]:
        """An image was asked for: the figures."""
        pair = self.studio.load(name)
        request: dict[str, Any] = {"prompt": prompt} if pair.teacher.takes_text else {"class_label": label}
        if pair.student.config.takes_guidance:
            request["guidance_scale"] = scale
        drawing = self.studio.draw(name, seed=_whole(seed), teacher_steps=_whole(steps), **request)
        return self.figures(drawing, shown, pair.student.num_steps)

    @staticmethod
    def figures(drawing: Drawing | None, before: Shown | None, num_steps: int) -> list[Any]:
        """The visitor's state, the samplers' pictures and captions, the slider, the picture of all steps, the download.

        Args:
            drawing: To show; None clears the figures.
            before: What was shown; its files are removed.
            num_steps: Steps of the student.
        """
        forget(before)
        slider = gr.update(**step_slider(num_steps))
        if drawing is None:
            return [None, *[None] * 3, *[""] * 3, slider, None, gr.update(value=None, interactive=False)]
        folder = Path(tempfile.mkdtemp(prefix="ardistill-demo-"))
        save_steps(drawing, folder / "steps.png")
        drawing.student.pictures[-1].save(folder / "student.png")
        shown, download = Shown(drawing, folder), gr.update(value=folder / "student.png", interactive=True)
        return [shown, *at_step(shown, num_steps), slider, folder / "steps.png", download]


def at_step(shown: Shown | None, step: Any) -> list[Any]:
    """The samplers' pictures and captions after a step of the student, counted from 1."""
    if shown is None:
        return [None] * 3 + [""] * 3
    samplers, at = shown.drawing.samplers, _whole(step) - 1
    captions = [f"**{x}**<br>step {x.steps[at]} of {x.num_steps}" for x in samplers]
    return [*(enlarged(x.pictures[at]) for x in samplers), *captions]


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture with each pixel as a square of several, so that no browser blurs it; a larger one as it is."""
    factor = max(1, ENLARGED // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def forget(shown: Shown | None) -> None:
    """Remove the files of what is no longer shown."""
    if shown is not None:
        shutil.rmtree(shown.folder, ignore_errors=True)


def _whole(number: Any) -> Any:
    """A number of the page, as an int if it is whole; else unchanged, for the error message."""
    return int(number) if isinstance(number, float) and number.is_integer() else number
