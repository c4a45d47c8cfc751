"""What a text-to-image user does with the embedded teacher: commands, the exported pipeline, the example."""

import json

import pytest
import text_to_image
import torch
from diffusers import DiffusionPipeline
from tiny import save_clip

from ardistill.cli import main
from ardistill.files.pixels import to_pictures
from ardistill.student import Student
from ardistill.zoo import FOLDERS
from ardistill.zoo.scenes.data import as_images, caption, example, prompts

pytestmark = pytest.mark.slow

ASKED = [x.text for x in prompts("seen", 6) + prompts("unseen_combinations", 4)]

TRAINING = ["--training.max_steps", "1", "--training.batch_size", "2", "--training.tracker", "null"]


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """A folder with recordings, a distilled student and its export."""
    folder = tmp_path_factory.mktemp("way")
    (folder / "prompts.txt").write_text("\n".join(ASKED))
    options = ["--guidance_scale", "3", "--solver_steps", "2", "--num_steps", "[1, 2]"]
    for name, count, seed in (("train", 4, 0), ("held_out", 10, 1)):
        main(
            ["record", "--teacher", "zoo/scenes", "--prompts", f"{folder}/prompts.txt", "--out", f"{folder}/{name}"]
            + ["--num_trajectories", str(count), "--seed", str(seed), *options]
        )
    main(
        ["distill", "--trajectories", f"{folder}/train", "--out", f"{folder}/run", "--num_steps", "2"]
        + ["--history_layers", "2", *TRAINING]
    )
    main(["export", "--student", f"{folder}/run", "--out", f"{folder}/student"])
    return folder


def test_a_student_draws_a_prompt_or_a_file_of_them(way, capsys):
    sample = ["sample", "--student", f"{way}/run", "--count", "2", "--json"]
    capsys.readouterr()
    main([*sample, "--prompt", "a red cat: two", "--out", f"{way}/prompt.png"])
    main([*sample, "--prompts", f"{way}/prompts.txt", "--out", f"{way}/prompts.png"])
    assert [json.loads(x)["count"] for x in capsys.readouterr().out.splitlines()] == [2, 2]
    assert (way / "prompt.png").stat().st_size > 0 and (way / "prompts.png").stat().st_size > 0
    with pytest.raises(SystemExit):
        main([*sample, "--prompt", "a cat", "--prompts", f"{way}/prompts.txt"])
    assert "got both" in capsys.readouterr().err


def test_evaluate_reports_adherence_next_to_fd(way, capsys):
    """The feature network and the reference are given explicitly, instead of those shipped for zoo/scenes."""
    (way / "real").mkdir()
    for i, picture in enumerate(to_pictures(as_images(example("seen", i)[0] for i in range(60)))):
        picture.save(way / "real" / f"{i:03}.png")
    evaluate = ["evaluate", "--student", f"{way}/run", "--trajectories", f"{way}/held_out"]
    clip = str(save_clip(way / "clip"))
    judge = ["--features", "scenes-detector", "--reference", f"{way}/real", "--clip", clip, "--preference", clip]
    main([*evaluate, *judge])
    text = capsys.readouterr().out
    assert "Prompt adherence, unseen combinations" in text and "real renders, by the same detector" in text
    found = json.loads((way / "run" / "evaluation" / "metrics.json").read_text())
    assert len(found["prompts"]) == 10
    for arm in ("teacher", "solver_2", "run"):
        shares = [found["adherence"][split][arm][-1] for split in ("seen", "unseen_combinations")]
        assert [x["num_images"] for x in shares] == [6, 4] and found["arms"][arm]["fd"] > 0
        expected = sum(x["share"] * x["num_images"] for x in shares) / 10
        assert found["arms"][arm]["adherence"] == pytest.approx(expected)
        assert found["arms"][arm]["clip_score"] >= 0 and isinstance(found["arms"][arm]["preference"], float)


