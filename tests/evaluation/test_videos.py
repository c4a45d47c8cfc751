"""Videos, frames all the way: recorded, drawn as clips and film strips, and measured frame by frame."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save

from ardistill.cli import main
from ardistill.evaluation import draw_samples
from ardistill.evaluation.metrics import paired_distance
from ardistill.evaluation.videos import film_strips, frames_of, motion, save_clip
from ardistill.student import Student, sample
from ardistill.teacher import Teacher

PROMPTS = ["a red cat", "the moon"]
FRAMES, SIZE = 5, {"height": 16, "width": 16}


def run(*words):
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """A video teacher, recorded twice, and its student with clips of its validation."""
    folder = tmp_path_factory.mktemp("way")
    save("wan", folder / "teacher")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    for out, seed in (("data", 0), ("held_out", 1)):
        run("record", "--teacher", folder / "teacher", "--out", folder / out, "--num_trajectories", 4, "--seed", seed,
            "--guidance_scale", 2, "--solver_steps", 4, "--num_steps", "[2]", "--prompts", folder / "prompts.txt",
            "--num_frames", FRAMES, "--height", 16, "--width", 16)  # fmt: skip
    run("distill", "--trajectories", folder / "data", "--out", folder / "run", "--num_steps", 2, "--history_layers", 2,
        "--training.max_steps", 2, "--training.batch_size", 2)  # fmt: skip
    return folder


def frames_in(path):
    with Image.open(path) as clip:
        return clip.n_frames, clip.size


@pytest.mark.slow
def test_the_whole_way_keeps_every_frame(way, capsys):
    strips = [*(way / "run" / "samples").glob("*.png")]
    assert strips and frames_in(strips[-1].with_suffix(".gif")) == (FRAMES, (16 * 4, 32))
    run("compare", "--students", f"[{way / 'run'}]", "--trajectories", way / "held_out", "--out", way / "out",
        "--features", torch_script(way / "features.pt"))  # fmt: skip
    found = json.loads((way / "out" / "metrics.json").read_text())
    assert found["arms"]["teacher"]["motion"] == 1 and found["arms"]["run"]["motion"] > 0
    assert found["num_samples"] == 4 and found["prompts"] == PROMPTS * 2
    assert any("4 videos of 5 frames" in note for note in found["notes"])
    page = (way / "out" / "report.html").read_text()
    assert "the same noise in lines of the same number" in page and page.count('alt="1: the moon, run"') == FRAMES
    run("cost", "--teacher", way / "teacher", "--history_layers", 2, "--frames", 3, "--height", 8, "--width", 8,
        "--json")  # fmt: skip


def torch_script(path):
    """A feature network in a file."""

    class Means(torch.nn.Module):
        def forward(self, images):
            return images.flatten(2).mean(2)

    torch.jit.script(Means()).save(path)
    return path


@pytest.mark.slow
def test_samples_go_into_clips_strips_and_archives(way, tmp_path):
    student = Student.from_pretrained(way / "run")
    teacher = Teacher.from_pretrained(way / "teacher", num_frames=FRAMES, **SIZE)
    options = {"count": 3, "prompts": PROMPTS}
    for name in ("clip.gif", "clip.mp4", "strip.png", "all.npz"):
        draw_samples(student, teacher, tmp_path / name, **options)
    assert frames_in(tmp_path / "clip.gif") == (FRAMES, (48, 16))
    noise = torch.randn(3, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.encode([*PROMPTS, PROMPTS[0]])
    expected = teacher.decode(sample(student, noise, condition)[:, -1], frames=True)
    assert expected.shape == (3, 3, FRAMES, 16, 16)
    pixels = torch.from_numpy(np.load(tmp_path / "all.npz")["arr_0"])
    assert pixels.shape == (3, FRAMES, 16, 16, 3)
    assert ((pixels.permute(0, 4, 1, 2, 3) / 127.5 - 1) - expected).abs().max() <= 1 / 127
    import imageio

    read = np.stack(imageio.mimread(tmp_path / "clip.mp4"))
    assert read.shape == (FRAMES, 16, 48, 3)
    run("sample", "--student", way / "run", "--out", tmp_path / "longer.gif", "--count", 1, "--prompt", "the moon",
        "--num_frames", 9, "--fps", 10)  # fmt: skip
    assert frames_in(tmp_path / "longer.gif") == (9, (16, 16))


def test_an_image_goes_into_no_clip(way, tmp_path, teacher):
    student = Student.from_pretrained(way / "run")
    with pytest.raises(ValueError, match=r"ends in \.png or"):
        draw_samples(student, teacher, tmp_path / "clip.gif")


def test_clips_and_strips_hold_the_right_frames(tmp_path):
    videos = torch.linspace(-1, 1, 3 * 2).view(3, 1, 2, 1, 1).expand(3, 3, 2, 3, 5)
    save_clip(videos, tmp_path / "clip.gif", columns=2)
    with Image.open(tmp_path / "clip.gif") as clip:
        clip.seek(1)
        second = np.asarray(clip.convert("RGB"))
    shade = [round((float(x) + 1) * 127.5) for x in videos[:, 0, 1, 0, 0]]
    assert [second[0, 0, 0], second[0, 5, 0], second[3, 0, 0], second[3, 5, 0]] == [*shade, 0]
    rows, heads = film_strips({"teacher": videos, "student": -videos}, ["a", "b", "c"])
    assert heads == ["frame 1", "frame 2"] and [*rows][:3] == ["0: a, teacher", "0: a, student", "1: b, teacher"]
    assert torch.equal(rows["1: b, student"], -videos[1].transpose(0, 1))
    assert motion(videos) == pytest.approx(0.4)


def test_a_wide_clip_is_averaged_down(tmp_path):
    videos = torch.rand(3, 3, 2, 4, 6) * 2 - 1
    save_clip(videos, tmp_path / "clip.gif", columns=3, widest=9)
    assert frames_in(tmp_path / "clip.gif") == (2, (9, 2))
    save_clip(videos, tmp_path / "clip.gif", columns=3, widest=18)
    assert frames_in(tmp_path / "clip.gif") == (2, (18, 4))


def test_videos_are_paired_as_a_whole_and_frames_apart():
    a, b = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0)).double()  # 4 videos of 3 frames
    found = paired_distance(a.flatten(0, 1), b.flatten(0, 1), frames=3)
    expected = (a - b).norm(dim=2).mean(1)
    assert torch.allclose(found.values, expected)
    assert found.unpaired == pytest.approx((a - b.roll(-1, 0)).norm(dim=2).mean().item())
    videos = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(frames_of(videos)[5], videos[1, :, 1]) and frames_of(videos[:, :, 0]).ndim == 4
