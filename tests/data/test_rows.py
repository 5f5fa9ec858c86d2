"""`Rows` gives what indexing gives, and copies nothing until it is asked."""

import ctypes
import mmap
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ultimus_ignite.data.rows import Rows, pieces, select

IMAGES = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator())
ROWS = st.lists(st.integers(0, 19), min_size=1, max_size=30).map(torch.tensor)


@given(rows=ROWS, start=st.integers(0, 30), stop=st.integers(0, 30), data=st.data())
def test_it_gives_what_indexing_gives(
    rows: torch.Tensor, start: int, stop: int, data: st.DataObject
) -> None:
    some, copy = Rows(IMAGES, rows), IMAGES[rows]
    assert (some.shape, some.dtype, some.device, len(some)) == (
        copy.shape,
        copy.dtype,
        copy.device,
        len(copy),
    )
    assert torch.equal(some[start:stop], copy[start:stop])
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1))), dtype=torch.int64)
    for images in (some, copy):
        assert torch.equal(select(images, index), copy.index_select(0, index))


@given(rows=ROWS)
def test_the_kernel_is_told_which_images_of_a_large_tensor_will_be_read(rows: torch.Tensor) -> None:
    told: list[tuple[int, int]] = []

    def madvise(address: int, length: int, advice: int) -> int:
        assert address % mmap.PAGESIZE == 0
        assert advice == mmap.MADV_WILLNEED
        told.append((address, address + length))
        return -1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(madvise=madvise))
        select(IMAGES, rows)
        assert not told
        patch.setattr("ultimus_ignite.data.rows._LARGE", 0)
        for images in (IMAGES, Rows(IMAGES, torch.arange(20))):
            assert torch.equal(select(images, rows), IMAGES[rows])
            wanted = [IMAGES[row].data_ptr() for row in rows.tolist()]
            assert [end - IMAGES[0].nbytes for _, end in told] == wanted
            assert all(s <= at < s + mmap.PAGESIZE for (s, _), at in zip(told, wanted, strict=True))
            told.clear()


def test_what_is_told_to_the_real_kernel_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultimus_ignite.data.rows._LARGE", 0)
    rows = torch.arange(19, -1, -1)
    assert torch.equal(select(IMAGES, rows), IMAGES[rows])


def test_on_its_own_device_nothing_is_copied() -> None:
    some = Rows(IMAGES, torch.tensor([3, 1]))
    assert some.to(torch.device("cpu")) is some


def test_only_what_is_meant_goes_to_another_device() -> None:
    moved = Rows(IMAGES, torch.tensor([3, 1])).to(torch.device("meta"))
    assert isinstance(moved, torch.Tensor)
    assert (moved.shape, moved.device.type) == ((2, 3, 4, 4), "meta")


@pytest.mark.parametrize("limit", [1, 48, 100, 500, 10**6])
def test_pieces_are_bounded_and_leave_out_nothing(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("ultimus_ignite.data.rows._PIECE", limit)
    for images in (IMAGES, Rows(IMAGES, torch.arange(19, -1, -1)), torch.arange(77)):
        parts = list(pieces(images))
        assert torch.equal(torch.cat(parts), images[:])
        assert all(part.numel() <= limit or len(part) == 1 for part in parts)
