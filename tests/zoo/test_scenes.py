"""The scene world, and a teacher of it from training to Teacher."""

import json
from dataclasses import replace

import measure_adherence
import pytest
import torch
import train_text_teacher
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from tiny import open_gates
from transformers import CLIPTokenizer

from ardistill.publishing import export, load
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import ZOO, Teacher
from ardistill.trajectories import load_prompts
from ardistill.zoo.scenes.data import (
    CATEGORIES,
    COMBINED,
    GRID,
    IMAGE_SIZE,
    NOUNS,
    SIZES,
    SPLITS,
    WORDINGS,
    Noun,
    Scene,
    as_images,
    caption,
    describe,
    example,
    plural,
    prompts,
    read_caption,
    scene,
    vocabulary,
)

CAT, UMBRELLA = Noun(NOUNS.index("cat"), 0, "small", 0, 8), Noun(NOUNS.index("umbrella"), 4, "small", 16, 8)


def test_a_scene_and_its_caption_follow_from_seed_and_index():
    pairs = [caption(3, index) for index in range(40)]
    images = as_images(scene for scene, _ in pairs)
    assert pairs == [caption(3, index) for index in range(40)] and pairs != [caption(4, index) for index in range(40)]
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert torch.equal(images[25:26], as_images([scene(3, 25)]))
    assert prompts("seen", 30)[:20] == prompts("seen", 20)
    # Pinned: the shipped teacher and detector were made from this very world.
    assert caption(0, 0)[1].text == "a picture of a blue shirt left of a cyan boat"
    assert round(as_images([scene(0, 0)]).mean().item(), 4) == -0.4287


@pytest.mark.parametrize(
    ("nouns", "relation", "wording", "told", "text"),
    [
        ((CAT,), None, "{}", "", "a cat"),
        ((CAT,), None, "there is {}", "size", "there is a small cat"),
        ((CAT,), None, "a picture of {} after", "colour size", "a picture of a small cat that is red"),
        ((UMBRELLA,), None, "{}", "", "an umbrella"),
        ((UMBRELLA,), None, "{}", "colour", "a blue umbrella"),
        ((UMBRELLA,) * 3, None, "there is {}", "size", "there are three umbrellas"),
        ((UMBRELLA,) * 2, None, "{} after", "colour", "two umbrellas that are blue"),
        ((CAT,) * 4, None, "there is a picture of {}", "colour", "there is a picture of four red cats"),
        ((CAT, UMBRELLA), 0, "{} after", "colour", "a red cat and a blue umbrella"),
        ((CAT, UMBRELLA), 0, "there is {}", "relation", "there is a cat left of an umbrella"),
        ((CAT, UMBRELLA), 0, "{}", "swapped", "an umbrella and a cat"),
        ((CAT, UMBRELLA), 1, "{}", "swapped relation colour", "a red cat above a blue umbrella"),
    ],
)
def test_captions_are_grammatical(nouns, relation, wording, told, text):
    options = {name: name in told.split() for name in ("colour", "size", "relation", "swapped")}
    assert describe(Scene(nouns, relation, 0), wording, **options).text == text
    assert [plural(x) for x in ("cat", "fish", "mushroom")] == ["cats", "fish", "mushrooms"]


def test_seen_and_unseen_share_no_combination_and_no_wording():
    seen, unseen = ([scene(0, index, split) for index in range(2000)] for split in SPLITS[:2])
    assert not any(x.unseen for x in seen) and all(x.unseen for x in unseen)

    def combinations(scenes):
        colours = {(x.noun, x.colour) for s in scenes for x in s.nouns}
        numbers = {(s.nouns[0].noun, len(s.nouns)) for s in scenes if s.relation is None and len(s.nouns) > 1}
        relations = {(s.nouns[0].noun, s.nouns[1].noun, s.relation) for s in scenes if s.relation is not None}
        return colours, numbers, relations

    # Every noun is seen in five of six colours, and in two numbers at least; most relations are.
    colours, numbers, relations = combinations(seen)
    assert {noun for noun, _ in colours} == set(range(16)) and len(colours) == 16 * 5
    assert len(numbers) == 16 * 3 - 12 and 300 < len(relations) <= 16 * 15 * 2 - 70
    for split, pool in (("seen", None), ("unseen_wordings", None), ("unseen_combinations", COMBINED)):
        pairs = [example(split, index) for index in range(240)]
        assert {prompt.category for _, prompt in pairs} == set(pool or CATEGORIES)
        asked = {"counting": "number", "position": "relation", "colors": "colour", "color_attr": "colour"}
        for shown, prompt in pairs:
            assert shown.unseen == ({asked[prompt.category]} if split == "unseen_combinations" else set())
    said = {prompt.text for _, prompt in (caption(0, index) for index in range(4000))}
    new = {prompt.text for prompt in prompts("unseen_wordings", 300)}
    assert not said & new
    words = {word for text in said for word in text.split()}
    assert words == set(vocabulary()) and {word for text in new for word in text.split()} <= words
    assert not set(WORDINGS["seen"]) & set(WORDINGS["unseen"])
    with pytest.raises(ValueError, match=r"seen, unseen_combinations, unseen_wordings, got 'train'"):
        prompts("train", 3)


