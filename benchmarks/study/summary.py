"""Summarise the committed results of the studies: docs/study.md with its figures, and summary.json.

python benchmarks/study/summary.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib import colormaps
from matplotlib.figure import Figure

from ardistill.evaluation import exposure_bias_plot, paired_bootstrap

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
RECIPES = HERE.parent.parent / "recipes"
COLUMNS = {
    "fd_to_teacher": ("FD to teacher", 4),
    "fd": ("FD to data", 4),
    "kid": ("KID", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "accuracy": ("accuracy", 3),
    "feature_distance_to_teacher": ("distance to teacher", 4),
}
IMAGES_PER_STEP = {steps: 256 // steps for steps in (1, 2, 4, 8)}
"""Steps of a student -> trajectories in one optimiser step; both recipes take 256 evaluations."""
Results = dict[str, dict[str, Any]]
"""Arm -> what study.py wrote."""


def arms(study: str) -> dict[str, Any]:
    """Arm -> the options that the recipe sets for it, in the order of the recipe."""
    return yaml.safe_load((RECIPES / f"study_{study}.yaml").read_text())["arms"]


def results(study: str) -> Results:
    """Arm -> what study.py wrote; arms without a result are left out."""
    paths = {name: HERE / "results" / study / f"{name}.json" for name in arms(study)}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def seeds(found: Results, name: str) -> list[dict[str, Any]]:
    """Results of an arm for all its seeds: ``name``, ``name-seed1``, ..."""
    return [x for arm, x in found.items() if re.fullmatch(re.escape(name) + r"(-seed\d+)?", arm)]


def unseeded(found: Results) -> list[str]:
    """Names of the arms without their seeds, each once."""
    return list(dict.fromkeys(re.sub(r"-seed\d+$", "", arm) for arm in found))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and largest minus smallest; None for a single value."""
    return sum(values) / len(values), max(values) - min(values) if len(values) > 1 else None


def is_ard(result: dict[str, Any]) -> bool:
    """Whether an arm has layers with history."""
    return result["options"].get("history_layers", 0) > 0


