"""Where images are kept; what CUDA would say of its memory is made up."""

import dataclasses

import pytest
import torch

from ultimus_ignite.batches import create_batches
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.placement import explain_if_too_large, send
from ultimus_ignite.recipe import Recipe

IMAGES = torch.zeros(1000, 3, 100, 100, dtype=torch.uint8)  # 30 MB


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (60_000_000, True), (59_999_999, False)])
def test_images_may_take_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    line = explain_if_too_large([IMAGES[:900], IMAGES[900:]], torch.device("cuda", 0))
    assert (line == "") == fits
    assert fits or line == (
        "images: 0.0 GB stay in host memory, 0.1 GB are free on cuda:0; batches go through "
        "pinned memory"
    )


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    assert explain_if_too_large([IMAGES], torch.device(device)) == ""


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_images_that_stay_give_batches_on_the_device(
    monkeypatch: pytest.MonkeyPatch, val_fraction: float
) -> None:
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator())
    labels = torch.arange(40) % 2
    data = ImageData.measure("random", ("a", "b"), (images, labels), (images[:9], labels[:9]))
    recipe = dataclasses.replace(Recipe(), batch_size=7, val_fraction=val_fraction, flip=0.5)
    monkeypatch.setattr("ultimus_ignite.batches.explain_if_too_large", lambda *_: "they stay")
    stream, test, evaluated = create_batches(recipe, data, torch.device("meta"))
    assert stream.note == "they stay"
    batches = [stream.batch(0)[:2], *(test or evaluated).batches, *evaluated.batches]
    assert {tensor.device.type for batch in batches for tensor in batch} == {"meta"}
    for kept in (stream, evaluated.batches):
        assert {kept.images.device.type, kept.labels.device.type} == {"cpu"}


def test_only_what_goes_from_host_to_cuda_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    sent: list[tuple[object, ...]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        sent.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = torch.arange(3)
    assert send(batch, torch.device("cuda")) is batch
    assert (len(pinned), sent) == (1, [("cuda", True)])
    send(batch, torch.device("cpu"))
    assert len(pinned) == 1
