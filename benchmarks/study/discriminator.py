"""Run a closed list of critics, one arm after the other; what was stopped goes on, what has a result is left.

    OMP_WAIT_POLICY=passive python benchmarks/study/discriminator.py [--recipe FILE] [--only REGEX] [--threads 1]

Writes results/discriminator_NAME.json. An arm's figures are those of `study.py` and, of the discriminator as it ended,
the share of pairs of a real and a drawn image that it orders rightly. Arms of the method `dmd` have none.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from study import HERE, RECIPES, evaluate
from torch import Tensor

from ardistill import Student
from ardistill.config import AdversarialConfig
from ardistill.evaluation import Sampler
from ardistill.files import checkpoints, write_whole
from ardistill.studies import Study
from ardistill.training import environment
from ardistill.training.discriminator import Discriminator
from ardistill.training.real_images import load_real


@torch.no_grad()
def ordered(study: Study, name: str, student: Student, count: int = 1000) -> float:
    """Share of pairs of a real and a drawn image of which the discriminator takes the real one for more real.

    The real ones are the last of the file, which the training saw as seldom as all others.
    """
    config = AdversarialConfig(**study.recipe.options(name).get("adversarial", {}))
    judge = Discriminator(study.teacher, config, knots=student.config.knots)
    held, saved = judge.state_dict(), checkpoints.newest(study.run_folder(name) / "checkpoints")
    checkpoints.load(saved, {"adversary": {"discriminator": held}})
    judge.load_state_dict(held)
    states, _, condition = study.held_out(student.config.knots).stacked(slice(count))
    latents, labels = load_real(study.recipe.options(name)["real"], study.teacher)
    generator = torch.Generator().manual_seed(0)
    levels = judge.draw_levels(count, generator)

    def scores(images: Tensor, known: dict[str, Tensor]) -> Tensor:
        logits = judge.judge(judge.look(images, known, levels, generator)).mean(1)
        return logits.view(count, -1).mean(1)

    real = scores(latents[-count:].float(), {key: x[-count:] for key, x in labels.items()})
    drawn = scores(Sampler.of_student(student).draw(states[:, 0], condition), condition)
    return float((real > drawn).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(RECIPES / "study_discriminator_fashion.yaml"))
    parser.add_argument("--only", default=".*")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study, path = Study(args.recipe), HERE / "results" / f"{Path(args.recipe).stem.removeprefix('study_')}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in study.recipe.arms:
        if not re.fullmatch(args.only, name) or name in found:
            continue
        began = time.time()
        student = study.student(name)
        figures = evaluate(student, study.teacher, study.held_out(student.config.knots))
        figures.pop("distances")
        options = study.recipe.options(name)
        if "finetune" in options and options.get("method") != "dmd":
            figures["ordered"] = ordered(study, name, student)
        found[name] = figures | {"seconds": round(time.time() - began), "environment": environment()}
        write_whole(path, (json.dumps(found, indent=1) + "\n").encode())
        told = figures["figures"]
        print(name, {x: round(told[x], 4) for x in ("fd_held_out", "fd", "fd_to_teacher", "recall")}, end=" ")
        print("teacher", round(figures["teacher"]["fd_held_out"], 4), "ordered", figures.get("ordered"), flush=True)


if __name__ == "__main__":
    main()
