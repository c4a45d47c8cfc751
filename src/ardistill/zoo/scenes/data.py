"""The scene world: captioned pictures of one noun, of up to four of a kind, or of two nouns, 32x32 in colour.

A scene and its caption are functions of (seed, index). There are sixteen nouns in six colours, small or large, alone,
in a number of two to four, or one left of or above another, on a light or dark background that no caption mentions. A
caption may leave out colour, size and relation, but never a noun or a number, so that a picture shows what its caption
names and nothing else. Some combinations (noun and colour, noun and number, two nouns and their relation) and some
wordings never occur in the split ``seen``; a model's results on these are measured separately.

The pictures of the nouns are in ``../emoji/nouns`` (Noto emoji, Apache-2.0, ``../emoji/LICENSE``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ardistill.files.pixels import from_bytes
from ardistill.zoo import FOLDERS

NOUNS = (
    "cat", "fish", "duck", "car", "boat", "house", "tree", "star",
    "heart", "moon", "apple", "umbrella", "mushroom", "bell", "crown", "shirt",
)  # fmt: skip
COLOURS = {
    "red": (225, 40, 40),
    "yellow": (250, 205, 30),
    "green": (50, 170, 60),
    "cyan": (60, 205, 215),
    "blue": (50, 95, 235),
    "pink": (245, 110, 200),
}
"""Name -> red, green, blue in 0..255 of a noun's tint."""
SIZES = {"small": 14, "large": 26}
"""Name -> edge of the square that a noun fills, pixels; several nouns in one picture are small."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
"""Number of nouns -> its word."""
RELATIONS = ("left of", "above")
"""Possible relations of the first noun to the second."""
BACKGROUNDS = ((240, 240, 240), (55, 55, 65))
"""Red, green, blue in 0..255 of the light and the dark background."""
CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attr")
"""Categories of prompts, with GenEval's names (Ghosh et al. 2023, arXiv:2310.11513); the last is attribute binding."""
SPLITS = ("seen", "unseen_combinations", "unseen_wordings")
"""Sets of evaluation prompts."""
COMBINED = ("counting", "colors", "position", "color_attr")
"""Categories whose prompts name a combination that can be unseen."""
IMAGE_SIZE = 32
"""Edge of a picture, pixels."""
CELL = 16
"""Edge of the four cells of a picture, pixels; each holds at most one noun."""
ACROSS = 4
"""Smallest distance of two different nouns from the edges across their relation's direction, pixels."""
GRID = 4
"""Left and top of a noun are multiples of this number of pixels: the edge of the teacher's patches, so that each noun
falls on the patches in one way only."""


@dataclass(frozen=True)
class Noun:
    """A noun in a picture."""

    noun: int
    """Index into `NOUNS`."""
    colour: int
    """Index into `COLOURS`."""
    size: str
    """Key of `SIZES`."""
    left: int
    """Columns left of its square."""
    top: int
    """Rows above its square."""


@dataclass(frozen=True)
class Scene:
    """The content of one image: one noun, two to four equal nouns, or two different ones."""

    nouns: tuple[Noun, ...]
    """The nouns, one to four."""
    relation: int | None
    """Relation of the first of two different nouns to the second, index into `RELATIONS`; else None."""
    background: int
    """Index into `BACKGROUNDS`."""

    def render(self) -> np.ndarray:
        """Draw the scene: red, green, blue, uint8, shape (32, 32, 3)."""
        image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
        image[:] = BACKGROUNDS[self.background]
        for x in self.nouns:
            paint, clear = _sprite(x.noun, x.colour, x.size)
            square = image[x.top : x.top + len(paint), x.left : x.left + len(paint)]
            square *= clear
            square += paint
        return image.round().astype(np.uint8)

    @property
    def unseen(self) -> frozenset[str]:
        """Which of "colour", "number" and "relation" make a combination that does not occur in the split ``seen``.

        There, each noun lacks one of the six colours, three of four nouns lack one of the three numbers, and 70 of the
        480 relations of a noun to another are missing.
        """
        nouns, colours = tuple(x.noun for x in self.nouns), tuple(x.colour for x in self.nouns)
        return _unseen(nouns, colours, 1 if self.relation is not None else len(nouns), self.relation)


