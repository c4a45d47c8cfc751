"""Object storage spoken to over HTTP: recordings and trainings through kills and outages, and steps under latency.

    python benchmarks/object_storage.py [kills training latency] [--json benchmarks/results/object_storage.json]

The server is moto's, in a process of its own (tests/object_server.py); it needs no account and no network.

kills: a campaign starts three recorders at once, kills each at a random moment, and takes the server away amid an
upload; all again; then a last recorder ends the recording. Every object is compared with a local recording's.

training: `distill` reads its trajectories from the server and is killed at random moments, started again, and meets an
outage, until it ends. What it leaves is compared with what a run on a local copy leaves that was never killed.

latency: time of a training step with 50 ms of latency on each request over that without, in turn, and the same where
nothing but the next batch is read ahead; and of it the time for which the training waits for its batch, which says more
than the ratio where other processes share the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, DiTTransformer2DModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))
from killing import contents, end, kill_and_restart, record_arguments, save_tiny_teacher, start
from object_server import ObjectServer

from ardistill.config import TrainingConfig
from ardistill.files import Store
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training.batches import batches
from ardistill.trajectories import TrajectoryDataset, record

LATENCY = 0.05
STEPS = 20
"""Steps between two looks at the clock."""


def objects(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: bytes(store.read(name)) for name in store.sizes()}


def upload(folder: Path, url: str) -> str:
    store = Store(url)
    for name, data in contents(folder).items():
        store.publish(name, data)
    return url


def kills(folder: Path, server: ObjectServer, campaigns: int) -> dict[str, Any]:
    teacher, size = save_tiny_teacher(folder / "teacher"), {"num_trajectories": 120, "shard_size": 4}
    log, found = folder / "log", []
    end(start(record_arguments(teacher, folder / "undisturbed", **size), log, False), log)
    expected = contents(folder / "undisturbed")
    for seed in range(campaigns):
        url, chance, server_stops = f"s3://bucket/killed-{seed}", random.Random(seed), [0]

        def writing(chance: random.Random = chance, stops: list[int] = server_stops) -> bool:
            if chance.random() < 0.5:  # amid one of the next uploads
                server.stop(chance.uniform(0.2, 2), after_puts=chance.randint(1, 3))
                stops[0] += 1
            return True

        rounds = kill_and_restart(
            record_arguments(teacher, url, **size), log, processes=3, rounds=2, most=10, seed=seed, fresh=False,
            progress=lambda url=url: len(Store(url).sizes()), writing=writing,
        )  # fmt: skip
        left = objects(url)
        found.append({"rounds": rounds, "outages": server_stops[0], "equal": left == expected})
        print(json.dumps(found[-1]), flush=True)
    killed = sum(r["killed"] for x in found for r in x["rounds"])
    outages = sum(x["outages"] for x in found)
    return {"kills": killed, "outages": outages, "equal": sum(x["equal"] for x in found), "campaigns": found}


def training(folder: Path, server: ObjectServer, campaigns: int) -> dict[str, Any]:
    teacher, log, found = save_tiny_teacher(folder / "teacher"), folder / "log", []
    end(start(record_arguments(teacher, folder / "data", 64, 4), log, False), log)
    url = upload(folder / "data", "s3://bucket/training")

    def command(source: str, out: Path) -> list[str]:
        numbers = {"max_steps": 40, "checkpoint_every": 5, "batch_size": 8, "tracker": "null", "learning_rate": 1e-3}
        given = [x for name, value in numbers.items() for x in (f"--training.{name}", str(value))]
        where = ["--trajectories", source, "--teacher", str(teacher), "--out", str(out), "--draws", "shards"]
        return ["distill", *where, "--num_steps", "4", "--history_layers", "1", "--device", "cpu", *given]

    def left(out: Path) -> dict[str, bytes]:
        return contents(out / "student") | contents(out / "checkpoints" / "step-00000040")

    began = time.monotonic()
    end(start(command(str(folder / "data"), folder / "whole"), log, False), log)
    takes, expected = time.monotonic() - began, left(folder / "whole")
    for seed in range(campaigns):
        chance, out, ended = random.Random(seed), folder / f"killed-{seed}", []
        while not (out / "student").exists():
            pid = start(command(url, out), log, False)
            if len(ended) < 3:
                time.sleep(chance.uniform(0.2, 0.6) * takes)
                os.kill(pid, signal.SIGKILL)
            elif len(ended) == 3:
                time.sleep(0.1 * takes)
                server.stop(2)
            ended.append(end(pid, log))
        now = left(out)
        differing = [name for name in expected if now.get(name) != expected[name]]
        found.append({"kills": ended.count(-signal.SIGKILL), "starts": len(ended), "differing": differing})
        print(json.dumps(found[-1]), flush=True)
    return {"kills": sum(x["kills"] for x in found), "equal": sum(not x["differing"] for x in found), "runs": found}


class Clock:
    """Stands for `batches` in the training loop, and adds up how long the loop waits for a batch."""

    def __init__(self) -> None:
        self.waited, self.moments = 0.0, []

    @contextmanager
    def batches(self, *arguments: Any) -> Iterator[Iterator[Any]]:
        with batches(*arguments) as drawn:
            yield iter(lambda: self.next(drawn), None)

    def next(self, drawn: Iterator[Any]) -> Any:
        began = time.perf_counter()
        batch = next(drawn)
        self.waited += time.perf_counter() - began
        return batch

    def look(self, *_: Any) -> None:
        self.moments.append((time.perf_counter(), self.waited))


def time_steps(teacher: Teacher, data: TrajectoryDataset, out: Path, batch_size: int) -> dict[str, float]:
    """Mean time of a training step, and of its waiting for the batch, once the first checkpoint is behind."""
    loop, clock = importlib.import_module("ardistill.training.distill"), Clock()
    config = TrainingConfig(max_steps=3 * STEPS, batch_size=batch_size, checkpoint_every=STEPS, tracker=None)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2))
    loop.batches = clock.batches  # type: ignore[attr-defined]
    loop.distill(student, data, out, config, validate=clock.look, progress=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    (began, before), (ended, after) = clock.moments[0], clock.moments[2]
    return {"step": (ended - began) / (2 * STEPS), "waiting": (after - before) / (2 * STEPS)}


def summary(arms: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, relative to steps without latency.

    ``step`` is the whole step, and on a shared machine mostly noise; ``step_by_waiting`` is the step without latency
    plus the waiting that latency adds, over the step without latency.
    """

    def middle(what: str) -> dict[str, float]:
        return {arm: statistics.median(x[what] for x in times) for arm, times in arms.items()}

    step, waiting = middle("step"), middle("waiting")
    base = step["without"]
    return {
        "step": {arm: seconds / base for arm, seconds in step.items()},
        "step_by_waiting": {arm: 1 + (seconds - waiting["without"]) / base for arm, seconds in waiting.items()},
    }


