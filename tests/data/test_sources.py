"""`load`: every spec, and a CIFAR download in fair and foul weather."""

import hashlib
import io
import os
import pickle
import re
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from ultimus_ignite.data import cifar
from ultimus_ignite.data.sources import DataError, check, count_classes, load

# digits


def unreachable(*args: object, **kwargs: object) -> None:
    raise OSError("Network is unreachable")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", unreachable)


@pytest.mark.usefixtures("no_network")
def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    data = load("digits", tmp_path / "never made")
    assert data.name == "digits"
    assert data.classes == tuple("0123456789")
    assert not (tmp_path / "never made").exists()

    images = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels])
    blocks = images.reshape(-1, 3, 8, 4, 8, 4).permute(0, 2, 4, 1, 3, 5).flatten(3)
    assert (blocks == blocks[..., :1]).all()  # 3 channels x 4 x 4 pixels of one value

    pixels, targets = load_digits(return_X_y=True)
    expected = sorted((*row, target) for row, target in zip(pixels, targets, strict=True))
    found = np.rint(blocks[..., 0].flatten(1).numpy() / 255 * 16)
    assert sorted((*row, int(label)) for row, label in zip(found, labels, strict=True)) == expected
    assert images.max() == 255


def test_digits_keep_one_stratified_split() -> None:
    one, other = load("digits", "unused"), load("digits", "unused")
    assert one.sha256 == other.sha256
    assert (len(one.train_labels), len(one.test_labels)) == (1437, 360)
    in_test, in_train = one.test_labels.bincount(), one.train_labels.bincount()
    share = (in_test + in_train) * 360 / 1797
    assert (in_test - share).abs().max() <= 1


# folder: and what is no spec


def test_a_folder_is_found_from_home_and_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("train/a", "test/a", "train/b", "test/b"):
        (tmp_path / "set" / place).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / "set" / place / "red.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    specs = [f"folder:{tmp_path}/set", "folder:~/set", "folder:set"]
    names = {load(spec, data_dir).name for spec in specs for data_dir in ("~/data", Path("data"))}
    assert names == {f"folder:{tmp_path}/set"}
    assert len(list((tmp_path / "data" / "cache").iterdir())) == 1


@pytest.mark.parametrize("spec", ["", "mnist", "CIFAR10", " digits", "folder:", "folder", "a\nb"])
def test_an_unknown_spec_lists_the_choices(tmp_path: Path, spec: str) -> None:
    choices = "cifar10, cifar100, digits, folder:DIR, auto"
    message = f"^data must be one of {choices}, got {re.escape(repr(spec))}(: did you mean .*)?$"
    with pytest.raises(DataError, match=message):
        load(spec, tmp_path)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("digit", "digits"),
        ("photos", "folder:photos"),
        ("Folder:photos", "folder:photos"),
        ("folder:", "folder:DIR"),
    ],
)
def test_a_misspelt_spec_is_told_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, meant: str
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf": did you mean {meant}\?$"):
        check(spec)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("missing", "file", "file/below", "a" * 300, "nul\0", "latin-\udcff"):
        with pytest.raises(DataError, match=re.escape(repr(path)[1:-1])):
            check(f"folder:{tmp_path}/{path}")


def test_the_numbers_of_classes_are_those_of_the_data(tmp_path: Path) -> None:
    assert count_classes("digits") == len(load("digits", tmp_path).classes)
    for place in ("train/a", "test/a", "train/b", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "red.png").touch()  # no image is opened
    assert count_classes(f"folder:{tmp_path}") == 2
    assert {name: count_classes(name) for name in ("cifar10", "cifar100", "auto")} == {
        "cifar10": 10, "cifar100": 100, "auto": 10,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", ["folder", "data_dir"])
def test_a_path_that_is_no_text_is_refused(tmp_path: Path, wrong: str) -> None:
    paths = {"folder": "images", "data_dir": "cache"} | {wrong: "d\udcff"}
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"d\\+udcff'?: not UTF-8: rename it"):
        load(f"folder:{tmp_path / paths['folder']}", tmp_path / paths["data_dir"])


def test_a_home_that_is_nobodys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^~nobody-at-all/images: "):
        load("folder:~nobody-at-all/images", tmp_path)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(spec=st.text(max_size=20) | st.text(max_size=20).map("folder:{}".format))
def test_any_text_is_data_or_a_data_error(
    spec: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.getbasetemp() / "empty"
    empty.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty)
        patch.setattr(socket, "create_connection", unreachable)
        try:
            outcome = load(spec, empty).name  # the text may well be "digits"
        except DataError as error:
            outcome = str(error)
    assert len(outcome.splitlines()) == 1


