"""The classes are those of the training images; the other splits must fit them."""

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.layout import Classes

_NAMED = 5  # classes that an error names


def check_class_names(splits: Mapping[str, Classes], root: Path) -> tuple[str, ...]:
    """The names of the classes, in order, if every split fits them.

    Args:
        splits: ``train`` and others.
        root: the folder of the data set, for the messages.

    Returns:
        The classes of ``train``. Another split may lack some of them.

    Raises:
        DataError: there are fewer than two classes; a name is no text or looks like another; a
            split has a class that ``train`` lacks.

    Example:
        >>> check_class_names({"train": {"cat": [], "dog": []}, "test": {"Cat": []}}, Path("pets"))
        Traceback (most recent call last):
            ...
        ultimus_ignite.errors.DataError: pets: test has a class 'Cat', train has 'cat', \
which looks the same: rename the one in test
    """
    classes = tuple(splits["train"])
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            no_text = "the name of a class must be text in UTF-8: rename its folder"
            raise DataError(f"{root}: train/{name}: {no_text}") from None
    by_look: dict[str, str] = {}
    for name in classes:
        other = by_look.setdefault(_look(name), name)
        if other != name:
            both = f"train has the classes {other!a} and {name!a}, which look the same"
            raise DataError(f"{root}: {both}: rename or merge the second")
    for split, its_classes in splits.items():
        unknown = [name for name in its_classes if name not in splits["train"]]
        if unknown:
            raise DataError(f"{root}: {_explain(unknown, split, classes)}")
    if len(classes) < 2:
        advice = f"if the classes are folders in {classes[0]}, give the path of that folder"
        raise DataError(f"{root}: a classifier needs two classes, found {classes[0]}; {advice}")
    return classes


def _explain(unknown: list[str], split: str, classes: Iterable[str]) -> str:
    """Which classes a split has and ``train`` lacks, and what to do."""
    known = {_look(name).casefold(): name for name in classes}
    for name in unknown:
        if alike := known.get(_look(name).casefold()):
            both = f"{split} has a class {name!a}, train has {alike!a}, which looks the same"
            return f"{both}: rename the one in {split}"
    named = ", ".join(unknown[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
    which = "a class" if len(unknown) == 1 else f"{len(unknown)} classes"
    return f"{split} has {which} that train lacks ({named}): add images to train, or remove it"


def _look(name: str) -> str:
    """The same text for names that look the same: composed, without invisible characters.

    Example:
        >>> _look("cafe\\u0301\\u200b\\u00a0") == _look("caf\\u00e9")
        True
    """
    shown = (c for c in name if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return unicodedata.normalize("NFC", " ".join("".join(shown).split()))
