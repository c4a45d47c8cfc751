"""Reading speed against the authors' layout (one npz per state, six files opened per sample), and memory of the store.

    python benchmarks/loader.py [speed] [memory] [--samples 1000] [--json benchmarks/results/loader.json]

The same data in both layouts: 5 states of (4, 32, 32), float32, and a label; our shards hold the 4 denoised estimates
beside them, and reading them is counted in. Random rows in batches of 64. Warm: from the page cache, everything read
once before. Cold: the pages of every file dropped (posix_fadvise) and the store opened anew, checksums of all shards
included. Best of 2 rounds, the layouts in turn. Figures are best taken on an idle machine.

Memory: what a process gains in pages of its own (RssAnon) by opening a store and reading 20,000 random rows, for 1e3 to
1e6 synthetic trajectories of (4, 2, 2), and how fast it then reads as many again, each shard having been checked;
pages of the mapped files belong to the system and are given back at need.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch.utils.data import default_collate

from ardistill.files import Store
from ardistill.teacher import knots_from_scheduler
from ardistill.trajectories import TrajectoryDataset
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import encode_shard, make_shard

STATES = ("noise", "z15", "z10", "z5", "image")
BATCH = 64


def write_store(folder: Path, count: int, shape: tuple[int, ...], shard_size: int = 256) -> Manifest:
    """A store of random numbers, in 4 steps; all shards hold the same ones."""
    manifest = Manifest(
        teacher="", fingerprint="0" * 64, scheduler={}, solver_steps=4, kept=(0, 1, 2, 3, 4),
        knots=knots_from_scheduler(DDIMScheduler(), 4), guidance_range=(1.5, 1.5), guidance_channels=None,
        sample_shapes=(shape,), num_conditions=1000, prompts="", negative_prompt="", mixed_precision="no",
        dtype="float32", seed=0, num_trajectories=count, shard_size=shard_size,
    )  # fmt: skip
    store, generator = Store(folder), torch.Generator().manual_seed(0)
    manifest.publish(store)
    states = torch.randn(shard_size, 5, *shape, generator=generator)
    denoised = torch.randn(shard_size, 4, *shape, generator=generator)
    for shard in range(manifest.num_shards):
        rows, layout = manifest.num_rows(shard), manifest.layout(shard)
        made = make_shard(layout, states[:rows], denoised[:rows], manifest.labels(shard), manifest.guidance(shard))
        store.publish(shard_name(shard), encode_shard(layout, made))
    return manifest


def write_npz(folder: Path, store: Path, count: int) -> None:
    """The same in the authors' layout."""
    folder.mkdir()
    data = TrajectoryDataset(store, 4)
    for i in range(count):
        item = data[i]
        for name, state in zip(STATES, item["states"].numpy(), strict=True):
            np.savez(folder / f"{i:06d}_{name}.npz", state)
        np.savez(folder / f"{i:06d}_label.npz", item["condition"]["class_labels"].numpy())


def read_npz(folder: Path) -> Callable[[torch.Tensor], Any]:
    def read(rows: torch.Tensor) -> Any:
        items = []
        for i in rows.tolist():
            arrays = []
            for name in (*STATES, "label"):
                with np.load(folder / f"{i:06d}_{name}.npz") as file:
                    arrays.append(file["arr_0"])
            items.append({"states": torch.from_numpy(np.stack(arrays[:-1])), "label": torch.from_numpy(arrays[-1])})
        return default_collate(items)

    return read


def read_items(folder: Path) -> Callable[[torch.Tensor], Any]:
    """As the training loop reads."""
    data = TrajectoryDataset(folder, 4)
    return lambda rows: default_collate([data[i] for i in rows.tolist()])


def read_batches(folder: Path) -> Callable[[torch.Tensor], Any]:
    return TrajectoryDataset(folder, 4).batch


def forget(folder: Path) -> None:
    """Drop what the system keeps of the files in memory."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def speed(open_: Callable[[Path], Any], folder: Path, count: int, cold: bool) -> dict[str, float]:
    """Samples per second of wall time and of this process's own time, all rows once in random order."""
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(BATCH)
    read = open_(folder)
    if cold:
        forget(folder)
    else:
        for part in rows:
            read(part)
    wall, own = time.perf_counter(), time.process_time()
    if cold:
        read = open_(folder)
    for part in rows:
        read(part)
    return {
        "samples_per_second": count / (time.perf_counter() - wall),
        "samples_per_cpu_second": count / (time.process_time() - own),
    }


def compare(folder: Path, count: int) -> dict[str, Any]:
    write_store(folder / "store", count, (4, 32, 32))
    write_npz(folder / "npz", folder / "store", count)
    layouts: dict[str, tuple[Callable[[Path], Any], str]] = {
        "npz, six files a sample": (read_npz, "npz"),
        "store, item by item": (read_items, "store"),
        "store, batch at once": (read_batches, "store"),
    }
    found: dict[str, Any] = {"samples": count, "batch": BATCH}
    for state in ("warm", "cold"):
        best: dict[str, dict[str, float]] = {name: {} for name in layouts}
        for _ in range(2):
            for name, (open_, where) in layouts.items():
                now = speed(open_, folder / where, count, state == "cold")
                best[name] = {key: max(value, best[name].get(key, 0.0)) for key, value in now.items()}
        base = dict(best["npz, six files a sample"])
        for name in layouts:
            best[name] |= {f"{key}_over_npz": best[name][key] / base[key] for key in base}
            print(state, name, json.dumps(best[name]), flush=True)
        found[state] = best
    return found


def own_memory() -> int:
    """Bytes in pages of this process alone."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def memory(folder: Path) -> list[dict[str, Any]]:
    found = []
    for count in (1_000, 10_000, 100_000, 1_000_000):
        store = folder / f"memory-{count}"
        write_store(store, count, (4, 2, 2))
        receive, send = os.pipe()
        if not os.fork():  # a process of its own, in which nothing else was read
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before the fork would be used first, unseen
            before, began = own_memory(), time.perf_counter()
            data = TrajectoryDataset(store, 4)
            opened, generator = time.perf_counter() - began, torch.Generator().manual_seed(0)
            batches = 20_000 // BATCH + 1
            touched = np.zeros(data.manifest.num_shards, bool)
            for _ in range(batches):
                rows = data.draw(BATCH, generator)
                touched[rows.numpy() // data.manifest.shard_size] = True
                data.batch(rows)
            facts = {"trajectories": count, "shards": len(touched), "shards_touched": int(touched.sum())}
            facts |= {"open_seconds": opened, "bytes": own_memory() - before}
            began = time.process_time()
            for _ in range(batches):
                data.batch(data.draw(BATCH, generator))
            facts["samples_per_cpu_second_after"] = batches * BATCH / (time.process_time() - began)
            os.write(send, json.dumps(facts).encode())
            os._exit(0)
        found.append(json.loads(os.read(receive, 10_000)))
        os.wait()
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="speed, memory; both if not given")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    for name in args.what or ("speed", "memory"):
        with tempfile.TemporaryDirectory() as folder:
            found = compare(Path(folder), args.samples) if name == "speed" else memory(Path(folder))
        results[name] = {"load_average": os.getloadavg()[0], "found": found}
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