def with_spread(mean: float, spread: float | None, digits: int) -> str:
    """A mean as text, with the spread in brackets if there are several seeds."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ({spread:.{digits}f})")


def cells(all_figures: Sequence[dict[str, float]]) -> str:
    """Cells of a line: means, with largest minus smallest in brackets if there are several seeds."""
    return " | ".join(
        with_spread(*mean_and_spread([x[key] for x in all_figures]), digits) for key, (_, digits) in COLUMNS.items()
    )


def table(found: Results, solvers: dict[str, dict[str, float]]) -> list[str]:
    """A Markdown table with one line per arm (all seeds together), after the teacher and its solvers."""
    lines = [
        f"| arm | seeds | MMACs | {' | '.join(title for title, _ in COLUMNS.values())} |",
        f"|---|---|---|{'---|' * len(COLUMNS)}",
        f"| teacher, 24 steps | | {solvers['teacher']['macs_per_image'] / 1e6:.0f} | "
        f"{cells([next(iter(found.values()))['teacher']])} |",
    ]
    lines += [
        f"| {name} | | {x['macs_per_image'] / 1e6:.0f} | {cells([x])} |"
        for name, x in solvers.items()
        if name != "teacher"
    ]
    for name in unseeded(found):
        figures = [x["figures"] for x in seeds(found, name)]
        lines.append(f"| {name} | {len(figures)} | {figures[0]['macs_per_image'] / 1e6:.0f} | {cells(figures)} |")
    return lines


def pairs(found: Results) -> list[str]:
    """A table of arms with history and the same arms without, if possible at equal training FLOPs."""
    lines = ["| with history | without | difference in distance to teacher | 95 % interval |", "|---|---|---|---|"]
    for name in filter(lambda x: is_ard(found[x]), found):
        alike = [re.sub(r"-n\d+(-gated)?(-m\d)?", kind, name) for kind in ("-n0-flops", "-n0")]
        without = next((x for x in alike if x in found), None)
        if without:
            x = paired_bootstrap(*(torch.tensor(found[arm]["distances"]) for arm in (name, without)))
            lines.append(f"| {name} | {without} | {x.difference:+.4f} | {x.low:+.4f} to {x.high:+.4f} |")
    return lines


def best(found: Results, kind: Callable[[dict[str, Any]], bool], num_steps: int = 4) -> str | None:
    """The arm of a kind with the lowest FD to the teacher, among those distilled by regression alone."""
    fd = {}
    for name in unseeded(found):
        runs = seeds(found, name)
        options = runs[0]["options"]
        if kind(runs[0]) and options.get("num_steps", 4) == num_steps and "finetune" not in options:
            fd[name] = mean_and_spread([x["figures"]["fd_to_teacher"] for x in runs])[0]
    return min(fd, key=lambda name: fd[name]) if fd else None


def summary(found: Results) -> dict[str, Any]:
    """Key figures of a study: means over seeds, each with a ``_spread`` (largest minus smallest); None if not run."""
    out: dict[str, Any] = {}

    def put(key: str, values: Sequence[float]) -> None:
        out[key], out[f"{key}_spread"] = mean_and_spread(values) if values else (None, None)

    def ratios(plain: str, history: str) -> list[float]:
        """Degradation (FD to the teacher) of step distillation divided by ARD's, for each seed."""
        suffixes = [
            name.removeprefix(history) for name in found if re.fullmatch(re.escape(history) + r"(-seed\d+)?", name)
        ]
        both = [(found[plain + x], found[history + x]) for x in suffixes if plain + x in found]
        return [theirs["figures"]["fd_to_teacher"] / ours["figures"]["fd_to_teacher"] for theirs, ours in both]

    plain, history = best(found, lambda x: not is_ard(x)), best(found, is_ard)
    put("degradation_ratio_paper_setup", ratios("paper-teacher-n0", "paper-teacher-n2"))
    put("degradation_ratio_own_inputs", ratios("paper-student-n0", "paper-student-n7"))
    put("degradation_ratio_best", ratios(plain, history) if plain and history else [])
    out |= {"best_step_distillation": plain, "best_ard": history}
    tuned = seeds(found, "adversarial-n7-gated")
    teachers = [x["teacher"] for x in found.values() if "fd_held_out" in x["teacher"]]
    for key, figure in (("fd", "fd_held_out"), ("recall", "recall")):
        put(f"{key}_teacher", [x[figure] for x in teachers[:1]])
        put(f"{key}_ard_adversarial", [x["figures"][figure] for x in tuned])
    put("fd_floor", [next(iter(found.values()))["floor"]])
    goal = [x["curve"][-1]["fd_to_teacher"] for x in seeds(found, plain or "") if x.get("curve")]
    fractions = []
    for x in seeds(found, history or ""):
        if goal and x.get("curve"):
            reached = [p["step"] for p in x["curve"] if p["fd_to_teacher"] <= sum(goal) / len(goal)]
            share = x["figures"]["macs_per_image"] / found[plain]["figures"]["macs_per_image"]
            fractions += [share * reached[0] / found[plain]["curve"][-1]["step"]] if reached else []
    put("steps_fraction_to_baseline", fractions)
    return out


