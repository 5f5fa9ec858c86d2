"""Images that are known are not decoded again, and nothing else changes."""

import os
from pathlib import Path

import numpy as np
import pytest
from data.pictures import blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultimus_ignite.data.decoding import decode
from ultimus_ignite.data.reuse import decode_changed, mark_files


@settings(max_examples=40, deadline=None)
@given(states=st.lists(st.sampled_from(["same", "changed", "new", "bad"]), max_size=8))
def test_it_gives_what_decoding_everything_gives(
    tmp_path_factory: pytest.TempPathFactory, states: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths = [str(folder / f"{index}.png") for index in range(len(states))]
    for seed, path in enumerate(paths):
        Image.fromarray(blocks(seed)).save(path)
    before = [p for p, state in zip(paths, states, strict=True) if state in ("same", "changed")]
    known = mark_files(before[::-1]), decode(before[::-1], 32)[0]
    for seed, (path, state) in enumerate(zip(paths, states, strict=True)):
        if state == "changed":
            Image.fromarray(blocks(seed + 100)).save(path, compress_level=1)
            os.utime(path, ns=(seed, seed))
        elif state == "bad":
            Path(path).write_bytes(b"")

    images, kept = decode_changed(paths, mark_files(paths), 32, known, skip_unreadable=True)
    expected, expected_kept = decode(paths, 32, skip_unreadable=True)
    assert (images == expected).all()
    assert images.shape == expected.shape
    np.testing.assert_array_equal(kept, expected_kept)


def test_a_missing_file_has_no_mark(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mark_files([str(tmp_path / "missing")])
