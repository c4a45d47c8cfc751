"""Text to image in Python, from the embedded teacher to an exported pipeline, offline.

    python examples/text_to_image.py --out runs/text_to_image

The default sizes are for a first try; a good student takes thousands of trajectories and hundreds of steps. Any other
text-to-image model is distilled the same way: --teacher takes a Hub id, --prompts a file. Only prompt adherence is
measured for the embedded teacher alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, export, record, sample
from ardistill.evaluation import draw_samples, markdown_table
from ardistill.evaluation.adherence import adherence, adherence_table
from ardistill.trajectories import load_prompts
from ardistill.zoo.scenes.data import caption, prompts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/text_to_image", help="folder for all results (default: %(default)s)")
    parser.add_argument("--teacher", default="zoo/scenes", help="zoo/scenes, a diffusers folder or a Hub id")
    parser.add_argument("--prompts", help="file with one prompt per line; captions of the scene world if not given")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="guidance scale that the student learns")
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--solver-steps", type=int, default=24, help="steps of the teacher's solver")
    parser.add_argument("--num-steps", type=int, default=4, help="steps of the student")
    parser.add_argument("--history-layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--count", type=int, default=48, help="prompts to measure adherence on")
    args = parser.parse_args(argv)
    out = Path(args.out)

    # The teacher: a frozen transformer with its scheduler and text encoders.
    teacher = Teacher.from_pretrained(args.teacher, guidance_scale=args.guidance_scale)
    texts = load_prompts(args.prompts) if args.prompts else [caption(0, i)[1].text for i in range(args.trajectories)]

    # Its trajectories, from noise to image, one per prompt. Each prompt is encoded and stored once.
    options = {"prompts": texts, "solver_steps": args.solver_steps, "num_steps": (args.num_steps,)}
    record(teacher, out / "trajectories", args.trajectories, **options)

    # The student: the teacher's weights, with lower layers that attend to earlier steps. With 0 such layers this is
    # step distillation.
    data = TrajectoryDataset(out / "trajectories", args.num_steps)
    student = Student.from_teacher(teacher, data.student_config(args.history_layers))
    training = TrainingConfig(max_steps=args.steps, batch_size=args.batch_size)
    student = distill(student, data, out / "run", training).eval()

    # Four pictures of one prompt, from different noise.
    draw_samples(student, teacher, out / "samples.png", count=4, prompts=["a red cat left of a blue house"])

    # A diffusers pipeline that needs only torch, diffusers and transformers.
    if not (out / "student" / "model_index.json").exists():
        export(student, teacher, out / "student")
    pipeline = DiffusionPipeline.from_pretrained(out / "student", trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    pipeline("three yellow ducks", num_images_per_prompt=2, generator=generator).images[0].save(out / "ducks.png")

    # Adherence of student and teacher to new prompts, from the same noise, as a detector of the scene world sees it.
    if args.teacher == "zoo/scenes":
        asked = [prompt.text for prompt in prompts("seen", args.count)]
        condition, noise = teacher.encode(asked), teacher.noise(1, 0, args.count)
        solved = teacher.solve_ode(noise, condition, teacher.knots(args.solver_steps)).states[:, -1]
        images = {"teacher": solved, "student": sample(student, noise, condition)[:, -1]}
        found = adherence({name: teacher.decode(x) for name, x in images.items()}, asked)
        print(markdown_table(adherence_table(found["seen"])))
    print(f'DiffusionPipeline.from_pretrained("{out / "student"}", trust_remote_code=True)')


if __name__ == "__main__":
    main()