def curves_plot(found: Results, path: Path) -> None:
    """Plot FD to the teacher against training MACs: means and ranges over seeds, for arms measured while training."""
    figure = Figure(figsize=(9.5, 4.6), dpi=150, facecolor="white")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    for name in unseeded(found):
        followed = [x for x in seeds(found, name) if x.get("curve")]
        if followed and "finetune" not in (options := followed[0]["options"]):
            images = IMAGES_PER_STEP[options.get("num_steps", 4)]
            cost = 3 * followed[0]["figures"]["macs_per_image"] * images / 1e12
            x = [cost * point["step"] for point in followed[0]["curve"]]
            y = list(zip(*([point["fd_to_teacher"] for point in one["curve"]] for one in followed), strict=True))
            style = "-" if is_ard(followed[0]) else "--"
            (line,) = axes.plot(x, [sum(each) / len(each) for each in y], style, label=name, linewidth=1.4)
            axes.fill_between(x, list(map(min, y)), list(map(max, y)), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="training, 10¹² multiply-accumulates", ylabel="FD to the teacher (1,000 noises)", yscale="log")
    axes.grid(which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path)


SET_UPS = {
    "the authors' set-up, on the student's own inputs, N = 7": ("paper-student-n7", "paper-student-n0"),
    "the authors' set-up, on the student's own inputs, N = 2": ("paper-student-n2", "paper-student-n0"),
    "the authors' set-up, on the teacher's inputs, N = 2": ("paper-teacher-n2", "paper-teacher-n0"),
    "the default set-up, uneven knots, gated, N = 7": ("uneven-n7-gated", "uneven-n0-flops"),
    "the default set-up, even knots, gated, N = 7": ("state-teacher-n7-gated", "state-teacher-n0"),
    "the default set-up, even knots, not gated, N = 7": ("state-teacher-n7", "state-teacher-n0"),
}
"""What differs -> an arm with history and the one without."""


