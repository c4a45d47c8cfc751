"""Parts that draw: the machine's own peaks, four-step samples and what history costs, the teacher, SD3.5-medium."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from gpu_parts.bench import Bench, Figures, drawer, student_on
from gpu_parts.measure import PeakMemory, Run, bytes_of, count_flops, precision, tf32
from torch import Tensor

from ardistill import Student, StudentConfig, Teacher
from ardistill.teacher import knots_from_scheduler

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def machine(bench: Bench) -> None:
    """Peaks of the machine itself: matrix products at three precisions, and copies of memory."""
    edge, bytes_ = (8192, 2**30) if bench.device.type == "cuda" else (256, 2**22)

    def product(name: str) -> Figures:
        a, b = torch.randn(2, edge, edge, device=bench.device).to(DTYPES[name])
        with tf32(name == "tf32"):
            found = bench.timed(lambda: a @ b, 0.5)
        return found | {"flops": 2 * edge**3, "tflops": 2 * edge**3 / found["ms_low"] / 1e9}

    def memory() -> Figures:
        source = torch.zeros(bytes_, dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        found = bench.timed(lambda: target.copy_(source), 0.5)
        return found | {"tb_per_s": 2 * bytes_ / found["ms_low"] / 1e9}

    for name in DTYPES:
        bench.arm(name, lambda name=name: product(name))
    bench.arm("memory", memory)


def _history(bench: Bench, transformer: torch.nn.Module, count: int, way: str, kind: str, first: int = 3) -> None:
    """Arms of one way to draw: the student without history, then each other one beside it.

    Args:
        bench: The run.
        transformer: Weights of all students, in bfloat16 for ``bf16 weights``, else in float32.
        count: Images drawn at once.
        way: As for ``drawer``.
        kind: ``bf16`` (autocast, which casts the weights anew in each sample), ``bf16 weights``, ``tf32`` or ``fp32``.
        first: How many of ``bench.students`` are drawn with.
    """
    noise, condition, base = bench.noise(count), bench.labels(count), list[Run]()
    named = kind.removesuffix(" weights")

    def run(name: str, config: StudentConfig) -> Figures:
        student = student_on(transformer, config).eval()
        call = drawer(student, noise, condition, way, "bf16" if kind == "bf16" else "no")
        found = bench.beside(base, call)
        if not config.history_layers:
            base.append(call)
        with PeakMemory(bench.device, bytes_of(student)) as memory:
            call()
        flops = count * bench.sample_flops(name, transformer)
        return found | {"flops": flops, "precision": named} | memory.figures()

    with tf32(kind != "fp32"):
        for name, config in [*bench.students().items()][:first]:
            bench.arm(f"{name}, {way}, {kind}", lambda name=name, config=config: run(name, config))


def sample_one(bench: Bench) -> None:
    """A four-step sample of one image; casting float32 weights takes longer than its arithmetic."""
    full, half = bench.transformer(), bench.transformer().to(torch.bfloat16)
    _history(bench, full, 1, "eager", "bf16", 7)
    _history(bench, half, 1, "compiled and graphed", "bf16 weights")
    _history(bench, half, 1, "graphed", "bf16 weights")
    _history(bench, half, 1, "eager", "bf16 weights", 2)
    _history(bench, full, 1, "eager", "tf32", 2)


def sample_many(bench: Bench) -> None:
    """Four-step samples of a large batch: what history costs where the card is busy."""
    full = bench.transformer()
    _history(bench, full, bench.size.many, "eager", "bf16", 7)
    _history(bench, full, bench.size.many, "compiled", "bf16", 2)
    _history(bench, full, bench.size.many, "eager", "tf32", 2)


def teacher(bench: Bench) -> None:
    """One image of the teacher, in 25 guided steps."""
    noise, condition = bench.noise(1), bench.labels(1)

    def run(one: Teacher, kind: str) -> Figures:
        knots = one.knots(bench.size.solver_steps + 1)
        flops = knots.num_steps * count_flops(lambda: one.predict(noise, knots.timesteps[0], condition))
        with precision("tf32" if kind == "bf16 weights" else kind, bench.device):  # TF32 is for float32 alone
            found = bench.timed(lambda: one.solve_ode(noise, condition, knots), 3)
        return found | {"flops": flops, "precision": kind.removesuffix(" weights")}

    for kind in ("bf16", "tf32"):
        bench.arm(kind, lambda kind=kind: run(bench.teacher, kind))
    half = copy.copy(bench.teacher)
    half.transformer = copy.deepcopy(bench.teacher.transformer).to(torch.bfloat16)
    bench.arm("bf16 weights", lambda: run(half, "bf16 weights"))


def _sd35(bench: Bench) -> tuple[SD3Transformer2DModel, int, int]:
    """SD3.5-medium's transformer with random weights, the edge of its latents at 1024 pixels, its text tokens."""
    is_xl = bench.name == "xl"
    layers, heads, edge, tokens = (24, 24, 128, 333) if is_xl else (2, 2, 8, 5)
    torch.manual_seed(0)
    with bench.device:
        transformer = SD3Transformer2DModel(
            sample_size=edge,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=64 if is_xl else 8,
            num_attention_heads=heads,
            caption_projection_dim=(64 if is_xl else 8) * heads,
            joint_attention_dim=4096 if is_xl else 16,
            pooled_projection_dim=2048 if is_xl else 16,
            pos_embed_max_size=384 if is_xl else edge,
            dual_attention_layers=tuple(range(13)) if is_xl else (0,),
            qk_norm="rms_norm",
        )
    return transformer.to(bench.device).eval(), edge, tokens


