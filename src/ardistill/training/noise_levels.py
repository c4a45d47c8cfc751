"""Noise levels at which a network reads the student's images: steps of a fine grid of the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ardistill.core.knots import Knots


class NoiseLevels(nn.Module):
    """Draws noise levels, and noises latents to them. It has no weights and is not saved.

    Args:
        grid: The teacher's grid, whose steps are the levels.
        share: Lowest and highest level, as shares of the grid's path.
        kind: ``uniform``: all steps of that part; ``knots``: those at which the student's own steps begin and end.
        knots: The student's, for ``knots``.

    Raises:
        ValueError: The student's knots are missing, or none of their noise levels is in the range.
    """

    _table: Tensor
    """Of each step of the grid alpha, sigma, timestep, and a and b of the clean estimate, (5, n)."""

    def __init__(
        self, grid: Knots, share: tuple[float, float], kind: str = "uniform", knots: Knots | None = None
    ) -> None:
        super().__init__()
        rows = [grid.alpha[:-1], grid.sigma[:-1], grid.timesteps, *zip(*grid.coefficients("denoised"), strict=True)]
        self.register_buffer("_table", torch.tensor(rows, dtype=torch.float32, device="cpu"), persistent=False)
        self._chosen = torch.tensor(_chosen(grid, share, kind, knots), device="cpu")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A number of levels, as indices of the grid's steps, (count,), drawn on the CPU."""
        return self._chosen[torch.randint(len(self._chosen), (count,), generator=generator, device="cpu")]

    def noised(self, latents: Tensor, levels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise latents.

        Args:
            latents: (b, c, h, w).
            levels: Of each of them, (b,), on the CPU.
            generator: Source of the noise, on the CPU.

        Returns:
            Noised latents, (b, c, h, w), and their timesteps, (b,).
        """
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device="cpu").to(latents.device)
        alpha, sigma, times = self._table[:3, levels.to(latents.device)]
        return beside(alpha, latents) * latents + beside(sigma, latents) * noise, times

    def to_denoised(self, levels: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Of noised latents x at these levels, a and b of the clean estimate ``a x + b prediction``, (b, 1, 1, 1)."""
        a, b = self._table[3:, levels.to(latents.device)]
        return beside(a, latents), beside(b, latents)


def beside(numbers: Tensor, latents: Tensor) -> Tensor:
    """A number per row, (b,), in a shape that multiplies latents (b, c, h, w)."""
    return numbers.view(-1, *(1 for _ in latents.shape[1:]))


def _chosen(grid: Knots, share: tuple[float, float], kind: str, knots: Knots | None) -> list[int]:
    (low, high), steps = share, grid.num_steps
    # Step i begins at the share 1 - i / steps of the path.
    inside = range(max(0, round((1 - high) * steps)), min(steps - 1, round((1 - low) * steps)) + 1)
    if kind == "uniform":
        return [*inside]
    if knots is None:
        raise ValueError("levels knots needs the student's knots; give them to the Discriminator")
    ratios = [sigma / max(alpha, 1e-9) for alpha, sigma in zip(grid.alpha, grid.sigma, strict=True)][:-1]
    wanted = [sigma / max(alpha, 1e-9) for alpha, sigma in zip(knots.alpha[1:], knots.sigma[1:], strict=True)]
    nearest = {min(range(steps), key=lambda i: abs(ratios[i] - ratio)) for ratio in wanted}
    if not nearest & {*inside}:
        raise ValueError(f"no step of the student begins at a noise level in noise_levels, {share}: widen them")
    return sorted(nearest & {*inside})
