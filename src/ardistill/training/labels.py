"""Which class of a teacher the name of a folder, or of a data set's class, stands for. Never a guess in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ardistill.files.images import named

_SPLITS = {"train", "training", "test", "val", "valid", "validation", "dev"}
_REMEDY = "name the folders by the classes' numbers"


@dataclass(frozen=True)
class ClassNames:
    """Names and the classes that they stand for."""

    classes: dict[str, int]
    rule: str
    """How they were found."""

    def describe(self, id2label: Mapping[int, str], at_most: int = 12) -> str:
        """The mapping as one line."""
        pairs = [
            f"{name} -> {label}" + (f" ({id2label[label]})" if id2label.get(label, name) != name else "")
            for name, label in self.classes.items()
        ]
        return f"labels {self.rule}: {named(pairs, at_most)}"


def read_id2label(found: object) -> dict[int, str]:
    """The names of a teacher's classes from its ``model_index.json``; none where it has none."""
    if not isinstance(found, Mapping):
        return {}
    return {int(key): str(value) for key, value in found.items() if str(key).isascii() and str(key).isdigit()}


def _keys(name: str) -> set[str]:
    """What a name may be matched by: the whole, each synonym of several, a WordNet id in it; however it is spelled."""
    words = re.sub(r"[\s_]+", " ", name).strip().casefold()
    wordnet = re.findall(r"(?<![a-z0-9])n\d{8}(?!\d)", words)
    return {words, *(part.strip() for part in words.split(",")), *wordnet} - {""}


def _folder_keys(name: str) -> list[str]:
    """What a folder's name is looked up by, the most certain first."""
    words = re.sub(r"[\s_]+", " ", name).strip().casefold()
    return [*re.findall(r"(?<![a-z0-9])n\d{8}(?!\d)", words), words]


def _in_their_order(names: Sequence[str], num_classes: int, id2label: Mapping[int, str]) -> bool:
    """Whether names stand in the teacher's own order: most are what it calls the class, none is another's alone.

    So do those of ImageNet, of which two are "crane" and one of them is renamed in some data sets.
    """
    known = _known(id2label)
    labels = [next((known[key] for key in _folder_keys(name) if key in known), set()) for name in names]
    confirmed = sum(place in found for place, found in enumerate(labels))
    others = any(found and place not in found for place, found in enumerate(labels))
    return len(names) == num_classes and not others and 2 * confirmed > num_classes


def _known(id2label: Mapping[int, str]) -> dict[str, set[int]]:
    """Classes by what they may be matched by."""
    known: dict[str, set[int]] = {}
    for label, text in id2label.items():
        for key in _keys(text):
            known.setdefault(key, set()).add(label)
    return known


def _by_name(names: Sequence[str], id2label: Mapping[int, str]) -> dict[str, int | None]:
    """The class of each name, None where no class is called so.

    Raises:
        ValueError: A name is that of two classes.
    """
    known = _known(id2label)
    found: dict[str, int | None] = {}
    for name in names:
        labels = next((known[key] for key in _folder_keys(name) if key in known), set())
        if len(labels) > 1:
            classes = " and ".join(map(str, sorted(labels)))
            raise ValueError(f"{name!r} is the name of the teacher's classes {classes}; {_REMEDY}")
        found[name] = next(iter(labels), None)
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by their value."""
    return [(1, int(x), "") if x.isdigit() and x.isascii() else (0, 0, x) for x in re.split(r"([0-9]+)", name)]


def match_classes(
    names: Sequence[str], num_classes: int, id2label: Mapping[int, str], *, in_order: bool = False
) -> ClassNames:
    """The class that each name stands for.

    By a data set's own order where it is that of the teacher's names; by the teacher's names of its classes where all
    are among them (one of several synonyms that commas separate will do, and a WordNet id); else names that are
    numbers are classes themselves; else, only where there are as many as the teacher has classes, in sorted order.

    Args:
        names: Different ones, of folders or of a data set's classes.
        num_classes: Of the teacher.
        id2label: The teacher's names, by class.
        in_order: Whether ``names`` stand in an order of their own, which takes the place of the sorted one.

    Raises:
        ValueError: It is not certain which classes they are.
    """
    if set(map(str.casefold, names)) <= _SPLITS:
        raise ValueError(f"{named(names)} are parts of a data set, not classes; give the path of one of them")
    if in_order and _in_their_order(names, num_classes, id2label):
        return ClassNames({name: label for label, name in enumerate(names)}, "in the data set's own order, as id2label")
    matched = _by_name(names, id2label) if id2label else dict.fromkeys(names)
    lost = [name for name, label in matched.items() if label is None]
    if not lost:
        return ClassNames({name: label for name, label in matched.items() if label is not None}, "by id2label")
    if all(name.isascii() and name.isdigit() for name in names):
        return _by_number(names, num_classes)
    if len(lost) < len(names):
        raise ValueError(
            f"{named(lost)}: no class of the teacher is called so, though others of the names are classes of its "
            f"id2label; rename them after id2label, or {_REMEDY}"
        )
    if len(names) != num_classes:
        raise ValueError(
            f"the teacher has {num_classes} classes, found {len(names)} ({named(names)}): which they are is not known; "
            f"{_REMEDY}, 0 to {num_classes - 1}" + (", or after its id2label" if id2label else "")
        )
    order = list(names) if in_order else sorted(names)
    if not in_order and order != sorted(names, key=_natural):
        raise ValueError(
            f"the order of {named(order, 3)} is not certain: as text {order[1]!r} is the second, by number "
            f"{sorted(names, key=_natural)[1]!r}; {_REMEDY}, 0 to {num_classes - 1}"
        )
    rule = "in the data set's own order" if in_order else "in the sorted order of the names"
    return ClassNames({name: label for label, name in enumerate(order)}, rule)


def _by_number(names: Sequence[str], num_classes: int) -> ClassNames:
    classes = {name: int(name) for name in names}
    for name, label in classes.items():
        if label >= num_classes:
            raise ValueError(
                f"{name!r} is no class: the teacher has {num_classes}, numbered 0 to {num_classes - 1}; {_REMEDY}, "
                "which count from 0"
            )
    if len(set(classes.values())) < len(classes):
        raise ValueError(f"two of {named(names, 20)} are one class; {_REMEDY}, each written in one way")
    ordered = sorted(names, key=int)
    return ClassNames({name: classes[name] for name in ordered}, "by number")
