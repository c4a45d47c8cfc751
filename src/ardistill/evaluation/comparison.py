"""Samplers side by side: the same noise and labels for every arm, judged by the same networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill.devices import Device
from ardistill.evaluation.adherence import Score, adherence, adherence_table
from ardistill.evaluation.cost import count_macs, latency_ms
from ardistill.evaluation.features import FeatureNetwork, extract_features, feature_network
from ardistill.evaluation.metrics import (
    BootstrapInterval,
    FeatureStatistics,
    PairedDistance,
    class_accuracy,
    frechet_distance,
    kernel_distance,
    paired_bootstrap,
    paired_distance,
    precision_recall,
    predict_labels,
    real_floor,
)
from ardistill.evaluation.plots import sample_grid
from ardistill.evaluation.report import arm_label, format_table, markdown_table, write_report
from ardistill.families import Condition
from ardistill.files import write_whole
from ardistill.progress import bar
from ardistill.student import Student
from ardistill.student.sampling import sample
from ardistill.teacher import Teacher, seeded_generator
from ardistill.zoo.scenes.data import read_caption


@dataclass(frozen=True)
class Sampler:
    """An arm of a comparison."""

    draw: Callable[[Tensor, Condition], Tensor]
    """(noise (b, c, h, w), condition) -> latents or pixels, (b, c, h, w)."""
    nfe: int
    """Evaluations of the network per image; a guided step takes two."""
    device: torch.device | None = None
    """Where noise and condition are brought before ``draw`` is timed; None: it is given them as they are."""

    @classmethod
    def of_student(cls, student: Student) -> Sampler:
        return cls(lambda noise, condition: sample(student, noise, condition)[:, -1], student.num_steps, student.device)

    @classmethod
    def of_teacher(cls, teacher: Teacher, num_steps: int) -> Sampler:
        """The teacher's own solver in ``num_steps`` steps, guided as the teacher is."""
        knots = teacher.knots(num_steps)

        def draw(noise: Tensor, condition: Condition) -> Tensor:
            return teacher.solve_ode(noise, condition, knots).states[:, -1]

        nfe = num_steps * (1 if teacher.guidance_scale == 1 or teacher.embeds_guidance else 2)
        return cls(draw, nfe, teacher.device)

    @classmethod
    def of_scheduler(cls, teacher: Teacher, scheduler: Any, num_steps: int) -> Sampler:
        """The teacher by a scheduler of diffusers, made for its noise schedule, in ``num_steps`` steps."""

        @torch.no_grad()
        def draw(noise: Tensor, condition: Condition) -> Tensor:
            scheduler.set_timesteps(num_steps)
            latents = noise.to(teacher.device, torch.float32)
            for timestep in scheduler.timesteps:
                prediction = teacher.predict(latents, float(timestep), condition)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            return latents

        return cls(draw, cls.of_teacher(teacher, num_steps).nfe, teacher.device)


