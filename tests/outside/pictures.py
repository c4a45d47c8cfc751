"""Pictures and named classes for the tests of data."""

from __future__ import annotations

import json
import shutil

from PIL import Image
from tiny import save

ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane", 4: "n01440764 ray_fish"}


def with_names(folder, id2label):
    """Give a teacher's folder class names."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": id2label}))
    return folder


def save_teachers(folder):
    """Save a teacher of five classes and 16x16 pixels twice: ``plain`` has no class names, ``named`` has."""
    save("dit", folder / "plain")
    shutil.copytree(folder / "plain", folder / "named")
    with_names(folder / "named", {str(k): v for k, v in ID2LABEL.items()})
    return folder


def picture(path, colour=(200, 30, 60), size=(16, 16), mode="RGB"):
    """Save a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path