@dataclass(frozen=True)
class Prompt:
    """A caption with its meaning, by which a picture is judged; a field that is None is not specified."""

    text: str
    """The caption."""
    nouns: tuple[int, ...]
    """Indices into `NOUNS`: one, or two different ones."""
    count: int = 1
    """Number of times that the noun is shown; 1 for each of two different nouns."""
    colours: tuple[int, ...] | None = None
    """Colour of each noun, index into `COLOURS`."""
    relation: int | None = None
    """Relation of the first noun to the second, index into `RELATIONS`."""
    size: str | None = None
    """Key of `SIZES`."""
    category: str = ""
    """One of `CATEGORIES`, for an evaluation prompt."""

    @property
    def unseen(self) -> frozenset[str]:
        """Which of "colour", "number" and "relation" it combines in a way that does not occur in the split ``seen``."""
        return _unseen(self.nouns, self.colours or (), self.count, self.relation)


WORDINGS = {
    "seen": ("{}", "{} after", "a picture of {}", "there is {}"),
    "unseen": ("a picture of {} after", "there is {} after", "there is a picture of {}"),
}
"""Split -> wordings. "after" puts the colour after the noun, "a cat that is red", and is used only for one noun with
its colour. All words of the unseen wordings occur in the seen ones."""


def scene(seed: int, index: int, split: str = "seen") -> Scene:
    """The scene of (``seed``, ``index``): one noun, several alike or two nouns, in shares of 30, 30 and 40 %.

    Seed 0 is for training; other seeds are held out.

    Args:
        seed: Seed of a set of scenes.
        index: Number of the scene in the set.
        split: ``"unseen_combinations"`` draws only scenes with an unseen combination, the other splits only scenes
            without.
    """
    random = np.random.default_rng((seed, index))
    while True:
        found = _draw(random, ("one", "several", "two")[random.choice(3, p=(0.3, 0.3, 0.4))])
        if bool(found.unseen) == (split == "unseen_combinations"):
            return found


def caption(seed: int, index: int) -> tuple[Scene, Prompt]:
    """A training scene, with a caption in a seen wording that names a random part of its facts.

    Args:
        seed: Seed of a set of scenes.
        index: Number of the scene in the set.
    """
    found = scene(seed, index)
    random = np.random.default_rng((seed, index, 1))
    tells_colour, tells_size, tells_relation = random.random(3) < (0.6, 0.4, 0.6)
    prompt = describe(
        found,
        WORDINGS["seen"][random.integers(4)],
        colour=bool(tells_colour),
        size=bool(tells_size),
        relation=bool(tells_relation),
        swapped=bool(random.integers(2)),
    )
    return found, prompt


def describe(
    scene: Scene, wording: str, *, colour: bool, size: bool, relation: bool, swapped: bool = False, category: str = ""
) -> Prompt:
    """Describe a scene in words.

    Args:
        scene: The scene.
        wording: One of `WORDINGS`.
        colour: Whether to name the colours.
        size: Whether to name the size of a single noun.
        relation: Whether to name the relation of two nouns.
        swapped: Whether to name the second of two nouns first, if their relation is not named.
        category: The prompt's category.
    """
    two, count = scene.relation is not None, len(scene.nouns)
    relation, size = relation and two, size and count == 1
    named = scene.nouns if two else scene.nouns[:1]
    if swapped and not relation:
        named = named[::-1]
    colours = list(COLOURS)
    frame = wording.removesuffix(" after")
    is_after = frame != wording and colour and not two
    phrases = []
    for x in named:
        words = [NUMBERS[count]] if count > 1 and not two else []
        words += [x.size] if size else []
        words += [colours[x.colour]] if colour and not is_after else []
        words.append(NOUNS[x.noun] if count == 1 or two else plural(NOUNS[x.noun]))
        if count == 1 or two:
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        phrases.append(" ".join(words))
    if is_after:
        phrases[0] += f" that {'is' if count == 1 else 'are'} {colours[named[0].colour]}"
    joint = f" {RELATIONS[scene.relation]} " if relation and scene.relation is not None else " and "
    if frame == "there is {}" and count > 1 and not two:
        frame = "there are {}"
    return Prompt(
        text=frame.format(joint.join(phrases)),
        nouns=tuple(x.noun for x in named),
        count=1 if two else count,
        colours=tuple(x.colour for x in named) if colour else None,
        relation=scene.relation if relation else None,
        size=scene.nouns[0].size if size else None,
        category=category,
    )