def history_plot(found: Results, path: Path) -> None:
    """Plot where history decides: FD to the teacher with and without it, and how errors grow on a student's own inputs.

    Every seed is a point; lines join the means, whose ratio stands beside them.
    """
    figure = Figure(figsize=(11, 4.2), dpi=150, facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    kinds = (("without history", "#9a9a9a"), ("with history", "#1f6fb4"))
    for place, names in enumerate(reversed(SET_UPS.values())):
        values = [[x["figures"]["fd_to_teacher"] for x in seeds(found, name)] for name in reversed(names)]
        without, history = (mean_and_spread(x)[0] for x in values)
        left.plot([without, history], [place, place], color="#cccccc", linewidth=2, zorder=1)
        for (kind, color), each in zip(kinds, values, strict=True):
            left.scatter(each, [place] * len(each), 34, color=color, label=kind if place == 0 else None, zorder=2)
        ratio = f"{without / history:.2f}"
        left.annotate(ratio, (max(without, history), place), (9, -3), textcoords="offset points", fontsize=8)
    left.set_yticks(range(len(SET_UPS)), [*reversed(SET_UPS)], fontsize=8)
    left.set(xscale="log", xlabel="FD to the teacher, and how many times less it is with history", xlim=(0.008, 3))
    left.legend(frameon=False, fontsize=8, loc="lower right")
    for title, names, style, below in (
        ("the authors' set-up, own inputs", ("paper-student-n0", "paper-student-n7"), "o-", 46),
        ("the default set-up, even knots", ("state-teacher-n0", "state-teacher-n7-gated"), "o--", 90),
    ):
        for (_, color), name in zip(kinds, names, strict=True):
            errors = [x["error_per_step"]["free_running"] for x in seeds(found, name)]
            mean = [sum(step) / len(step) for step in zip(*errors, strict=True)]
            right.plot(range(1, len(mean) + 1), mean, style, color=color, markersize=4)
        right.annotate(title, (4, mean[-1]), (0, -below), textcoords="offset points", fontsize=8, ha="right")
    right.set(yscale="log", xlabel="step", ylabel="mean squared error to the teacher's state", xticks=range(1, 5))
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def adversarial(figures: dict[str, Any]) -> list[str]:
    """FD and recall of R+D and of the teacher against held-out real images."""
    if figures["fd_ard_adversarial"] is None:
        return []
    texts = [
        with_spread(figures[key], figures[f"{key}_spread"], 3)
        for key in ("fd_ard_adversarial", "fd_teacher", "recall_ard_adversarial", "recall_teacher")
    ]
    return [
        f"R+D against held-out real images: FD {texts[0]}, the teacher {texts[1]}; recall {texts[2]} and {texts[3]}.",
        "",
    ]


def samples(study: str) -> list[str]:
    """The picture of the first held-out noises that ``ardistill compare`` wrote, if it is there."""
    if not (DOCS / f"study_{study}_samples.png").exists():
        return []
    return [
        f"![Teacher, its 4-step solver, ARD and R+D from the first held-out noises](study_{study}_samples.png)",
        "",
        f"`samples.png` of `ardistill compare --recipe recipes/study_{study}.yaml",
        '--arms "[state-teacher-n7-gated, adversarial-n7-gated]"`, seed 0.',
        "",
    ]


def report(study: str, title: str) -> list[str]:
    """The section on one data set; its figures are written beside it."""
    found, path = results(study), HERE / "results" / study / "solvers.json"
    if not found or not path.exists():
        return []
    solvers = json.loads(path.read_text())["arms"]
    left = [name for name in arms(study) if name not in found]
    curves_plot(found, DOCS / f"study_{study}_curves.png")
    kinds = ("state-teacher-n0", "state-teacher-n7-gated", "uneven-n0-flops", "uneven-n7-gated", "paper-teacher-n2")
    shown = [name for name in kinds if name in found]
    exposure_bias_plot({x: found[x]["error_per_step"] for x in shown}, DOCS / f"study_{study}_error_per_step.png")
    return [
        f"## {title}",
        "",
        f"{len(found)} of the {len(found) + len(left)} arms of `recipes/study_{study}.yaml` have been run"
        + (f"; not yet: {', '.join(left)}." if left else "."),
        f"As many held-out real images as samples are at FD {next(iter(found.values()))['floor']:.3f} to the data (the",
        "floor). From the same noise the teacher itself is at FD 0 to the teacher, so that column is the degradation.",
        "",
        *table(found, solvers),
        "",
        f"![FD to the teacher against training cost](study_{study}_curves.png)",
        "",
        f"![Error per step](study_{study}_error_per_step.png)",
        "",
        *pairs(found),
        "",
        *adversarial(summary(found)),
        *samples(study),
    ]


def main() -> None:
    text = [
        "# The study: all arms",
        "",
        "This page is written by `python benchmarks/study/summary.py` from the committed results of",
        "`benchmarks/study/study.py`. Students have S = 4 steps unless the arm's name says otherwise. An optimiser",
        "step is 256 evaluations of the network in every arm; figures are of 2,000 held-out noises. An arm's name",
        "says target and output (`paper`: target `denoised` and output `direct`, the authors' set-up), whose inputs",
        "the steps are trained on, and N, the number of layers with history. `gated`: history goes through a gate",
        "that starts closed. `uneven`: the steps run between the teacher's states 0, 6, 15, 21 and 24 of 24 instead",
        "of every sixth, with target `state` and the teacher's inputs. `flops`: as many more training steps as an",
        "evaluation with N = 7 costs more. FD is the Fréchet distance in the features of the data set's own",
        "classifier. Several seeds: mean, in brackets largest minus smallest. MMACs: million multiply-accumulates",
        "of one image. The terms are explained in the [Glossary](glossary.md).",
        "",
        *report("fashion", "Fashion-MNIST (`zoo/fashion`, grey, 28x28), 1,000 steps"),
        *report("emoji", "Emoji (`zoo/emoji`, colour, 32x32), 600 steps"),
    ]
    (DOCS / "study.md").write_text("\n".join(text).rstrip() + "\n")
    history_plot(results("fashion"), DOCS / "history.png")
    emoji = results("emoji")
    figures = summary(results("fashion")) | {"emoji": summary(emoji) if emoji else None}
    (HERE / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
