"""Videos: their frames as images, film strips for pages and grids, clips for files, and how much moves in them.

Videos are (n, c, f, h, w) in [-1, 1]; images, (n, c, h, w), are left as they are.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ardistill.files import whole_file
from ardistill.files.pixels import to_rgb
from ardistill.teacher import Teacher

CLIPS = (".gif", ".mp4")
"""Suffixes of files that hold a clip."""
SHOWN_VIDEOS, SHOWN_FRAMES = 4, 8
"""Videos and frames of each in a film strip."""
WIDEST = 1280
"""Pixels of a row of the clip that is drawn while a student is trained."""


def draws_videos(teacher: Teacher) -> bool:
    """Whether a teacher's samples are videos, of more than one frame."""
    return len(teacher.sample_shape) == 4 and teacher.sample_shape[1] > 1


def num_frames(images: Tensor) -> int:
    """Frames of each video, 1 for images."""
    return images.shape[2] if images.ndim == 5 else 1


def frames_of(images: Tensor) -> Tensor:
    """All frames as images, (n f, c, h, w), those of one video in turn."""
    return images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images


def motion(videos: Tensor) -> float:
    """Mean absolute difference of consecutive frames, in [0, 2]; 0 for a still."""
    return (videos[:, :, 1:] - videos[:, :, :-1]).abs().mean().item()


def film_strips(samples: Mapping[str, Tensor], heads: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Rows of a grid in which each row is a video, those of the same noise below each other.

    Args:
        samples: Arm -> its videos, of one shape in all arms; the first four are shown.
        heads: A head for each video.

    Returns:
        Label -> up to eight frames, evenly spaced, (k, c, h, w), and a head for each column.
    """
    count = num_frames(next(iter(samples.values())))
    shown = torch.linspace(0, count - 1, min(count, SHOWN_FRAMES), device="cpu").round().long()
    rows = {}
    for number, head in enumerate(heads[:SHOWN_VIDEOS]):
        for arm, videos in samples.items():
            label = f"{number}: {textwrap.shorten(head, 24, placeholder='...')}, {arm}"
            rows[label] = videos[number].transpose(0, 1)[shown]
    return rows, [f"frame {int(i) + 1}" for i in shown]


def check_clip(path: str | Path) -> None:
    """Check that a clip of this name can be written, before its frames are drawn.

    Raises:
        ImportError: It is an .mp4, and imageio or its codec is missing.
    """
    if Path(path).suffix == ".mp4" and not all(importlib.util.find_spec(x) for x in ("imageio", "imageio_ffmpeg")):
        message = "an .mp4 needs imageio and imageio-ffmpeg: pip install 'ardistill[video]', or write a .gif"
        raise ImportError(message, name="imageio")


def save_clip(videos: Tensor, path: str | Path, fps: int = 16, columns: int = 4, widest: int | None = None) -> None:
    """Write videos beside each other as one clip, which repeats.

    Args:
        videos: At least one.
        path: File to write: .gif, or .mp4 in H.264.
        fps: Frames per second. Times in a GIF are whole hundredths of a second.
        columns: Videos beside each other.
        widest: Pixels of a row of them; more are averaged down by a whole number.

    Raises:
        ImportError: See `check_clip`.
    """
    check_clip(path)
    columns = min(columns, len(videos))
    if widest is not None and (factor := math.ceil(columns * videos.shape[-1] / widest)) > 1:
        videos = F.avg_pool3d(videos, (1, factor, factor))
    blank = videos.new_full((-len(videos) % columns, *videos.shape[1:]), -1.0)
    grid = torch.cat([videos, blank]).unflatten(0, (-1, columns))  # (rows, columns, c, f, h, w)
    tiled = grid.permute(3, 2, 0, 4, 1, 5).flatten(2, 3).flatten(3, 4)  # (f, c, rows h, columns w)
    pictures = [Image.fromarray(frame) for frame in to_rgb(tiled).numpy()]
    with whole_file(path) as temporary:
        if Path(path).suffix == ".mp4":
            _save_mp4(pictures, temporary, fps)
        else:
            options = {"save_all": True, "append_images": pictures[1:], "duration": round(1000 / fps), "loop": 0}
            pictures[0].save(temporary, "gif", **options)


def _save_mp4(pictures: Sequence[Image.Image], path: Path, fps: int) -> None:
    """Write an .mp4 by diffusers. H.264 takes an even number of rows and columns: an odd one gets a black one more."""
    from diffusers.utils import export_to_video

    width, height = (side + side % 2 for side in pictures[0].size)
    even = [picture.crop((0, 0, width, height)) for picture in pictures]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        named = Path(folder, "clip.mp4")
        export_to_video(even, str(named), fps=fps, quality=8.0, macro_block_size=1)
        named.replace(path)