@dataclass(frozen=True)
class Judge:
    """What images are judged by. Without a reference or a classifier, the figures that need it are left out."""

    network: FeatureNetwork
    reference: FeatureStatistics | None = None
    """Of the data: what FD to the data is measured to."""
    real_features: Tensor | None = None
    """Of real images, (n, d): for KID, precision and recall."""
    held_out_features: Tensor | None = None
    """Of other real images, (m, d): for the real-versus-real floor."""
    classifier: Callable[[Tensor], Tensor] | None = None
    """Images to logits, (n, classes); independent of teacher and students."""
    text_scores: Mapping[str, Callable[[Tensor, Sequence[str]], Tensor]] = field(default_factory=dict)
    """``clip_score`` or ``preference`` to what gives it for each image and its prompt, (n,): `text_scores`."""

    @classmethod
    def zoo(cls, name: str, device: Device = None) -> Judge:
        """An embedded teacher's network and its data's statistics.

        Args:
            name: ``"emoji"``, ``"fashion"`` or ``"scenes"``.
            device: Where the network runs; the best device there is if not given.
        """
        from ardistill.evaluation.reference import NETWORKS, load_reference, reference_path
        from ardistill.zoo import CLASS_CONDITIONAL
        from ardistill.zoo.classifier import load_classifier

        facts = load_reference(reference_path(name))
        classifier = load_classifier(name, device) if name in CLASS_CONDITIONAL else None
        network = feature_network(NETWORKS[name], device=device)
        return cls(network, facts.train, facts.real_features, facts.held_out_features, classifier)

    @classmethod
    def of_images(cls, network: FeatureNetwork, images: Tensor | Iterable[Tensor]) -> Judge:
        """From real images in [-1, 1], (n, c, h, w): two thirds are the reference, one third sets the floor.

        Which ones is drawn at random, always alike: images come sorted by class, and both parts need all classes.

        Args:
            network: What they are seen with.
            images: All at once, or batch after batch, such as `ardistill.files.images.open_images` reads them.

        Raises:
            ValueError: There are fewer than 6, or they are no images.
        """
        features = extract_features(network, images)
        if len(features) < 6:
            raise ValueError(f"expected 6 real images or more for a reference, got {len(features)}; give thousands")
        features = features[torch.randperm(len(features), device="cpu", generator=seeded_generator("reference"))]
        cut = len(features) * 2 // 3
        reference = FeatureStatistics.from_features(features[:cut])
        return cls(network, reference, features[:cut], features[cut:])


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    arms: dict[str, dict[str, float | int | None]]
    """Arm -> figure -> value; keys are those of `report.COLUMNS`."""
    intervals: dict[str, BootstrapInterval]
    """Arm -> its paired distance to the teacher minus the baseline's."""
    baseline: str | None
    images: dict[str, Tensor]
    """Arm -> images in [-1, 1], (n, c, h, w)."""
    labels: Tensor
    """Class, or number of the prompt, of each sample."""
    feature_network: str
    floor: float | None
    """FD of as many held-out real images as each arm has samples."""
    notes: list[str]
    """What the figures mean and how the arms stand to each other, as sentences."""
    adherence: dict[str, dict[str, list[Score]]] = field(default_factory=dict)
    """Of prompts of the scene world: "seen" or "unseen_combinations" to arm to its score in each category."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """As `format_table` takes them."""
        return [{"arm": arm} | figures for arm, figures in self.arms.items()]

    def table(self) -> str:
        """For the terminal: the figures of each arm, then how it pairs with the teacher."""
        paired = ("feature_distance_to_teacher", "feature_distance_median", "feature_distance_trimmed_mean", "flipped")
        figures = [{k: v for k, v in row.items() if k not in paired[1:]} for row in self.rows]
        pairs = [{k: row.get(k) for k in ("arm", *paired)} for row in self.rows]
        return "\n".join(
            [format_table(figures), "", "Paired with the teacher, from the same noise:", format_table(pairs), ""]
            + self.notes
            + [f"\n{x}" for x in self._adherence_texts()]
        )

    def markdown(self) -> str:
        """For a model card."""
        return "\n\n".join([format_table(self.rows, markdown=True), *self.notes, *self._adherence_texts()])

    def _adherence_texts(self) -> list[str]:
        return [f"{head}:\n\n{markdown_table(lines)}" for head, lines in self._adherence_tables().items()]

    def _adherence_tables(self) -> dict[str, list[list[str]]]:
        """Heading to the table of each split."""
        tables = {}
        for split, arms in self.adherence.items():
            head = f"Prompt adherence, {split.removesuffix('_combinations')} combinations, with 95 % intervals"
            tables[head] = adherence_table({arm_label(arm): scores for arm, scores in arms.items()})
        return tables

    def to_dict(self) -> dict[str, Any]:
        """As ``metrics.json`` holds it."""
        return {
            "arms": self.arms,
            "feature_network": self.feature_network,
            "num_samples": len(self.labels),
            "real_floor": self.floor,
            "baseline": self.baseline,
            "paired_with_baseline": {arm: interval._asdict() for arm, interval in self.intervals.items()},
            "notes": self.notes,
        } | ({"adherence": _as_dicts(self.adherence)} if self.adherence else {})

    def write(
        self,
        folder: str | Path,
        title: str,
        *,
        columns: Sequence[str] | None = None,
        pictures: Mapping[str, Path] | None = None,
        shown: Sequence[str] | None = None,
    ) -> None:
        """Write ``metrics.json``, ``samples.png`` (the first 20 noises, not chosen) and ``report.html``.

        Args:
            folder: Made if missing.
            title: Of the report.
            columns: Names of the classes, or the prompts.
            pictures: Further pictures of the report, caption to PNG.
            shown: Arms of the grid; all if not given.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "metrics.json", json.dumps(self.to_dict(), indent=1).encode())
        heads = [str(columns[int(i)]) if columns else str(int(i)) for i in self.labels[:20]]
        grid = {arm_label(arm): self.images[arm][:20] for arm in (shown or self.images)}
        sample_grid(grid, folder / "samples.png", heads)
        all_pictures = {"The same noise down each column": folder / "samples.png", **(pictures or {})}
        write_report(folder / "report.html", title, self.rows, self.notes, all_pictures, self._adherence_tables())


