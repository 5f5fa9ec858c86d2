"""Event files that are cut or damaged anywhere, against a reader of the test's own."""

import os
import random
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard_reader import points, records, times_written
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from ultimus_ignite.lifecycle.tensorboard import EpochEvents

RNG = random.Random(0)
ROWS = [
    {"epoch": e, "iteration": 3 * e, "lr": RNG.random(), "train_loss": RNG.random(),
     "test_accuracy": RNG.random(), "test_loss": None, "seconds": RNG.random()}
    for e in range(1, 7)
]  # fmt: skip
TAGS = ["lr", "train_loss", "test_accuracy", "seconds"]


def expected(rows):
    """Every value once, in TensorBoard's 32 bits."""
    return sorted(
        (f"epoch/{tag}", row["epoch"], struct.unpack("f", struct.pack("f", row[tag]))[0])
        for row in rows
        for tag in TAGS
    )


def write(folder, *histories):
    """Write a history after each epoch, as one process does."""
    with EpochEvents(folder) as events:
        for rows in histories:
            events.write(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one event file of five epochs."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, *(ROWS[:n] for n in range(1, 6)))
    return folder


def test_each_epoch_is_on_disk_when_it_is_written(tmp_path):
    with EpochEvents(tmp_path) as events:
        for n in range(1, 6):
            events.write(ROWS[:n])
            assert sorted(points(tmp_path)) == expected(ROWS[:n])


def test_every_value_of_an_epoch_is_in_one_record(whole):
    (path,) = whole.iterdir()
    assert len([*records(path)]) == 1 + 5  # the first one has the version of the format


@settings(deadline=None)
@given(data=st.data())
def test_cut_anywhere_every_epoch_is_there_once_after_the_resume(whole, tmp_path_factory, data):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("cut") / "run")
    (path,) = folder.iterdir()
    content, ends = path.read_bytes(), [end for _, end in records(path)]
    boundary = st.sampled_from([0, *ends])
    path.write_bytes(content[: data.draw(boundary | st.integers(0, len(content)), "kept")])
    checkpoint = data.draw(st.integers(0, 5), "epochs in the checkpoint")
    write(folder, ROWS[:checkpoint], *(ROWS[:n] for n in range(checkpoint + 1, 7)))
    assert sorted(points(folder)) == expected(ROWS)


@settings(deadline=None)
@given(data=st.data())
def test_a_flipped_bit_costs_no_epoch(whole, tmp_path_factory, data):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("flipped") / "run")
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    write(folder, ROWS)
    assert sorted(points(folder)) == expected(ROWS)


def test_killed_again_and_again_within_a_second(tmp_path):
    for n in range(7):
        write(tmp_path, ROWS[:n])
        write(tmp_path, ROWS[:n])
    assert sorted(points(tmp_path)) == expected(ROWS)


def test_what_a_summary_writer_wrote_before_is_not_written_again(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for tag in TAGS[:2]:
            writer.add_scalar(f"epoch/{tag}", ROWS[0][tag], 1)
    write(tmp_path, ROWS[:2])
    assert sorted(points(tmp_path)) == expected(ROWS[:2])


def test_no_file_is_made_for_nothing(whole, tmp_path):
    write(tmp_path, [])
    folder = shutil.copytree(whole, tmp_path / "run")
    write(folder, ROWS[:5])
    assert len([*folder.iterdir()]) == 1


def test_a_full_disk_warns_and_the_next_epoch_makes_up_for_it(tmp_path, monkeypatch):
    def full(descriptor):
        os.ftruncate(descriptor, RNG.randrange(os.fstat(descriptor).st_size))
        raise OSError(28, "No space left on device")

    with EpochEvents(tmp_path) as events:
        events.write(ROWS[:1])
        for n in (2, 3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.warns(UserWarning, match="no TensorBoard events: No space left"):
                    events.write(ROWS[:n])
        events.write(ROWS[:4])
    assert sorted(points(tmp_path)) == expected(ROWS[:4])


RECIPE = {"model": "Net", "model_args": {"width": 8}, "max_lr": 0.5, "flip": True, "init": None}
RESULT = {"test_accuracy": RNG.random(), "test_loss": RNG.random()}


def write_result(folder, epoch):
    folder.mkdir(exist_ok=True)
    with EpochEvents(folder) as events:
        events.write_result(RECIPE, RESULT, epoch=epoch)


def recipes(folder):
    """The recipe in each record that has one, as TensorBoard's HParams tab reads it."""
    for path in folder.iterdir():
        for content, _ in records(path):
            for value in Event.FromString(content).summary.value:
                if value.tag == "_hparams_/session_start_info":
                    content = value.metadata.plugin_data.content
                    fields = HParamsPluginData.FromString(content).session_start_info.hparams
                    yield {k: getattr(v, v.WhichOneof("kind")) for k, v in fields.items()}


def test_the_result_is_there_once_however_often_it_is_written(tmp_path):
    write(tmp_path, ROWS[:5])
    for _ in range(3):
        write_result(tmp_path, 5)
    assert [*recipes(tmp_path)] == [
        {"model": "Net", "model_args": '{"width": 8}', "max_lr": 0.5, "flip": True}
    ]
    final = {tag: value for tag, _, value in points(tmp_path) if tag.startswith("final/")}
    assert final == {f"final/{name}": pytest.approx(RESULT[name]) for name in RESULT}
    assert set(times_written(tmp_path).values()) == {1}


def test_the_result_is_there_once_after_a_kill_while_it_is_written(tmp_path):
    write_result(tmp_path / "whole", 5)
    (path,) = (tmp_path / "whole").iterdir()
    for kept in range(0, path.stat().st_size, 7):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"cut-{kept}")
        os.truncate(folder / path.name, kept)
        write_result(folder, 5)
        assert len([*recipes(folder)]) == 1
        assert set(times_written(folder).values()) == {1}


def test_more_epochs_have_a_result_of_their_own(tmp_path):
    write_result(tmp_path, 2)
    write_result(tmp_path, 4)
    assert {step for _, step, _ in points(tmp_path)} == {2, 4}


def test_the_reader_of_the_test_counts_twice_what_is_there_twice(whole, tmp_path):
    (path,) = whole.iterdir()
    for name in ("a.tfevents", "b.tfevents"):
        shutil.copy(path, tmp_path / name)
    assert set(times_written(tmp_path).values()) == {2}
