"""Match the names of folders, or of a data set's classes, to a teacher's classes; an uncertain match is an error."""

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
    """Class of each name."""
    rule: str
    """The rule that found the classes, in words."""

    def describe(self, id2label: Mapping[int, str], at_most: int = 12) -> str:
        """The mapping as one line of text.

        Args:
            id2label: The teacher's name of each class.
            at_most: Number of pairs listed.
        """
        pairs = [
            f"{name} -> {label}" + (f" ({id2label[label]})" if id2label.get(label, name) != name else "")
            for name, label in self.classes.items()
        ]
        return f"labels {self.rule}: {named(pairs, at_most)}"


def read_id2label(found: object) -> dict[int, str]:
    """The names of a teacher's classes, from ``id2label`` of its ``model_index.json``; empty if it is no mapping."""
    if not isinstance(found, Mapping):
        return {}
    return {int(key): str(value) for key, value in found.items() if str(key).isascii() and str(key).isdigit()}


def match_classes(
    names: Sequence[str], num_classes: int, id2label: Mapping[int, str], *, in_order: bool = False
) -> ClassNames:
    """Find the class that each name stands for.

    The first rule that applies decides. 1. A data set's own order, if it is that of the teacher's names. 2. The
    teacher's names, if all names are among them: one of several comma-separated synonyms, or a WordNet id, is enough.
    3. Names that are numbers are class numbers. 4. If there are as many names as classes, the data set's own order or,
    for folders, the sorted order.

    Args:
        names: Distinct names of folders or of a data set's classes.
        num_classes: Number of the teacher's classes.
        id2label: The teacher's name of each class.
        in_order: Whether ``names`` have an order of their own, as a data set's classes do.

    Raises:
        ValueError: It is not certain which classes they are.
    """
    if set(map(str.casefold, names)) <= _SPLITS:
        raise ValueError(f"{named(names)} are parts of a data set, not classes; give the path of one of them")
    if in_order and _has_teachers_order(names, num_classes, id2label):
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
    return _by_position(names, in_order)


def _has_teachers_order(names: Sequence[str], num_classes: int, id2label: Mapping[int, str]) -> bool:
    """Whether names are in the teacher's order: most match the class at their position, and none only another class.

    ImageNet's names satisfy this although two classes are called "crane" and some data sets rename one of them.
    """
    known = _classes_by_key(id2label)
    labels = [next((known[key] for key in _lookup_keys(name) if key in known), set()) for name in names]
    confirmed = sum(place in found for place, found in enumerate(labels))
    others = any(found and place not in found for place, found in enumerate(labels))
    return len(names) == num_classes and not others and 2 * confirmed > num_classes


def _by_name(names: Sequence[str], id2label: Mapping[int, str]) -> dict[str, int | None]:
    """Class of each name among the teacher's names; None for a name that no class has.

    Raises:
        ValueError: Two classes have the same name.
    """
    known = _classes_by_key(id2label)
    found: dict[str, int | None] = {}
    for name in names:
        labels = next((known[key] for key in _lookup_keys(name) if key in known), set())
        if len(labels) > 1:
            classes = " and ".join(map(str, sorted(labels)))
            raise ValueError(f"{name!r} is the name of the teacher's classes {classes}; {_REMEDY}")
        found[name] = next(iter(labels), None)
    return found


def _by_number(names: Sequence[str], num_classes: int) -> ClassNames:
    """Classes of names that are numbers."""
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


def _by_position(names: Sequence[str], in_order: bool) -> ClassNames:
    """Classes of as many names as there are classes, by position.

    Raises:
        ValueError: Sorting as text and sorting by number give different orders.
    """
    order = list(names) if in_order else sorted(names)
    if not in_order and order != sorted(names, key=_natural):
        raise ValueError(
            f"the order of {named(order, 3)} is not certain: as text {order[1]!r} is the second, by number "
            f"{sorted(names, key=_natural)[1]!r}; {_REMEDY}, 0 to {len(names) - 1}"
        )
    rule = "in the data set's own order" if in_order else "in the sorted order of the names"
    return ClassNames({name: label for label, name in enumerate(order)}, rule)


def _classes_by_key(id2label: Mapping[int, str]) -> dict[str, set[int]]:
    """Classes by each key that they can be matched by."""
    known: dict[str, set[int]] = {}
    for label, text in id2label.items():
        for key in _keys(text):
            known.setdefault(key, set()).add(label)
    return known


def _keys(name: str) -> set[str]:
    """Keys of a teacher's class name: the whole name, each comma-separated synonym, each WordNet id; normalised."""
    words, wordnet = _normalised(name)
    return {words, *(part.strip() for part in words.split(",")), *wordnet} - {""}


def _lookup_keys(name: str) -> list[str]:
    """Keys that a folder's name is looked up by, the most specific first: WordNet ids, then the whole name."""
    words, wordnet = _normalised(name)
    return [*wordnet, words]


def _normalised(name: str) -> tuple[str, list[str]]:
    """A name in lower case with single spaces for underscores and white space, and the WordNet ids in it."""
    words = re.sub(r"[\s_]+", " ", name).strip().casefold()
    return words, re.findall(r"(?<![a-z0-9])n\d{8}(?!\d)", words)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers within names by value."""
    return [(1, int(x), "") if x.isdigit() and x.isascii() else (0, 0, x) for x in re.split(r"([0-9]+)", name)]
