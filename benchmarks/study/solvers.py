"""Measure the teacher with few-step solvers, to compare with students: DDIM, DPM-Solver++ and UniPC, 4 and 8 steps.

    python benchmarks/study/solvers.py [--recipe FILE]

Writes results/NAME/solvers.json. The noise is that of the study's held-out trajectories.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from study import HERE, RECIPES, fd_held_out, judge_of

from ardistill.evaluation import Sampler, compare_samplers, extract_features
from ardistill.studies import Study

SCHEDULERS = {"DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(RECIPES / "study_fashion.yaml"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args.recipe)
    teacher, held_out = study.teacher, study.held_out(1)
    judge = judge_of(teacher)
    states, _, condition = held_out.stacked()
    arms = {"teacher": Sampler.of_teacher(teacher, held_out.manifest.solver_steps)}
    arms |= {
        f"{name}, {steps} steps": Sampler.of_scheduler(
            teacher, kind.from_config(teacher.scheduler.config, timestep_spacing="trailing"), steps
        )
        for name, kind in SCHEDULERS.items()
        for steps in (4, 8)
    }
    found = compare_samplers(teacher, teacher.decode(states[:, -1]), arms, states[:, 0], condition, judge)
    print(found.table())
    for arm, figures in found.arms.items():
        figures["fd_held_out"] = fd_held_out(judge, extract_features(judge.network, found.images[arm]))
    path = HERE / "results" / Path(args.recipe).stem.removeprefix("study_") / "solvers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"arms": found.arms, "floor": found.floor}, indent=1) + "\n")


if __name__ == "__main__":
    main()
