"""`train` in a user's own script: own model, data, optimizer and handlers, killed and resumed."""

import dataclasses
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from ignite.engine import Events
from ignite.metrics import ConfusionMatrix
from torch import nn

import ultimus_ignite
from ultimus_ignite import ImageData, Recipe, train
from ultimus_ignite.errors import UserError
from ultimus_ignite.handlers import CheckpointError, CheckpointStore
from ultimus_ignite.modules import UltimusBlock
from ultimus_ignite.run_directory import RunDirectory

SIZE = 12
RECIPE = Recipe(epochs=3, batch_size=16, device="cpu", max_lr=0.01, checkpoint_every=2)


class Net(nn.Module):
    """Tied weights, weights in channels-last order, dropout, a block, and other saved state."""

    def __init__(self, width=8):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, bias=False).to(memory_format=torch.channels_last)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.block = UltimusBlock(width, 4)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(width, 4)
        self.images = 0

    def forward(self, images):
        if self.training:
            self.images += len(images)
        x = self.convolution(images).mean((2, 3))
        x = self.block(self.second(self.dropout(self.first(x).relu())))
        return self.classifier(x)

    def get_extra_state(self):
        return {"images": self.images}

    def set_extra_state(self, state):
        self.images = state["images"]


@pytest.fixture(scope="module")
def data():
    """Four classes of random pictures that differ in colour."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (70, 20):
        labels = torch.randint(4, (count,), generator=generator)
        noise = torch.randint(100, (count, 3, SIZE, SIZE), generator=generator)
        colours = torch.tensor([[150, 0, 0], [0, 150, 0], [0, 0, 150], [90, 90, 0]])[labels]
        splits.append(((noise + colours[:, :, None, None]).byte(), labels))
    return ImageData.measure("colours", ("red", "green", "blue", "brown"), *splits)


def parts_of_a_script(**options):
    torch.manual_seed(1)
    net = Net(**options)
    return {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=1, momentum=0.9)}


def test_a_script_that_is_killed_anywhere_ends_as_if_it_was_not(tmp_path, data):
    whole = train(RECIPE, out=tmp_path / "whole", data=data, **parts_of_a_script())

    def killed_at(iteration):
        def kill():
            raise KeyboardInterrupt

        def configure(trainer, evaluator):
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), kill)

        return configure

    for iteration in (1, 4, 5, 9, 14):
        with pytest.raises(KeyboardInterrupt):
            train(
                RECIPE,
                out=tmp_path / "killed",
                data=data,
                resume=True,
                configure=killed_at(iteration),
                **parts_of_a_script(),
            )
    run = train(RECIPE, out=tmp_path / "killed", data=data, resume=True, **parts_of_a_script())
    assert run.directory.model.read_bytes() == whole.directory.model.read_bytes()
    assert run.history.rates == whole.history.rates
    assert run.parts.model.images == whole.parts.model.images
    states = [CheckpointStore(r.directory.checkpoints).load_newest()[1] for r in (run, whole)]
    momenta = [
        [buffer["momentum_buffer"] for buffer in state["optimizer"]["state"].values()]
        for state in states
    ]
    assert momenta[0]
    assert all(map(torch.equal, *momenta))


def test_a_configured_handler_sees_every_event_and_its_metrics_are_logged(tmp_path, data):
    calls, matrices = [], []

    def configure(trainer, evaluator):
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: calls.append(engine.state.epoch)
        )
        matrix = ConfusionMatrix(4)
        matrix.attach(evaluator, "matrix")
        evaluator.add_event_handler(
            Events.COMPLETED, lambda engine: matrices.append(engine.state.metrics["matrix"])
        )

    run = train(RECIPE, out=tmp_path, data=data, configure=configure, **parts_of_a_script())
    assert calls == [1, 2, 3]
    accuracies = [row["test_accuracy"] for row in run.history.rows]
    assert accuracies == [matrix.diag().sum() / matrix.sum() for matrix in matrices]
    assert run.checkpointer.load_best()[1]["history"]["rows"]
    assert run.scheduler.simulate(15).rates[7][0] == run.history.rates[7]


def test_the_final_weights_load_into_the_model(tmp_path, data):
    run = train(RECIPE, out=tmp_path, data=data, **parts_of_a_script())
    weights = safetensors.torch.load_file(run.directory.model)
    own = {k: v for k, v in run.parts.model.state_dict().items() if isinstance(v, torch.Tensor)}
    assert weights.keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in weights.items())


def test_the_folder_says_what_was_trained(tmp_path, data):
    run = train(RECIPE, out=tmp_path, data=data, **parts_of_a_script())
    description = json.loads(run.directory.description.read_text())
    assert description["recipe"]["model"] == f"{__name__}:Net"
    assert description["recipe"]["image_size"] == SIZE
    assert description["data"]["name"] == "colours"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, r"model\.first\.weight: \(8, 8\) -> \(9, 9\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(432, 4))}, "model: .*Net -> .*Sequential"),
    ],
)
def test_another_model_is_refused_in_one_line(tmp_path, data, options, message):
    train(RECIPE, out=tmp_path, data=data, **parts_of_a_script())
    script = {"model": options["model"]} if "model" in options else parts_of_a_script(**options)
    with pytest.raises(CheckpointError, match=message) as caught:
        train(RECIPE, out=tmp_path, data=data, resume=True, **script)
    assert "\n" not in str(caught.value)


def test_other_arguments_of_a_named_model_are_refused(tmp_path, data):
    recipe = dataclasses.replace(
        RECIPE, model="UltimusTokenNet", model_args={"key_dim": 4}, crop_padding=0
    )
    other = dataclasses.replace(recipe, model_args={"key_dim": 6})
    images = torch.nn.functional.interpolate(data.train_images, 16)
    data = ImageData.measure("colours", data.classes, *[(images, data.train_labels)] * 2)
    train(recipe, out=tmp_path, data=data)
    with pytest.raises(CheckpointError, match=r"model_args: \{'key_dim': 4\} -> \{'key_dim': 6\}"):
        train(other, out=tmp_path, data=data, resume=True)


def test_a_file_may_move_between_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = "from torch import nn\ndef net(num_classes):\n"
    source += "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    (tmp_path / "net.py").write_text(source)
    recipe = Recipe(data="digits", epochs=2, device="cpu", model="net.py:net")
    train(recipe, out="run")
    (tmp_path / "inner").mkdir()
    (tmp_path / "net.py").rename(tmp_path / "inner" / "net.py")
    moved = dataclasses.replace(recipe, model="inner/net.py:net")
    train(moved, out="run", resume=True)
    assert RunDirectory("run").read_status()["status"] == "finished"


def test_the_package_itself_does_not_load_torch():
    code = (
        "import sys, ultimus_ignite; assert 'torch' not in sys.modules; print(ultimus_ignite.train)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("<function train")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ultimus_ignite.nothing  # noqa: B018


@pytest.fixture(scope="module")
def validated(data):
    """The same, with a validation set that is not like the training images."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (20,), generator=generator)
    images = torch.randint(256, (20, 3, SIZE, SIZE), generator=generator).byte()
    splits = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    return ImageData.measure("colours", data.classes, *splits, (images, labels))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager")])