def test_nouns_are_inside_the_picture_apart_and_placed_as_told():
    for found in (scene(5, index) for index in range(500)):
        squares = [(x.left, x.top, SIZES[x.size]) for x in found.nouns]
        assert all(0 <= edge <= IMAGE_SIZE - size and edge % GRID == 0 for *edges, size in squares for edge in edges)
        for i, (left, top, size) in enumerate(squares):
            assert all(max(abs(left - x), abs(top - y)) >= size for x, y, _ in squares[:i])
        if found.relation is not None:
            first, second = found.nouns
            right, down = second.left - first.left, second.top - first.top
            assert first.noun != second.noun
            assert (right, down)[found.relation] >= 14 > abs((down, right)[found.relation])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The training script's run of a tiny teacher, interrupted and resumed."""
    out = tmp_path_factory.mktemp("scenes")
    tiny = ["--width", "32", "--num-layers", "2", "--batch-size", "4", "--checkpoint-every", "2", "--warmup", "1"]
    for steps in ("2", "4"):
        train_text_teacher.main(["--out", str(out), "--steps", steps, "--cooldown", "1", *tiny])
        if steps == "2":  # as another process might have made it: pieces as frequent have another order there
            path = out / "teacher" / "tokenizer" / "tokenizer.json"
            made = json.loads(path.read_text())
            words = made["model"]["vocab"]
            words["cat</w>"], words["duck</w>"] = words["duck</w>"], words["cat</w>"]
            path.write_text(json.dumps(made))
    transformer = SD3Transformer2DModel.from_pretrained(out / "teacher" / "transformer")
    for parameter in transformer.parameters():  # so that nothing is hidden behind a zero gate
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(out / "teacher" / "transformer")
    return out


def test_the_training_resumes_and_draws(run):
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [2, 4]
    assert (run / "samples.png").stat().st_size > 1000
    resumed = CLIPTokenizer.from_pretrained(run / "teacher" / "tokenizer")
    assert resumed.get_vocab()["cat</w>"] == train_text_teacher.make_tokenizer().get_vocab()["duck</w>"]


def test_a_text_teacher_draws_what_its_own_pipeline_draws(run):
    """A normal diffusers folder, loaded offline: its pipeline and our solver agree, whichever pipeline encodes."""
    folder = run / "teacher"
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    texts = ["a red cat", "three blue ducks", "a bell left of a crown"]
    generator = torch.Generator().manual_seed(0)
    options = {"guidance_scale": 2.0, "num_inference_steps": 3}
    images = pipeline(texts, generator=generator, output_type="pt", **options).images

    teacher = Teacher.from_pretrained(folder, guidance_scale=2.0, device="cpu")
    condition = teacher.encode(texts)
    assert condition["encoder_hidden_states"].shape == (3, 16, 128)  # no tokens for the T5 that is not there
    noise = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    solved = teacher.solve_ode(noise, condition, teacher.knots(3)).states[:, -1]
    assert torch.allclose(teacher.decode(solved) / 2 + 0.5, images, atol=1e-5)
    assert pipeline("a red cat", num_inference_steps=1).images[0].size == (32, 32)
    assert len(pipeline("a cat", num_images_per_prompt=2, num_inference_steps=1).images) == 2