def read_caption(text: str) -> Prompt | None:
    """Parse a caption, the inverse of `describe`; None if it is not a caption of the scene world.

    Its category is the first of position, attribute binding, two objects, counting, colours and single object that it
    asks for. The detector was measured on prompts that ask for only one thing, as `prompts` makes them.

    Args:
        text: A caption in any wording, seen or not; capitals, repeated spaces and a final full stop are ignored.
    """
    plain = " ".join(text.lower().split()).removesuffix(".")
    sentence = re.fullmatch(r"(?:there (?:is|are) )?(?:a picture of )?(.+)", plain)
    parts = re.split(f" ({'|'.join(['and', *RELATIONS])}) ", sentence[1]) if sentence else []
    phrases = [_PHRASE.fullmatch(x) for x in parts[::2]]
    if not 1 <= len(phrases) <= 2 or None in phrases:
        return None
    found = [x.groupdict() for x in phrases if x]
    singular = {name: i for i, noun in enumerate(NOUNS) for name in (noun, plural(noun))}
    nouns = tuple(singular[x["noun"]] for x in found)
    counts = [next((n for n, name in NUMBERS.items() if name == x["number"]), 1) for x in found]
    names = [x["colour"] or x["after"] for x in found]
    size = found[0]["size"]
    two = len(found) == 2
    if len(set(nouns)) < len(nouns) or (None in names and any(names)):
        return None
    if (two and (max(counts) > 1 or any(x["size"] for x in found))) or (size and counts[0] > 1):
        return None
    colours = None if None in names else tuple(list(COLOURS).index(str(x)) for x in names)
    relation = RELATIONS.index(parts[1]) if two and parts[1] in RELATIONS else None
    category = "counting" if counts[0] > 1 else "colors" if colours else "single_object"
    if two:
        category = "position" if relation is not None else "color_attr" if colours else "two_objects"
    return Prompt(text, nouns, counts[0], colours, relation, size, category)


