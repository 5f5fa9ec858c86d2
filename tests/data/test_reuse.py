"""Images that are known are not decoded again, and nothing else changes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data.pictures import Pixels, blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultimus_ignite.data import decoder_processes
from ultimus_ignite.data.decoded_files import DecodedFiles, map_pixels, name_of
from ultimus_ignite.data.decoder_processes import decode_here
from ultimus_ignite.data.marks import mark_files
from ultimus_ignite.data.pixels import UnreadableError, read_pixels
from ultimus_ignite.data.reuse import decode_changed


@settings(max_examples=40, deadline=None)
@given(
    states=st.lists(st.sampled_from(["same", "changed", "new", "bad"]), max_size=8),
    num_present=st.integers(0, 8),
)
def test_it_gives_what_decoding_everything_gives(
    tmp_path_factory: pytest.TempPathFactory, states: list[str], num_present: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths = [str(folder / f"{index}.png") for index in range(len(states))]
    for seed, path in enumerate(paths):
        Image.fromarray(blocks(seed)).save(path)
    before = [p for p, state in zip(paths, states, strict=True) if state in ("same", "changed")]
    before_marks, before_pixels = mark_files(before[::-1]), decode_here(before[::-1], 32)
    known = before_marks, torch.from_numpy(np.array(before_pixels, np.uint8).reshape(-1, 3, 32, 32))
    for seed, (path, state) in enumerate(zip(paths, states, strict=True)):
        if state == "changed":
            Image.fromarray(blocks(seed + 100)).save(path, compress_level=1)
            os.utime(path, ns=(seed, seed))
        elif state == "bad":
            Path(path).write_bytes(b"")

    decoded: list[str] = []

    def record(path: str, size: int) -> Pixels:
        decoded.append(path)
        return read_pixels(path, size)

    marks, expected = mark_files(paths), decode_here(paths, 32)
    is_readable = [not isinstance(pixels, UnreadableError) for pixels in expected]
    with DecodedFiles(folder, marks, 32) as files:
        for row, pixels in enumerate(expected[:num_present]):
            if not isinstance(pixels, UnreadableError):
                files.store(row, pixels)
    with DecodedFiles(folder, marks, 32) as files, pytest.MonkeyPatch.context() as patch:
        is_present = [readable and row < num_present for row, readable in enumerate(is_readable)]
        assert files.present.tolist() == is_present
        patch.setattr(decoder_processes, "read_pixels", record)
        is_image = decode_changed(paths, 32, files, [known], skip_unreadable=True)
    wanted = [path for path, there in zip(paths, is_present, strict=True) if not there]
    assert decoded == [path for path in wanted if states[paths.index(path)] != "same"]
    assert is_image.tolist() == is_readable
    images = map_pixels(folder, name_of(marks), len(marks), 32)
    for image, pixels in zip(images, expected, strict=True):
        if not isinstance(pixels, UnreadableError):
            np.testing.assert_array_equal(image.numpy(), pixels)
