"""The page's layout, made with Gradio."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ardistill.demo.answers import Answers, at_step, fitting, forget, named, one_line, step_slider
from ardistill.demo.studio import Pair, Studio

TITLE = "ardistill: a few steps beside their teacher"
INTRODUCTION = f"""# {TITLE}

One image from the same noise, drawn three times: by a **student** in its few steps, by its **teacher's own solver** in
as many steps, and by the **teacher** in many. The slider goes through the steps: each picture is what its sampler then
expects the finished image to be."""
HEADS = {"student": "Student", "solver": "Teacher's solver, as many steps", "teacher": "Teacher, many steps"}
"""Name of a sampler -> head of its picture."""
LOOKS: dict[str, Any] = {
    # Fonts that every machine has: none is fetched.
    "theme": gr.themes.Soft(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
    "css": """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.head, .caption { text-align: center; }
""",
}
"""Arguments of ``launch``."""
DAY = 24 * 3600


@dataclass(frozen=True)
class _Controls:
    """What a visitor chooses with."""

    student: gr.Dropdown
    other: gr.Textbox
    about: gr.Markdown
    label: gr.Dropdown
    prompt: gr.Textbox
    guidance: gr.Slider
    seed: gr.Number
    teacher_steps: gr.Slider
    draw: gr.Button
    new: gr.Button


@dataclass(frozen=True)
class _Figures:
    """What a visitor sees."""

    shown: gr.State
    images: list[gr.Image]
    captions: list[gr.Markdown]
    step: gr.Slider
    steps: gr.Image
    download: gr.DownloadButton

    @property
    def all(self) -> list[Any]:
        """All of these, in the order of ``Answers.figures``."""
        return [self.shown, *self.images, *self.captions, self.step, self.steps, self.download]


def make_page(studio: Studio) -> gr.Blocks:
    """The page of a studio, on which its first student is chosen.

    Raises:
        ValueError: This student cannot be loaded.
    """
    first = studio.load(studio.names[0])
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, DAY)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                controls = _controls(studio, first)
            with gr.Column(scale=3, min_width=560):
                figures = _figures(first.student.num_steps)
        _connect(Answers(studio), controls, figures)
    return page


def _controls(studio: Studio, first: Pair) -> _Controls:
    about, label, prompt, guidance = fitting(first)
    hint = "a run, a checkpoint, an export or a Hub id"
    return _Controls(
        gr.Dropdown(named(studio.names), value=studio.names[0], label="Student", elem_id="students"),
        gr.Textbox(label="Another student", placeholder=hint, visible=studio.others, elem_id="other"),
        gr.Markdown(**about, elem_id="about"),
        gr.Dropdown(**label, label="Class", elem_id="class"),
        gr.Textbox(**prompt, label="Prompt", placeholder="what to draw", elem_id="prompt"),
        gr.Slider(**guidance, step=0.1, label="Guidance scale", buttons=[], elem_id="guidance"),
        gr.Number(0, precision=0, label="Seed of the noise", elem_id="seed"),
        gr.Slider(1, 100, value=24, step=1, label="Teacher's steps", buttons=[], elem_id="teacher-steps"),
        gr.Button("Draw", variant="primary", elem_id="draw"),
        gr.Button("Draw from new noise", elem_id="new"),
    )


def _figures(num_steps: int) -> _Figures:
    images, captions = [], []
    with gr.Row():
        for name, head in HEADS.items():
            with gr.Column(min_width=160):
                gr.Markdown(f"### {head}", elem_classes="head")
                images.append(
                    gr.Image(show_label=False, height=300, format="png", buttons=["fullscreen"], elem_id=name)
                )
                captions.append(gr.Markdown(elem_classes="caption", elem_id=f"{name}-caption"))
    return _Figures(
        gr.State(None, time_to_live=DAY, delete_callback=forget),
        images,
        captions,
        gr.Slider(**step_slider(num_steps), step=1, label="After the student's step", buttons=[], elem_id="step"),
        gr.Image(label="All steps", format="png", buttons=["download", "fullscreen"], elem_id="steps"),
        gr.DownloadButton("Download the student's image (PNG)", interactive=False, elem_id="download"),
    )


def _connect(answers: Answers, controls: _Controls, figures: _Figures) -> None:
    """Say what is done when a control is used."""
    # One visitor at a time is drawn for, so that a time is that of one image alone.
    in_turn: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "studio", "concurrency_limit": 1}
    at_once: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    fitted = [controls.about, controls.label, controls.prompt, controls.guidance]
    known = gr.State(answers.studio.names)
    choose: dict[str, Any] = {
        "fn": one_line(answers.choose),
        "inputs": [controls.student, figures.shown],
        "outputs": [*fitted, *figures.all],
    }
    add: dict[str, Any] = {
        "fn": one_line(answers.add),
        "inputs": [controls.other, known, figures.shown],
        "outputs": [controls.student, controls.other, known, *fitted, *figures.all],
    }
    draw: dict[str, Any] = {
        "fn": one_line(answers.draw),
        "inputs": [controls.student, *fitted[1:], controls.seed, controls.teacher_steps, figures.shown],
        "outputs": figures.all,
    }
    controls.student.input(**choose, **in_turn)
    controls.other.submit(**add, **in_turn)
    controls.prompt.submit(**draw, **in_turn)
    controls.draw.click(**draw, **in_turn)
    controls.new.click(lambda: random.randrange(2**31), outputs=controls.seed, **at_once).then(**draw, **in_turn)
    figures.step.input(
        one_line(at_step),
        [figures.shown, figures.step],
        [*figures.images, *figures.captions],
        trigger_mode="always_last",
        **at_once,
    )