def prompts(split: str, count: int, seed: int = 1) -> list[Prompt]:
    """Evaluation prompts, with the categories in turn; for unseen combinations only those of `COMBINED`.

    Each names what its category asks for and nothing else; in ``"unseen_combinations"`` that is its unseen combination.

    Args:
        split: One of `SPLITS`.
        count: Number of prompts; a shorter list is the beginning of a longer one.
        seed: Seed of the list; 0 is for training.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    return [example(split, index, seed)[1] for index in range(count)]


def example(split: str, index: int, seed: int = 1) -> tuple[Scene, Prompt]:
    """The prompt at ``index`` in the list of `prompts`, with a scene that it describes."""
    categories = COMBINED if split == "unseen_combinations" else CATEGORIES
    category = categories[index % len(categories)]
    kind = {"single_object": "one", "colors": "one", "counting": "several"}.get(category, "two")
    colour, relation = category in ("colors", "color_attr"), category == "position"
    asked = {"counting": "number", "position": "relation"}.get(category, "colour")
    random = np.random.default_rng((seed, index, 2))
    while True:
        found = _draw(random, kind)
        if split == "unseen_combinations" and found.unseen == {asked}:
            break
        if split != "unseen_combinations" and not found.unseen:
            break
    wordings = WORDINGS["unseen" if split == "unseen_wordings" else "seen"]
    if split == "unseen_wordings" and category != "colors":
        wordings = wordings[-1:]  # the others are unseen only with a colour after the noun
    wording, swapped = wordings[random.integers(len(wordings))], bool(random.integers(2))
    options = {"colour": colour, "size": False, "relation": relation, "swapped": swapped}
    return found, describe(found, wording, **options, category=category)


def as_images(scenes: Iterable[Scene]) -> Tensor:
    """Render scenes: float32 in [-1, 1], shape (n, 3, 32, 32)."""
    pixels = torch.from_numpy(np.stack([x.render() for x in scenes]))  # (n, 32, 32, 3)
    return from_bytes(pixels.permute(0, 3, 1, 2).contiguous())


def plural(noun: str) -> str:
    """The plural of a noun in `NOUNS`."""
    return noun if noun == "fish" else noun + ("es" if noun.endswith(("s", "h", "x")) else "s")


_PHRASE = re.compile(
    rf"(?:an?|(?P<number>{'|'.join(NUMBERS.values())}))(?: (?P<size>{'|'.join(SIZES)}))?"
    rf"(?: (?P<colour>{'|'.join(COLOURS)}))? (?P<noun>{'|'.join(x for noun in NOUNS for x in (plural(noun), noun))})"
    rf"(?: that (?:is|are) (?P<after>{'|'.join(COLOURS)}))?"
)
"""Pattern of a noun, or of a number of equal nouns, with its properties."""


def vocabulary() -> list[str]:
    """Every word that can occur in a caption, sorted."""
    words = [*NOUNS, *map(plural, NOUNS), *COLOURS, *SIZES, *NUMBERS.values(), *RELATIONS]
    return sorted({x for text in [*words, "there is are a an picture of and that"] for x in text.split()})


def _unseen(nouns: tuple[int, ...], colours: tuple[int, ...], count: int, relation: int | None) -> frozenset[str]:
    """Which of "colour", "number" and "relation" make a combination that does not occur in the split ``seen``."""
    found = set()
    if any((noun + colour) % 6 == 0 for noun, colour in zip(nouns, colours, strict=False)):
        found.add("colour")
    if relation is None and count > 1 and (nouns[0] + count) % 4 == 0:
        found.add("number")
    if relation is not None and (nouns[0] + 2 * nouns[1] + 3 * relation) % 6 == 0:
        found.add("relation")
    return frozenset(found)


def _draw(random: np.random.Generator, kind: str) -> Scene:
    """Draw a scene of ``"one"`` noun, ``"several"`` equal ones or ``"two"`` different ones, otherwise at random."""
    background = int(random.integers(len(BACKGROUNDS)))
    small = SIZES["small"]
    if kind == "two":
        first, second = (int(n) for n in random.choice(len(NOUNS), 2, replace=False))
        relation = int(random.integers(len(RELATIONS)))
        along = GRID * random.integers((CELL - small) // GRID + 1, size=2) + (0, CELL)
        across = ACROSS + GRID * random.integers((IMAGE_SIZE - small - 2 * ACROSS) // GRID + 1, size=2)
        places = zip(along, across, strict=True) if relation == 0 else zip(across, along, strict=True)
        colours = random.integers(len(COLOURS), size=2)
        pair = zip((first, second), colours, places, strict=True)
        nouns = tuple(Noun(n, int(c), "small", int(left), int(top)) for n, c, (left, top) in pair)
        return Scene(nouns, relation, background)
    noun, colour = int(random.integers(len(NOUNS))), int(random.integers(len(COLOURS)))
    if kind == "one":
        size = tuple(SIZES)[random.integers(2)]
        left, top = (GRID * int(n) for n in random.integers((IMAGE_SIZE - SIZES[size]) // GRID + 1, size=2))
        return Scene((Noun(noun, colour, size, left, top),), None, background)
    count = int(random.integers(2, 5))
    cells = random.permutation(4)[:count]
    shift = GRID * random.integers((CELL - small) // GRID + 1, size=(count, 2))
    corners = np.stack([cells % 2, cells // 2], 1) * CELL + shift
    return Scene(tuple(Noun(noun, colour, "small", int(x), int(y)) for x, y in corners), None, background)


@cache
def _picture(noun: int, size: str) -> tuple[np.ndarray, np.ndarray]:
    """A noun's brightness, 1 in its brighter half, and opacity, both in [0, 1], shape (size, size, 1)."""
    picture = Image.open(FOLDERS["emoji"] / "nouns" / f"{NOUNS[noun]}.png").convert("RGBA")
    picture = picture.crop(picture.getbbox())
    edge = SIZES[size]
    width, height = (max(1, round(n * edge / max(picture.size))) for n in picture.size)
    square = Image.new("RGBA", (edge, edge))
    square.paste(picture.resize((width, height), Image.Resampling.BOX), ((edge - width) // 2, (edge - height) // 2))
    pixels = np.asarray(square, np.float32)
    opacity = pixels[..., 3:] / 255
    luminance = pixels[..., :3] @ np.array([[0.299], [0.587], [0.114]], np.float32)
    brightness = luminance / np.median(luminance[opacity > 0.5])
    return brightness.clip(0.4, 1), opacity


@cache
def _sprite(noun: int, colour: int, size: str) -> tuple[np.ndarray, np.ndarray]:
    """A noun's paint, 0..255, shape (size, size, 3), and transparency, shape (size, size, 1), for composition."""
    brightness, opacity = _picture(noun, size)
    paint = opacity * brightness * np.array(list(COLOURS.values())[colour], np.float32)
    return paint, 1 - opacity