@torch.no_grad()
def compare(
    teacher: Teacher,
    teacher_images: Tensor,
    arms: Mapping[str, Sampler],
    noise: Tensor,
    condition: Condition,
    judge: Judge,
    *,
    labels: Tensor | None = None,
    prompts: Sequence[str] | None = None,
    baseline: str | None = None,
    batch_size: int = 250,
) -> Comparison:
    """Judge every arm on the same noise and labels, beside the teacher.

    Each arm draws where its model is; the images and figures are on the CPU.

    Args:
        teacher: Decodes what the arms draw.
        teacher_images: Its own images in [-1, 1] from the same noise and labels, (n, c, h, w): the arm ``teacher``.
        arms: The others; one may be called ``teacher``, then only its cost is measured.
        noise: x_T, (n, c, h, w).
        condition: One row per sample.
        judge: Networks and reference.
        labels: (n,), to head the columns of the grid; class labels are taken from the condition.
        prompts: Of each sample, for a teacher that takes text: what the judge's ``text_scores`` are of, and where all
            are captions of the scene world, adherence.
        baseline: The arm that the others are held against, pair by pair; the notes say how those of as many NFE stand.
        batch_size: Samples drawn at once.

    Raises:
        ValueError: ``baseline`` is no arm, there are not as many noises, labels, prompts and teacher's images, or the
            judge scores text and there are no prompts.
    """
    labels = (condition["class_labels"] if labels is None else labels).cpu()
    if not len(noise) == len(labels) == len(teacher_images):
        raise ValueError(f"expected as many noises, labels, images: {len(noise)}, {len(labels)}, {len(teacher_images)}")
    if prompts is not None and len(prompts) != len(noise):
        raise ValueError(f"expected a prompt for each of {len(noise)} noises, got {len(prompts)}")
    if judge.text_scores and prompts is None:
        name = teacher.name or "the teacher"
        raise ValueError(f"{', '.join(judge.text_scores)} are of prompts, which {name} does not take")

    def rows(part: slice, device: torch.device | None = None) -> tuple[Tensor, Condition]:
        return noise[part].to(device), {name: value[part].to(device) for name, value in condition.items()}

    if baseline is not None and baseline not in arms:
        raise ValueError(f"unknown baseline {baseline!r}; the arms are {', '.join(arms)}")
    images = {"teacher": teacher_images.cpu()}
    for arm, sampler in arms.items():
        if arm != "teacher":
            starts = bar(range(0, len(noise), batch_size), desc=f"draw {arm}", disable=len(noise) <= batch_size)
            drawn = [sampler.draw(*rows(slice(start, start + batch_size), sampler.device)) for start in starts]
            images[arm] = torch.cat([teacher.decode(latents) for latents in drawn])
    features = {arm: extract_features(judge.network, x) for arm, x in images.items()}
    statistics = {arm: FeatureStatistics.from_features(x) for arm, x in features.items()}
    seen = {arm: predict_labels(judge.classifier, x) for arm, x in images.items()} if judge.classifier else {}
    pairs = {
        arm: paired_distance(x, features["teacher"], seen.get(arm), seen.get("teacher")) for arm, x in features.items()
    }
    adhering = adherence(images, prompts) if prompts else {}
    figures = {
        arm: _quality(judge, images[arm], features[arm], labels)
        | _text_quality(judge, images[arm], prompts, [found[arm][-1] for found in adhering.values()])
        | {"fd_to_teacher": frechet_distance(statistics["teacher"], statistics[arm])}
        | _paired(pairs[arm])
        | (_cost(arms[arm], rows(slice(1), arms[arm].device), rows(slice(10), arms[arm].device)) if arm in arms else {})
        for arm in images
    }
    intervals, notes = {}, []
    if baseline is not None:
        for arm in arms:
            if arm not in ("teacher", baseline):
                intervals[arm] = paired_bootstrap(pairs[arm].values, pairs[baseline].values)
                if arms[arm].nfe == arms[baseline].nfe:
                    notes.append(standing(arm, baseline, intervals[arm]))
    floor = None
    if judge.reference is not None and judge.held_out_features is not None:
        found = real_floor(judge.held_out_features, judge.reference, min(len(noise), len(judge.held_out_features)))
        floor = found.distance
        notes.append(f"Real-versus-real floor of FD: {found}.")
    if adhering:
        notes.append(
            "Adherence: share of images that show what their prompts say and nothing else, by a detector whose own "
            "shares on real renders bound what can be told."
        )
        if judge.reference is not None:
            notes.append(
                "FD, KID, precision and recall are to renders of the scene world's own mix of captions: of prompts in "
                "another mix even renders are farther away than the floor."
            )
    elif prompts and 0 < len(others := [x for x in prompts if read_caption(x) is None]) < len(prompts):
        notes.append(
            f"Adherence is not told: {len(prompts) - len(others):,} of {len(prompts):,} prompts are captions of the "
            f"scene world, {others[0]!r} is none."
        )
    notes.append(
        f"{len(noise):,} samples per arm from the same noise; FD is {judge.network.fd_name}; distance to the teacher: "
        f"Euclidean, of paired features (unpaired samples of the teacher are {pairs['teacher'].unpaired:.2f} apart); "
        "milliseconds at batch 10."
    )
    return Comparison(figures, intervals, baseline, images, labels, judge.network.name, floor, notes, adhering)