def test_an_exported_text_student_draws_pixels_with_diffusers_alone(run, tmp_path):
    teacher = Teacher.from_pretrained(run / "teacher", guidance_scale=2.0, device="cpu")
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2)).eval()
    open_gates(student)
    export(student, teacher, tmp_path / "student")
    texts = ["a red cat", "three blue ducks"]
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = (sample(student, noise, teacher.encode(texts))[:, -1] / 2 + 0.5).clamp(0, 1)
    for pipeline in (
        DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True),
        load(tmp_path / "student"),
    ):
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(texts, generator=torch.Generator().manual_seed(0), output_type="pt").images
        assert torch.allclose(images, expected, atol=1e-5)
        with pytest.raises(ValueError, match="negative_prompt"):
            pipeline(texts, negative_prompt="a cat")
        pipeline.save_pretrained(tmp_path / "again")
        again = DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True)
        again.set_progress_bar_config(disable=True)
        images = again(texts, generator=torch.Generator().manual_seed(0), output_type="pt").images
        assert torch.allclose(images, expected, atol=1e-5)


def test_each_word_is_one_token():
    tokenizer = train_text_teacher.make_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary())
    longest = max((prompt.text for split in SPLITS for prompt in prompts(split, 200)), key=len)
    assert len(tokenizer(longest).input_ids) <= train_text_teacher.TEXT_TOKENS


def test_a_teachers_adherence_is_measured(run, tmp_path):
    options = ["--count", "12", "--solver-steps", "2", "--scales", "1", "2", "--splits", "seen"]
    measure_adherence.main(["--teacher", str(run / "teacher"), "--out", str(tmp_path), *options])
    rows = json.loads((tmp_path / "adherence.json").read_text())["scores"]["seen"]
    assert set(rows) == {"guidance 1", "guidance 2"} and (tmp_path / "samples.png").stat().st_size > 1000
    assert [x["category"] for x in rows["guidance 1"]] == [*CATEGORIES, "overall"]
    assert rows["guidance 1"][-1]["share"] == 0  # random weights draw nothing that is asked for


def test_a_caption_is_read_as_it_was_said():
    for index in range(400):
        _, prompt = caption(3, index)
        found = read_caption(prompt.text)
        assert found is not None and replace(found, category="") == prompt
    for split in SPLITS:
        for prompt in prompts(split, 200):
            assert read_caption(prompt.text) == prompt
            assert bool(prompt.unseen) == (split == "unseen_combinations")
    assert read_caption(" A red  cat.") == replace(read_caption("a red cat"), text=" A red  cat.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of the moon",
        "a red cat and a duck",
        "a cat and a cat",
        "two cats and a duck",
        "a large cat above a duck",
    ]
    + ["three small cats", "a red cat on a mat", "cat", "a red cat, a duck", "five cats"],
)
def test_what_no_caption_says_is_not_read(text):
    assert read_caption(text) is None


def test_the_shipped_teacher_is_small_and_says_how_well_it_follows_prompts():
    folder = ZOO["zoo/scenes"]
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 24e6
    facts = json.loads((folder / "adherence.json").read_text())
    card = (folder / "README.md").read_text()
    for split in SPLITS:
        for row in facts["scores"][split].values():
            assert all(f"{score['share']:.3f}" in card for score in row)


def test_the_shipped_teacher_draws_what_its_own_pipeline_draws():
    pipeline = DiffusionPipeline.from_pretrained(ZOO["zoo/scenes"], trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    texts = ["a red cat", "three blue ducks"]
    options = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "pt"}
    images = pipeline(texts, generator=torch.Generator().manual_seed(0), **options).images
    teacher = Teacher.from_pretrained("zoo/scenes", guidance_scale=2.0, device="cpu")
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    solved = teacher.solve_ode(noise, teacher.encode(texts), teacher.knots(3)).states[:, -1]
    assert torch.allclose((teacher.decode(solved) / 2 + 0.5).clamp(0, 1), images, atol=1e-5)


def test_the_worlds_prompts_go_by_name():
    captions = load_prompts("zoo/scenes")
    assert len(captions) == 4096 and captions[:2] == [caption(0, index)[1].text for index in range(2)]
    assert load_prompts("zoo/scenes/unseen_wordings")[:3] == [x.text for x in prompts("unseen_wordings", 3)]
    with pytest.raises(ValueError, match="split of seen"):
        load_prompts("zoo/scenes/train")