# CIFAR


class Archive(NamedTuple):
    """A small archive as the real one, and what is in it."""

    dataset: type[CIFAR10]
    content: bytes
    images: dict[str, "np.ndarray[Any, Any]"]
    labels: dict[str, list[int]]
    classes: list[str]


class OldPickler(pickle.Pickler):
    """Writes as Python 2 and its numpy did: the layout of the real files."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), value.__reduce__()[2]
        return NotImplemented


def old_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    OldPickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def small_cifar(dataset: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Build five images a file, and have torchvision expect them."""
    generator = np.random.default_rng(0)
    label_key = "labels" if dataset is CIFAR10 else "fine_labels"
    classes = [f"class {index}" for index in range(10 if dataset is CIFAR10 else 100)]
    files = {dataset.meta["filename"]: old_pickle({dataset.meta["key"]: classes})}
    images, labels = {}, {}
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        images[name] = generator.integers(0, 256, (5, 3072), dtype=np.uint8)
        labels[name] = generator.integers(0, len(classes), 5).tolist()
        files[name] = old_pickle({"data": images[name], label_key: labels[name]})
    content = tar({f"{dataset.base_folder}/{name}": file for name, file in files.items()})

    sums = {name: md5(file) for name, file in files.items()}
    for split in ("train_list", "test_list"):
        patched = [[name, sums[name]] for name, _ in getattr(dataset, split)]
        monkeypatch.setattr(dataset, split, patched)
    meta = dataset.meta | {"md5": sums[dataset.meta["filename"]]}
    monkeypatch.setattr(dataset, "meta", meta)
    monkeypatch.setattr(dataset, "tgz_md5", md5(content))
    return Archive(dataset, content, images, labels, classes)


