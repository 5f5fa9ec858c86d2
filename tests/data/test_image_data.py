"""`ImageData`: refuses what is malformed, measures what is not."""

import hashlib
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ultimus_ignite.data.image_data import DataError, ImageData


def random_set(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (count,), generator=generator)


def measure(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> ImageData:
    return ImageData.measure("random", tuple("0123456789"), train, test)


@pytest.mark.parametrize("count", [1, 7, 500])
def test_mean_and_std_are_those_of_the_training_images(count: int) -> None:
    train = random_set(count, seed=count)
    train[0][:, 1] //= 3  # channels that differ
    data = measure(train, random_set(3, seed=0))
    unit = train[0].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, unit.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(data.std, unit.std(axis=(0, 2, 3)), rtol=1e-12)


def test_one_colour_has_a_deviation_of_exactly_zero() -> None:
    images = torch.full((300, 3, 32, 32), 77, dtype=torch.uint8)
    data = measure((images, torch.zeros(300, dtype=torch.int64)), random_set(1, seed=0))
    assert data.std == (0, 0, 0)


def test_the_hash_names_the_values_and_not_their_layout_in_memory() -> None:
    train, test = random_set(5, seed=1), random_set(4, seed=2)
    name = measure(train, test).sha256
    scattered = train[0].contiguous(memory_format=torch.channels_last)
    assert measure((scattered, train[1]), test).sha256 == name

    for changed in (*train, *test):
        first = changed.view(-1)[0]
        first.copy_((first + 1) % 10)
        name, previous = measure(train, test).sha256, name
        assert name != previous
    assert measure(test, train).sha256 != name


@pytest.mark.parametrize("piece", [1, 5_000, 7 * 3072, 10**9])
def test_what_is_measured_does_not_depend_on_the_size_of_the_pieces(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("ultimus_ignite.data.rows._PIECE", piece)
    train, test = random_set(33, seed=1), random_set(7, seed=2)
    data = measure(train, test)
    digest = hashlib.sha256()
    for tensor in (*train, *test):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().tobytes())
    assert data.sha256 == digest.hexdigest()
    for channel in range(3):
        values = train[0][:, channel].flatten().long()
        count, total, squares = len(values), int(values.sum()), int((values**2).sum())
        assert data.mean[channel] == total / count / 255
        assert data.std[channel] == math.sqrt(count * squares - total**2) / count / 255


IMAGES, LABELS = random_set(6, seed=3)


@pytest.mark.parametrize(
    ("images", "labels", "expected", "got"),
    [
        (IMAGES.float(), LABELS, "torch.uint8", "torch.float32"),
        (IMAGES[:, :1], LABELS, r"\(N > 0, 3, S, S\)", r"\(6, 1, 32, 32\)"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, r"\(N > 0, 3, S, S\)", r"\(6, 32, 32, 3\)"),
        (IMAGES[..., :31], LABELS, r"\(N > 0, 3, S, S\)", r"\(6, 3, 32, 31\)"),
        (IMAGES[:0], LABELS[:0], "N > 0", r"\(0, 3, 32, 32\)"),
        (IMAGES[0, 0, 0, 0], LABELS, "N > 0", r"\(\)"),
        (IMAGES, LABELS.int(), "torch.int64", "torch.int32"),
        (IMAGES, LABELS[:5], r"\(6,\)", r"\(5,\)"),
        (IMAGES, LABELS[:, None], r"\(6,\)", r"\(6, 1\)"),
        (IMAGES, torch.tensor([0, 1, 2, 3, 4, -1]), "0 to 9", "-1 to 4"),
        (IMAGES, torch.tensor([5, 6, 7, 8, 9, 10]), "0 to 9", "5 to 10"),
    ],
)
def test_malformed_data_is_refused(images: Tensor, labels: Tensor, expected: str, got: str) -> None:
    good = IMAGES, LABELS
    with pytest.raises(DataError, match=f"^random, train .*expected .*{expected}.*got .*{got}"):
        measure((images, labels), good)
    with pytest.raises(DataError, match=f"^random, test .*expected .*{expected}.*got .*{got}"):
        measure(good, (images, labels))
    with pytest.raises(DataError, match=f"expected .*{expected}.*got .*{got}"):
        replace(measure(good, good), test_images=images, test_labels=labels)
    with pytest.raises(DataError, match=f"^val, val .*expected .*{expected}.*got .*{got}"):
        ImageData.measure("val", tuple("0123456789"), good, None, (images, labels))


def test_the_hash_tells_a_validation_set_from_a_test_set() -> None:
    train, one, other = random_set(5, seed=1), random_set(4, seed=2), random_set(3, seed=3)
    pairs = [(one, None), (None, one), (one, other), (other, one), (other, None)]
    classes = tuple("0123456789")
    hashes = [ImageData.measure("x", classes, train, test, val).sha256 for test, val in pairs]
    assert len(set(hashes)) == 5


def test_training_images_alone_are_refused() -> None:
    with pytest.raises(DataError, match="neither a test set nor a validation set"):
        ImageData.measure("alone", tuple("0123456789"), (IMAGES, LABELS), None)


def test_the_counts_are_those_of_the_splits() -> None:
    data = ImageData.measure("x", tuple("0123456789"), random_set(5, 1), None, random_set(2, 2))
    assert data.counts == {"train": 5, "val": 2, "test": 0}


def test_data_cannot_be_swapped_under_its_hash() -> None:
    data = measure((IMAGES, LABELS), (IMAGES, LABELS))
    with pytest.raises(FrozenInstanceError):
        data.train_images = IMAGES  # type: ignore[misc]


def test_an_error_is_one_line() -> None:
    assert str(DataError("a\nb.png: not an image\r\nat all")) == "a b.png: not an image at all"


def test_held_out_images_are_a_stratified_partition_that_the_seed_alone_decides():
    labels = torch.arange(300) % 3
    images = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(300) // 256, torch.arange(300) % 256
    test = (images[:3], labels[:3])
    data = ImageData.measure("numbered", ("a", "b", "c"), (images, labels), test)

    def numbers(rows):
        images = rows[:]
        return (256 * images[:, 0, 0, 0].int() + images[:, 0, 0, 1]).tolist()

    rest = data.hold_out(0.1, seed=1)
    held_images, held_labels = rest.splits["val"]
    assert held_labels.bincount().tolist() == [10, 10, 10]
    assert sorted(numbers(held_images) + numbers(rest.train_images)) == list(range(300))
    assert held_labels.tolist() == [number % 3 for number in numbers(held_images)]
    assert rest.train_labels.tolist() == [number % 3 for number in numbers(rest.train_images)]
    assert rest.train_images.images.data_ptr() == images.data_ptr()  # nothing is copied
    assert rest.mean[0] == pytest.approx(rest.train_images[:][:, 0].double().mean().item() / 255)
    assert numbers(data.hold_out(0.1, seed=1).val_images) == numbers(held_images)
    assert numbers(data.hold_out(0.1, seed=2).val_images) != numbers(held_images)
    with pytest.raises(DataError, match="30 validation images judge the epochs already: leave out"):
        rest.hold_out(0.1, seed=1)


def test_a_share_that_leaves_a_class_without_images_is_refused():
    images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 0, 1])
    data = ImageData.measure("few", ("a", "b"), (images, labels), (images, labels))
    with pytest.raises(DataError, match="few: val_fraction 0.5"):
        data.hold_out(0.5, seed=1)


def test_all_splits_have_one_size() -> None:
    small = IMAGES[..., :31, :31], LABELS
    with pytest.raises(DataError, match="train and test images differ in size: 32 and 31 pixels"):
        measure((IMAGES, LABELS), small)


@pytest.mark.parametrize("size", [8, 31, 33, 64, 100])
def test_resized_is_pillows_bilinear_filter(size: int) -> None:
    data = measure((IMAGES, LABELS), (IMAGES, LABELS))
    resized = data.resized(size)
    for tensor, pixels in zip(IMAGES, resized.train_images, strict=True):
        picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(expected.transpose(2, 0, 1) - pixels.numpy().astype(int)).max() <= 1
    assert resized.sha256 != data.sha256
    assert data.resized(32) is data
