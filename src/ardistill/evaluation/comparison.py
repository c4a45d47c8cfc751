"""The result of a comparison: metrics of every arm, as tables, JSON, pictures and an HTML report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ardistill.evaluation.adherence import Score, adherence_table
from ardistill.evaluation.headlines import Figures, Headline, history, quality, speed
from ardistill.evaluation.metrics import BootstrapInterval
from ardistill.evaluation.plots import exposure_bias_plot, sample_grid
from ardistill.evaluation.report import write_report
from ardistill.evaluation.tables import arm_label, format_table, markdown_table
from ardistill.evaluation.videos import film_strips, num_frames
from ardistill.files import write_whole

ErrorPerStep = dict[str, list[float]]
"""What `exposure_bias` returns for one student."""
PAIRED = ("feature_distance_to_teacher", "feature_distance_median", "feature_distance_trimmed_mean", "flipped")
"""Metrics from pairs of an arm's and the teacher's samples of the same noise."""
SHOWN = 20
"""Samples per arm in the grid."""
ERROR_CAPTION = (
    "Error of each step: mean squared error against the teacher, noisiest step first. Solid: the student goes on from "
    "its own states, as when it draws. Dashed: each step starts from the teacher's state. Between the two lies what "
    "the errors of earlier steps add; lower is better."
)
"""What the plot of the error per step shows."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    arms: dict[str, Figures]
    """Arm -> its metrics."""
    intervals: dict[str, BootstrapInterval]
    """Arm -> its paired distance to the teacher minus the baseline's."""
    baseline: str | None
    """The arm that the others are compared with, pair by pair; None if there is none."""
    images: dict[str, Tensor]
    """Arm -> images in [-1, 1], (n, c, h, w), or videos, (n, c, f, h, w)."""
    labels: Tensor
    """Class, or number of the prompt, of each sample, (n,)."""
    feature_network: str
    """Name of the network that all distances are measured with."""
    floor: float | None
    """FD of as many held-out real images as each arm has samples."""
    notes: list[str]
    """Sentences that explain the metrics and compare the arms with the baseline."""
    adherence: dict[str, dict[str, list[Score]]] = field(default_factory=dict)
    """Prompts of the scene world only: "seen" or "unseen_combinations" -> arm -> its score in each category."""
    error_per_step: dict[str, ErrorPerStep] = field(default_factory=dict)
    """Student -> its mean squared error per step, as `exposure_bias` gives it; empty if not measured."""
    selected: str | None = None
    """The student that the report opens with; None if the arms are no students."""
    with_history: tuple[str, ...] = ()
    """Students that differ from the baseline, which has no history, by their history alone."""
    prompts: list[str] = field(default_factory=list)
    """The prompts of the samples in the grid; empty for class labels."""
    folder: Path | None = None
    """Where the report was written; None if it was not."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, as `format_table` takes them."""
        return [{"arm": arm} | figures for arm, figures in self.arms.items()]

    @property
    def headlines(self) -> list[Headline]:
        """What a user wants to know first: speed, quality given up, where history stands; without what is not known.

        Speed and quality are those of ``selected``. History is judged by that student if it has any, else by the
        student with history that is nearest to the teacher.
        """
        if self.selected is None:
            return []
        found = [speed(self.arms, self.selected), quality(self.arms, self.selected, self.floor)]
        if self.with_history and self.baseline is not None:
            nearest = min(self.with_history, key=lambda arm: self.intervals[arm].difference)
            arm = self.selected if self.selected in self.with_history else nearest
            found.append(history(self.arms, arm, self.baseline, self.intervals[arm]))
        return [headline for headline in found if headline is not None]

    def table(self) -> str:
        """Text for the terminal: metrics of each arm, its pairs with the teacher, notes, and last the headlines."""
        figures = [{k: v for k, v in row.items() if k not in PAIRED[1:]} for row in self.rows]
        pairs = [{k: row.get(k) for k in ("arm", *PAIRED)} for row in self.rows]
        return "\n".join(
            [format_table(figures), "", "Paired with the teacher, from the same noise:", format_table(pairs), ""]
            + self.notes
            + [f"\n{text}" for text in self._adherence_texts()]
            + [f"\n{headline}" for headline in self.headlines]
        )

    def markdown(self) -> str:
        """Text for a model card: the same in one Markdown table."""
        return "\n\n".join([format_table(self.rows, markdown=True), *self.notes, *self._adherence_texts()])

    def _adherence_texts(self) -> list[str]:
        return [f"{head}:\n\n{markdown_table(lines)}" for head, lines in self._adherence_tables().items()]

    def _adherence_tables(self) -> dict[str, list[list[str]]]:
        """Heading -> the table of one split."""
        tables = {}
        for split, arms in self.adherence.items():
            head = f"Prompt adherence, {split.removesuffix('_combinations')} combinations, with 95 % intervals"
            tables[head] = adherence_table({arm_label(arm): scores for arm, scores in arms.items()})
        return tables

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``metrics.json``."""
        found: dict[str, Any] = {
            "arms": self.arms,
            "feature_network": self.feature_network,
            "num_samples": len(self.labels),
            "real_floor": self.floor,
            "baseline": self.baseline,
            "paired_with_baseline": {arm: interval._asdict() for arm, interval in self.intervals.items()},
            "notes": self.notes,
        }
        if self.error_per_step:
            found["error_per_step"] = self.error_per_step
        if self.prompts:
            found["prompts"] = self.prompts
        if self.adherence:
            found["adherence"] = {
                split: {arm: [asdict(score) for score in scores] for arm, scores in arms.items()}
                for split, arms in self.adherence.items()
            }
        return found

    def write(
        self,
        folder: str | Path,
        title: str,
        *,
        columns: Sequence[str] | None = None,
        shown: Sequence[str] | None = None,
        plotted: Sequence[str] | None = None,
    ) -> None:
        """Write ``metrics.json``, ``samples.png``, ``report.html``, and ``exposure_bias.png`` if errors were measured.

        The grid shows the first 20 samples of each arm; of videos it is one of film strips.

        Args:
            folder: Created if missing.
            title: Title of the report.
            columns: Class names, or prompts, by label, as heads of the grid; the labels themselves if not given.
            shown: Arms in the grid; all if not given.
            plotted: Students whose errors per step are plotted; all if not given.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "metrics.json", json.dumps(self.to_dict(), indent=1).encode())
        heads = [str(columns[int(i)]) if columns else str(int(i)) for i in self.labels[:SHOWN]]
        samples = {arm_label(arm): self.images[arm][:SHOWN] for arm in (shown or self.images)}
        heading = "Samples: the same noise down each column"
        if num_frames(next(iter(samples.values()))) > 1:
            samples, heads = film_strips(samples, heads)
            heading = "Samples: the same noise in lines of the same number"
        sample_grid(samples, folder / "samples.png", heads)
        plots = {}
        if self.error_per_step:
            curves = {arm: self.error_per_step[arm] for arm in plotted or self.error_per_step}
            exposure_bias_plot(curves, folder / "exposure_bias.png")
            plots[ERROR_CAPTION] = folder / "exposure_bias.png"
        write_report(
            folder / "report.html",
            title,
            self.rows,
            headlines=self.headlines,
            notes=self.notes,
            tables=self._adherence_tables(),
            plots=plots,
            samples=samples,
            heads=heads,
            samples_heading=heading,
        )
