"""Kill trainings at random moments and start them again by the same command, until they end: are they bit-equal?

    python benchmarks/faults_training.py [--kills 50] [--seed 3] [--json benchmarks/results/faults_training.json]

Each training is one process, two under DDP or two with the weights divided over them, gloo, CPU, fp32, of a tiny random
DiT. It is killed (SIGKILL, all its processes) at a random moment, drawn anew from the first import to the last write;
now and then a file of its newest checkpoint is then cut, flipped or removed. What it leaves in the end is compared with
what one leaves that was never killed: weights, EMA, optimiser, schedule, step counter and log.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from processes import leavings, run, start, train
from tiny import TINY

from ardistill.teacher import Teacher
from ardistill.trajectories import record

STEPS = 14
KINDS = {"one process": (1, {}), "two, DDP": (2, {}), "two, divided": (2, {"shard": True})}


def damage(folder: Path, moments: random.Random) -> str | None:
    """Damage a file of the newest checkpoint, if there is one before it."""
    published = sorted(x for x in folder.glob("checkpoints/step-*") if x.suffix != ".tmp")
    if len(published) < 2:
        return None
    file = moments.choice(sorted(published[-1].iterdir()))
    data, kind = bytearray(file.read_bytes()), moments.choice(["cut", "flipped", "removed"])
    if kind == "removed":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[: moments.randrange(len(data))])
    else:
        data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
        file.write_bytes(data)
    return kind


def training_kills(folder: Path, kind: str, kills: int, seed: int) -> dict[str, Any]:
    """Train once undisturbed, then again and again through so many kills, and compare each that comes to its end."""
    (count, more), moments = KINDS[kind], random.Random(f"{kind}/{seed}")
    if not (folder / "data").exists():
        teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
        record(teacher, folder / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    training = {"max_steps": STEPS, "checkpoint_every": 2, "lr_scheduler": "cosine", "keep_checkpoints": 3} | more
    whole, killed, log = folder / f"whole-{kind}", folder / f"killed-{kind}", folder / "log"
    run(1, log, time.time)  # the server of processes has its imports behind it
    began = time.time()
    run(count, log, train, "dit", str(folder / "data"), str(whole), training)
    takes, command = time.time() - began, (train, "dit", str(folder / "data"), str(killed), training)
    done: dict[str, Any] = {
        "kills": 0,
        "before_the_first_checkpoint": 0,
        "damaged": {"cut": 0, "flipped": 0, "removed": 0},
        "runs": 0,
    }
    expected, differing, losses = leavings(whole), set(), killed.with_name(f"{killed.name}.losses-0")

    def compare() -> None:
        left = leavings(killed)
        differing.update(x for x in left.keys() | expected.keys() if left.get(x) != expected.get(x))
        done["runs"] += 1
        shutil.rmtree(killed)

    def passes() -> int:
        return losses.read_text().count("\n") if losses.exists() else 0

    while done["kills"] < kills:
        some, before, began = moments.randint(-1, STEPS // 2), passes(), time.time()
        processes = start(count, log, *command)
        while any(process.is_alive() for process in processes):
            if some < 0 and time.time() - began > moments.random() * takes:  # amid its start
                break
            if some >= 0 and passes() - before >= some:
                break
            time.sleep(0.005)
        time.sleep(moments.random() * 0.2)
        alive = any(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
            process.join()
        if not alive and (killed / "student" / "student.json").exists():
            compare()
            continue
        done["kills"] += 1
        done["before_the_first_checkpoint"] += not any(killed.glob("checkpoints/step-????????"))
        if moments.random() < 0.4 and (how := damage(killed, moments)):
            done["damaged"][how] += 1
    run(count, log, *command)
    compare()
    return {"kind": kind} | done | {"compared": len(expected), "differing": sorted(differing)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=54, help="in all, over the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            rows.append(training_kills(Path(folder), kind, -(-args.kills // len(KINDS)), args.seed))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(rows, indent=1))
    if any(row["differing"] for row in rows):
        sys.exit("a killed training differs from one never killed")


if __name__ == "__main__":
    main()
