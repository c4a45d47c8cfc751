"""Pictures of recorded trajectories, and of a student's samples while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from ardistill.devices import precision
from ardistill.evaluation.plots import PICTURES, sample_grid
from ardistill.evaluation.videos import SHOWN_VIDEOS, WIDEST, draws_videos, film_strips, save_clip
from ardistill.families import Condition
from ardistill.files import check_target
from ardistill.student import Student, sample
from ardistill.teacher import Teacher
from ardistill.trajectories import TrajectoryDataset, knot_indices, select_knots


def trajectory_grid(teacher: Teacher, data: TrajectoryDataset, path: str | Path, rows: Sequence[int]) -> None:
    """Save a picture of recorded trajectories, one per row, from noise to image, every state decoded.

    Args:
        teacher: Its VAE decodes.
        data: Opened at the knots whose states are shown.
        path: PNG to write.
        rows: Numbers of the trajectories, which must have one size.

    Raises:
        ValueError: The teacher draws no images, or a number is out of range.
    """
    if wrong := [i for i in rows if not 0 <= i < len(data)]:
        raise ValueError(f"expected trajectories in 0..{len(data) - 1}, got {wrong[0]}")
    check_target(path, PICTURES)
    chosen = torch.tensor(rows, device="cpu")
    states, _, _ = data.stacked(chosen)
    names, labels = teacher.companions.get("id2label") or {}, data.labels[chosen].tolist()
    pictures = {}
    for index, label, path_of_states in zip(rows, labels, states, strict=True):
        name = data.prompts[label] if data.prompts else str(names.get(str(label), label)).partition(",")[0]
        pictures[f"{index}: {name[:24]}"] = teacher.decode(path_of_states)
    sample_grid(pictures, path, [f"σ {sigma:.2f}" for sigma in data.knots.sigma])


class ValidationGrid:
    """Draws samples from fixed held-out noise into a grid: the teacher's row, then the student's; `validation_grid`."""

    def __init__(self, teacher: Teacher, data: TrajectoryDataset, folder: Path, count: int) -> None:
        self.teacher, self.data, self.folder = teacher, data, folder
        self.count = min(count, len(data), SHOWN_VIDEOS if draws_videos(teacher) else count)
        self._from = knot_indices(data.manifest.knots, data.knots)[0]
        """State of the solver that the student starts from: the noise, or for a low-noise expert a recorded state."""
        if self._from:
            self._noise = data.stacked(data.rows_by_shape[0][: self.count])[0][:, 0]
        else:
            self._noise = teacher.noise(data.manifest.seed + 1, 0, self.count)
        self._rows: dict[str, Tensor] = {}

    def draw_teacher(self, device: torch.device) -> None:
        """Draw the teacher's row, on a device, from which the teacher returns; once."""
        if self._rows:
            return
        teacher, before = self.teacher, self.teacher.device
        with precision("auto", teacher.to(device).transformer):
            rest = select_knots(self.data.manifest.knots, range(self._from, self.data.manifest.solver_steps + 1))
            solved = teacher.solve_ode(self._noise, self._condition(), rest)
        self._rows["teacher"] = teacher.decode(solved.states[:, -1], frames=True)
        teacher.move_transformer(before)  # it is not needed again

    def _condition(self) -> Condition:
        return self.data.condition(slice(self.count))

    @torch.no_grad()
    def __call__(self, student: Student, step: int) -> np.ndarray | None:
        """Write the grid of a student after a number of steps.

        Returns:
            The picture, uint8, (height, width, 3). Of several processes that draw together the first one writes, and
            the others get None.
        """
        self.draw_teacher(student.device)
        drawn = sample(student, self._noise, self._condition())[:, -1]
        if dist.is_initialized() and dist.get_rank() != 0:
            return None
        self._rows["student"] = self.teacher.decode(drawn, frames=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        rows, heads = self._rows, [str(int(i)) for i in self.data.labels[: self.count]]
        if draws_videos(self.teacher):
            save_clip(torch.cat([*rows.values()]), path.with_suffix(".gif"), columns=self.count, widest=WIDEST)
            rows, heads = film_strips(rows, heads)
        sample_grid(rows, path, heads)
        return np.asarray(Image.open(path).convert("RGB"))


def validation_grid(teacher: Teacher, data: TrajectoryDataset, folder: str | Path, count: int = 10) -> ValidationGrid:
    """A function that draws samples from fixed held-out noise into a grid: the teacher's row, then the student's.

    Of videos, at most four are drawn: the grid is one of film strips, and beside it a GIF, made smaller if it is wide,
    shows the first row above the second.

    Args:
        teacher: At the guidance of the trajectories; its row is drawn once, at the first call or by ``draw_teacher``.
        data: Training trajectories; their first conditions are drawn, from noise of the next seed. Where their knots
            begin within the path, as those of a low-noise expert do, their own states are drawn from.
        folder: Where ``step-00000500.png`` and the like are written.
        count: Images per row.

    Returns:
        (student, steps done) -> the picture, uint8, (height, width, 3).
    """
    return ValidationGrid(teacher, data, Path(folder), count)