class Server(ThreadingHTTPServer):
    """Answers every request with ``content``, and promises ``missing`` bytes more than it sends."""

    content: bytes | None = None
    missing = 0
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content) + self.server.missing))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for dataset in (CIFAR10, CIFAR100):
            monkeypatch.setattr(dataset, "url", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Archive:
    return small_cifar(CIFAR10, monkeypatch)


@pytest.mark.parametrize(("spec", "dataset"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_downloaded_once(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    dataset: type[CIFAR10],
) -> None:
    archive = small_cifar(dataset, monkeypatch)
    server.content = archive.content
    data = load(spec, tmp_path / "data")
    assert data.name == spec
    assert data.classes == tuple(archive.classes)
    for names, images, labels in (
        (dataset.train_list, data.train_images, data.train_labels),
        (dataset.test_list, data.test_images, data.test_labels),
    ):
        rows = np.concatenate([archive.images[name] for name, _ in names])
        np.testing.assert_array_equal(images.flatten(1), rows)  # rows are (3, 32, 32), flat
        assert labels.tolist() == [label for name, _ in names for label in archive.labels[name]]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [dataset.base_folder]

    requests = server.requests
    assert load(spec, tmp_path / "data").sha256 == data.sha256
    assert server.requests == requests


def test_auto_takes_cifar10_where_it_can(tmp_path: Path, server: Server, cifar10: Archive) -> None:
    server.content = cifar10.content
    assert load("auto", tmp_path).name == "cifar10"
    server.content = None
    assert load("auto", tmp_path).name == "cifar10"


def test_the_umask_is_honoured(tmp_path: Path, server: Server, cifar10: Archive) -> None:
    server.content = cifar10.content
    previous = os.umask(0o077)
    try:
        load("cifar10", tmp_path)
    finally:
        os.umask(previous)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


@pytest.mark.usefixtures("no_network")
def test_an_archive_put_there_by_hand_is_unpacked_and_kept(
    tmp_path: Path, cifar10: Archive
) -> None:
    archive = tmp_path / CIFAR10.filename
    archive.write_bytes(cifar10.content)
    assert len(load("auto", tmp_path).train_images) == 25
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, CIFAR10.base_folder}
    assert archive.read_bytes() == cifar10.content


def test_what_another_process_unpacked_meanwhile_is_used(
    tmp_path: Path, server: Server, cifar10: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = cifar10.content
    expected = load("cifar10", tmp_path / "other").sha256
    real = cifar._download

    def slow_download(url: str, archive: Path, md5: str) -> None:
        real(url, archive, md5)
        shutil.copytree(tmp_path / "other", tmp_path / "data", dirs_exist_ok=True)

    monkeypatch.setattr(cifar, "_download", slow_download)
    assert load("cifar10", tmp_path / "data").sha256 == expected
    assert [path.name for path in (tmp_path / "data").iterdir()] == [CIFAR10.base_folder]


def assert_unobtainable(data_dir: Path, reason: str) -> None:
    """`cifar10` says why and what to do; `auto` takes the digits; neither leaves anything."""
    advice = f"give --data digits, or put {CIFAR10.filename} into {data_dir}"
    before = socket.getdefaulttimeout()
    with pytest.raises(DataError, match=f"^http://.*{reason}.*: {re.escape(advice)}$"):
        load("cifar10", data_dir)
    assert load("auto", data_dir).name == "digits"
    assert socket.getdefaulttimeout() == before
    assert not list(data_dir.iterdir())


def test_a_missing_page(tmp_path: Path, server: Server) -> None:
    assert_unobtainable(tmp_path, "404")


@pytest.mark.usefixtures("server", "no_network")
def test_no_network(tmp_path: Path) -> None:
    assert_unobtainable(tmp_path, "unreachable")


def test_a_server_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as soon_closed:
        port = soon_closed.getsockname()[1]
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/archive.tar.gz")
    assert_unobtainable(tmp_path, "refused")


def test_a_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tar.gz"
        monkeypatch.setattr(CIFAR10, "url", url)
        assert_unobtainable(tmp_path, "timed out")


def test_a_download_cut_short(tmp_path: Path, server: Server, cifar10: Archive) -> None:
    server.content, server.missing = cifar10.content[:-100], 100
    assert_unobtainable(tmp_path, "cannot be fetched")


def test_a_download_that_is_not_the_archive(tmp_path: Path, server: Server) -> None:
    server.content = b"<html>Please log in to this network</html>"
    assert_unobtainable(tmp_path, "corrupted")


def test_a_data_dir_that_cannot_be_made(tmp_path: Path, server: Server, cifar10: Archive) -> None:
    server.content = cifar10.content
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be fetched .*file"):
        load("cifar10", tmp_path / "file" / "data")
    assert server.requests == 0


class Canary:
    """Unpickled, it makes a folder: harmless, and seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "the canary sang"


def test_a_malicious_download_is_neither_unpacked_nor_unpickled(
    tmp_path: Path, server: Server, cifar10: Archive, canary: Path
) -> None:
    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    files = {f"{CIFAR10.base_folder}/{name}": pickle.dumps(Canary(canary)) for name in names}
    server.content = tar({"../escaped": b"", str(tmp_path / "escaped too"): b"", **files})
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    assert_unobtainable(data_dir, "corrupted")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_even_an_archive_of_the_right_md5_cannot_leave_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar({"../../escaped": b"", f"{CIFAR10.base_folder}/data_batch_1": b""})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / CIFAR10.filename).write_bytes(content)
    with pytest.raises(DataError, match="missing or damaged: data_batch_1"):
        load("cifar10", data_dir)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("spec", ["cifar10", "auto"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["poisoned", "missing", "folder"])
def test_damaged_data_is_refused_unread_and_kept(
    tmp_path: Path,
    server: Server,
    cifar10: Archive,
    canary: Path,
    spec: str,
    name: str,
    damage: str,
) -> None:
    server.content = cifar10.content
    load("cifar10", tmp_path)
    folder = tmp_path / CIFAR10.base_folder
    (folder / name).unlink()
    if damage == "poisoned":
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    elif damage == "folder":
        (folder / name).mkdir()
    kept = sorted(tmp_path.rglob("*"))

    expected = f"^{re.escape(str(folder))}: missing or damaged: {name}; delete the folder"
    with pytest.raises(DataError, match=expected):
        load(spec, tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept
    assert not canary.exists()


@pytest.mark.parametrize("spec", ["cifar10", "auto"])
def test_a_damaged_archive_is_refused_and_kept(
    tmp_path: Path, server: Server, cifar10: Archive, spec: str
) -> None:
    server.content = cifar10.content
    archive = tmp_path / CIFAR10.filename
    archive.write_bytes(cifar10.content[:-1])
    with pytest.raises(DataError, match=f"^{re.escape(str(archive))}: expected md5 .*delete it"):
        load(spec, tmp_path)
    assert archive.read_bytes() == cifar10.content[:-1]
    assert not (tmp_path / CIFAR10.base_folder).exists()


def test_labels_beyond_the_classes_are_refused(
    tmp_path: Path, server: Server, cifar10: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = cifar10.content
    load("cifar10", tmp_path)
    few = old_pickle({"label_names": ["cat", "dog"]})
    (tmp_path / CIFAR10.base_folder / "batches.meta").write_bytes(few)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(few)})
    with pytest.raises(DataError, match="^cifar10, train labels: expected 0 to 1, got "):
        load("cifar10", tmp_path)
