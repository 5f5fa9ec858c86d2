"""What must hold whatever happens: a handler that raises, no memory, odd data, a long run."""

import contextlib
import dataclasses
import errno
import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events

import ultimus_ignite.training as module
from ultimus_ignite import cli
from ultimus_ignite.commands.arguments import parse_recipe
from ultimus_ignite.commands.train import TrainArguments
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.errors import UserError
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.run_directory import RunDirectory

RECIPE = Recipe(data="digits", epochs=2, batch_size=8, device="cpu")


def images(n, classes=3):
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(n) % classes


@pytest.fixture
def use_images(monkeypatch):
    def use(train=20, test=7):
        data = ImageData.measure("random", ("a", "b", "c"), images(train), images(test))
        monkeypatch.setattr("ultimus_ignite.build.load", lambda *spec, **options: data)

    use()
    return use


def train(path, recipe=RECIPE):
    return module.train(recipe, out=path).history


def open_files():
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists this very folder
            targets.append(str(link.readlink()))
    return targets


@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        Events.EPOCH_STARTED,
        Events.GET_BATCH_STARTED,
        Events.GET_BATCH_COMPLETED,
        Events.ITERATION_STARTED,
        Events.ITERATION_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.COMPLETED,
    ],
)
def test_a_handler_that_raises_ends_the_run_with_its_own_error(
    tmp_path, monkeypatch, use_images, event
):
    iterations = []

    class OwnError(Exception):
        pass

    def fail():
        iterations.append("failed")
        raise OwnError

    def build(recipe, **options):
        parts = real(recipe, **options)
        trainer = parts.trainer
        trainer.logger.disabled = True
        trainer.add_event_handler(event, fail)
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: iterations.append(engine.state.iteration)
        )
        return parts

    real = module.build
    monkeypatch.setattr(module, "build", build)
    with pytest.raises(OwnError):
        train(tmp_path / "run")
    assert iterations.count("failed") == 1
    assert iterations[-1] == "failed"
    assert RunDirectory(tmp_path / "run").read_status()["status"] == "failed"
    assert not [name for name in open_files() if name.startswith(str(tmp_path))]


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_no_memory_gives_advice_and_keeps_what_is_saved(
    tmp_path, monkeypatch, capsys, use_images, message
):
    error = message if isinstance(message, Exception) else RuntimeError(message)

    def build(recipe, **options):
        def step(engine, batch):
            if engine.state.iteration == 5:
                raise error
            return update(engine, batch)

        parts = real(recipe, **options)
        update = parts.trainer._process_function
        return dataclasses.replace(parts, trainer=Engine(step))

    real = module.build
    monkeypatch.setattr(module, "build", build)
    code = cli.call(lambda prog, argv: train(tmp_path / "run") and None, "train-cifar", [])
    assert code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("train-cifar: out of memory: lower --batch-size")
    assert errors.count("\n") == 1
    state = torch.load(tmp_path / "run/checkpoints/ckpt-000000003.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 3


def test_a_disk_that_stays_full_is_one_line_and_a_bad_end(
    tmp_path, monkeypatch, capsys, use_images
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def command(prog, argv):
        with RunDirectory(tmp_path / "run").open() as directory:
            write_status = directory._write_status

            def write_then_fill(*arguments):
                write_status(*arguments)
                monkeypatch.setattr(os, "fsync", full)

            monkeypatch.setattr(directory, "_write_status", write_then_fill)
            module.run(module.build(RECIPE), directory)

    with pytest.warns(UserWarning, match="No space left"):
        code = cli.call(command, "train-cifar", [])
    assert code == 1
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("train_images", "test_images", "batch_size"),
    [(20, 7, 8), (20, 7, 1), (5, 3, 512), (1, 1, 1), (16, 8, 8), (9, 513, 4)],
)
def test_any_size_is_seen_exactly_once(
    tmp_path, use_images, capsys, train_images, test_images, batch_size
):
    use_images(train_images, test_images)
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size, max_lr=1e-4)
    history = train(tmp_path / "run", recipe)
    assert history.rows[-1]["iteration"] == 2 * -(-train_images // batch_size)
    assert f"/{test_images} (" in capsys.readouterr().out
    correct = history.rows[-1]["test_accuracy"] * test_images
    assert correct == pytest.approx(round(correct))


FLAGS = [field.name.replace("_", "-") for field in dataclasses.fields(Recipe)]
FLAGS += ["recipe", "out", "resume", "debug", "nope"]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(
    st.sampled_from(FLAGS) | st.text(max_size=5),
    st.sampled_from(["1", "0", "-1", "nan", "inf", "1e400", "", "None", "classic"]) | st.text(),
), max_size=3))  # fmt: skip
def test_any_command_line_is_parsed_or_refused_in_one_line(pairs):
    argv = [word for flag, value in pairs for word in (f"--{flag}", value)]
    try:
        arguments = parse_recipe(TrainArguments, "train-cifar", argv)
        assert isinstance(arguments, TrainArguments)
    except UserError:
        pass
    except SystemExit as end:  # --help, wherever it stands
        asked_for_help = end.code == 0
        assert asked_for_help


def test_five_thousand_steps_and_two_hundred_saves_leak_nothing(tmp_path):
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.Adam([weight], fused=True)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = weight.square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "correct": torch.tensor(1), "count": 2}

    trainer = Engine(update)
    OneCycleScheduler(optimizer, max_lr=1e-3).attach(trainer)
    NonFiniteGuard(optimizer, max_loss_ratio=10.0).attach(trainer)
    with Path(os.devnull).open("w") as nowhere:
        BatchLogger(optimizer, file=nowhere).attach(trainer)
        history = History(optimizer, path=tmp_path / "history.csv").attach(trainer)
        to_save = {"trainer": trainer, "history": history}
        Checkpointer(to_save, directory=tmp_path / "checkpoints", every=25).attach(trainer)
        measured = []

        @trainer.on(Events.ITERATION_COMPLETED(every=1000))
        def measure():
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(list(tmp_path.rglob("*")))
            measured.append((pages * os.sysconf("SC_PAGE_SIZE"), len(open_files()), files))

        trainer.run(range(500), max_epochs=10)
    memory, descriptors, files = zip(*measured, strict=True)
    # The history itself grows: two floats an iteration, and their copies in a checkpoint.
    assert memory[-1] - memory[1] < 4 * 2**20
    assert len(set(descriptors)) == 1
    assert len(set(files)) == 1