def test_fine_tuning_takes_captioned_pictures(way):
    pairs = [caption(0, i) for i in range(4)]
    (way / "captioned").mkdir()
    for i, picture in enumerate(to_pictures(as_images(scene for scene, _ in pairs))):
        picture.save(way / "captioned" / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": prompt.text}) for i, (_, prompt) in enumerate(pairs)]
    (way / "captioned" / "metadata.jsonl").write_text("\n".join(lines))
    real = ["--images", f"{way}/captioned", "--out", f"{way}/real.safetensors"]
    main(["encode", "--teacher", "zoo/scenes", *real])
    main(
        ["finetune", "--student", f"{way}/run", "--trajectories", f"{way}/train", "--real", f"{way}/real.safetensors"]
        + ["--out", f"{way}/tuned", "--adversarial.warmup_steps", "0", *TRAINING]
    )
    assert Student.from_pretrained(way / "tuned").num_steps == 2


def test_the_exported_pipeline_takes_the_arguments_of_diffusers_pipelines(way):
    pipeline = DiffusionPipeline.from_pretrained(way / "student", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw(*args, **options):
        return pipeline(*args, generator=torch.Generator().manual_seed(0), **options)

    expected = draw(prompt=ASKED[:2], output_type="pt").images  # (2, 3, 32, 32)
    assert expected.shape == (2, 3, 32, 32) and 0 <= expected.min() <= expected.max() <= 1
    images = draw(ASKED[:2]).images
    assert [x.size for x in images] == [(32, 32)] * 2 and images[0].mode == "RGB"
    arrays = draw(ASKED[:2], output_type="np", return_dict=False)[0]
    assert torch.allclose(torch.from_numpy(arrays).permute(0, 3, 1, 2), expected, atol=1e-6)
    assert draw(ASKED[0], num_images_per_prompt=3, output_type="pt").images.shape[0] == 3
    one_each = [torch.Generator().manual_seed(i) for i in (5, 6)]
    apart = pipeline(ASKED[0], num_images_per_prompt=2, generator=one_each, output_type="pt").images
    alone = pipeline(ASKED[0], generator=torch.Generator().manual_seed(6), output_type="pt").images
    assert torch.allclose(apart[1:], alone, atol=1e-5)
    embedded = pipeline.encode_prompt(ASKED[:2], None, None)
    embeds = {"prompt_embeds": embedded[0], "pooled_prompt_embeds": embedded[2]}
    assert torch.allclose(draw(**embeds, output_type="pt").images, expected, atol=1e-6)
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(pipeline(ASKED[:2], latents=noise, output_type="pt").images, expected, atol=1e-6)
    assert draw(ASKED[:2], None, None, 32, 32, output_type="latent").images.shape == (2, 3, 32, 32)
    for name, value in (
        ("negative_prompt", "a cat"),
        ("negative_prompt_2", "a cat"),
        ("negative_pooled_prompt_embeds", embedded[3]),
        ("guidance_scale", 4.0),
    ):
        with pytest.raises(ValueError, match=f"absorbed its teacher's guidance; leave {name} out"):
            draw(ASKED[0], **{name: value})
    with pytest.raises(ValueError, match="draws in 2 steps"):
        draw(ASKED[0], None, None, 32, 32, 28)
    with pytest.raises(TypeError, match="promt"):
        draw(promt=ASKED[0])


def test_the_teachers_own_pipeline_takes_them_too():
    pipeline = DiffusionPipeline.from_pretrained(FOLDERS["scenes"] / "teacher", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw(*args, **options):
        options = {"num_inference_steps": 1, "output_type": "pt"} | options
        return pipeline(*args, generator=torch.Generator().manual_seed(0), **options)

    expected = draw(ASKED[:2]).images
    arrays = draw(prompt=ASKED[:2], output_type="np", return_dict=False)[0]
    assert torch.allclose(torch.from_numpy(arrays).permute(0, 3, 1, 2), expected, atol=1e-6)
    assert [x.size for x in draw(ASKED[0], num_images_per_prompt=2, output_type="pil").images] == [(32, 32)] * 2
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipeline.encode_prompt(ASKED[:2], None, None), strict=True))
    assert torch.allclose(draw(**embeds).images, expected, atol=1e-6)
    assert not torch.allclose(draw(ASKED[:2], negative_prompt="two cats").images, expected, atol=1e-3)


def test_the_example_runs(tmp_path, capsys):
    sizes = {"trajectories": 4, "solver-steps": 2, "num-steps": 2, "history-layers": 2, "steps": 1, "batch-size": 2}
    text_to_image.main(
        ["--out", str(tmp_path), "--count", "6", *(x for k, v in sizes.items() for x in (f"--{k}", str(v)))]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| sampler | single_object |") and lines[2].startswith("| teacher |")
    assert lines[3].startswith("| student |") and "from_pretrained" in lines[-1]
    assert all((tmp_path / name).stat().st_size > 0 for name in ("samples.png", "ducks.png"))
