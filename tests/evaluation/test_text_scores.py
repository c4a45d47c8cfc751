"""CLIP score and preference from a tiny CLIP with random weights, and the folders for GenEval and T2I-CompBench."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_clip
from transformers import CLIPModel

from ardistill.evaluation.text_scores import TextScorer, export_compbench, export_geneval
from ardistill.files.pixels import to_pictures

PROMPTS = ["a red cat", "the moon", "a photo of a dog on the moon that is far too long"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_each_image_is_scored_against_its_prompt(folder):
    scorer = TextScorer.from_pretrained(folder)
    images = torch.rand(3, 3, 24, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cosines = scorer.cosines(images, PROMPTS, batch_size=2)
    inputs = scorer.processor(
        text=PROMPTS, images=to_pictures(images), padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    logits = scorer.model(**inputs).logits_per_image.diagonal()  # transformers computes scaled cosines
    assert torch.allclose(scorer.preference(images, PROMPTS), logits, atol=1e-4)
    assert torch.allclose(cosines * scorer.model.logit_scale.exp(), logits, atol=1e-4) and cosines.abs().max() < 1
    assert (
        torch.equal(scorer.clip_score(images, PROMPTS), 100 * cosines.clamp(min=0)) and len(set(cosines.tolist())) == 3
    )
    grey = torch.zeros(1, 1, 16, 16)
    assert torch.equal(scorer.cosines(grey, PROMPTS[:1]), scorer.cosines(grey.expand(-1, 3, -1, -1), PROMPTS[:1]))
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        scorer.cosines(images, PROMPTS[:2])


def test_incomplete_clip_models_are_refused(folder, tmp_path):
    whole = CLIPModel.from_pretrained(folder)
    whole.text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"expected a CLIPModel in .*found 'clip_text_model'"):
        TextScorer.from_pretrained(tmp_path / "text")
    weights = {key: value for key, value in whole.state_dict().items() if key != "text_projection.weight"}
    whole.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(ValueError, match=r"missing are text_projection\.weight"):
        TextScorer.from_pretrained(tmp_path / "part", processor=folder)


def test_geneval_finds_its_metadata_and_samples(tmp_path):
    """Its evaluate_images.py expects folders named by digits, one JSON object each, and pictures named by digits."""
    lines = [{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}] * 2
    images = [torch.full((4, 3, 8, 8), -1.0), torch.ones(2, 1, 8, 8)]
    export_geneval(tmp_path / "images", lines, images)
    folders = sorted((tmp_path / "images").iterdir())
    assert [x.name for x in folders] == ["00000", "00001"] and all(x.name.isdigit() for x in folders)
    for found, line, expected in zip(folders, lines, images, strict=True):
        assert json.loads((found / "metadata.jsonl").read_text()) == line
        names = sorted(x.name for x in (found / "samples").iterdir())
        assert names == [f"{k:04}.png" for k in range(len(expected))] and all(re.match(r"\d+\.png", x) for x in names)
        pixels = np.asarray(Image.open(found / "samples" / "0001.png"))
        assert pixels.shape == (8, 8, 3) and (pixels == (255 if expected.max() > 0 else 0)).all()
    with pytest.raises(ValueError, match="to be empty"):
        export_geneval(tmp_path / "images", lines, images)
    with pytest.raises(ValueError, match="include is missing"):
        export_geneval(tmp_path / "other", [{"tag": "colors", "prompt": "a cat"}], images[:1])
    with pytest.raises(ValueError, match="1 entries for 2 prompts"):
        export_geneval(tmp_path / "other", lines, images[:1])
    assert not (tmp_path / "other").exists()


def test_compbench_finds_prompt_and_number_in_the_file_names(tmp_path):
    prompts = ["a green bench, and a blue bowl", "a cat on the right of a tree"]
    export_compbench(tmp_path, prompts, [torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8)])
    names = [x.name for x in (tmp_path / "samples").iterdir()]
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [x.split("_")[0] for x in names] == prompts[:1] * 2 + prompts[1:] * 3
    assert names[0] == "a green bench, and a blue bowl_000000.png" and names[-1].endswith("_000004.png")
    with pytest.raises(ValueError, match="without _ and /"):
        export_compbench(tmp_path / "other", ["a and/or b"], [torch.zeros(1, 3, 8, 8)])
