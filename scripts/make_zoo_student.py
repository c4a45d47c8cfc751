"""Embed a student beside its embedded teacher, in float16, with a card of what was measured of these very weights.

python scripts/make_zoo_student.py runs/fashion/ard fashion --trajectories runs/fashion/held_out
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ardistill.evaluation import evaluate
from ardistill.publishing.card import model_card
from ardistill.publishing.origin import find_origin
from ardistill.student import Student
from ardistill.teacher import load_recorded_teacher
from ardistill.zoo import FOLDERS

LOADING = """```python
from ardistill import Student

student = Student.from_pretrained("zoo/{name}-student")
```

At the command line: `ardistill sample --student zoo/{name}-student{more}`, or
`ardistill demo --student zoo/{name}-student`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=FOLDERS)
    parser.add_argument("--trajectories", type=Path, required=True, help="held-out trajectories of the teacher")
    args = parser.parse_args()
    student, folder = Student.from_pretrained(args.run, "cpu"), FOLDERS[args.name] / "student"
    teacher = load_recorded_teacher(student.config, device="cpu")
    shutil.rmtree(folder, ignore_errors=True)
    if (args.run / "adapters").is_dir():  # the teacher is there already
        adapted = Student.from_adapters(teacher, args.run)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.half()
        adapted.save_adapters(folder)
    else:
        student.transformer.to(torch.float16)
        student.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as out:
        evaluate(folder, args.trajectories, out, device="cpu")
        origin = find_origin(args.run, teacher)
        origin = replace(origin, figures=(Path(out) / "figures.md").read_text())
        picture = Image.open(Path(out) / "samples.png").convert("RGB").quantize(256)  # a third of the bytes
        picture.save(folder / "samples.png", optimize=True)
    loading = LOADING.format(name=args.name, more=' --prompt "a red cat"' if teacher.takes_text else "")
    (folder / "README.md").write_text(model_card(student, loading, origin))


if __name__ == "__main__":
    main()
