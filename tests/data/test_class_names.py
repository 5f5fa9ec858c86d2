"""The classes of the training images, and splits that do not fit them."""

from pathlib import Path

import pytest

from ultimus_ignite.data.class_names import check_class_names
from ultimus_ignite.data.image_data import DataError

ROOT = Path("DIR")


def check(train: list[str], test: list[str], split: str = "test") -> tuple[str, ...]:
    splits = {"train": {name: ["1"] for name in train}, split: {name: ["1"] for name in test}}
    return check_class_names(splits, ROOT)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_split_may_lack_classes_and_not_add_any(split: str) -> None:
    assert check(["a", "b", "c"], ["b"], split) == ("a", "b", "c")
    with pytest.raises(DataError, match=rf"^DIR: {split} has a class that train lacks \(wolf\): "):
        check(["a", "b"], ["b", "wolf"], split)
    with pytest.raises(DataError, match=r"7 classes that train lacks \(0, 1, 2, 3, 4, \.\.\.\)"):
        check(["a", "b"], [*"0123456"], split)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "cat "),
        ("cat", "cat\u00a0"),
        ("black cat", "black\u00a0cat"),
        ("cat", "c\u200bat"),
        ("cat", "\ufeffcat"),
        ("cat", "Cat"),
        ("\u2764", "\u2764\ufe0f"),
        ("straße", "STRASSE"),
    ],
)
def test_names_that_look_alike_are_shown_apart(train: str, test: str) -> None:
    for one, other in ((train, test), (test, train)):
        with pytest.raises(DataError) as error:
            check([one, "dog"], [other, "dog"])
        message = str(error.value)
        assert f"test has a class {other!a}, train has {one!a}" in message
        assert message.endswith("rename the one in test")
        assert message.isascii()
        assert message.isprintable()


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9 ", "caf\u00e9\u200d"])
def test_classes_of_one_split_that_look_alike_are_refused(other: str) -> None:
    with pytest.raises(DataError, match="train has the classes .* look the same") as error:
        check(["caf\u00e9", other], [])
    assert ascii(other) in str(error.value)


def test_letters_may_differ_in_case() -> None:
    assert check(["A", "a", "b"], ["A", "a"]) == ("A", "a", "b")


def test_one_class_is_none_to_choose_from() -> None:
    with pytest.raises(DataError, match="a classifier needs two classes, found cat"):
        check(["cat"], ["cat"])


def test_a_name_that_is_no_text_is_refused_in_printable_letters() -> None:
    with pytest.raises(DataError, match="must be text in UTF-8: rename its folder") as error:
        check(["caf\udce9", "dog"], ["dog"])
    assert str(error.value).isprintable()
    with pytest.raises(DataError, match="train lacks") as error:
        check(["cat", "dog"], ["caf\udce9"])
    assert str(error.value).isprintable()
