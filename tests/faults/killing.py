"""Starts real commands, kills them at random moments and starts them again."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ardistill.cli import main


def save_tiny_teacher(folder: Path) -> Path:
    """A diffusers folder of a tiny DiT with random weights everywhere."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    transformer.save_pretrained(folder / "transformer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(arguments: Sequence[str], log: Path, fresh: bool) -> int:
    """Start `ardistill` in a process; the result is its number.

    Args:
        arguments: Arguments of `ardistill`.
        log: File that its output is appended to.
        fresh: Whether to start a new interpreter. Otherwise the process is forked from this one, which saves the
            seconds of imports.
    """
    if pid := os.fork():
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "ardistill", *arguments])
        torch.set_num_threads(1)
        main(list(arguments))
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def end(pid: int, log: Path) -> int:
    """Wait for a process; the result is 0, or minus the signal that ended it.

    Raises:
        RuntimeError: It failed without a signal.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status > 0:
        raise RuntimeError(f"status {status}: {log.read_text()[-2000:]}")
    return status


def kill_and_restart(
    arguments: Sequence[str],
    log: Path,
    *,
    processes: int,
    rounds: int,
    progress: Callable[[], int],
    writing: Callable[[], bool],
    most: int,
    seed: int,
    fresh: bool,
    look: Callable[[], dict[str, Any]] = dict,
) -> list[dict[str, Any]]:
    """Start a command in several processes, kill each at a random moment, repeat, and let a last process finish.

    A kill comes after a random amount of progress since the start of the round, and up to 30 ms; half of the kills then
    wait until a write is under way.

    Args:
        arguments: Arguments of `ardistill`: a command that continues when it is run again.
        log: File that the processes' output is appended to.
        processes: Number of processes at a time.
        rounds: Number of times that all are started and killed.
        progress: Measures progress.
        writing: Whether one of the processes is in the middle of a write.
        most: Largest progress in a round before the last kill.
        seed: Seed of the moments.
        fresh: As in ``start``.
        look: Measures the state after a round.

    Returns:
        One record per round: progress at each kill, how many were killed before they had ended, and the state.

    Raises:
        RuntimeError: A process failed without being killed.
    """
    chance, record = random.Random(seed), []
    for _ in range(rounds):
        before = progress()
        running = [start(arguments, log, fresh) for _ in range(processes)]
        moments = sorted((chance.randint(1, most), chance.uniform(0, 0.03), chance.random() < 0.5) for _ in running)
        for pid, (units, delay, in_a_write) in zip(running, moments, strict=True):
            while progress() < before + units and _any_alive(running):
                time.sleep(0.002)
            time.sleep(delay)
            while in_a_write and not writing() and _any_alive(running):
                pass
            os.kill(pid, signal.SIGKILL)
        ended = [end(pid, log) for pid in running]
        record.append({"units": [x[0] for x in moments], "killed": ended.count(-signal.SIGKILL), **look()})
    end(start(arguments, log, fresh), log)
    return record


def _any_alive(pids: Sequence[int]) -> bool:
    return any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids)


def record_arguments(teacher: Path, out: Path, num_trajectories: int, shard_size: int) -> list[str]:
    return [
        "record", "--teacher", str(teacher), "--out", str(out), "--guidance_scale", "1.5", "--solver_steps", "4",
        "--num_trajectories", str(num_trajectories), "--shard_size", str(shard_size), "--num_steps", "[1, 2, 4]",
        "--device", "cpu",
    ]  # fmt: skip


def files_of_recording(out: Path) -> int:
    """Number of published files, which measures the progress of a recording."""
    return sum(path.name[0] != "." for path in out.iterdir()) if out.is_dir() else 0


def is_recording(out: Path) -> bool:
    """Whether a write is under way, or was interrupted."""
    return any(out.glob(".*.tmp"))


def state_of_recording(out: Path) -> dict[str, int]:
    """Number of published files and of interrupted writes."""
    return {"published": files_of_recording(out), "half_written": len(list(out.glob(".*.tmp")))}