def sd35(bench: Bench) -> None:
    """SD3.5-medium, one image of 1024 pixels: a guided step, four-step samples, and the training pass."""
    transformer, edge, tokens = _sd35(bench)
    knots = knots_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 4)
    n, width = min(6, transformer.config.num_layers - 1), transformer.config
    noise = torch.randn(1, 16, edge, edge, device=bench.device)
    condition = {
        "encoder_hidden_states": torch.randn(1, tokens, width.joint_attention_dim, device=bench.device),
        "pooled_projections": torch.randn(1, width.pooled_projection_dim, device=bench.device),
    }
    plain = StudentConfig(knots, 0)
    configs = {
        "N=0": plain,
        f"N={n} gated": StudentConfig(knots, n, "M4"),
        f"N={n} gated M2": StudentConfig(knots, n, "M2"),
    }
    base: list[Run] = []

    def guided() -> Figures:
        two = {name: value.repeat_interleave(2, 0) for name, value in condition.items()}
        time = torch.full((2,), 500.0, device=bench.device)
        family = student_on(transformer, plain).family

        @torch.no_grad()
        def call() -> None:
            family.call(transformer, noise.repeat(2, 1, 1, 1), time, two)

        with PeakMemory(bench.device, bytes_of(transformer)) as memory:
            call()
        return bench.timed(call) | {"flops": count_flops(call), "precision": "bf16"} | memory.figures()

    def draw(config: StudentConfig) -> Figures:
        call = drawer(student_on(transformer, config).eval(), noise, condition, "eager", "bf16")
        flops = count_flops(call)
        found = bench.beside(base, call)
        if not config.history_layers:
            base.append(call)
        return found | {"flops": flops, "precision": "bf16"}

    with tf32(True):
        for name, config in configs.items():
            bench.arm(f"sample, {name}", lambda config=config: draw(config))
    with precision("bf16", bench.device):
        bench.arm("guided step of the teacher", guided)
        for name, rank in (("adapters of rank 16", 16), ("all weights", 0)):
            config = replace(configs[f"N={n} gated"], lora_rank=rank)
            bench.arm(
                f"training pass, {name}", lambda config=config: _sd35_pass(bench, transformer, config, noise, condition)
            )


def _sd35_pass(
    bench: Bench, transformer: torch.nn.Module, config: StudentConfig, noise: Tensor, condition: dict[str, Tensor]
) -> Figures:
    teacher = Teacher(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), latent_shape=tuple(noise.shape[1:]))
    with PeakMemory(bench.device, bytes_of(transformer) if config.lora_rank else 0) as memory:
        student = Student.from_teacher(teacher, config).train()
        student.enable_gradient_checkpointing()
        inputs = torch.randn_like(noise[:, None].expand(-1, 4, -1, -1, -1))

        def call() -> None:
            student.zero_grad(set_to_none=True)
            student(inputs, condition).square().mean().backward()

        found = bench.timed(call)
    return found | {"precision": "bf16"} | memory.figures()