def latency(folder: Path, server: ObjectServer, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    teacher, batch_size, found = Teacher(transformer, DDIMScheduler(), guidance_scale=1.0), 8, {}
    for shard_size in (8, 2):
        name, where = f"{batch_size // shard_size} shards a batch", folder / str(shard_size)
        record(teacher, where, 256, solver_steps=4, num_steps=(4,), shard_size=shard_size, progress=False)
        url = upload(where, f"s3://bucket/latency-{shard_size}")
        arms: dict[str, list[dict[str, float]]] = {"without": [], "with": [], "with, next batch alone": []}
        for turn in range(rounds):
            for arm, times in arms.items():
                data = TrajectoryDataset(url, 4)
                if "alone" in arm:
                    data.prefetch = lambda upcoming: None  # type: ignore[method-assign]
                server.delay(0 if arm == "without" else LATENCY)
                times.append(time_steps(teacher, data, folder / f"{shard_size}-{turn}-{arm}", batch_size))
                server.delay(0)
                print(name, arm, json.dumps(times[-1]), flush=True)
        found[name] = {"seconds": arms, **summary(arms)}
        print(name, json.dumps(summary(arms)), flush=True)
    return {"latency_seconds": LATENCY, "batch_size": batch_size, "rounds": rounds, "found": found}


PARTS: dict[str, Callable[[Path, ObjectServer, int], dict[str, Any]]] = {
    "kills": kills, "training": training, "latency": latency,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(PARTS)}; all if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    with ObjectServer() as server:
        os.environ |= server.environment
        for name in args.what or PARTS:
            began, load = time.monotonic(), os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                found = PARTS[name](Path(folder), server, args.rounds)
            results[name] = {"load_average": load, "minutes": (time.monotonic() - began) / 60} | found
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
