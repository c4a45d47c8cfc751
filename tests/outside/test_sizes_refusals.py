"""Bad input of many prompts and images: each is refused with what was wrong and what to do."""

from __future__ import annotations

import zlib

import pytest
import safetensors.torch
import torch
from many_prompts import OPTIONS, contents, words
from PIL import Image
from refusals import Refusal, check_refusal
from tiny import save

from ardistill import Teacher, TrajectoryDataset, record
from ardistill.files import SEAL, seal
from ardistill.files.images import open_images


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    return Teacher.from_pretrained(save("pixart", tmp_path_factory.mktemp("pixart") / "teacher"), guidance_scale=1.0)


def test_an_embedding_that_is_not_finite_is_refused(tmp_path):
    teacher = Teacher.from_pretrained(save("pixart", tmp_path / "teacher"), guidance_scale=1.0)
    teacher.encode(["a"])
    with torch.no_grad():
        teacher.companions["text_encoder"].encoder.final_layer_norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match=r"prompts 0 to 1 do not fit torch.float16: record in float32"):
        record(teacher, tmp_path / "data", 2, prompts=words(2), dtype="float16", **OPTIONS)
    with torch.no_grad():
        teacher.companions["text_encoder"].encoder.final_layer_norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="are not finite; run the text encoders in a type"):
        record(teacher, tmp_path / "other", 2, prompts=words(2), **OPTIONS)


def _parts(change):
    """Trajectories of three parts, one of which is changed."""

    def act(pixart, folder):
        data = folder / "data"
        if not data.exists():
            record(pixart, data, 140, prompts=words(140), **OPTIONS)
        whole = contents(data)
        try:
            change(data)
            TrajectoryDataset(data, 2).condition()
        finally:
            for path in data.iterdir():
                path.unlink()
            for name, raw in whole.items():
                (data / name).write_bytes(raw)

    return act


def _resized(data, rows):
    path = data / "conditions-00000064-00000128.safetensors"
    table = {name: value[:rows].contiguous() for name, value in safetensors.torch.load_file(path).items()}
    path.write_bytes(seal(safetensors.torch.save(table, metadata={"seal": SEAL})))


def _flipped(data):
    path = data / "conditions-00000064-00000128.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def _write(name, raw):
    return lambda data: (data / name).write_bytes(raw)


def _asks(**options):
    def act(pixart, folder):
        given = {"num_trajectories": 4, "prompts": ["a cat"], **OPTIONS, **options}
        record(pixart, folder / "refused", given.pop("num_trajectories"), **given)

    return act


def _images(sizes):
    def act(pixart, folder):
        images = folder / "images"
        images.mkdir(exist_ok=True)
        for old in images.iterdir():
            old.unlink()
        for i, size in enumerate(sizes):
            Image.new("RGB", size).save(images / f"{i}.png")
        list(open_images(images, progress=False))

    return act


def _bomb(pixart, folder):
    """An image of one pixel whose head says that it has 60,000 by 60,000."""
    (folder / "bomb").mkdir(exist_ok=True)
    path = folder / "bomb" / "b.png"
    Image.new("RGB", (1, 1)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = (60_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)
    open_images(folder / "bomb", progress=False)


FIRST, SECOND = "conditions-00000000-00000064.safetensors", "conditions-00000064-00000128.safetensors"
MADE_AGAIN = "record command|repair"
REFUSALS = {
    "a lost part": Refusal(_parts(lambda data: (data / SECOND).unlink()), f"{SECOND} is missing", MADE_AGAIN),
    "all parts lost": Refusal(
        _parts(lambda data: [path.unlink() for path in data.glob("cond*")]), f"{FIRST} is missing", MADE_AGAIN
    ),
    "a flipped bit": Refusal(_parts(_flipped), f"{SECOND} is not what its checksum says", MADE_AGAIN),
    "a cut part": Refusal(_parts(_write(SECOND, b"x" * 40)), f"{SECOND} (cannot be read|is not)", MADE_AGAIN),
    "an empty part": Refusal(_parts(_write(SECOND, b"")), f"{SECOND} (cannot be read|is not)", MADE_AGAIN),
    "too few rows": Refusal(_parts(lambda data: _resized(data, 63)), f"{SECOND}: expected 64 rows", MADE_AGAIN),
    "a head that is no JSON": Refusal(
        _parts(_write(SECOND, (9).to_bytes(8, "little") + b"{" * 90)), f"{SECOND} (cannot be read|is not)", MADE_AGAIN
    ),
    "a head that is too large": Refusal(
        _parts(_write(SECOND, (1 << 40).to_bytes(8, "little"))), f"{SECOND} (cannot be read|is not)", MADE_AGAIN
    ),
    "no prompts.json": Refusal(
        _parts(lambda data: (data / "prompts.json").unlink()), "prompts.json is missing", MADE_AGAIN
    ),
    "no prompts": Refusal(_asks(prompts=[]), "conditioned on text", "give it prompts"),
    "no trajectories": Refusal(_asks(num_trajectories=0), "expected 1 trajectory or more, got 0", "expected 1"),
    "a dtype that embeddings cannot have": Refusal(_asks(dtype="int8"), "unknown dtype 'int8'", "known: float32"),
    "a bomb": Refusal(_bomb, r"b\.png cannot be read as an image \(Image size \(3600000000", "replace it, or take it"),
    "two sizes": Refusal(_images([(8, 8), (8, 9)]), r"0\.png is 8x8 and 1\.png is 8x9", "scale them alike"),
    "no images": Refusal(_images([]), "expected images", r"\.png"),
    "cost of no trajectories": Refusal("cost --teacher DiT-S/4 --num_trajectories 0", "num_trajectories", "1 or more"),
    "cost of less than no prompts": Refusal("cost --teacher DiT-S/4 --num_prompts -1", "num_prompts", "0 or more"),
    "cost of another dtype": Refusal("cost --teacher DiT-S/4 --dtype int8", "dtype", "float16"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sizes")


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name, pixart, folder, capsys):
    check_refusal(REFUSALS[name], capsys, pixart, folder)
    assert not (folder / "refused").exists()