def test_a_run_with_validation_ends_with_its_best_weights_also_when_it_was_finished(
    tmp_path, validated, wrap
):
    recipe = dataclasses.replace(RECIPE, epochs=4, max_lr=0.3)
    for resume in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        run = train(recipe, out=tmp_path, data=validated, model=wrap(net), resume=resume)
        iteration, best = run.checkpointer.load_best()
        assert iteration < run.parts.trainer.state.iteration  # else this shows nothing
        for key, value in safetensors.torch.load_file(run.directory.model).items():
            assert torch.equal(value, best["model"][key])
            assert torch.equal(value, net.state_dict()[key])


def ending(event):
    def configure(trainer, evaluator):
        trainer.add_event_handler(event, trainer.terminate)

    return configure


def test_a_handler_may_end_a_run_early(tmp_path, data):
    configure = ending(Events.EPOCH_COMPLETED(once=2))
    run = train(RECIPE, out=tmp_path, data=data, configure=configure, **parts_of_a_script())
    status = run.directory.read_status()
    assert (status["status"], status["ended_early"]) == ("finished", "handler")
    assert "Ended by a handler after epoch 2 of 3; epoch " in run.directory.log.read_text()


@pytest.mark.parametrize("with_validation", [True, False])
def test_a_handler_that_ends_a_run_before_an_epoch_is_named(
    tmp_path, data, validated, with_validation
):
    data = validated if with_validation else data
    configure = ending(Events.ITERATION_COMPLETED(once=2))
    with pytest.raises(UserError, match="^a handler ended the run in its first epoch"):
        train(RECIPE, out=tmp_path, data=data, configure=configure, **parts_of_a_script())
    run = train(RECIPE, out=tmp_path, data=data, resume=True, **parts_of_a_script())
    assert len(run.history.rows) == 3
