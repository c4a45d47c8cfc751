"""Writes docs/performance.md from the committed results of the benchmarks.

python benchmarks/performance.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ardistill.evaluation import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TEMPLATE = HERE / "performance_page.md"
"""The page, with names in braces where figures go."""
PAGE = HERE.parent / "docs" / "performance.md"
BEFORE = "gpu-h100-before"
Parts = dict[str, dict[str, Any]]
"""Part -> ``arms``, its figures by arm, and ``error`` if it did not end."""

TITLES = {
    "sample 1": "Four-step sample, one image",
    "sample many": "Four-step sample, 64 images at once",
    "teacher": "The teacher, one image, 25 guided steps",
    "pass bf16": "Training pass (forward and backward), batch 8, 4 steps, bf16",
    "pass tf32": "The same, TF32",
    "pass fp32": "The same, float32",
    "step": "Whole step of `distill`, batch 8, N = 6, bf16",
    "record": "`record`, 24 guided steps",
    "sd35": "SD3.5-medium, one image of 1024 pixels, bf16",
    "equality": "Largest difference from eager results, relative to the largest value (graphed: bf16 weights)",
}


def percent(share: float, digits: int = 0, sign: str = "") -> str:
    """A share in percent."""
    return f"{100 * share:{sign}.{digits}f} %"


def arm(parts: Parts, part: str, name: str) -> dict[str, Any]:
    """Figures of an arm; empty if there are none."""
    return parts.get(part, {}).get("arms", {}).get(name, {})


def fastest(parts: Parts, part: str, names: list[str]) -> tuple[str, dict[str, Any]]:
    """The name and figures of the arm with the fewest milliseconds; empty if none was measured."""
    found = [(name, arm(parts, part, name)) for name in names if "ms" in arm(parts, part, name)]
    return min(found, key=lambda x: x[1]["ms"], default=("", {}))


WAYS = ("eager", "graphed", "compiled", "compiled and graphed")
HISTORY = {"N=6 gated M2": "by default", "N=6 gated": "gated M4", "N=6 softmax": "one softmax"}
"""Arm with history -> how the page calls it."""


def _best_sample(parts: Parts) -> str | None:
    names = [f"N=0, {way}, {kind}" for way in WAYS for kind in ("bf16", "bf16 weights")]
    fast = [name for name in names if ", eager" not in name]
    name, found = fastest(parts, "sample 1", fast)
    if not found:
        name, found = names[0], arm(parts, "sample 1", names[0])
    if "ms" not in found:
        return None
    way = name.partition(", ")[2]
    over = _over("sample 1", way)(parts) if ", eager" not in name else None
    return f"{found['ms']:.3g} ms, {way.partition(',')[0]}" + (f"; N = 6 {over}" if over else "")


def _over(part: str, way: str) -> Callable[[Parts], str | None]:
    def found(parts: Parts) -> str | None:
        ratios = {x: arm(parts, part, f"{name}, {way}").get("ratio") for name, x in HISTORY.items()}
        return ", ".join(f"{percent(ratio - 1, 1, '+')} {x}" for x, ratio in ratios.items() if ratio) or None

    return found


def _against_authors(parts: Parts) -> str | None:
    theirs, texts = arm(parts, "pass bf16", "authors, eager"), []
    for way in WAYS:
        ours = [arm(parts, "pass bf16", f"{name}, {way}") for name in ("N=6 gated M2", "N=6 softmax")]
        one = next((x for x in ours if "ms" in x), {})
        if "ms" in theirs and "ms" in one:
            memory = f", {one['peak_gib'] / theirs['peak_gib']:.2f} of the memory" if "peak_gib" in one else ""
            texts.append(f"{theirs['ms'] / one['ms']:.2f} times the speed{memory}, {way}")
    return "; ".join(texts) or None


def _step_share(parts: Parts) -> str | None:
    name, found = fastest(parts, "step", [f"step, {x}" for x in ("by default", *WAYS)])
    return f"{percent(found['share_of_peak'])}, {name.removeprefix('step, ')}" if "share_of_peak" in found else None


def _step_over_pass(parts: Parts) -> str | None:
    pairs = {way: (f"step, {way}", arm(parts, "step", f"pass, {way}")) for way in WAYS}
    pairs["by default"] = ("step, by default", arm(parts, "pass bf16", "N=6 gated M2, compiled and graphed"))
    return _ratios({way: (arm(parts, "step", name), one) for way, (name, one) in pairs.items()})


def _adapters_over_step(parts: Parts) -> str | None:
    ways = ("by default", *WAYS)
    return _ratios({x: (arm(parts, "step", f"step, adapters, {x}"), arm(parts, "step", f"step, {x}")) for x in ways})


def _ratios(pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> str | None:
    texts = [f"{x['ms'] / y['ms']:.2f}, {way}" for way, (x, y) in pairs.items() if "ms" in x and "ms" in y]
    return "; ".join(texts) or None


def _recorded(parts: Parts) -> str | None:
    texts = []
    for rate in ("whole call", "steady"):
        found = arm(parts, "record", f"by default, {rate}")
        if "share_of_peak" in found:
            texts.append(f"{percent(found['share_of_peak'])}, {found['per_second']:.3g} a second, {rate}")
    return "; ".join(texts) or None


GOALS: list[tuple[str, str, Callable[[Parts], str | None]]] = [
    ("4-step sample of one image, bf16", "at most 10 ms, N = 6 at most 2.4 % more", _best_sample),
    ("history in the same, eager", "at most +5 %", _over("sample 1", "eager, bf16")),
    (
        "history at 64 images, N = 6",
        "at most +2 %",
        _over("sample many", "eager, bf16"),
    ),
    ("training pass against the authors' code", "2 times the speed, 0.6 of the memory", _against_authors),
    ("training step, share of the bf16 peak", "45 %", _step_share),
    ("training step over its pass", "1.08", _step_over_pass),
    ("step of adapters (rank 16) over a step of all weights", "0.8", _adapters_over_step),
    ("`record` by default, share of the bf16 peak", "50 %", _recorded),
]
"""What, the goal, and the figure as text; None where it was not measured."""


def cell(figures: dict[str, Any]) -> str:
    """An arm's figures as text; empty if it was not measured."""
    if "error" in figures:
        return "failed"
    if "not_measured" in figures:
        return "not measured"
    texts = []
    if "per_second" in figures:
        texts.append(f"{figures['per_second']:.3g} a second")
    elif "ms" in figures:
        texts.append(f"{figures['ms']:.4g} ms")
    elif "ms_low" in figures:
        texts.append(f"{figures['ms_low']:.4g} to {figures['ms_high']:.4g} ms")
    if "ratio" in figures:
        texts.append(f"ratio {figures['ratio']:.3f}")
    if "share_of_peak" in figures:
        texts.append(f"{percent(figures['share_of_peak'])} of peak")
    if "peak_gib" in figures:
        texts.append(f"{figures['peak_gib']:.1f} GiB")
    if figures.get("first_s", 0) > 5:
        texts.append(f"first call {figures['first_s']:.0f} s")
    if "difference" in figures:
        texts.append(f"{figures['difference']:.1e}")
    return ", ".join(texts)


