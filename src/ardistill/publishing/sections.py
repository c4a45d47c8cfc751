"""Sections of a student's card: how it was made, what it cannot do, and under which licence it stands."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import yaml

from ardistill.config import AdversarialConfig, MatchingConfig, TrainingConfig
from ardistill.evaluation import run_of
from ardistill.publishing.origin import Origin
from ardistill.student import Student
from ardistill.teacher import public_name

NO_LICENSE = (
    "None is named here, as the teacher's card, from which a student inherits its licence, is not known or names none. "
    "Ask the teacher's authors before you use this student or pass it on."
)


def how_it_was_made(student: Student, origin: Origin) -> str:
    """The section about the student's run, or one for each of two; what is not known of a run is left out."""
    if origin.second is None:
        return _how_it_was_made(student, origin, "How it was made")
    first = _how_it_was_made(student, origin, "How the transformer for high noise was made")
    return f"{first}\n\n{_how_it_was_made(student, origin.second, 'How the one for low noise was made')}"


def _how_it_was_made(student: Student, origin: Origin, head: str) -> str:
    config, settings = student.config, origin.settings
    low, high = config.guidance_range
    guidance = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    weights = f", weights {config.fingerprint[:12]}" if config.fingerprint else ""
    lines = [f"- Teacher: {public_name(config.teacher)}{weights}, guidance {guidance}."]
    if not settings:
        return _section(head, [*lines, "- The run that trained it is not known."])
    data, training = settings.get("data", {}), settings.get("training", {})
    if data.get("num_trajectories"):
        lines.append(f"- Trajectories: {data['num_trajectories']:,}, of seed {data.get('seed')}.")
    done = f"step {int(origin.step[5:]):,} of " if origin.step else ""
    words = [f"{name} {training[name]}" for name in ("batch_size", "learning_rate", "inputs") if name in training]
    lines.append(f"- Training: {done}{training.get('max_steps', 0):,} steps, {', '.join(words)}.")
    start = (settings.get("start") or {}).get("student")
    if start:
        run, step = run_of(start)
        lines.append(f"- It started from another student, {run.name}{step}, whose training is not counted here.")
    if "adversarial" in settings:
        lines.append("- A discriminator on real images judged its last step (R+D).")
    if "matching" in settings:
        lines.append("- Its last step was trained by distribution matching as well (DMD), without real images.")
    lines += _cost(origin.environment)
    chosen = {"training": _differing(training, asdict(TrainingConfig()))}
    for section, usual in (("adversarial", AdversarialConfig()), ("matching", MatchingConfig())):
        if section in settings:
            chosen[section] = _differing(settings[section], asdict(usual))
    return _section(head, lines) + _details(chosen)


def _cost(environment: dict[str, Any]) -> list[str]:
    """Versions, and the time on each device, as the run itself noted them."""
    lines = []
    packages = environment.get("packages", {})
    if packages:
        versions = ", ".join(f"{name} {found}" for name, found in packages.items())
        lines.append(f"- Versions: {versions}, python {environment.get('python')}.")
    times = environment.get("device_seconds", {})
    if times:
        hours = " and ".join(f"{seconds / 3600:.2g} hours of {device}" for device, seconds in times.items())
        lines.append(
            f"- Cost of the training: {hours}, up to its last checkpoint; recording the trajectories comes on top."
        )
    return lines


def _differing(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The options that are not the package's defaults."""
    return {name: value for name, value in values.items() if usual.get(name) != value}


def _details(chosen: dict[str, Any]) -> str:
    text = yaml.safe_dump(json.loads(json.dumps(chosen)), sort_keys=False).strip()
    return f"""

<details>
<summary>Options that differ from the defaults</summary>

```yaml
{text}
```

</details>"""


def limits(student: Student, origin: Origin) -> str:
    """The section about what the student cannot do."""
    config = student.config
    sizes = " and ".join("x".join(map(str, shape[1:])) for shape in config.sample_shapes)
    lines = [
        f"- It draws in {student.num_steps} steps, at the times that it was trained at, and in no others.",
        "- It imitates its teacher, whose faults and biases it inherits.",
    ]
    if sizes:
        lines.append(f"- It was trained at {sizes} latents alone (pixels, where there is no VAE).")
    if not config.takes_guidance:
        lines.append(f"- The strength of guidance is fixed at the teacher's {config.guidance_scale:g}.")
    if origin.metrics:
        count, network = origin.metrics.get("num_samples", 0), origin.metrics.get("feature_network")
        lines.append(
            f"- Its figures are of {count:,} samples, in the features of `{network}`: compare them only with others "
            "that were measured so."
        )
    return _section("Limits", lines)


def license_section(origin: Origin) -> str:
    """The section about the licence."""
    return f"## Licence\n\n{license_text(origin.license, origin.teacher_license) or NO_LICENSE}"


def license_text(license: dict[str, str], inherited: dict[str, str]) -> str:
    """A sentence on the student's licence and where it comes from; empty if there is none."""
    if not license:
        return ""
    if license == inherited:
        return f"`{_named(license)}`, inherited from the teacher's card."
    theirs = f"names `{_named(inherited)}`" if inherited else "is not known or names none"
    return f"`{_named(license)}`, as chosen by its publisher; the teacher's card {theirs}."


def _named(license: dict[str, str]) -> str:
    return license.get("license_name") or license["license"]


def _section(head: str, lines: list[str]) -> str:
    return "\n".join([f"## {head}", "", *lines])