def _as_dicts(adhering: Mapping[str, Mapping[str, Sequence[Score]]]) -> dict[str, Any]:
    return {
        split: {arm: [asdict(score) for score in scores] for arm, scores in arms.items()}
        for split, arms in adhering.items()
    }


def standing(arm: str, baseline: str, interval: BootstrapInterval) -> str:
    """How an arm stands to the baseline in paired distance to the teacher, as a sentence."""
    word = "ahead of" if interval.high < 0 else "behind" if interval.low > 0 else "not distinguishable from"
    return (
        f"{arm_label(arm)} is {word} {arm_label(baseline)} at this compute: paired distance to the teacher "
        f"{interval.difference:+.4f} (95 % interval {interval.low:+.4f} to {interval.high:+.4f})."
    )


def _quality(judge: Judge, images: Tensor, features: Tensor, labels: Tensor) -> dict[str, float | int | None]:
    figures: dict[str, float | int | None] = {}
    if judge.reference is not None:
        figures["fd"] = frechet_distance(judge.reference, FeatureStatistics.from_features(features))
    if judge.real_features is not None:
        real = judge.real_features
        size = min(500, len(images), len(real))
        figures["kid"] = kernel_distance(real, features, subset_size=size).mean
        near = precision_recall(real[: len(images)], features[: len(real)])  # only comparable at equal numbers
        figures |= {"precision": near.precision, "recall": near.recall}
    if judge.classifier is not None:
        figures["accuracy"] = class_accuracy(judge.classifier, images, labels)
    return figures


def _text_quality(
    judge: Judge, images: Tensor, prompts: Sequence[str] | None, overall: Sequence[Score]
) -> dict[str, float | int | None]:
    figures: dict[str, float | int | None] = {}
    if overall:  # of each split
        figures["adherence"] = sum(x.share * x.num_images for x in overall) / sum(x.num_images for x in overall)
    if prompts is not None:
        figures |= {name: float(score(images, prompts).mean()) for name, score in judge.text_scores.items()}
    return figures


def _paired(pair: PairedDistance) -> dict[str, float | int | None]:
    return {
        "feature_distance_to_teacher": pair.mean,
        "feature_distance_median": pair.median,
        "feature_distance_trimmed_mean": pair.trimmed_mean,
        "flipped": pair.flipped,
    }


def _cost(
    sampler: Sampler, one: tuple[Tensor, Condition], ten: tuple[Tensor, Condition]
) -> dict[str, float | int | None]:
    return {
        "nfe": sampler.nfe,
        "macs_per_image": count_macs(lambda: sampler.draw(*one)),
        "ms_per_image": latency_ms(lambda: sampler.draw(*ten), device=sampler.device) / len(ten[0]),
        "seeds": 1,
    }