def cards(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Column title -> results of a card: the earlier ones first, then one of each card that gpu.py measured."""
    paths = sorted(results.glob("gpu-*.json"), key=lambda path: (path.stem != BEFORE, path.stem))
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    title = {name: x["environment"]["card"].removeprefix("NVIDIA ") for name, x in found.items()}
    return {f"{title[name]}, before" if name == BEFORE else title[name]: x for name, x in found.items()}


def gpu_goals(columns: dict[str, dict[str, Any]]) -> list[str]:
    """The goals beside what was measured."""
    rows = [
        [what, goal, *(figure(x["parts"]) or "not measured" for x in columns.values())] for what, goal, figure in GOALS
    ]
    return markdown_table([["DiT-XL/2, 256 px", "goal", *columns], *rows]).splitlines()


def gpu_details(columns: dict[str, dict[str, Any]]) -> list[str]:
    """One table for each part that was measured."""
    lines: list[str] = []
    for part, title in TITLES.items():
        found = {name: x["parts"].get(part, {}).get("arms", {}) for name, x in columns.items()}
        arms = dict.fromkeys(name for arms in found.values() for name in arms)
        rows = [[name, *(cell(x.get(name, {})) for x in found.values())] for name in arms]
        if rows:
            lines += [f"### {title}", "", markdown_table([["", *columns], *rows]), ""]
    return lines


def environments(columns: dict[str, dict[str, Any]]) -> list[str]:
    """What each column was measured with."""
    lines = []
    for name, found in columns.items():
        facts, peaks = found["environment"], found["parts"].get("machine", {}).get("arms", {})
        peak = ", ".join(f"{x['tflops']:.0f} {kind.upper()}" for kind, x in peaks.items() if "tflops" in x)
        packages = ", ".join(f"{x} {facts['packages'][x]}" for x in ("torch", "diffusers"))
        commit = f", commit {facts['git_commit'][:7]}" if facts.get("git_commit") else ""
        lines.append(f"- **{name}**: {packages}{commit}. Peaks: {peak} TFLOP/s. {facts.get('note', '')}".rstrip())
    if len(columns) == 1:
        lines.append("- **Since then nothing was measured on a GPU**: a new run of `benchmarks/gpu.py` adds a column.")
    return lines


def cpu(results: Path = RESULTS) -> dict[str, str]:
    """The figures of the CPU's sections, as text."""

    def read(name: str) -> Any:
        return json.loads((results / f"{name}.json").read_text())

    small, large = read("train_step")["results"]
    latency, size, memory = read("latency")["n6"], read("dit_xl2"), read("memory")
    history, plain = latency["arms"]["N=6 M4"], latency["arms"]["N=0"]
    half = read("half_precision")
    speed = read("loader")["speed"]["found"]["warm"]["store, batch at once"]
    gb = {(x["teacher"], x["mode"]): f"{x['measured'] / 1e9:.2f}" for x in memory}
    return {
        "bf16_image": percent(half["rms_error_per_state_of_bf16"][-1] / half["rms_per_state"][-1], 1),
        "time": percent(1 / small["speed_ratio"]),
        "saved": percent(small["saved_ratio"]),
        "time_wide": percent(1 / large["speed_ratio"]),
        "saved_wide": percent(large["saved_ratio"]),
        "overhead": f"{1 + history['overhead']:.3f}",
        "overhead_low": f"{1 + history['low']:.3f}",
        "overhead_high": f"{1 + history['high']:.3f}",
        "plain_s": f"{plain['ms'] / 1000:.1f}",
        "history_s": f"{history['ms'] / 1000:.1f}",
        "teacher_s": f"{latency['teacher_25_guided_steps_ms'] / 1000:.0f}",
        "record_s": f"{size['record']['seconds']:.0f}",
        "record_gib": f"{size['record']['peak_gib']:.1f}",
        "distill_s": f"{size['distill']['seconds']:.0f}",
        "distill_gib": f"{size['distill']['peak_gib']:.1f}",
        "sample_s": f"{size['sample']['seconds']:.1f}",
        "read": f"{round(speed['samples_per_second'], -2):,.0f}",
        "read_over_npz": f"{speed['samples_per_second_over_npz']:.1f}",
        "adapters_s": gb["DiT-S/2", "adapters"],
        "all_s": gb["DiT-S/2", "folded"],
        "adapters_b": gb["DiT-B/2", "adapters"],
        "all_b": gb["DiT-B/2", "folded"],
    }


def page(results: Path = RESULTS) -> str:
    """The text of docs/performance.md."""
    columns = cards(results)
    before = columns[next(iter(columns))]["parts"]
    step = {name: arm(before, "step", f"step, {name}") for name in ("eager", "checkpointing, eager", "adapters, eager")}
    gib = {name.partition(",")[0]: f"{x['peak_gib']:.1f}" for name, x in step.items()}
    parts = {
        "goals": "\n".join(gpu_goals(columns)),
        "details": "\n".join(gpu_details(columns)).rstrip(),
        "environments": "\n".join(environments(columns)),
        **{f"gib_{name}": value for name, value in gib.items()},
        **cpu(results),
    }
    return TEMPLATE.read_text().format(**parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
